"""The inner loop of models with a memory: they read the support as a sequence, and what they read is the state.

Everything here composes with ``torch.func.vmap``. A batch of tasks is also one scan with a task axis, which takes a
fraction of the time of mapping the steps of a long sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Episode, Learner, Spec, Split, Tree, UserError, tree_map, unchanged_since
from kshot.core.functional import functional_call
from kshot.engine.divergence import Watch
from kshot.engine.embedding import Embed, embed_queries, embed_support
from kshot.engine.inner import Named, recompute_is_on, run_twice
from kshot.nn.conv import by_kernels
from kshot.nn.memory.cell import Cell
from kshot.nn.memory.labelled import offset, shown, shuffled
from kshot.nn.norm import uses_support_statistics

#: As ``Cell.scan``.
Scan = Callable[[Tensor, Any], tuple[Tensor, Any]]


class Read(NamedTuple):
    """What a model knows of a task once it has read the support.

    Attributes:
        cell: the state of its cell, without batch axes.
        last: (C,) target of the last example, which is shown beside the next one.
        buffers: the backbone's; normalisation by support statistics keeps its own in them.
    """

    cell: tuple[Any, ...]
    last: Tensor
    buffers: Named


class _WholeScan(nn.Module):
    """A cell whose call is its scan."""

    def __init__(self, cell: Cell[Any]) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.cell.scan(x, state)


class Reader(Learner):
    """A learner that is a recurrent cell between a backbone and a linear head.

    Of labelled tasks it reads (x_1, 0), (x_2, y_1), ..., and every query as (x, y_S) from that same state, so it is
    inductive. It is trained on one sequence of all examples, in random order, with a loss at every step. In tasks of
    kind "sequence" it reads what there is to read, and answers along the steps of the query.

    Args:
        backbone: maps (N, ...) to (N, D).
        cell: reads D + C numbers a step, where C is the width of a target, or D in tasks of kind "sequence".
        spec: what the tasks look like.
    """

    any_way = False
    order_matters = True
    label_equivariant = False

    def __init__(self, backbone: nn.Module, cell: Cell[Any], spec: Spec) -> None:
        super().__init__()
        self.backbone, self.cell, self.spec = backbone, cell, spec
        self.head = nn.Linear(cell.n_features, spec.n_outputs)

    @staticmethod
    def width(backbone: nn.Module, spec: Spec) -> int:
        """Return how wide the steps are that the cell reads.

        Args:
            backbone: has ``n_features``.
            spec: what the tasks look like.

        Returns:
            D + C, or D.

        Raises:
            UserError: the backbone does not say its width.
        """
        n = getattr(backbone, "n_features", None)
        if not isinstance(n, int):
            raise UserError(f"expected a backbone with a width n_features, got a {type(backbone).__name__} without it")
        return n if spec.kind == "sequence" else n + spec.n_outputs

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> Reader:
        """Build the learner.

        Args:
            backbone: the network; it has an attribute ``n_features``.
            spec: what the tasks look like.
            **options: the method's own keyword options.

        Returns:
            The learner.
        """
        return cls(backbone, spec, **options)  # pyright: ignore[reportArgumentType]

    @property
    def n_rows(self) -> int | None:
        """Rows of the cell's memory; None where it has none."""
        return self.cell.n_rows

    @property
    def native(self) -> bool:
        """True if the backbone takes a task axis, needs no statistics from ``adapt``, and the loss is the usual one."""
        takes = getattr(self.backbone, "takes_tasks", False) and not uses_support_statistics(self.backbone)
        return takes and unchanged_since(self, "outer_losses", ("outer_loss",))

    @property
    def fused(self) -> bool:
        """True if compiled kernels run the cell, or embed by the very backbone, while training."""
        known = unchanged_since(self, "fused_losses", ("outer_loss",))
        if not (self.native and self.training and known):
            return False
        return self.cell.can_fuse() or by_kernels(self.backbone)

    def adapt(self, support: Split) -> Read:
        """Read the support.

        Args:
            support: x (S, ...), y (S,) int64, (S, O) floats, or (S, 0) of a sequence.

        Returns:
            The state of the cell, and the last target.
        """
        z, buffers = embed_support(self.backbone, support.x)
        targets = self._targets(support.y, z)
        _, state = self._scan(offset(z, targets), self.cell.start())
        last = targets[-1] if len(targets) else z.new_zeros(targets.shape[-1])
        return Read(state, last, buffers)

    def predict(self, state: Read, x: Tree) -> Tensor:
        """Read each query from the state that the support left; or, of a sequence, one step after the other.

        Args:
            state: from ``adapt``.
            x: (Q, ...).

        Returns:
            Logits (Q, W), or means (Q, O).
        """
        z = embed_queries(self.backbone, state.buffers, x)
        if self._in_order:
            return self.head(self._scan(z, state.cell)[0])
        each = tree_map(lambda t: t.expand(len(z), *t.shape), state.cell)
        features, _ = self.cell(torch.cat([z, state.last.expand(len(z), -1)], -1), each)
        return self.head(features)

    def steps(self, episode: Episode) -> Tensor:
        """Return what the cell reads of an episode, step by step: of its support, and then of its queries.

        Each is shown with the target of the one before, queries too, as in training.

        Args:
            episode: one episode.

        Returns:
            (L, I).
        """
        support, query = episode
        z, buffers = embed_support(self.backbone, support.x)
        z = torch.cat([z, embed_queries(self.backbone, buffers, query.x)])
        return offset(z, torch.cat([self._targets(part.y, z[: len(part.y)]) for part in episode]))

    def trace(self, episode: Episode) -> dict[str, Tensor]:
        """Follow what the cell does along an episode, for pictures such as figures 6, 9 and 12 of the NTM paper.

        Args:
            episode: one episode; read as ``steps`` says.

        Returns:
            "answers" (L, W) or (L, O), as ``predict`` gives them; and by names, with a first axis of steps, what
            ``kshot.nn.memory.cell.Cell.pictured`` tells.
        """
        state, seen = self.cell.start(), list[dict[str, Tensor]]()
        for step in self.steps(episode):
            out, state, did = self.cell.step(step, state)
            seen.append({"answers": self.head(out), **self.cell.pictured(did)})
        return {name: torch.stack([now[name] for now in seen]).detach() for name in seen[0]}

    def follow(self, split: Split) -> Tensor:
        """Answer every example of a sequence from those before it.

        Args:
            split: x (L, ...), y (L,) int64 or (L, O).

        Returns:
            (L, W) or (L, O).
        """
        z, _ = embed_support(self.backbone, split.x)
        return self._answers(z, self._targets(split.y, z), None, self._scan)

    def outer_loss(self, episode: Episode) -> Tensor:
        """Mean loss over all steps of one sequence of support and queries; while training, in random order.

        Args:
            episode: one episode.

        Returns:
            A scalar.
        """
        return self._one_loss(episode, self._scan)

    def _one_loss(self, episode: Episode, scan: Scan) -> Tensor:
        support, query = episode
        if uses_support_statistics(self.backbone):
            z, buffers = embed_support(self.backbone, support.x)
            z = torch.cat([z, embed_queries(self.backbone, buffers, query.x)])
        else:
            z = self.backbone(tree_map(lambda *xs: torch.cat(xs), support.x, query.x))
        return self._loss(z, support.y, query.y, scan)

    def outer_losses(self, episodes: Episode) -> Tensor:
        """Read the sequences of all tasks side by side.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        return self._losses(episodes, self._scan)

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Embed and read the sequences of all tasks by compiled kernels: of the backbone, of the cell, or of both.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses, differentiable once.
        """
        body = self.backbone
        embed = body.fused if by_kernels(body) else body
        return self._losses(episodes, self.cell.fused_scan if self.cell.can_fuse() else self._scan, embed)

    def first_divergence(self, episodes: Episode, *, one: bool) -> str | None:
        """Find what goes to infinity first where the loss is taken: which quantity of the cell, at which step.

        Args:
            episodes: a batch of T, which takes ``native``.
            one: it is one episode and no batch.

        Returns:
            Such as "the key strength at step 7 of the sequence"; None where everything is finite.
        """
        watch = Watch(self.cell)
        with torch.enable_grad():
            losses = self._one_loss(episodes, watch) if one else self._losses(episodes, watch)
            return watch.first(losses)

    def _losses(self, episodes: Episode, scan: Scan, embed: Embed | None = None) -> Tensor:
        support, query = episodes
        z = (embed or self.backbone)(tree_map(lambda *xs: torch.cat(xs, 1), support.x, query.x))
        return self._loss(z.transpose(0, 1), support.y.transpose(0, 1), query.y.transpose(0, 1), scan)

    @property
    def _in_order(self) -> bool:
        return self.spec is not None and self.spec.kind == "sequence"

    def _targets(self, y: Tensor, z: Tensor) -> Tensor:
        # What is shown of them: nothing, where the task is a sequence.
        if self._in_order:
            return z.new_zeros(*z.shape[:-1], 0)
        return shown(y, self.head.out_features, z)

    def _scan(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        # Within ``recomputing`` in about sqrt(L) pieces: the states between them are kept, and what happens in a piece
        # is computed again on the way back.
        if not (len(x) and recompute_is_on()):
            return self.cell.scan(x, state)
        whole = _WholeScan(self.cell)
        weights = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
        outputs = []
        for piece in x.split(math.ceil(math.sqrt(len(x)))):
            out, state = run_twice(partial(functional_call, whole), (piece, state), weights, (piece, state))
            outputs.append(out)
        return torch.cat(outputs), state

    def _answers(self, z: Tensor, targets: Tensor, order: Tensor | None, scan: Scan) -> Tensor:
        x = offset(z, targets) if order is None else offset(shuffled(order, z), shuffled(order, targets))
        return self.head(scan(x, self.cell.start(tuple(z.shape[1:-1])))[0])

    def _loss(self, z: Tensor, support: Tensor, query: Tensor, scan: Scan) -> Tensor:
        # z (L, ..., D), time first; the mean is over time (and outputs), the axes between stay.
        tasks = tuple(z.shape[1:-1])
        if self._in_order:
            features, _ = scan(z, self.cell.start(tasks))
            answers = self.head(features[len(support) :])
            each = F.binary_cross_entropy_with_logits(answers, query.to(z.dtype), reduction="none")
            return each.mean((0, -1))
        y, order = torch.cat([support, query]), None
        if self.training:
            # Examples come class by class in many sources; the answer must not be read off the place.
            order = torch.rand(len(z), *tasks, device=z.device).argsort(0)
        answers = self._answers(z, self._targets(y, z), order, scan)
        if order is not None:
            y = shuffled(order, y)
        if y.is_floating_point():
            return ((answers - y) ** 2).mean((0, -1))
        return F.cross_entropy(answers.flatten(0, -2), y.flatten(), reduction="none").view(y.shape).mean(0)
