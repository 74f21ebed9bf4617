"""Labelled examples as a sequence: what a network with a memory reads of a task.

Santoro et al. (Meta-Learning with Memory-Augmented Neural Networks, ICML 2016, section 2) hand the label of an example
in one step late: step t shows (x_t, y_{t-1}), and the answer to x_t is judged by y_t. So a network must hold an example
until its label comes, and cannot tie an answer to a place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shown(y: Tensor, n_outputs: int, like: Tensor) -> Tensor:
    """Turn targets into what a network is shown of them.

    Args:
        y: int64 (...) of 0..W-1, or floats (..., O).
        n_outputs: W, or O.
        like: gives the dtype.

    Returns:
        One-hot rows (..., W), or the floats (..., O).
    """
    # A comparison in the place of F.one_hot, which looks at its values and so cannot be mapped or compiled.
    if y.is_floating_point():
        return y.to(like.dtype)
    return (y.unsqueeze(-1) == torch.arange(n_outputs, device=y.device)).to(like.dtype)


def offset(z: Tensor, targets: Tensor) -> Tensor:
    """Join every example with the target of the one before; the first with zeros.

    Args:
        z: (L, ..., D), time first.
        targets: (L, ..., C).

    Returns:
        (L, ..., D + C).
    """
    return torch.cat([z, F.pad(targets, (*(0, 0) * (targets.ndim - 1), 1, 0))[: len(z)]], -1)


def shuffled(order: Tensor, t: Tensor) -> Tensor:
    """Put examples into another order.

    Args:
        order: int64 (L, ...), numbers of examples; time first.
        t: (L, ..., *rest).

    Returns:
        (L, ..., *rest).
    """
    index = order.reshape(*order.shape, *(1,) * (t.ndim - order.ndim)).expand(*order.shape, *t.shape[order.ndim :])
    return torch.gather(t, 0, index)
