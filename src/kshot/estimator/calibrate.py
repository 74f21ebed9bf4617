"""Probabilities that mean what they say: one temperature, fitted to the answers for shots left out.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2:
p = softmax(logits / T). Their T is fitted to a validation set; nobody with five photographs has one, so shots left out
take its place. Shots are few, and often all of them are told right; so the target of each is (n + 1) / (n + 2) and not
one, as in Platt, "Probabilistic outputs for support vector machines", 1999, section 2.2: no shot left out vouches for
certainty.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kshot.estimator.held_out import HeldOut

#: Where T is looked for; logits of unit vectors are small, so T is often below one.
_RANGE = (math.log(1e-3), math.log(1e3))
_STEPS = 60
#: For classes of one shot each, where nothing can be fitted: cosines times ten.
PRIOR = 0.1


def fit_temperature(held_out: HeldOut) -> float:
    """Find T that minimises the log-loss against Platt's targets.

    The loss is unimodal in 1 / T (cross-entropy is convex in a common factor of the logits), so a golden-section search
    finds it.

    Args:
        held_out: answers for shots left out.

    Returns:
        T.
    """
    low, high = _RANGE
    golden = (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = (log_loss(held_out, math.exp(t), platt=True) for t in (a, b))
    for _ in range(_STEPS):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = log_loss(held_out, math.exp(a), platt=True)
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = log_loss(held_out, math.exp(b), platt=True)
    return math.exp((low + high) / 2)


def log_loss(held_out: HeldOut, temperature: float, *, platt: bool = False) -> float:
    """Give the mean of -log p(label), every class weighing the same.

    Args:
        held_out: answers for shots left out.
        temperature: T.
        platt: True for targets of (n + 1) / (n + 2), the rest shared by the other classes.

    Returns:
        The loss in nats.
    """
    n, c = held_out.logits.shape
    smoothing = c / (c - 1) / (n + 2) if platt else 0.0
    losses = torch.nn.functional.cross_entropy(
        held_out.logits / temperature, held_out.labels, reduction="none", label_smoothing=smoothing
    )
    counts = torch.bincount(held_out.labels)
    weight = 1 / counts[held_out.labels].to(losses.dtype)
    return float((losses * weight).sum() / weight.sum())


def calibrated_loss(held_out: HeldOut) -> float:
    """Give the log-loss at the best temperature.

    Args:
        held_out: answers for shots left out.

    Returns:
        The loss in nats.
    """
    return log_loss(held_out, fit_temperature(held_out))


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Turn logits into probabilities.

    Args:
        logits: (N, C).
        temperature: T.

    Returns:
        (N, C), rows sum to one.
    """
    return torch.softmax(logits.double() / temperature, dim=-1)
