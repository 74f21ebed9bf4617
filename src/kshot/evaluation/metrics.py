"""Scores of one episode, from logits and targets: accuracy, log loss, Brier score, calibration, error, bits.

Every function takes any leading axes (tasks T, learners, inner steps, ...) and scores the last ones, so one episode
and a batch of them are the same call.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.core import UserError

N_BINS = 15


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of the queries whose largest logit is the right class's.

    Args:
        logits: (..., Q, W).
        y: int64 (..., Q).

    Returns:
        (...), within 0..1.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0])).item()
        0.5
    """
    return (logits.argmax(-1) == y).to(logits.dtype).mean(-1)


def nll(logits: Tensor, y: Tensor) -> Tensor:
    """Mean negative log-likelihood of the right class, in nats.

    Args:
        logits: (..., Q, W).
        y: int64 (..., Q).

    Returns:
        (...), at least 0; log W for a learner that knows nothing.
    """
    return -F.log_softmax(logits, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1).mean(-1)


def brier(logits: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance between the predicted distribution and the right class's corner, summed over classes.

    Args:
        logits: (..., Q, W).
        y: int64 (..., Q).

    Returns:
        (...), within 0..2.
    """
    right = F.one_hot(y, logits.shape[-1]).to(logits.dtype)
    return (logits.softmax(-1) - right).square().sum(-1).mean(-1)


def mse(prediction: Tensor, y: Tensor) -> Tensor:
    """Mean squared error over the queries and the width of the target.

    Args:
        prediction: means (..., Q, O).
        y: floats (..., Q, O).

    Returns:
        (...).
    """
    return (prediction - y).square().mean((-2, -1))


def bits(logits: Tensor, y: Tensor) -> Tensor:
    """Cost of a sequence in bits: the cross-entropy of every bit that was asked, to base 2, summed.

    The score of Graves, Wayne and Danihelka, Neural Turing Machines, arXiv:1410.5401, section 4.

    Args:
        logits: (..., Q, O), of each bit being one.
        y: bool (..., Q, O).

    Returns:
        (...), at least 0; Q times O for a learner that knows nothing.

    Example:
        >>> bits(torch.zeros(3, 8), torch.ones(3, 8, dtype=torch.bool)).item()
        24.0
    """
    return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none").sum((-2, -1)) / math.log(2)


def wrong_bits(logits: Tensor, y: Tensor) -> Tensor:
    """Number of bits of a sequence that are wrong when the likelier value of each is taken.

    Args:
        logits: (..., Q, O), of each bit being one.
        y: bool (..., Q, O).

    Returns:
        (...).
    """
    return ((logits > 0) != y).sum((-2, -1)).to(logits.dtype)


def confidence_bins(logits: Tensor, y: Tensor, n_bins: int = N_BINS) -> Tensor:
    """Sort queries by the confidence of their answer into bins of equal width (lower, upper].

    The sums can be added over episodes, and the calibration error taken at the end: the mean over episodes of each
    episode's own error would be far too large, because few queries fall into a bin.

    Args:
        logits: (..., Q, W).
        y: int64 (..., Q).
        n_bins: B.

    Returns:
        (..., 3, B): how many queries, the sum of their confidences, and how many of them were right.
    """
    confidence, answer = logits.softmax(-1).max(-1)
    index = (confidence * n_bins).ceil().long().sub(1).clamp(0, n_bins - 1)
    member = F.one_hot(index, n_bins).to(logits.dtype)  # (..., Q, B)
    right = (answer == y).to(logits.dtype)
    weights = torch.stack([torch.ones_like(right), confidence, right], -2)  # (..., 3, Q)
    return weights @ member


def calibration_error(bins: Tensor) -> float:
    """Expected calibration error: the gap between confidence and accuracy, weighted by how many queries a bin holds.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, Eq. 3.

    Args:
        bins: (3, B), summed over episodes; see ``confidence_bins``.

    Returns:
        The error, within 0..1.

    Raises:
        UserError: the bins are empty.
    """
    count, confidence, right = bins
    if not count.sum() > 0:
        raise UserError("expected at least one query in the calibration bins, got none; evaluate some episodes first")
    return float((confidence - right).abs().sum() / count.sum())


class ReliabilityBin(NamedTuple):
    """One row of a reliability table.

    Attributes:
        lower: confidences of the bin are above this,
        upper: and at most this.
        n_queries: queries in it.
        confidence: their mean confidence, None in an empty bin.
        accuracy: the share of them that was right, None in an empty bin.
    """

    lower: float
    upper: float
    n_queries: int
    confidence: float | None
    accuracy: float | None


def reliability_table(bins: Tensor) -> list[ReliabilityBin]:
    """Turn summed bins into rows of confidence against accuracy.

    Args:
        bins: (3, B); see ``confidence_bins``.

    Returns:
        B rows, from unsure to sure.
    """
    n_bins = bins.shape[-1]
    rows = []
    for b, (count, confidence, right) in enumerate(bins.T.tolist()):
        means = (confidence / count, right / count) if count else (None, None)
        rows.append(ReliabilityBin(b / n_bins, (b + 1) / n_bins, round(count), *means))
    return rows
