"""Whether probabilities mean what they say, what is called unknown, and which heads were tried."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kshot.estimator.report.figures import HeadDot, histogram, strips
from kshot.estimator.report.subject import Subject, blocks
from kshot.estimator.report.wording import count, share
from kshot.estimator.unknown import smallest_rate
from kshot.evaluation.metrics import calibration_error, confidence_bins, reliability_table
from kshot.evaluation.report.figures import Bin, reliability

View = dict[str, Any]
#: Bins of a reliability diagram: few for few shots, so that each holds some.
_BINS = ((60, 5), (1000, 10))
_MOST_BINS = 15
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
_SHOWN_RATE = 0.05


def reliabilities(subject: Subject) -> list[View]:
    """Draw reliability diagrams: of the shots left out, and of new examples whose labels are known.

    Args:
        subject: of the report.

    Returns:
        Charts with their numbers.
    """
    found = []
    fit, new = subject.fit, subject.new
    if fit.held_out is not None and len(fit.held_out.labels):
        found.append(_chart("Shots left out", "shot", fit.held_out.logits, fit.held_out.labels, fit.temperature, 0))
    if new is not None and new.labels is not None and bool((new.labels >= 0).any()):
        inside = new.labels >= 0
        found.append(
            _chart("New examples", "example", fit.head.logits(new.z[inside]), new.labels[inside], fit.temperature, 1)
        )
    return found


def _chart(title: str, noun: str, logits: Tensor, labels: Tensor, temperature: float, tone: int) -> View:
    n_bins = next((bins for most, bins in _BINS if len(labels) <= most), _MOST_BINS)
    sums = torch.zeros(3, n_bins, dtype=torch.double)
    for rows in blocks(*logits.shape):
        sums += confidence_bins(logits[rows].double() / temperature, labels[rows], n_bins)
    table = reliability_table(sums)
    bins = [
        Bin(row.confidence, row.accuracy, row.n_queries / len(labels))
        for row in table
        if row.confidence is not None and row.accuracy is not None
    ]
    text = f"{title}: accuracy against confidence, {count(len(labels), noun)}"
    return {
        "title": title,
        "tone": tone,
        "ece": share(calibration_error(sums)),
        "n": count(len(labels), noun),
        "svg": reliability(bins, tone=tone, n_bins=n_bins, description=text),
        "rows": [
            {
                "range": f"{share(row.lower)} to {share(row.upper)}",
                "n": f"{row.n_queries:,}",
                "confidence": share(row.confidence),
                "accuracy": share(row.accuracy),
            }
            for row in table
            if row.confidence is not None and row.accuracy is not None
        ],
    }


def unknown(subject: Subject) -> View:
    """Say which error rates of "unknown" the shots can vouch for, and draw how strange they and new examples are.

    Args:
        subject: of the report.

    Returns:
        The chart and a table of rates; empty where nothing can be vouched for.
    """
    reference = subject.fit.reference
    n = len(reference)
    if not n:
        return {}
    lines = [(rate, _threshold(reference, rate)) for rate in RATES]
    new = None if subject.new is None or not len(subject.new.z) else subject.fit.familiarity.strangeness(subject.new.z)
    limit = next((t for rate, t in lines if rate == _SHOWN_RATE), None)
    rows = []
    for rate, t in lines:
        refused = "" if new is None or t is None else f"{int((new > t).sum()):,} of {len(new):,}"
        rows.append({"rate": share(rate), "known": t is not None, "refused": refused})
    chart = histogram(
        [("shots left out", reference.tolist(), 2)] + ([] if new is None else [("new examples", new.tolist(), 1)]),
        mark=limit,
        mark_label="unknown at 5% \N{RIGHTWARDS ARROW}",
        x_label="strangeness \N{RIGHTWARDS ARROW}",
        description="How strange the shots are to a model that has not seen them, and the limit of what is unknown",
    )
    return {
        "svg": chart,
        "rows": rows,
        "n": count(n, "shot"),
        "least": share(smallest_rate(reference)),
        "new": new is not None,
    }


def _threshold(reference: Tensor, rate: float) -> float | None:
    # p(s) = (1 + #{reference >= s}) / (H + 1) <= rate where at most k of the reference are as strange as s.
    k = int(rate * (len(reference) + 1) + 1e-9) - 1
    return None if k < 0 else float(reference[len(reference) - 1 - k])


def heads(subject: Subject) -> View:
    """Draw the losses of the heads that were tried.

    Args:
        subject: of the report.

    Returns:
        The chart; empty where there was no choice.
    """
    losses = subject.fit.losses
    if len(losses) < 2:
        return {}
    rows: dict[str, list[HeadDot]] = {}
    best = min(losses, key=lambda key: losses[key])
    for key, loss in losses.items():
        name, strength = key.split()
        rows.setdefault(name, []).append(HeadDot(loss, strength, key == best))
    # A cosine head has no strength to speak of; hide the number where there is one alone.
    table = [{"name": key, "loss": f"{loss:.4f}", "best": key == best} for key, loss in losses.items()]
    return {"svg": strips(rows, "Calibrated log loss of each head on shots left out"), "rows": table, "best": best}
