"""Content addressing: how alike a key and every row of a memory are, safe where one of them is zero."""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to squared lengths. A row of zeros has the similarity 0, and a gradient that is finite in every type.
EPS = 1e-6


def cosine(keys: Tensor, memory: Tensor) -> Tensor:
    """Take the cosine of each key with each row: K(k, M(i)) = k.M(i) / (|k| |M(i)|).

    Args:
        keys: (..., R, M).
        memory: (..., N, M).

    Returns:
        (..., R, N), between -1 and 1.
    """
    # Rows are divided after the product: its result is the smaller tensor.
    return ((keys * inverse_length(keys)) @ memory.mT) * inverse_length(memory).mT


def inverse_length(v: Tensor) -> Tensor:
    """Return 1 / |v|, bounded where v is zero.

    Args:
        v: (..., M).

    Returns:
        (..., 1).
    """
    return torch.rsqrt((v * v).sum(-1, keepdim=True) + EPS)
