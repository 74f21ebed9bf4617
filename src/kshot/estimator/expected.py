"""How good will it be? The accuracy to expect on new examples, from the shots alone, with its interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from kshot.estimator.held_out import HeldOut

#: Errors fall about as the square root of the number of shots; so the last shot, left out, cost this power of its
#: share.
_LEARNING_RATE = 0.5
_Z95 = 1.959964


class Expected(NamedTuple):
    """What to expect on new examples, every class being as frequent as any other.

    Attributes:
        accuracy: the estimate.
        low: lower end of the 95% interval.
        high: upper end.
        n: shots that were judged.
    """

    accuracy: float
    low: float
    high: float
    n: int


def expected_accuracy(held_out: HeldOut, n_shots: float) -> Expected:
    """Estimate the accuracy of the head that was fitted to all shots.

    Shots left out were judged by heads with one shot a class less, so their errors are scaled by
    sqrt((K - 1) / K). The interval is Wilson's, as wide as for independent shots, or as the classes differ, if that is
    wider; its upper end is not scaled down, since the learning curve is a rule of thumb.

    Args:
        held_out: answers for shots left out.
        n_shots: K, shots of a class: the mean.

    Returns:
        The estimate.
    """
    right = (held_out.logits.argmax(1) == held_out.labels).double()
    counts = torch.bincount(held_out.labels).double()
    seen = counts > 0
    each = (torch.zeros_like(counts).index_add_(0, held_out.labels, right) / counts.clamp(min=1))[seen]
    n = len(right)
    error = float(1 - each.mean())
    scaled = error * ((n_shots - 1) / n_shots) ** _LEARNING_RATE if n_shots > 1 else error
    # Choosing the head on the same shots flatters by less than the interval is wide.
    spread = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    effective = min(float(n), max(error * (1 - error), 1e-12) / spread**2) if spread > 0 else float(n)
    low = 1 - wilson(error, effective)[1]
    high = 1 - wilson(scaled, effective)[0]
    return Expected(1 - scaled, low, high, n)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Give Wilson's 95% interval of a share.

    Args:
        share: observed, 0 to 1.
        n: number of observations, above 0.

    Returns:
        Lower and upper end.
    """
    z2 = _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
