"""From embeddings of a few labelled examples to calibrated answers: the whole of ``fit``, without examples or files."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from kshot.core import UserError, generator
from kshot.estimator.audit import NEARLY_SAME, SAME, Doubt, Pair, doubtful_labels, near_duplicates
from kshot.estimator.calibrate import PRIOR, calibrated_loss, fit_temperature, probabilities
from kshot.estimator.expected import Expected, expected_accuracy, learning_rate
from kshot.estimator.heads import STRENGTHS, Head, extend, fit_head, units
from kshot.estimator.held_out import Chosen, HeldOut, candidates, choose_head, folds_of, held_out_logits, with_names
from kshot.estimator.unknown import Familiarity, held_out_strangeness, p_values

#: The head where nothing can be judged, because every class has a single shot.
ONE_SHOT_HEAD = "cosine"
#: The same by the kind of data, where one was measured to be better: of ORL's faces ridge tells 89.6 % by one
#: photograph, prototypes 86.2 % (25 draws); of BANKING77's questions it tells fewer.
ONE_SHOT_HEADS = {"image": "ridge"}
#: Pairs of nearly the same shots are looked for among at most so many: time grows with their square.
MOST_COMPARED = 20_000
#: Length of embeddings from which a high cosine is no chance.
MANY_DIRECTIONS = 32
#: Share of the log-loss of a guess that names alone must stay below, where no class has two shots.
NAMES_HELP = 0.85


@dataclass(frozen=True)
class Fit:
    """A few-shot classifier of embeddings, and what is known of it.

    Attributes:
        z: embeddings of the shots, (N, D).
        y: int64 (N,), 0..C-1.
        n_classes: C.
        head: the linear head.
        temperature: of the probabilities.
        reference: strangeness of shots left out, (H,) rising; empty where nothing could be left out.
        held_out: answers for shots left out; None where nothing could be left out, or after classes were changed.
        expected: accuracy to expect; None likewise.
        losses: candidate -> its calibrated log-loss on shots left out, best first.
        seed: of the folds.
        names: embedded names of the classes, (C, D), where they count as one more shot of each; else None.
    """

    z: Tensor
    y: Tensor
    n_classes: int
    head: Head
    temperature: float
    reference: Tensor
    held_out: HeldOut | None = None
    expected: Expected | None = None
    losses: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    names: Tensor | None = None

    @cached_property
    def familiarity(self) -> Familiarity:
        """Scores how strange an example is; made again from the shots when it is first asked for."""
        return Familiarity.of(self.z, self.y, self.n_classes)

    @cached_property
    def doubts(self) -> list[Doubt]:
        """Shots that seem mislabelled."""
        return [] if self.held_out is None else doubtful_labels(self.held_out, self.temperature, self.n_classes)

    @cached_property
    def duplicates(self) -> list[Pair]:
        """Shots that are nearly the same."""
        if len(self.z) > MOST_COMPARED:
            return []
        # Among few directions, vectors are alike by chance.
        return near_duplicates(self.z, NEARLY_SAME if self.z.shape[1] >= MANY_DIRECTIONS else SAME)

    def probabilities(self, z: Tensor) -> Tensor:
        """Give calibrated probabilities.

        Args:
            z: (N, D).

        Returns:
            float64 (N, C).
        """
        return probabilities(self.head.logits(z), self.temperature)

    def p_values(self, z: Tensor) -> Tensor:
        """Give the conformal p-value of belonging to any of the classes; see ``kshot.estimator.unknown``.

        Args:
            z: (N, D).

        Returns:
            (N,); ones where no error rate can be vouched for.
        """
        if not len(self.reference):
            return torch.ones(len(z), dtype=torch.float64)
        return p_values(self.familiarity.strangeness(z), self.reference)

    def nearest(self, z: Tensor, n: int = 3) -> tuple[Tensor, Tensor]:
        """Find the shots most like each example.

        Args:
            z: (N, D).
            n: so many.

        Returns:
            Cosines of the centred vectors (N, n), and indices of the shots (N, n).
        """
        similarity = units(z, self.head.centre) @ units(self.z, self.head.centre).T
        found = similarity.topk(min(n, similarity.shape[1]), dim=1)
        return found.values, found.indices


def fit(
    z: Tensor,
    y: Tensor,
    n_classes: int,
    *,
    head: str = "auto",
    seed: int = 0,
    names: Tensor | None = None,
    one_shot_head: str = ONE_SHOT_HEAD,
) -> Fit:
    """Learn from a few labelled embeddings.

    Args:
        z: (N, D), finite.
        y: int64 (N,), 0..C-1, each class at least once.
        n_classes: C, at least 2.
        head: "auto" chooses by leave-one-out among all; or one of ``STRENGTHS``, whose strength is chosen.
        seed: of the folds.
        names: embedded names of the classes, (C, D): "card arrival" is itself an example of how people ask about it.
            They count as one more shot of each class if shots left out are then told better.
        one_shot_head: the head where nothing can be judged, because every class has a single shot.

    Returns:
        The classifier.

    Raises:
        UserError: fewer than two classes, an empty class, numbers that are not finite, or an unknown head.
    """
    _check(z, y, n_classes, head)
    heads = candidates(len(z), z.shape[1], n_classes) if head == "auto" else {head: STRENGTHS[head]}
    parts = folds_of(z, y, generator(seed, "folds"))
    plain = choose_head(z, y, n_classes, parts, calibrated_loss, heads)
    chosen, names = _with_names(plain, z, y, n_classes, heads, seed, names)
    if chosen is None:
        name = one_shot_head if head == "auto" else head
        fitted = fit_head(z, y, n_classes, name, STRENGTHS[name][-1])
        return Fit(z, y, n_classes, fitted, PRIOR, z.new_zeros(0), seed=seed)
    return Fit(
        z,
        y,
        n_classes,
        chosen.head,
        fit_temperature(chosen.held_out),
        held_out_strangeness(z, y, n_classes, parts),
        chosen.held_out,
        _expected(chosen, z, y, n_classes, parts, names),
        chosen.losses,
        seed,
        names,
    )


def _expected(
    chosen: Chosen, z: Tensor, y: Tensor, n_classes: int, parts: list[Tensor], names: Tensor | None
) -> Expected:
    # Leaving out one fold and then two tells how fast the errors fall with the number of shots.
    counts = torch.bincount(y, minlength=n_classes)
    mean = float(counts[chosen.held_out.labels.unique()].double().mean())
    n_folds, extra = max(len(parts), 1), float(names is not None)
    n_shots = mean + extra
    if len(parts) < 3 or int(counts.min()) < 3:
        return expected_accuracy(chosen.held_out, n_shots)
    head, both = chosen.head, [torch.cat([a, b]) for a, b in zip(parts, [*parts[1:], parts[0]], strict=True)]
    (fewer,) = held_out_logits(z, y, n_classes, head.name, [head.strength], both, names)
    n_fewer, n_more = (mean * (n_folds - k) / n_folds + extra for k in (2, 1))
    rate = learning_rate(_once(fewer, parts), chosen.held_out, n_fewer, n_more)
    return expected_accuracy(chosen.held_out, n_shots, n_seen=n_more, rate=rate)


def _once(twice: HeldOut, parts: list[Tensor]) -> HeldOut:
    # Every fold was left out with the one before it and with the one after it; the rows of the former are enough.
    keep, start = [], 0
    for i, part in enumerate(parts):
        after = len(parts[(i + 1) % len(parts)])
        keep.append(torch.arange(start, start + len(part)))
        start += len(part) + after
    rows = torch.cat(keep)
    return HeldOut(twice.index[rows], twice.logits[rows], twice.labels[rows])


def _with_names(
    plain: Chosen | None,
    z: Tensor,
    y: Tensor,
    n_classes: int,
    heads: dict[str, tuple[float, ...]],
    seed: int,
    names: Tensor | None,
) -> tuple[Chosen | None, Tensor | None]:
    # The names of the classes are kept if they help; without them single shots cannot be judged at all.
    if names is None or not bool(torch.isfinite(names).all()):
        return plain, None
    parts = folds_of(z, y, generator(seed, "folds"), named=True)
    named = choose_head(z, y, n_classes, parts, calibrated_loss, heads, names)
    if named is None:
        return plain, None
    least = next(iter(named.losses.values()))
    # Names that say nothing leave the loss of a guess, log C, at the best temperature.
    limit = NAMES_HELP * math.log(n_classes) if plain is None else _loss_of_same(plain, named)
    return (named, names) if least < limit else (plain, None)


def _loss_of_same(plain: Chosen, named: Chosen) -> float:
    # Names make single shots judgeable, which are the hardest; so both are compared on what both can judge.
    both = torch.isin(named.held_out.index, plain.held_out.index)
    if bool(both.all()):
        return next(iter(plain.losses.values()))
    shared = HeldOut(named.held_out.index[both], named.held_out.logits[both], named.held_out.labels[both])
    better = calibrated_loss(shared) < next(iter(plain.losses.values()))
    return math.inf if better else -math.inf


def add_class(fitted: Fit, z: Tensor, name: Tensor | None = None) -> Fit:
    """Add a class as number C, without choosing or calibrating anew.

    Args:
        fitted: the classifier.
        z: embeddings of the new class's shots, (N, D).
        name: the embedded name of the class, (D,), needed where names are used; see ``Fit.names``.

    Returns:
        A classifier of C + 1 classes; what was known of the old one's accuracy is gone.

    Raises:
        UserError: no shots, numbers that are not finite, or no name where names are used.
    """
    y = torch.cat([fitted.y, torch.full((len(z),), fitted.n_classes)])
    both = torch.cat([fitted.z, z])
    _check(both, y, fitted.n_classes + 1, fitted.head.name)
    names = fitted.names
    if names is not None:
        if name is None:
            raise UserError("expected the embedded name of the new class, since this model uses names; pass name=")
        names = torch.cat([names, name.reshape(1, -1)])
    head = extend(fitted.head, *with_names(both, y, names), fitted.n_classes + 1)
    return _changed(fitted, both, y, fitted.n_classes + 1, names, head)


def remove_class(fitted: Fit, index: int) -> Fit:
    """Remove a class; those after it move down by one.

    Args:
        fitted: the classifier.
        index: which class.

    Returns:
        A classifier of C - 1 classes.

    Raises:
        UserError: two classes must remain.
    """
    if fitted.n_classes < 3:
        raise UserError("expected at least two classes to remain, the model has two; fit a new model instead")
    keep = fitted.y != index
    y = fitted.y[keep]
    names = fitted.names
    if names is not None:
        names = names[torch.arange(len(names)) != index]
    z, y, n_classes = fitted.z[keep], y - (y > index).long(), fitted.n_classes - 1
    head = fit_head(*with_names(z, y, names), n_classes, fitted.head.name, fitted.head.strength)
    return _changed(fitted, z, y, n_classes, names, head)


def judged(fitted: Fit) -> Fit:
    """Calibrate anew, after classes were added or removed: the head stays as it was chosen.

    Args:
        fitted: the classifier.

    Returns:
        It with the temperature, and the strangeness of shots left out, of the classes that it has now.
    """
    z, y, n_classes, head = fitted.z, fitted.y, fitted.n_classes, fitted.head
    parts = folds_of(z, y, generator(fitted.seed, "folds"), named=fitted.names is not None)
    temperature = PRIOR
    if parts:
        (answers,) = held_out_logits(z, y, n_classes, head.name, [head.strength], parts, fitted.names)
        temperature = fit_temperature(answers)
    reference = held_out_strangeness(z, y, n_classes, folds_of(z, y, generator(fitted.seed, "folds")))
    return dataclasses.replace(fitted, temperature=temperature, reference=reference)


def _changed(fitted: Fit, z: Tensor, y: Tensor, n_classes: int, names: Tensor | None, head: Head) -> Fit:
    return dataclasses.replace(
        fitted, z=z, y=y, n_classes=n_classes, head=head, held_out=None, expected=None, losses={}, names=names
    )


def _check(z: Tensor, y: Tensor, n_classes: int, head: str) -> None:
    if n_classes < 2:
        raise UserError(f"expected at least two classes, got {n_classes}; add examples of another class")
    if head != "auto" and head not in STRENGTHS:
        raise UserError(f"head must be one of auto, {', '.join(STRENGTHS)}, got {head!r}")
    if int(torch.bincount(y, minlength=n_classes).min()) < 1:
        raise UserError(f"expected every one of {n_classes} classes at least once; leave the empty ones out")
    if not bool(torch.isfinite(z).all()):
        bad = int((~torch.isfinite(z)).any(1).nonzero()[0])
        raise UserError(f"expected finite embeddings, example {bad} has NaN or infinity; check it, and the encoder")
