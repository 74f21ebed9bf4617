"""What heads on embeddings share: memberships, class means, distances, and a normalisation that survives zeros."""

from __future__ import annotations

import torch
from torch import Tensor


def memberships(y: Tensor, ways: int, dtype: torch.dtype) -> Tensor:
    """Write class indices as rows of zeros and a one.

    Args:
        y: int64 (..., S).
        ways: W; static, so that it works under ``vmap``.
        dtype: of the result.

    Returns:
        (..., S, W).
    """
    return (y.unsqueeze(-1) == torch.arange(ways, device=y.device)).to(dtype)


def class_means(z: Tensor, y: Tensor, ways: int) -> Tensor:
    """Average embeddings by class: c_k = 1 / |S_k| * sum of f(x_i) over S_k.

    Args:
        z: (S, D), or (T, S, D) of T tasks.
        y: int64 (S,), or (T, S).
        ways: W; static, so that it works under ``vmap``.

    Returns:
        (W, D), or (T, W, D); NaN for a class without an example, which the doors refuse.
    """
    member = memberships(y, ways, z.dtype).mT
    return member @ z / member.sum(-1, keepdim=True)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distance of all pairs, |a|^2 - 2 a.b + |b|^2: one product in place of all differences.

    The mean of the second vectors is taken off both first: what they share changes no distance, and would cost digits.

    Args:
        a: (..., N, D).
        b: (..., M, D).

    Returns:
        (..., N, M); rounding may leave a zero distance slightly negative.
    """
    # A class without an example is NaN, and must leave the others as they are.
    shared = torch.where(b.isnan(), 0, b).detach().mean(-2, keepdim=True)
    a, b = a - shared, b - shared
    return (a * a).sum(-1, keepdim=True) - 2 * a @ b.mT + (b * b).sum(-1).unsqueeze(-2)


def unit(z: Tensor) -> Tensor:
    """Scale vectors to length one; a zero vector stays zero, and has a finite gradient.

    Args:
        z: (..., D).

    Returns:
        (..., D).
    """
    return z * torch.rsqrt((z * z).sum(-1, keepdim=True) + 1e-12)


def with_ones(z: Tensor) -> Tensor:
    """Add a column of ones, whose weight is a bias.

    Args:
        z: (N, D).

    Returns:
        (N, D + 1).
    """
    return torch.cat([z, torch.ones_like(z[:, :1])], -1)


def nearest_by_class(distances: Tensor, y: Tensor, ways: int) -> Tensor:
    """Take the smallest distance to each class.

    Args:
        distances: (Q, S).
        y: int64 (S,).
        ways: W.

    Returns:
        (Q, W); infinite for a class without an example.
    """
    other = y.unsqueeze(0) != torch.arange(ways, device=y.device).unsqueeze(1)  # (W, S)
    return distances.unsqueeze(1).masked_fill(other, float("inf")).amin(-1)
