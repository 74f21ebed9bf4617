"""Choose how to batch tasks by measuring, on the real learner, shapes and device.

What is fastest cannot be guessed: on a CPU ``vmap`` over per-task convolution weights was slower than a loop, over
small linear layers twenty times faster, and on a GPU it is the other way round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from kshot.core import Episode, Learner, UserError
from kshot.core.episode import n_tasks
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.inner import writes_in_place
from kshot.engine.memory_plan import within

#: Seconds a compilation may take at most, as planned for; measured 30 to 100 on two cores.
COMPILE_SECONDS = 100.0


def candidates(learner: Learner, episodes: Episode | Sequence[Episode]) -> list[Batching]:
    """List the ways to batch that are worth a measurement.

    Args:
        learner: the method.
        episodes: a batch as training will see it.

    Returns:
        At least the loop; a list of single episodes allows nothing else.
    """
    if not isinstance(episodes, Episode):
        return [Batching("loop")]
    found = [Batching("loop")]
    if learner.fused:
        found.append(Batching("fused"))
    if learner.native:
        found.append(Batching("native"))
    if n_tasks(episodes) > 1 and not writes_in_place(learner):
        found.append(Batching("vmap"))
        if n_tasks(episodes) > 8:
            found.append(Batching("vmap", chunk=8))
    return found


def choose(
    learner: Learner,
    episodes: Episode | Sequence[Episode],
    *,
    n_steps: int = 0,
    compiled: str = "auto",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    repeats: int = 3,
) -> tuple[Batching, dict[str, float]]:
    """Measure the candidates on one batch and take the fastest.

    Args:
        learner: the method; unchanged afterwards.
        episodes: a batch as training will see it, on its device.
        n_steps: outer steps ahead; compiling is tried where it could pay for itself.
        compiled: "on", "off" or "auto".
        autocast: makes a context for mixed precision.
        repeats: measurements of each candidate; the median counts.

    Returns:
        The fastest, and the seconds of each candidate that was measured; infinite for one that cannot run.

    Raises:
        UserError: ``compiled`` is none of the three, or is "on" and no compiler works; or one task alone is more than
            the memory holds.
    """
    if compiled not in ("auto", "on", "off"):
        raise UserError(f"compile must be auto, on or off, got {compiled!r}")
    seconds: dict[str, float] = {}
    best, best_seconds = Batching("loop"), float("inf")
    for batching in within(candidates(learner, episodes), learner, episodes):
        if batching.kind == "fused" and compiled == "on":
            continue
        measure = _measure_if_it_runs if batching.kind == "vmap" else _measure
        taken = measure(OuterStep(learner, batching, autocast), episodes, repeats, give_up=2 * best_seconds)
        seconds[str(batching)] = taken
        if taken < best_seconds:
            best, best_seconds = batching, taken
    # A compiled step was seen to save a fifth to a half; a fifth of what is ahead must pay for the compilation.
    worth_it = compiled == "auto" and best.kind != "fused" and 0.2 * best_seconds * n_steps > COMPILE_SECONDS
    if compiled == "on" or worth_it:
        program = replace(best, compiled=True)
        try:
            seconds[str(program)] = _measure(OuterStep(learner, program, autocast), episodes, repeats)
        except RuntimeError as error:  # which every error of PyTorch's compilers is
            if compiled == "on":
                first_line = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(
                    f"expected a working compiler for compile=on, got: {first_line}; "
                    "install a C++ compiler, or use compile=off"
                ) from error
            seconds[str(program)] = float("inf")
            return best, seconds
        if compiled == "on" or seconds[str(program)] < best_seconds:
            best = program
    return best, seconds


def _measure_if_it_runs(
    step: OuterStep, episodes: Episode | Sequence[Episode], repeats: int, give_up: float = float("inf")
) -> float:
    try:
        return _measure(step, episodes, repeats, give_up)
    except (RuntimeError, TypeError, ValueError):
        return float("inf")  # not every learner can be mapped: control flow on data, memory for all tasks, ...


def _measure(
    step: OuterStep, episodes: Episode | Sequence[Episode], repeats: int, give_up: float = float("inf")
) -> float:
    taken = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        step(episodes)
        _synchronise(step.learner)
        # The first call pays for allocations and traces, unless it is the only one worth making.
        if i > 0:
            taken.append(time.perf_counter() - start)
        if taken and taken[0] > give_up:
            break
    return statistics.median(taken)


def _synchronise(learner: Learner) -> None:
    device = next(learner.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
