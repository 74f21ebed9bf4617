"""Leave-one-out on the shots: what a head says of an example that it has not seen.

One example of every class is left out at a time. So a class of K shots is judged by heads that saw K - 1 of it, and a
class with one shot cannot be judged at all. Beyond ``MAX_FOLDS`` shots a class, several are left out together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.estimator.heads import LOGISTIC_LIMIT, STRENGTHS, Head, fit_head, fit_path

MAX_FOLDS = 10


class HeldOut(NamedTuple):
    """Answers for shots by heads that had not seen them.

    Attributes:
        index: int64 (H,), which shots; those of one-shot classes are missing.
        logits: (H, C).
        labels: int64 (H,), their labels.
    """

    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    logits: Tensor
    labels: Tensor


class Chosen(NamedTuple):
    """The outcome of a choice among heads.

    Attributes:
        head: fitted to all shots.
        held_out: its answers for shots left out.
        losses: "head strength" -> calibrated log-loss on the shots left out, for every candidate; best first.
    """

    head: Head
    held_out: HeldOut
    losses: dict[str, float]


def folds(y: Tensor, generator: torch.Generator, max_folds: int = MAX_FOLDS, named: bool = False) -> list[Tensor]:
    """Deal the shots out so that each fold leaves about as many of every class.

    Args:
        y: int64 (N,).
        generator: of the deal.
        max_folds: at most so many.
        named: True if the name of every class stays when its shots are left out, so that single shots can be judged.

    Returns:
        Index tensors; together all shots of the classes that have two or more, or all shots if ``named``.
    """
    order = torch.randperm(len(y), generator=generator)
    order = order[y[order].argsort(stable=True)]
    counts = torch.bincount(y)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(y)) - starts[y[order]]
    # Leaving a shot of every class out at once would leave names alone, where every class has one shot.
    n_folds, apart = min(max_folds, max(int(counts.max()), 2)), 1
    if int(counts.max()) == 2:
        # Two folds of two shots a class would leave one of each, from which nobody sees how wide a class is.
        n_folds, apart = min(max_folds, 2 * len(counts)), 2
    # A class with fewer shots than folds starts at a fold of its own, lest the first folds leave out the most.
    turn = (place + apart * torch.arange(len(counts))[y[order]]) % n_folds
    judged = counts[y[order]] > (0 if named else 1)
    return [part for f in range(n_folds) if len(part := order[(turn == f) & judged])]


def folds_of(z: Tensor, y: Tensor, generator: torch.Generator, named: bool = False) -> list[Tensor]:
    """Deal embedded shots out as ``folds`` does, copies together: a head that saw one has seen the other.

    Args:
        z: (N, D).
        y: int64 (N,).
        generator: of the deal.
        named: see ``folds``.

    Returns:
        Index tensors. A class whose shots are all copies of one has one shot, and is not judged unless ``named``.
    """
    _, copy_of = torch.unique(torch.cat([z, y.to(z.dtype).unsqueeze(1)], 1), dim=0, return_inverse=True)
    n = int(copy_of.max()) + 1
    if n == len(y):
        return folds(y, generator, named=named)
    labels = y.new_zeros(n).scatter(0, copy_of, y)
    return [torch.isin(copy_of, part).nonzero().squeeze(1) for part in folds(labels, generator, named=named)]


def leave_out(
    z: Tensor, y: Tensor, n_classes: int, parts: Sequence[Tensor], fit: Callable[[Tensor, Tensor], list[Tensor]]
) -> list[Tensor]:
    """Fit to all shots but a fold's, and judge the fold; for every fold.

    Args:
        z: (N, D).
        y: int64 (N,).
        n_classes: C, for the caller's ``fit``.
        parts: the folds.
        fit: called with the kept indices and those left out; gives tensors with one row for each one left out.

    Returns:
        For each of ``fit``'s tensors all rows, in the order of the folds.
    """
    keep = torch.ones(len(y), dtype=torch.bool)
    rows: list[list[Tensor]] = []
    for part in parts:
        keep[part] = False
        rows.append(fit(keep.nonzero().squeeze(1), part))
        keep[part] = True
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def with_names(z: Tensor, y: Tensor, names: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add the embedded name of each class as one more shot of it.

    Args:
        z: (N, D).
        y: int64 (N,).
        names: (C, D), or None for none.

    Returns:
        (N + C, D) and (N + C,), or what was given.
    """
    return (z, y) if names is None else (torch.cat([z, names]), torch.cat([y, torch.arange(len(names))]))


def held_out_logits(
    z: Tensor,
    y: Tensor,
    n_classes: int,
    name: str,
    strengths: Sequence[float],
    parts: Sequence[Tensor],
    names: Tensor | None = None,
) -> list[HeldOut]:
    """Judge every shot by heads that have not seen it.

    Args:
        z: (N, D).
        y: int64 (N,).
        n_classes: C.
        name: of the head.
        strengths: of the head.
        parts: the folds.
        names: embedded names of the classes, never left out; see ``with_names``.

    Returns:
        For each strength the answers.
    """

    def fit(kept: Tensor, out: Tensor) -> list[Tensor]:
        seen_z, seen_y = with_names(z[kept], y[kept], names)
        return [h.logits(z[out]) for h in fit_path(seen_z, seen_y, n_classes, name, strengths)]

    index = torch.cat(list(parts))
    return [HeldOut(index, logits, y[index]) for logits in leave_out(z, y, n_classes, parts, fit)]


def candidates(n: int, d: int, n_classes: int) -> dict[str, tuple[float, ...]]:
    """List the heads worth trying for a problem of this size.

    Args:
        n: shots.
        d: length of the embeddings.
        n_classes: C.

    Returns:
        Head -> strengths.
    """
    heavy = n * d * n_classes > LOGISTIC_LIMIT
    return {name: r for name, r in STRENGTHS.items() if not (heavy and name == "logistic")}


def choose_head(
    z: Tensor,
    y: Tensor,
    n_classes: int,
    parts: Sequence[Tensor],
    judge: Callable[[HeldOut], float],
    heads: dict[str, tuple[float, ...]],
    names: Tensor | None = None,
) -> Chosen | None:
    """Choose the head with the least loss on shots left out.

    Args:
        z: (N, D).
        y: int64 (N,).
        n_classes: C.
        parts: the folds.
        judge: the loss of such answers.
        heads: candidates: head -> strengths.
        names: embedded names of the classes, see ``with_names``.

    Returns:
        The choice; None where no class has two shots, so that nothing can be judged.
    """
    if not parts:
        return None
    tried: list[tuple[float, str, float, HeldOut]] = []
    # Where a fold leaves single shots, prototypes have no width to be measured by: their answers there are on another
    # scale than those of the head that is fitted to all, which they are to tell the temperature of.
    single = names is None and any(len(y) - len(part) <= n_classes for part in parts)
    for name, strengths in heads.items():
        if name == "prototypes" and single and len(heads) > 1:
            continue
        judged = held_out_logits(z, y, n_classes, name, strengths, parts, names)
        tried += [(judge(answers), name, r, answers) for r, answers in zip(strengths, judged, strict=True)]
    tried.sort(key=lambda t: t[0])
    _, name, strength, answers = tried[0]
    losses = {f"{n} {r:g}": loss for loss, n, r, _ in tried}
    return Chosen(fit_head(*with_names(z, y, names), n_classes, name, strength), answers, losses)
