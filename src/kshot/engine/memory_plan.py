"""Plan the memory of the outer gradient before it is taken: rehearse it on tensors without contents, add up what lives.

Second order keeps what every inner step computed until the outer gradient has come back through it; how much that is
depends on parameters, activations, steps and tasks, and no formula knows every network. So one and two tasks are run on
PyTorch's fake tensors, which have shapes and no memory, and every storage is counted from its birth to its death; more
tasks at once add what the second one added. Left out are the scratch buffers of kernels.
"""

from __future__ import annotations

import copy
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kshot.core import Episode, Learner, UserError, tree_map
from kshot.core.episode import n_tasks, select, unbind
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.free_memory import free_memory
from kshot.engine.inner import InnerLoop, writes_in_place
from kshot.engine.processes import default_number
from kshot.engine.reading import Reader
from kshot.nn import native

#: Share of the free memory that a plan may fill.
SHARE = 0.8
#: Steps of a sequence from which on its memory is planned: shorter ones have never been too much.
LONG = 100
#: The gradient of a task takes so many times the bytes that its inner steps make without a graph, at most: 0.1 to 1.9
#: were seen.
AT_MOST = 4

Autocast = Callable[[], AbstractContextManager[Any]]


class UnplannedWarning(UserWarning):
    """A network could not be rehearsed, so nobody knows beforehand whether its memory is enough."""


#: What PyTorch says of an operation whose outcome, or its shape, hangs on numbers that a fake tensor has not; or that
#: it cannot imitate.
UNKNOWN_WITHOUT_NUMBERS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
UNPLANNED = (
    "the memory of {learner} on this network is not planned, since the network looks at the numbers that it computes "
    "({error}); tasks are taken one after the other. Where memory is short, pass recompute=True or fewer inner steps"
)


class Need(NamedTuple):
    """Bytes that an outer gradient takes beside the parameters and the episodes.

    Attributes:
        fixed: however few the tasks.
        per_task: for each task that is run at once.
    """

    fixed: int
    per_task: int

    def of(self, n: int) -> int:
        """Return the bytes of n tasks at once."""
        return self.fixed + n * self.per_task


@dataclass(frozen=True)
class Plan:
    """How to batch within a budget.

    Attributes:
        batching: the choice.
        predicted: its peak in bytes.
        budget: what was free to use, in bytes.
    """

    batching: Batching
    predicted: int
    budget: int


def predict(learner: Learner, episodes: Episode, batching: Batching, autocast: Autocast = nullcontext) -> Need:
    """Predict the memory of an outer gradient, without taking any.

    Args:
        learner: the method; it is not changed.
        episodes: a batch as training will see it; its shapes count.
        batching: how; ``chunk`` is of no concern, for what is asked is the memory of each task. Of
            several processes it is the memory of each.
        autocast: makes a context for mixed precision.

    Returns:
        The bytes. For a loop, whose tasks come one after the other, all of it is ``fixed``.
    """
    batching = batching.of_one_process()

    def rehearsed(n: int) -> int:
        return _rehearsed(learner, select(episodes, slice(0, n)), batching, autocast)

    if batching.kind == "loop":
        # From the third task on, the sums of those before lie beside the one at work.
        return Need(rehearsed(3), 0)
    one = rehearsed(1)
    if n_tasks(episodes) == 1:
        return Need(0, one)
    two = rehearsed(2)
    return Need(max(2 * one - two, 0), two - one)


def _rehearsed(learner: Learner, episodes: Episode, batching: Batching, autocast: Autocast = nullcontext) -> int:
    plain = replace(batching, chunk=0, compiled=False)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        splits = (s._replace(x=tree_map(mode.from_tensor, s.x), y=mode.from_tensor(s.y)) for s in episodes)
        fake = Episode(*splits)
        with measured() as peak:
            OuterStep(learner, plain, autocast)(fake)
    return peak()


@contextmanager
def measured() -> Iterator[Callable[[], int]]:
    """Count the bytes of the tensors that live while open, those that were there before left out.

    Yields:
        A function that gives the peak so far.
    """
    ledger = _Ledger()
    with ledger:
        yield lambda: ledger.peak


