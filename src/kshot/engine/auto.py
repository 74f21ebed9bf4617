"""Choose how to batch tasks by measuring, on the real learner, shapes and device.

What is fastest cannot be guessed: on a CPU ``vmap`` over per-task convolution weights was slower than a loop, over
small linear layers twenty times faster, and on a GPU it is the other way round.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import Any

import torch

from kshot.core import Episode, Learner, UserError
from kshot.core.episode import n_tasks
from kshot.engine.batch import Batching, OuterGradient, OuterStep
from kshot.engine.inner import writes_in_place
from kshot.engine.memory_plan import within

#: Seconds a compilation may take at most, as planned for; measured 30 to 100 on two cores.
COMPILE_SECONDS = 100.0
#: Seconds to start worker processes, twice: to measure them, and to train with them.
WORKERS_SECONDS = 10.0
#: Share of the time ahead that compiling, or several processes, may be hoped to save: a fifth to a half was seen.
HOPED = 0.2
#: A step of fewer seconds is mostly the starting of operations, of which a compiled step has few: on sinusoids three
#: quarters and more were saved, of steps of 2 to 12 ms.
SMALL_STEP, HOPED_OF_SMALL = 0.02, 0.6


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


def available(learner: Learner, episodes: Episode | Sequence[Episode]) -> list[Batching]:
    """List the candidates that fit into memory.

    Args:
        learner: the method.
        episodes: a batch as training will see it.

    Returns:
        At least one.
    """
    return within(candidates(learner, episodes), learner, episodes)


def by_processes(alone: Batching, learner: Learner, episodes: Episode | Sequence[Episode]) -> Batching | None:
    """Give the fastest way of one process to several.

    Args:
        alone: the fastest way of one process.
        learner: the method.
        episodes: a batch as training will see it.

    Returns:
        As many processes as PyTorch has threads here, or as there are tasks; None where that is one, or off the CPU.
    """
    total = n_tasks(episodes) if isinstance(episodes, Episode) else len(episodes)
    workers = min(torch.get_num_threads(), cores(), total)
    if workers < 2 or next(learner.parameters()).device.type != "cpu":
        return None
    return replace(alone, kind="processes", inside=alone.kind, workers=workers)


def cores() -> int:
    """Return how many processors this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


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
        n_steps: outer steps ahead; compiling, and several processes, are tried where they could pay for themselves.
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
    ways = available(learner, episodes)
    for batching in ways:
        if batching.kind == "fused" and compiled == "on":
            continue
        measure = _measure_if_it_runs if batching.kind == "vmap" else _measure
        taken = measure(OuterStep(learner, batching, autocast), episodes, repeats, give_up=2 * best_seconds)
        seconds[str(batching)] = taken
        best, best_seconds = min((best, best_seconds), (batching, taken), key=lambda way: way[1])
    if compiled == "on" or (compiled == "auto" and best.kind != "fused" and compiling_pays(best_seconds, n_steps)):
        program = replace(best, compiled=True)
        wanted = compiled == "on"
        taken = seconds[str(program)] = _measure_compiled(
            OuterStep(learner, program, autocast), episodes, repeats, wanted
        )
        if wanted or taken < best_seconds:
            best, best_seconds = program, taken
    # Where memory is short, each process would need as much as the one.
    roomy = len(ways) == len(candidates(learner, episodes))
    worth_it = roomy and HOPED * best_seconds * n_steps > WORKERS_SECONDS
    several = by_processes(best, learner, episodes) if worth_it else None
    if several is not None:
        with closing(OuterStep(learner, several, autocast)) as step:
            taken = seconds[str(several)] = _measure_if_it_runs(step, episodes, repeats)
        best, best_seconds = min((best, best_seconds), (several, taken), key=lambda way: way[1])
    return best, seconds


def compiling_pays(seconds: float, n_steps: int) -> bool:
    """Tell whether the time ahead may be hoped to pay for a compilation.

    Args:
        seconds: of a step as it is.
        n_steps: outer steps ahead.

    Returns:
        True if so.
    """
    hoped = HOPED_OF_SMALL if seconds < SMALL_STEP else HOPED
    return hoped * seconds * n_steps > COMPILE_SECONDS


def _measure_compiled(step: OuterStep, episodes: Episode | Sequence[Episode], repeats: int, wanted: bool) -> float:
    try:
        return _measure(step, episodes, repeats)
    except RuntimeError as error:  # which every error of PyTorch's compilers is
        if not wanted:
            return float("inf")
        raise UserError(_no_compiler(error)) from error


def computed(step: OuterStep, episodes: Episode | Sequence[Episode]) -> OuterGradient:
    """Compute an outer gradient in float64 (``OuterStep`` with ``wide``).

    Args:
        step: how.
        episodes: of which.

    Returns:
        The gradient.

    Raises:
        UserError: steps are to be compiled, and no compiler works.
        RuntimeError: anything else went wrong.
    """
    try:
        return step(episodes, wide=True)
    except RuntimeError as error:
        if step.batching.compiled and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise UserError(_no_compiler(error)) from error
        raise


def _no_compiler(error: RuntimeError) -> str:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"expected a working compiler for compile=on, got: {first_line}; install a C++ compiler, or use compile=off"


def _measure_if_it_runs(
    step: OuterStep, episodes: Episode | Sequence[Episode], repeats: int, give_up: float = float("inf")
) -> float:
    try:
        return _measure(step, episodes, repeats, give_up)
    except (RuntimeError, TypeError, ValueError):
        # Not every learner can be mapped, or handed over: control flow on data, too little memory, ...
        return float("inf")


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
