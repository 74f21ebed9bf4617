"""The report of a model of numbers: how far it is off on shots left out, and whether its intervals hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kshot.core import UserError
from kshot.estimator.examples import ARRAY_KINDS, listed, names_of, thumbnails_of
from kshot.estimator.expected import wilson
from kshot.estimator.kernel_ridge import KernelRidge
from kshot.estimator.regressor import ExpectedError, FewShotRegressor, error_of
from kshot.estimator.report.number_figures import Answered, against_truth, misses
from kshot.estimator.report.shots import NEIGHBOURS, appearance
from kshot.estimator.report.wording import NOUNS, amount, count, share
from kshot.evaluation.report.axes import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

View = dict[str, Any]
#: Shares of targets that intervals are to hold; the charts show the third.
SHARES = (0.5, 0.8, 0.9, 0.95)
SHOWN_SHARE = 0.9
#: Shots that are judged with intervals, points that are drawn, and examples that are shown.
JUDGED, DRAWN, SHOWN = 2000, 500, 12


@dataclass(frozen=True)
class NewNumbers:
    """Examples that a model has not learnt from.

    Attributes:
        z: embeddings (M, D).
        names: what to call each.
        look: JPEG or PNG bytes, or a text, of an example, by its index.
        y: targets float64 (M,), or None where they are unknown.
    """

    z: Tensor
    names: Sequence[str]
    look: Callable[[int], bytes | str]
    y: Tensor | None = None


@dataclass(frozen=True)
class NumberSubject:
    """A fitted regressor, as its report sees it.

    Attributes:
        fit: what was learnt.
        z: embeddings of the shots, (N, D).
        y: targets of the shots, float64 (N,).
        expected: error to expect.
        names: what to call each of the shots.
        looks: JPEG or PNG bytes, or a text, of each shot.
        kind: what examples are.
        encoder: its name.
        facts: more (name, text) pairs to state.
        new: examples to judge.
    """

    fit: KernelRidge
    z: Tensor
    y: Tensor
    expected: ExpectedError
    names: Sequence[str]
    looks: Sequence[bytes | str]
    kind: str
    encoder: str
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    new: NewNumbers | None = None

    @cached_property
    def judged(self) -> Tensor:
        """Shots that are judged, evenly spread where there are many: int64 (J,)."""
        return torch.linspace(0, len(self.y) - 1, min(len(self.y), JUDGED)).round().long().unique()

    @cached_property
    def left_out(self) -> Tensor:
        """Predictions for all shots, each by a model of the others, (N,)."""
        return self.y - self.fit.residuals

    def write(self, value: float) -> str:
        """Write a number.

        Args:
            value: a target or an answer.

        Returns:
            It, with as many digits as the expected error allows.
        """
        return amount(value, self.expected.rmse)

    def intervals(self, coverage: float) -> Tensor:
        """Give intervals for the judged shots by models of the others.

        Args:
            coverage: share that is to lie within.

        Returns:
            (J, 2).
        """
        return self.fit.left_out_intervals(self.y, self.judged, coverage)


def number_subject(model: FewShotRegressor, X: Any = None, y: Any = None) -> NumberSubject:
    """See a model as its report does.

    Args:
        model: fitted.
        X: new examples, or None.
        y: their targets, or None.

    Returns:
        The subject.

    Raises:
        UserError: the model is not fitted, or targets came without examples or in another number.
    """
    if not hasattr(model, "fit_"):
        raise UserError("expected a fitted model to report on, got one that has learnt nothing; call fit(X, y) first")
    return NumberSubject(
        model.fit_,
        model.z_,
        torch.from_numpy(model.y_.copy()),
        model.expected_error_,
        list(model.names_),
        list(model.thumbnails_),
        model.encoder_.kind,
        model.encoder_.name,
        [("Encoder's fingerprint", model.encoder_.fingerprint)],
        _new(model, X, y),
    )


def _new(model: FewShotRegressor, X: Any, y: Any) -> NewNumbers | None:
    if X is None:
        if y is not None:
            raise UserError("expected examples with the targets of new examples, got targets only; pass X as well")
        return None
    kind = model.encoder_.kind
    examples = list(np.asarray(X)) if kind in ARRAY_KINDS else listed(X, kind)
    if y is not None and len(y) != len(examples):
        raise UserError(f"expected a target for each of {len(examples)} new examples, got {len(y)}; pass as many")
    return NewNumbers(
        model.embed(X),
        names_of(examples, kind),
        lambda i: thumbnails_of([examples[i]], kind, [0])[0],
        None if y is None else torch.tensor(np.asarray(y, dtype=np.float64)),
    )


def views(subject: NumberSubject) -> View:
    """Make all that the page shows.

    Args:
        subject: of the report.

    Returns:
        What the template takes.
    """
    intervals = {rate: subject.intervals(rate) for rate in SHARES}
    noun = NOUNS.get(subject.kind, "example")
    return {
        "title": f"A number learnt from {count(len(subject.y), noun)}",
        "introduction": (
            f"Each {noun} becomes {subject.z.shape[1]:,} numbers by the encoder {subject.encoder}; kernel ridge "
            "regression makes one number of them. All estimates on this page come from shots that were left out and "
            "judged by a model of the others."
        ),
        "headlines": _headlines(subject, intervals[SHOWN_SHARE]),
        "truth": _truth(subject, intervals[SHOWN_SHARE]),
        "coverage": _coverage(subject, intervals),
        "worst": _worst(subject),
        "new": _judged_new(subject),
        "pictured": any(isinstance(seen, bytes) and seen for seen in subject.looks),
        "facts": _facts(subject),
    }


def _headlines(subject: NumberSubject, intervals: Tensor) -> list[View]:
    e = subject.expected
    off = f"root of the mean squared error; the mean absolute error is {plain(e.mae)}"
    explained = "of the variance is explained; 0 is as good as the mean of the others"
    found = [
        {"who": "Expected error", "big": plain(e.rmse), "small": "", "what": off, "tone": 0},
        {"who": "R squared", "big": f"{e.r2:.2f}".replace("-", "\N{MINUS SIGN}"), "small": "", "what": explained}
        | {"tone": 2},
    ]
    width = (intervals[:, 1] - intervals[:, 0]).median()
    if bool(width.isfinite()):
        what = f"median width of the intervals that are to hold {100 * SHOWN_SHARE:g}% of the targets"
        found.append({"who": "Intervals", "big": plain(float(width)), "small": "", "what": what, "tone": 1})
    return found


def _truth(subject: NumberSubject, intervals: Tensor) -> View:
    step = max(1, -(-len(subject.judged) // DRAWN))
    drawn = []
    for place in range(0, len(subject.judged), step):
        i = int(subject.judged[place])
        low, high = intervals[place].tolist()
        drawn.append(Answered(float(subject.y[i]), float(subject.left_out[i]), low, high, subject.names[i]))
    known = math.isfinite(drawn[0].low)
    return {"svg": against_truth(drawn), "misses": misses(drawn), "known": known, "of": len(subject.y), "n": len(drawn)}


def _coverage(subject: NumberSubject, intervals: dict[float, Tensor]) -> list[View]:
    y, rows = subject.y[subject.judged], []
    for rate, ends in intervals.items():
        if not bool(ends.isfinite().all()):
            rows.append({"share": share(rate), "held": "", "between": "too few shots", "width": ""})
            continue
        held = float(((ends[:, 0] <= y) & (y <= ends[:, 1])).double().mean())
        low, high = wilson(held, len(y))
        width = plain(float((ends[:, 1] - ends[:, 0]).median()))
        between = f"{share(low)} to {share(high)}"
        rows.append({"share": share(rate), "held": share(held), "between": between, "width": width})
    return rows


def _worst(subject: NumberSubject) -> View:
    index: list[int] = subject.fit.residuals.abs().topk(min(SHOWN, len(subject.y))).indices.tolist()
    cards = [
        {
            "look": appearance(subject.looks[i], subject.names[i]),
            "truth": subject.write(float(subject.y[i])),
            "answer": subject.write(float(subject.left_out[i])),
            "off": subject.write(float(subject.left_out[i] - subject.y[i])),
            "near": _near(subject, subject.z[i : i + 1], leave_out=i),
        }
        for i in index
    ]
    return {"cards": cards, "left_out": len(subject.y) - len(cards)}


def _judged_new(subject: NumberSubject) -> View:
    new = subject.new
    if new is None or not len(new.z):
        return {}
    mean, ends = subject.fit.mean(new.z), subject.fit.interval(new.z, SHOWN_SHARE)
    facts = [("Judged", count(len(mean), NOUNS.get(subject.kind, "example")))]
    order = (ends[:, 1] - ends[:, 0]).nan_to_num(0, 0).argsort(descending=True)
    if new.y is not None:
        facts += told(error_of(new.y.numpy(), mean.numpy()), ends.numpy(), new.y.numpy())
        order = (mean - new.y).abs().argsort(descending=True)
    shown: list[int] = order[:SHOWN].tolist()
    cards = [
        {
            "look": appearance(new.look(i), new.names[i]),
            "truth": "" if new.y is None else subject.write(float(new.y[i])),
            "answer": subject.write(float(mean[i])),
            "between": _between(subject, ends[i].tolist()),
            "near": _near(subject, new.z[i : i + 1]),
        }
        for i in shown
    ]
    title = "The widest intervals" if new.y is None else "The largest errors"
    return {"facts": facts, "cards": cards, "order": title, "left_out": len(mean) - len(cards)}


def told(error: ExpectedError, ends: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[str, str]]:
    """Say how far answers are off whose truth is known.

    Args:
        error: of the answers.
        ends: intervals, (N, 2), that are to hold ``SHOWN_SHARE``.
        y: targets (N,).

    Returns:
        (name, text) pairs.
    """
    inside = int(((ends[:, 0] <= y) & (y <= ends[:, 1])).sum())
    facts = [("Root mean squared error", plain(error.rmse)), ("Mean absolute error", plain(error.mae))]
    facts.append(("R squared", plain(round(error.r2, 4))))
    if np.isfinite(ends).all():
        low, high = wilson(inside / len(y), len(y))
        what = f"{share(inside / len(y))} of targets, 95% interval {share(low)} to {share(high)}"
        facts.append((f"Within their {100 * SHOWN_SHARE:g}% intervals", what))
    return facts


def _between(subject: NumberSubject, ends: list[float]) -> str:
    return f"{subject.write(ends[0])} to {subject.write(ends[1])}" if all(map(math.isfinite, ends)) else ""


def _near(subject: NumberSubject, z: Tensor, leave_out: int = -1) -> list[View]:
    found: list[int] = subject.fit.nearest(z, NEIGHBOURS + (leave_out >= 0))[1][0].tolist()
    return [
        {**appearance(subject.looks[i], subject.names[i]), "label": subject.write(float(subject.y[i])), "tag": ""}
        for i in [i for i in found if i != leave_out][:NEIGHBOURS]
    ]


def _facts(subject: NumberSubject) -> list[tuple[str, str]]:
    from kshot import __version__  # imported here: kshot itself imports this room when asked for a regressor

    kernel = subject.fit.kernel
    what = f"{100 * kernel.share:g}% linear"
    what += f", {100 * (1 - kernel.share):g}% Gaussian of length {kernel.length:g}" if kernel.share < 1 else ""
    return [
        ("Encoder", subject.encoder),
        ("Length of a vector", f"{subject.z.shape[1]:,}"),
        ("Kernel", what),
        ("Ridge", f"{kernel.ridge:.3g}"),
        ("Targets", f"{subject.write(float(subject.y.min()))} to {subject.write(float(subject.y.max()))}"),
        *subject.facts,
        ("Written by", f"kshot {__version__}"),
    ]
