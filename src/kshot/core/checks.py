"""Checks that stand at the doors (data, estimator, serve, cli), so that inner loops need none."""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core.episode import Episode, Split
from kshot.core.errors import UserError
from kshot.core.learner import Spec
from kshot.core.tree import leaves


def check_finite(t: Tensor, what: str) -> None:
    """Refuse NaN and infinities.

    Args:
        t: any tensor.
        what: its name in the message.

    Raises:
        UserError: an entry is not finite.
    """
    if t.is_floating_point() and not bool(torch.isfinite(t).all()):
        bad = int((~torch.isfinite(t)).sum())
        raise UserError(f"expected finite numbers in {what}, got {bad} NaN or infinite entries; clean the data first")


def check_split(split: Split, spec: Spec, what: str) -> None:
    """Check one split of one episode against what the tasks should look like.

    Args:
        split: the examples.
        spec: what is expected.
        what: "support" or "query", for the message.

    Raises:
        UserError: shapes, dtypes, labels or values do not fit.
    """
    for x in leaves(split.x):
        if x.shape[0] != split.y.shape[0]:
            raise UserError(f"{what} has {x.shape[0]} inputs but {split.y.shape[0]} targets; give one target an input")
        check_finite(x, f"{what}.x")
    if isinstance(split.x, Tensor) and tuple(split.x.shape[1:]) != tuple(spec.input_shape):
        raise UserError(
            f"{what}.x: expected examples of shape {tuple(spec.input_shape)}, got {tuple(split.x.shape[1:])}; "
            "resize the data or build the learner for this shape"
        )
    if spec.kind == "regression":
        check_finite(split.y, f"{what}.y")
        if not split.y.is_floating_point() or tuple(split.y.shape[1:]) != (spec.n_outputs,):
            raise UserError(
                f"{what}.y: expected floats of shape (., {spec.n_outputs}), "
                f"got {split.y.dtype} of shape {tuple(split.y.shape)}"
            )
        return
    if split.y.dtype != torch.int64 or split.y.ndim != 1:
        raise UserError(f"{what}.y: expected int64 class indices (S,), got {split.y.dtype} {tuple(split.y.shape)}")
    if split.y.numel() and (int(split.y.min()) < 0 or int(split.y.max()) >= spec.n_outputs):
        raise UserError(
            f"{what}.y: expected labels 0..{spec.n_outputs - 1} for {spec.n_outputs} classes, got "
            f"{int(split.y.min())}..{int(split.y.max())}; relabel the classes or raise n_way"
        )


def check_episode(episode: Episode, spec: Spec) -> None:
    """Check one episode: both splits, and that every class of the query has support.

    Args:
        episode: one episode, without a task axis.
        spec: what is expected.

    Raises:
        UserError: what does not fit, and what to do.
    """
    check_split(episode.support, spec, "support")
    check_split(episode.query, spec, "query")
    if spec.kind == "regression":
        return
    known = set(episode.support.y.tolist())
    if len(known) < spec.n_outputs:
        raise UserError(
            f"support has {len(known)} classes but n_way={spec.n_outputs}; pass n_way={len(known)} or add a class"
        )
