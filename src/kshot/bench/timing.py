"""Fair timing: the contenders take turns within one run, so that a machine that slows down slows them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Contender = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender.

    Attributes:
        seconds: one number for each round, in order.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The number to quote."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Fastest and slowest."""
        return min(self.seconds), max(self.seconds)


def take_turns(contenders: Mapping[str, Contender], rounds: int = 5, warmup: int = 1) -> dict[str, Timing]:
    """Time contenders in turn: A B C, A B C, ...

    Args:
        contenders: name -> what to time.
        rounds: measured rounds.
        warmup: rounds before them, not measured.

    Returns:
        Name -> timing.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(warmup + rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= warmup:
                taken[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def ratio(slow: Timing, fast: Timing) -> tuple[float, float, float]:
    """Compare two contenders round by round.

    Args:
        slow: the one that is divided.
        fast: the one that it is divided by.

    Returns:
        Median, least and greatest of slow / fast over the rounds.
    """
    pairs = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)
