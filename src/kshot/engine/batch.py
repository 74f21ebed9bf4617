"""The outer gradient of a batch of tasks: by a loop, by ``vmap``, natively, by several processes; in chunks; compiled.

All of them compute the same thing: the mean over T tasks of the gradient of ``outer_loss``, every task starting from
the same buffers, and the mean of the buffers that the tasks leave behind. Which one is fastest depends on the learner,
the shapes and the device; ``kshot.engine.auto`` measures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from kshot.core import Episode, Learner, Split, Tree, UserError, tree_map
from kshot.core.episode import n_tasks, select, unbind
from kshot.core.functional import functional_call
from kshot.core.tree import leaves
from kshot.engine.inner import (
    Named,
    Random,
    first_divergence,
    known,
    mean_of_tasks,
    recomputing,
    weights_of,
    writes_in_place,
)
from kshot.engine.processes import Workers, default_number
from kshot.engine.reading import Reader

#: Ways for one process to run tasks; and one for several, each of which uses one of these.
ALONE = ("loop", "vmap", "native", "fused")
KINDS = (*ALONE, "processes")


@dataclass(frozen=True)
class Batching:
    """How the tasks of a batch are run.

    Attributes:
        kind: "loop" (one task after the other: least memory), "vmap" (all at once, by PyTorch's vectorising map),
            "native" (the learner's own ``outer_losses``), "fused" (its ``fused_losses``: a kernel in C++), or
            "processes" (worker processes on a CPU, one thread each, which share the tasks).
        chunk: at most so many tasks at once; 0 for all. A loop has no use for it.
        compiled: trace the gradient once for each set of shapes and compile it.
        recompute: run inner steps a second time on the way back, in the place of keeping what they computed: memory
            grows with the root of their number. What has no inner steps is left as it is.
        inside: kind that each worker process uses.
        workers: number of worker processes; 0 for as many as PyTorch has threads, at least two.

    Raises:
        UserError: unknown kind, a negative number, or compiling what is compiled already.
    """

    kind: str = "loop"
    chunk: int = 0
    compiled: bool = False
    recompute: bool = False
    inside: str = "loop"
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"batching must be one of auto, {', '.join(KINDS)}, got {self.kind!r}")
        if self.inside not in ALONE:
            raise UserError(f"expected worker processes that run {', '.join(ALONE)}, got {self.inside!r}")
        if self.chunk < 0:
            raise UserError(f"expected chunk >= 0 tasks, got {self.chunk}")
        if self.workers < 0:
            raise UserError(f"expected workers >= 0 processes, got {self.workers}")
        if self.alone == "fused" and self.compiled:
            raise UserError("fused batching is compiled already; expected compile=off with it, or another batching")

    @property
    def alone(self) -> str:
        """The kind that runs within one process."""
        return self.inside if self.kind == "processes" else self.kind

    def of_one_process(self) -> Batching:
        """Return what each process does: of "processes" the kind inside, else the same."""
        return replace(self, kind=self.alone, inside="loop", workers=0)

    def __str__(self) -> str:
        several = f"{self.workers or 'several'} processes of {self.inside}"
        parts = [
            several if self.kind == "processes" else self.kind,
            f"chunks of {self.chunk}" if self.chunk else "",
            "compiled" if self.compiled else "",
        ]
        parts.append("steps recomputed" if self.recompute else "")
        return ", ".join(p for p in parts if p)


class OuterGradient(NamedTuple):
    """What one batch of tasks says about the outer update.

    Attributes:
        losses: (T,) outer loss of each task.
        grads: name -> gradient of the mean loss.
        buffers: name -> mean over tasks of the buffers that they left.
    """

    losses: Tensor
    grads: Named
    buffers: Named


Flat = tuple[Tree, Tensor, Tree, Tensor]  # support x, y, query x, y
Pure = Callable[[Named, Named, Flat], tuple[Tensor, Named, Named]]


class OuterStep:
    """Computes the outer gradient of batches of tasks for one learner.

    Args:
        learner: whose parameters; it is left unchanged by a call.
        batching: how.
        autocast: makes a context for mixed precision, entered around every forward pass.

    Raises:
        UserError: "native" or "fused" is asked of a learner that has it not.
    """

    def __init__(
        self,
        learner: Learner,
        batching: Batching,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if batching.alone in ("native", "fused") and not getattr(learner, batching.alone):
            raise UserError(
                f"{type(learner).__name__} has no {batching.alone} batching for this network; use vmap, loop or auto"
            )
        self.learner, self.batching, self.autocast = learner, batching, autocast
        self._workers: Workers | None = None
        self._programs: dict[Any, Pure] = {}
        self._latest: Episode | Sequence[Episode] = []
        self._bad = False
        self._random = Random() if isinstance(learner, Reader) else None

    def __call__(self, episodes: Episode | Sequence[Episode], *, wide: bool = False) -> OuterGradient:
        """Compute the outer gradient.

        Args:
            episodes: a batch of T episodes, or a list of episodes (or batches) of any shapes, which are looped over.
            wide: see ``combine``.

        Returns:
            Losses, gradients and buffers. Nothing of the learner has changed.
        """
        if not self._bad:  # of several batches of one outer step, the first that diverged is looked at
            self._latest = episodes
            if self._random is not None:  # Readers put examples into a random order, and may have to do so again.
                self._random = Random()
        found = self._computed(episodes, wide)
        self._bad = self._bad or known(torch.isfinite(found.losses).all()) == 0
        return found

    def _computed(self, episodes: Episode | Sequence[Episode], wide: bool) -> OuterGradient:
        if self.batching.kind == "processes":
            return self._by_processes(episodes, wide)
        params, buffers = weights_of(self.learner)
        pieces = self._pieces(episodes)
        return combine((OuterGradient(*self._part(params, buffers, piece)) for piece in pieces), wide=wide)

    def close(self) -> None:
        """Let the worker processes go, where there are any; the next call has others, or these again."""
        if self._workers is not None:
            self._workers.release()
            self._workers = None

    def _by_processes(self, episodes: Episode | Sequence[Episode], wide: bool) -> OuterGradient:
        shares = self._shares(episodes)
        if self._workers is None or not self._workers.alive:
            self._workers = Workers(self.learner, len(shares))
        found = self._workers.run(shares, asdict(self.batching.of_one_process()), self.autocast)
        losses, grads, buffers = combine((OuterGradient(*one) for one in found), wide=True)
        if not wide:
            params = dict(self.learner.named_parameters())
            grads = {k: g.to(params[k].dtype) for k, g in grads.items()}
        return OuterGradient(losses, grads if len(found) > 1 else {k: g.clone() for k, g in grads.items()}, buffers)

    def _shares(self, episodes: Episode | Sequence[Episode]) -> list[Episode | list[Episode]]:
        # Tasks in a row for each worker, numbers as even as they can be. The workers that are there do it.
        several = None if isinstance(episodes, Episode) else self._pieces(episodes)
        total = n_tasks(episodes) if isinstance(episodes, Episode) else len(several or ())
        workers = len(self._workers) if self._workers is not None else self.batching.workers or default_number()
        n = min(workers, total)
        spans = [slice(a, b) for a, b in pairwise(total * i // n for i in range(n + 1))] if n else []
        if isinstance(episodes, Episode):
            return [select(episodes, span) for span in spans]
        return [several[span] for span in spans] if several else []

    def first_divergence(self) -> str | None:
        """Find where an inner loop went to infinity, or the cell of a reader; it takes a while.

        The batch is the first that diverged since this was last asked, or the latest.

        Returns:
            Such as "the gradient of 0.weight in inner step 3", or "the key strength at step 7 of the sequence"; None
            where all steps are finite, or there are none.
        """
        self._bad = False
        if isinstance(self.learner, Reader):
            return self._first_along_sequences(self.learner)
        several = [self._latest] if isinstance(self._latest, Episode) else self._latest
        singles = (single for e in several for single in self._singles(e))
        with self.autocast():
            return next((found for e in singles if (found := first_divergence(self.learner, e))), None)

    def _first_along_sequences(self, learner: Reader) -> str | None:
        # As the batch was taken, by the plain steps of the cell; a copy, since layers may count what they see.
        learner, whole = copy.deepcopy(learner), self._pieces(self._latest)
        side_by_side = self.batching.alone in ("native", "fused")
        pieces = whole if side_by_side else [e for p in whole for e in self._singles(p)]
        with self._random.again() if self._random is not None else nullcontext(), self.autocast():
            looked = (learner.first_divergence(p, one=p.query.y.ndim == self._target_ndim(p)) for p in pieces)
            return next((found for found in looked if found), None)

    def _pieces(self, episodes: Episode | Sequence[Episode]) -> list[Episode]:
        # What is run at once: batches of tasks, or single tasks under a loop.
        if not isinstance(episodes, Episode):
            return [single for e in episodes for single in self._singles(e)]
        if self.batching.kind == "loop":
            return list(unbind(episodes))
        if self.batching.kind == "vmap" and writes_in_place(self.learner):
            raise UserError(
                "expected a network that vmap can map, got one whose batch norm writes running statistics in place; "
                "take kshot.nn.norm.Norm for it, or batching loop or auto"
            )
        total = n_tasks(episodes)
        chunk = self.batching.chunk or max(total, 1)
        return [select(episodes, slice(i, i + chunk)) for i in range(0, total, chunk)]

    def _singles(self, episode: Episode) -> list[Episode]:
        # Sources whose shapes vary give batches of one episode each.
        if episode.query.y.ndim == self._target_ndim(episode):
            return [episode]
        return list(unbind(episode))

    def _part(self, params: Named, buffers: Named, piece: Episode) -> tuple[Tensor, Named, Named]:
        flat: Flat = (piece.support.x, piece.support.y, piece.query.x, piece.query.y)
        single = piece.query.y.ndim == self._target_ndim(piece)
        pure = self._pure(piece.support.n_way, piece.query.n_way, single)
        with self.autocast(), recomputing(self.batching.recompute):
            if self.batching.compiled:
                pure = self._compiled(pure, (params, buffers, flat), (piece.support.n_way, single))
            losses, grads, after = pure(params, buffers, flat)
        return losses.reshape(-1), grads, after

    @staticmethod
    def _target_ndim(piece: Episode) -> int:
        y = piece.query.y
        return 2 if y.is_floating_point() or y.dtype == torch.bool else 1

    def _pure(self, support_ways: int | None, query_ways: int | None, single: bool) -> Pure:
        # A pure function of tensors, so that it can be traced: all else is closed over.
        learner, kind = self.learner, self.batching.kind
        trainable = {k for k, p in learner.named_parameters() if p.requires_grad}

        def run(params: Named, buffers: Named, flat: Flat, how: str) -> tuple[Tensor, Named]:
            episode = Episode(Split(flat[0], flat[1], support_ways), Split(flat[2], flat[3], query_ways))
            merged = {**params, **buffers}
            loss = functional_call(learner, merged, (episode,), {"how": how})
            return loss, {k: merged[k].detach() for k in buffers}

        def losses_of(params: Named, buffers: Named, flat: Flat) -> tuple[Tensor, Named]:
            if single or kind in ("native", "fused"):
                return run(params, buffers, flat, how="one" if single else kind)
            each = torch.func.vmap(lambda f: run(params, buffers, f, how="one"), randomness="different", in_dims=(0,))
            losses, after = each(flat)
            return losses, {k: mean_of_tasks(b) for k, b in after.items()}

        def value_and_grad(params: Named, buffers: Named, flat: Flat) -> tuple[Tensor, Named, Named]:
            leaves_ = {k: p.detach().requires_grad_() for k, p in params.items() if k in trainable}
            frozen = {k: p.detach() for k, p in params.items() if k not in trainable}
            # A copy, since layers that are not ours write their running statistics in place.
            own = {k: b.detach().clone() for k, b in buffers.items()}
            with torch.enable_grad():
                losses, after = losses_of({**leaves_, **frozen}, own, flat)
                grads = torch.autograd.grad(losses.mean(), list(leaves_.values()), materialize_grads=True)
            return losses.detach(), dict(zip(leaves_, grads, strict=True)), after

        return value_and_grad

    def _compiled(self, pure: Pure, args: tuple[Named, Named, Flat], statics: tuple[Any, ...]) -> Pure:
        # Once for each set of shapes.
        flat = args[2]
        trainable = tuple(k for k, p in self.learner.named_parameters() if p.requires_grad)
        shapes = ((t.shape, t.dtype) for t in leaves(flat))
        key = (statics, trainable, self.learner.training, torch.is_autocast_enabled("cpu"), *shapes)
        if key not in self._programs:
            self._programs[key] = compile_pure(pure, args)
        return self._programs[key]


def combine(parts: Iterable[OuterGradient], *, wide: bool = False) -> OuterGradient:
    """Join outer gradients of several groups of tasks into that of all the tasks.

    Gradients are summed in float64 and rounded once, so that the order of the tasks, and how processes share them, do
    not matter: training in float32 doubles a difference in the last bit every few steps.

    Args:
        parts: at least one; each counts by its number of tasks. Taken one by one, so only two need be in memory.
        wide: leave sums in float64, for somebody who sums on.

    Returns:
        The gradient of the mean over all tasks.

    Raises:
        UserError: there is no part.
    """
    several = iter(parts)
    first = next(several, None)
    if first is None:
        raise UserError("expected at least one task in a batch, got none; raise n_tasks")
    losses, buffers, sums = [first.losses], first.buffers, dict[str, Tensor]()
    count = len(first.losses)
    for part in several:
        n = len(part.losses)
        sums = sums or {k: widened(g) * count for k, g in first.grads.items()}
        count += n
        sums = {k: sums[k].add_(widened(g), alpha=n) for k, g in part.grads.items()}
        buffers = {k: _between(buffers[k], b, n / count) for k, b in part.buffers.items()}
        losses.append(part.losses)
    means = {k: (g / count).to(g.dtype if wide else first.grads[k].dtype) for k, g in sums.items()}
    return OuterGradient(torch.cat(losses), means or first.grads, buffers)


def widened(t: Tensor) -> Tensor:
    """Return a tensor in float64 where the device has it.

    Args:
        t: any floating-point tensor.

    Returns:
        The same numbers.
    """
    return t if t.device.type == "mps" else t.double()


def _between(mean: Tensor, new: Tensor, share: float) -> Tensor:
    # Constants come out as they went in: see ``mean_of_tasks``.
    if not mean.is_floating_point():  # such as a counter of batches
        return mean
    return torch.where(new == mean, mean, torch.lerp(mean, new, share))


def compile_pure(pure: Pure, args: tuple[Named, Named, Flat]) -> Pure:
    """Compile a function of tensors by tracing it once, gradients and all, and handing the graph to inductor.

    Args:
        pure: the function; it may call ``torch.autograd.grad`` and ``torch.func`` inside.
        args: arguments of the shapes to compile for.

    Returns:
        The same function for tensors of these shapes.

    Raises:
        RuntimeError: the function cannot be traced, or (on the first call) no compiler works.
    """
    detached = tree_map(torch.Tensor.detach, args)
    graph = make_fx(pure)(*detached)
    program = torch.compile(graph, dynamic=False)

    def run(*call_args: Any) -> tuple[Tensor, Named, Named]:
        with torch.no_grad():
            return program(*tree_map(torch.Tensor.detach, call_args))

    return run
