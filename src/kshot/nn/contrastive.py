"""Losses that pull vectors of one label together: the supervised contrastive one, and cross-entropy over cosines.

Khosla et al., Supervised contrastive learning, NeurIPS 2020, arXiv 2004.11362; and for class vectors that are learnt,
Chen et al., A closer look at few-shot classification, ICLR 2019, arXiv 1904.04232 (Baseline++).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def supervised_contrastive(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Pull vectors of one label together and away from the others: L_out, Eq. 2 of Khosla et al.

    Args:
        z: (N, D) unit vectors.
        y: (N,) labels.
        temperature: tau.

    Returns:
        The mean over those vectors that have another of their label; 0 if none has.
    """
    alone = torch.eye(len(z), dtype=torch.bool, device=z.device)
    cosines = (z @ z.T / temperature).masked_fill(alone, -torch.inf)
    log_shares = cosines - cosines.logsumexp(1, keepdim=True)
    same = (y[:, None] == y) & ~alone
    n_same = same.sum(1)
    each = -log_shares.masked_fill(~same, 0).sum(1) / n_same.clamp(min=1)
    return each.sum() / (n_same > 0).sum().clamp(min=1)


def cosine_cross_entropy(z: Tensor, y: Tensor, head: Tensor, temperature: float) -> Tensor:
    """Tell labels by the cosine to one vector for each class.

    Args:
        z: (N, D) unit vectors.
        y: (N,) labels, 0 to W - 1.
        head: (W, D) class vectors of any length but 0.
        temperature: tau.

    Returns:
        The mean.
    """
    return F.cross_entropy(z @ F.normalize(head, dim=-1).T / temperature, y)
