"""The two tuples that every method, sampler and evaluator speaks: a split and an episode.

An *episode* is one draw of a task: a support set to learn from and a query set to be judged on. A batch of T
episodes is the same tuple with a leading task axis on every tensor.

Shapes, for one episode: ``support.x`` is (S, ...), ``support.y`` is (S,) of int64 class indices 0..W-1 for
classification, or (S, O) of floats for regression; ``query`` the same with Q in place of S.

A *sequence* is one episode too: ``support.x`` (S, I) are the steps that are read, of which nothing is asked, so
``support.y`` is bool (S, 0); ``query.x`` (Q, I) are the steps that follow, in order, and ``query.y`` bool (Q, O) the
bits that are asked at them. The state goes on from one query to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.core.errors import UserError
from kshot.core.tree import Tree, leaves, tree_map


class Split(NamedTuple):
    """Labelled examples; the first axis of every tensor counts them.

    Attributes:
        x: inputs, a tensor (S, ...) or nested dicts of such tensors.
        y: targets, int64 (S,) class indices below ``n_way``, floats (S, O), or bits, bool (S, O).
        n_way: number of classes W, known without looking at ``y`` so that shapes stay static under ``vmap`` and
            ``torch.compile``; None where there are none, or to have it counted from ``y``.
    """

    x: Tree
    y: Tensor
    n_way: int | None = None

    def ways(self) -> int:
        """Return the number of classes W, counted from ``y`` where it was not given.

        Returns:
            W.

        Raises:
            UserError: the targets are not class indices.
        """
        if self.n_way is not None:
            return self.n_way
        if self.y.is_floating_point() or self.y.dtype == torch.bool:
            kind = "bits: this split is a sequence" if self.y.dtype == torch.bool else "floats: this is regression"
            raise UserError(f"expected class indices (int64) in y, got {kind}; it has no classes")
        return int(self.y.max()) + 1


class Episode(NamedTuple):
    """A support set to adapt on and a query set to be judged on (or T of each, with a leading task axis)."""

    support: Split
    query: Split


def n_tasks(episodes: Episode) -> int:
    """Return T, the length of the leading task axis of a batch of episodes.

    Returns:
        T.
    """
    return episodes.support.y.shape[0]


def select(episodes: Episode, index: int | slice) -> Episode:
    """Take one episode (int: the task axis goes) or some (slice: it stays) out of a batch.

    Args:
        episodes: a batch of T episodes.
        index: which of the T.

    Returns:
        The episode, or the smaller batch; tensors are views.
    """
    return Episode(*(Split(tree_map(lambda t: t[index], s.x), s.y[index], s.n_way) for s in episodes))


def unbind(episodes: Episode) -> Iterator[Episode]:
    """Yield the T episodes of a batch, one by one.

    Yields:
        Each episode, without the task axis.
    """
    for task in range(n_tasks(episodes)):
        yield select(episodes, task)


def stack(episodes: list[Episode]) -> Episode:
    """Join episodes of equal shapes into a batch with a leading task axis.

    Args:
        episodes: at least one episode; all of the same shapes and ``n_way``.

    Returns:
        The batch.

    Raises:
        UserError: the list is empty, or shapes or ``n_way`` differ.
    """
    if not episodes:
        raise UserError("expected at least one episode to stack, got an empty list")
    kinds = {(e.support.n_way, e.query.n_way, *(t.shape for t in leaves(tuple(e)))) for e in episodes}
    if len(kinds) > 1:
        raise UserError(
            f"expected episodes of equal shapes and n_way for one batch, got {len(kinds)} kinds; use lists of episodes"
        )

    def join(part: str) -> Split:
        splits = [getattr(e, part) for e in episodes]
        x = tree_map(lambda *ts: torch.stack(ts), *[s.x for s in splits])
        return Split(x, torch.stack([s.y for s in splits]), splits[0].n_way)

    return Episode(join("support"), join("query"))


def to(episodes: Episode, device: torch.device | str, dtype: torch.dtype | None = None) -> Episode:
    """Move an episode (or batch) to a device, and its floating tensors to a dtype.

    Args:
        episodes: one episode or a batch.
        device: where to.
        dtype: floating type, or None to keep it.

    Returns:
        The moved episode.
    """

    def move(t: Tensor) -> Tensor:
        return t.to(device, dtype) if dtype is not None and t.is_floating_point() else t.to(device)

    return Episode(*(Split(tree_map(move, s.x), move(s.y), s.n_way) for s in episodes))
