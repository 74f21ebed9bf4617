"""Checks that stand at the doors (data, estimator, serve, cli), so that inner loops need none."""

from __future__ import annotations

from collections.abc import Sequence

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
    if (t.is_floating_point() or t.is_complex()) and not bool(torch.isfinite(t).all()):
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
    inputs = leaves(split.x)
    if not inputs:
        raise UserError(
            f"expected a tensor, or dicts of tensors, in {what}.x, got {type(split.x).__name__}; convert it"
        )
    for x in inputs:
        _check_axis(x, split.y, what)
        check_finite(x, f"{what}.x")
    if isinstance(split.x, Tensor) and tuple(split.x.shape[1:]) != tuple(spec.input_shape):
        raise UserError(
            f"{what}.x: expected examples of shape {tuple(spec.input_shape)}, got {tuple(split.x.shape[1:])}; "
            "resize the data or build the learner for this shape"
        )
    if spec.kind == "sequence":
        _check_bits(split.y, spec.n_outputs if what == "query" else 0, what)
    elif spec.kind == "regression":
        _check_targets(split.y, spec.n_outputs, what)
    else:
        _check_labels(split, spec.n_outputs, what)


def _check_axis(x: Tensor, y: Tensor, what: str) -> None:
    if x.ndim == 0 or y.ndim == 0:
        raise UserError(f"{what}: expected a first axis that counts examples, got a single number; pass lists of them")
    if x.shape[0] != y.shape[0]:
        raise UserError(f"{what} has {x.shape[0]} inputs but {y.shape[0]} targets; give one target for each input")
    if not x.shape[0]:
        raise UserError(f"expected at least one example in {what}, got none; add some")


def _check_targets(y: Tensor, n_outputs: int, what: str) -> None:
    if not y.is_floating_point() or tuple(y.shape[1:]) != (n_outputs,):
        raise UserError(
            f"{what}.y: expected floats of shape (., {n_outputs}), got {y.dtype} of shape {tuple(y.shape)}; "
            "convert or reshape the targets"
        )
    check_finite(y, f"{what}.y")


def _check_bits(y: Tensor, n_bits: int, what: str) -> None:
    if y.dtype != torch.bool or tuple(y.shape[1:]) != (n_bits,):
        asked = "nothing is asked while a sequence is read" if what == "support" else "one row of bits for each step"
        raise UserError(
            f"{what}.y: expected bool of shape (., {n_bits}), got {y.dtype} of shape {tuple(y.shape)}; {asked}"
        )


def _check_labels(split: Split, n_way: int, what: str) -> None:
    y = split.y
    if y.dtype != torch.int64 or y.ndim != 1:
        raise UserError(
            f"{what}.y: expected int64 class indices (S,), got {y.dtype} of shape {tuple(y.shape)}; "
            "number the classes from 0"
        )
    if split.n_way is not None and split.n_way != n_way:
        raise UserError(f"expected n_way={n_way} in {what}, got n_way={split.n_way}; pass the number of classes once")
    if int(y.min()) < 0 or int(y.max()) >= n_way:
        raise UserError(_out_of_range(y, n_way, what))


def _out_of_range(y: Tensor, n_way: int, what: str) -> str:
    return (
        f"{what}.y: expected labels 0..{n_way - 1} for {n_way} classes, got "
        f"{int(y.min())}..{int(y.max())}; relabel the classes or raise n_way"
    )


def check_episode(episode: Episode, spec: Spec) -> None:
    """Check one episode: both splits, and that every class has support.

    Args:
        episode: one episode, without a task axis.
        spec: what is expected.

    Raises:
        UserError: what does not fit, and what to do.
    """
    check_split(episode.support, spec, "support")
    check_split(episode.query, spec, "query")
    if spec.kind == "classification" and (absent := _absent(episode.support.y.unsqueeze(0), spec.n_outputs)):
        raise UserError(_without_support(*absent[1:], spec.n_outputs))


def check_classes(episodes: Episode, n_way: int, numbers: Sequence[int]) -> None:
    """Check the labels of a batch of episodes: all below W, and each of the W classes has support.

    Costs two small reductions however many episodes there are, so that it can be asked of every batch. Without it a
    class that was never shown is scored as a mistake by methods that can answer it, and is NaN for the others.

    Args:
        episodes: T episodes; regression and sequences have no classes and pass.
        n_way: W.
        numbers: T numbers, by which a message calls the episodes.

    Raises:
        UserError: which episode, which class, and what to do.
    """
    y, asked = episodes.support.y, episodes.query.y
    if y.dtype != torch.int64 or asked.dtype != torch.int64:
        return
    for what, labels in (("support", y), ("query", asked)):
        wrong = ((labels < 0) | (labels >= n_way)).any(1)
        if bool(wrong.any()):
            task = int(wrong.nonzero()[0])
            raise UserError(f"episode {numbers[task]}: " + _out_of_range(labels[task], n_way, what))
    if absent := _absent(y, n_way):
        raise UserError(f"episode {numbers[absent[0]]}: " + _without_support(*absent[1:], n_way))


def _absent(y: Tensor, n_way: int) -> tuple[int, int, int] | None:
    # Of support labels (T, S): the first episode that lacks a class, that class, and how many classes it has.
    known = torch.zeros(len(y), n_way, dtype=torch.bool, device=y.device).scatter_(1, y, True)
    if bool(known.all()):
        return None
    task, lacking = (int(i) for i in (~known).nonzero()[0])
    return task, lacking, int(known[task].sum())


def _without_support(lacking: int, n_known: int, n_way: int) -> str:
    return (
        f"support has {n_known} classes but n_way={n_way}: class {lacking} has no example; "
        f"pass n_way={n_known} or add a class"
    )
