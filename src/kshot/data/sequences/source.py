"""What the sequence tasks have in common: one length for a batch, and an episode made of steps."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from kshot.core import Episode, Split, Tree, UserError
from kshot.data.source import TaskSource

Range = tuple[int, int]


class SequenceSource(TaskSource):
    """Sequences of bits: some steps are read, and bits are asked at the steps that follow.

    An episode is one sequence. ``n_shot`` and ``n_query`` are the largest numbers of steps read and asked.

    Args:
        one_length: all sequences of a plan are equally long, so that a batch of them is rectangular, as training wants
            it; else every sequence draws its own length, so that an evaluation sees all of them.
    """

    def __init__(self, *, one_length: bool) -> None:
        self.varying = not one_length

    def plan(self, n_tasks: int, generator: torch.Generator) -> Tree:
        """Draw T sequences.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            What ``draw`` returns, or a list of T of it for one sequence each if ``varying``.

        Raises:
            UserError: T is below 1.
        """
        if n_tasks < 1:
            raise UserError(f"expected n_tasks of at least 1, got {n_tasks}; choose another")
        if self.varying:
            return [self.draw(1, generator) for _ in range(n_tasks)]
        return self.draw(n_tasks, generator)

    @abstractmethod
    def draw(self, n_tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw T sequences of one length.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            Tensors with leading axis T.
        """

    def made(self, read: Tensor, asked: Tensor, y: Tensor) -> Episode:
        """Make episodes of steps.

        Args:
            read: (T, S, I), inputs of the steps that are read.
            asked: (T, Q, I), inputs of the steps at which bits are asked.
            y: (T, Q, O), those bits.

        Returns:
            Episodes on ``device``: inputs float32, targets bool; ``support.y`` is (T, S, 0): nothing is asked there.
        """
        nothing = torch.empty(*read.shape[:2], 0, dtype=torch.bool, device=self.device)
        support = Split(read.to(self.device, torch.float32), nothing)
        return Episode(support, Split(asked.to(self.device, torch.float32), y.to(self.device, torch.bool)))


def random_bits(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw bits.

    Args:
        *shape: of the result.
        generator: a CPU generator.

    Returns:
        uint8 zeros and ones, equally likely.
    """
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)


def number_in(ends: Range, generator: torch.Generator) -> int:
    """Draw a whole number.

    Args:
        ends: smallest and largest.
        generator: a CPU generator.

    Returns:
        One of them, all equally likely.
    """
    return int(torch.randint(ends[0], ends[1] + 1, (), generator=generator))


def checked(what: str, ends: Range, least: int = 1) -> Range:
    """Check the ends of a range of numbers.

    Args:
        what: its name in the options, such as "length" of "min_length" and "max_length".
        ends: smallest and largest.
        least: that they may be.

    Returns:
        The ends.

    Raises:
        UserError: they are too small, or the wrong way round.
    """
    low, high = ends
    if not least <= low <= high:
        raise UserError(f"expected {least} <= min_{what} <= max_{what}, got {low} and {high}; choose others")
    return ends


def at_least(what: str, number: int, least: int = 1) -> int:
    """Check a number.

    Args:
        what: its name in the options.
        number: the number.
        least: that it may be.

    Returns:
        The number.

    Raises:
        UserError: it is too small.
    """
    if number < least:
        raise UserError(f"expected {what} of at least {least}, got {number}; choose another")
    return number
