"""How good will it be? The accuracy to expect on new examples, from the shots alone, with its interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from kshot.estimator.held_out import HeldOut

#: Errors fall as a power of the number of shots; the power where the shots themselves cannot tell it, and its bounds.
LEARNING_RATE, _RATES = 0.5, (0.25, 2.0)
_Z95 = 1.959964
#: Fewer errors than these tell no rate of learning.
_LEAST_ERRORS = 5


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


def expected_accuracy(
    held_out: HeldOut, n_shots: float, *, n_seen: float = 0.0, rate: float = LEARNING_RATE
) -> Expected:
    """Estimate the accuracy of the head that was fitted to all shots.

    Shots left out were judged by heads that had seen fewer, so their errors are scaled by (seen / all)^rate. The
    interval is Wilson's, as wide as for independent shots, or as the classes differ, if that is wider. Its lower end
    is not scaled, and its upper end by twice the rate, since the rate itself is a rough estimate.

    Args:
        held_out: answers for shots left out.
        n_shots: shots of a class: the mean.
        n_seen: how many of them the judging heads had seen; 0 for all but one.
        rate: of learning, see ``learning_rate``.

    Returns:
        The estimate.
    """
    right = (held_out.logits.argmax(1) == held_out.labels).double()
    counts = torch.bincount(held_out.labels).double()
    seen = counts > 0
    each = (torch.zeros_like(counts).index_add_(0, held_out.labels, right) / counts.clamp(min=1))[seen]
    n = len(right)
    error = float(1 - each.mean())
    share = (n_seen or n_shots - 1) / n_shots if n_shots > 1 else 1.0
    scaled, least = error * share**rate, error * share ** min(2 * rate, _RATES[1])
    # Choosing the head on the same shots flatters by less than the interval is wide.
    spread = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    effective = min(float(n), max(error * (1 - error), 1e-12) / spread**2) if spread > 0 else float(n)
    low = 1 - wilson(error, effective)[1]
    high = 1 - wilson(least, effective)[0]
    return Expected(1 - scaled, low, high, n)


def learning_rate(fewer: HeldOut, more: HeldOut, n_fewer: float, n_more: float) -> float:
    """Estimate the power by which errors fall with the number of shots, from two numbers of shots.

    Args:
        fewer: answers by heads that had seen fewer shots.
        more: answers for the same shots by heads that had seen more.
        n_fewer: shots of a class that the former had seen.
        n_more: those that the latter had seen.

    Returns:
        The rate, within bounds; the usual one where there are too few errors to tell.
    """
    errors = [int((h.logits.argmax(1) != h.labels).sum()) for h in (fewer, more)]
    if errors[0] < _LEAST_ERRORS or n_more <= n_fewer:
        return LEARNING_RATE
    found = math.log(errors[0] / max(errors[1], 1)) / math.log(n_more / n_fewer)
    return min(max(found, _RATES[0]), _RATES[1])


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