class _Ledger(TorchDispatchMode):
    """Writes down every storage that an operation makes, and strikes it out when nobody holds it any longer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.total = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in _tensors((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for t in _tensors(out):
            storage = t.untyped_storage()
            if id(storage) not in self.known and id(storage) not in given:
                self._enter(storage)
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        size, name = storage.nbytes(), id(storage)
        self.known.add(name)
        self.now += size
        self.total += size
        self.peak = max(self.peak, self.now)

        def leave() -> None:
            self.now -= size
            self.known.discard(name)

        weakref.finalize(storage, leave).atexit = False


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def plan(
    learner: Learner,
    episodes: Episode,
    *,
    kind: str = "vmap",
    budget: int | None = None,
) -> Plan:
    """Choose the fastest way to batch that fits into memory.

    All tasks at once; else as many as fit; else one after the other; else, in the same order, with inner steps
    recomputed, which takes about half as long again.

    Args:
        learner: the method.
        episodes: a batch as training will see it.
        kind: "vmap", or "loop" for one task after the other in any case.
        budget: bytes that may be used; ``SHARE`` of what is free on the device if None.

    Returns:
        The plan.

    Raises:
        UserError: one task alone, with its steps recomputed, does not fit; the message says what would help.
    """
    budget = int(SHARE * free_memory(episodes.support.y.device)) if budget is None else budget
    sums = 16 * sum(p.numel() for p in learner.parameters())  # of chunks, in float64, and the new ones beside them
    mapped = kind == "vmap" and n_tasks(episodes) > 1 and not writes_in_place(learner)
    for recompute in (False, True):
        need = _mapped(learner, episodes, recompute) if mapped else None
        if need is not None:
            if need.of(n_tasks(episodes)) <= budget:
                return Plan(Batching("vmap", recompute=recompute), need.of(n_tasks(episodes)), budget)
            chunk = _most(need, budget - sums, n_tasks(episodes))
            if chunk > 1:
                return Plan(Batching("vmap", chunk, recompute=recompute), need.of(chunk) + sums, budget)
        alone = predict(learner, episodes, Batching("loop", recompute=recompute)).of(1)
        if alone <= budget:
            return Plan(Batching("loop", recompute=recompute), alone, budget)
    raise UserError(_refusal(learner, episodes, alone, budget))


def _mapped(learner: Learner, episodes: Episode, recompute: bool) -> Need | None:
    try:
        return predict(learner, episodes, Batching("vmap", recompute=recompute))
    except (RuntimeError, TypeError, ValueError):  # Not every network can be mapped, such as an LSTM.
        return None


def within(found: list[Batching], learner: Learner, episodes: Episode | Sequence[Episode]) -> list[Batching]:
    """Leave out the ways to batch that would not fit into memory.

    Args:
        found: the ways.
        learner: the method; only those with an inner loop of the engine's, and readers of long sequences, are planned
            for.
        episodes: a batch as training will see it.

    Returns:
        All of them where there is room; else the planned one, and the compiled kernel, which keeps little. Where a
        network cannot be rehearsed, for it looks at the numbers, all but ``vmap``, which cannot run it either;
        ``UnplannedWarning`` says so.
    """
    if not isinstance(episodes, Episode):
        return found
    reads = isinstance(learner, Reader) and _steps(episodes) >= LONG
    if not (reads or isinstance(learner, InnerLoop)):
        return found
    try:
        alone = _rehearsed(learner, select(episodes, slice(0, 1)), Batching("loop"))
    except UNKNOWN_WITHOUT_NUMBERS as error:
        warnings.warn(UNPLANNED.format(learner=type(learner).__name__, error=error), UnplannedWarning, stacklevel=2)
        return [b for b in found if b.kind != "vmap"]
    if alone * n_tasks(episodes) <= SHARE * free_memory(episodes.support.y.device):
        return found
    if isinstance(learner, Reader):
        # The memory of a long sequence grows with its steps, or with their root where they are computed twice.
        lean = [b for b in found if b.kind == "fused" and learner.cell.fused_is_lean]
        return lean or [replace(b, recompute=True) for b in found if b.kind != "fused"]
    fused = [b for b in found if b.kind == "fused"]
    return fused or [plan(learner, episodes).batching]


def _steps(episodes: Episode) -> int:
    return sum(split.y.shape[1] for split in episodes)


def refuse_too_large(step: OuterStep, episodes: Episode | Sequence[Episode]) -> None:
    """Refuse a batching that was asked for where its tasks do not fit into memory.

    A rehearsal takes seconds, so it is held only where the steps of one task, taken for real and without a graph, leave
    a doubt.

    Args:
        step: how the outer gradient will be taken; only that of inner loops of the engine's is looked at, and not by
            kernels, which keep little.
        episodes: a batch as training will see it.

    Raises:
        UserError: it does not fit; the message says what would help.
    """
    learner, batching = step.learner, step.batching
    if not (isinstance(learner, InnerLoop) and isinstance(episodes, Episode)) or batching.alone == "fused":
        return
    total = n_tasks(episodes)
    processes = min(batching.workers or default_number(), total) if batching.kind == "processes" else 1
    at_once = 1 if batching.alone == "loop" else min(batching.chunk or total, -(-total // processes))
    room = free_memory(episodes.support.y.device)
    with step.autocast():
        doubtful = AT_MOST * _made(learner, episodes) * at_once * processes > room
    if not doubtful:
        return
    try:
        needed = predict(learner, episodes, batching, step.autocast).of(at_once) * processes
    except UNKNOWN_WITHOUT_NUMBERS:
        return
    if needed > room:
        ways = [f"batching auto, which looks for one that fits, instead of {batching}", *_offers(learner, episodes)]
        if at_once > 1:
            ways.insert(1, f"chunk={max(at_once // 2, 1)} or less")
        if not batching.recompute:
            ways.insert(1, "recompute=True")
        raise UserError(
            f"expected the outer gradient to fit into {in_words(room)} of free memory; {type(learner).__name__} needs "
            f"{in_words(needed)} for {_counted(at_once * processes)} at once. What helps: {'; '.join(ways)}"
        )


def _counted(n: int) -> str:
    return "one task" if n == 1 else f"{n} tasks"


def _made(learner: InnerLoop, episodes: Episode) -> int:
    # Bytes of all that the first task makes on its way, by plain operations, and of one gradient.
    one, ledger = next(iter(unbind(episodes))), _Ledger()
    with native.switched_off(), torch.no_grad(), ledger:
        learner.predict(learner.adapt(one.support), one.query.x)
    return ledger.total + sum(p.numel() * p.element_size() for p in learner.parameters())


def _most(need: Need, budget: int, n: int) -> int:
    return next((chunk for chunk in range(n, 0, -1) if need.of(chunk) <= budget), 0)


def _refusal(learner: Learner, episodes: Episode, alone: int, budget: int) -> str:
    return (
        f"expected one task to fit into {in_words(budget)} of memory; {type(learner).__name__} needs "
        f"{in_words(alone)} for one, even with its inner steps recomputed. What helps: "
        f"{'; '.join(_offers(learner, episodes))}"
    )


def _offers(learner: Learner, episodes: Episode) -> list[str]:
    ways = ["fewer inner steps", "smaller inputs or fewer examples", "imaml, whose memory does not grow with the steps"]
    offered = inspect.signature(type(learner)).parameters if learner.exact_gradient else {}
    for option, value in (("truncate", 1), ("first_order", True)):
        if option in offered:
            cheap = copy.deepcopy(learner)
            setattr(cheap, option, value)
            least = predict(cheap, episodes, Batching("loop")).of(1)
            ways.insert(0, f"{option}={value}, which needs {in_words(least)} for one task")
    return ways


def in_words(n_bytes: float) -> str:
    """Say a number of bytes.

    Args:
        n_bytes: the number.

    Returns:
        Such as "1.5 GiB".
    """
    for unit in ("bytes", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.3g} GiB"
