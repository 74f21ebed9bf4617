"""Contrastive losses against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from kshot.nn.contrastive import cosine_cross_entropy, supervised_contrastive


def unit_vectors(n: int, d: int = 5) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return functional.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1)


def test_supervised_contrastive_is_the_papers() -> None:
    z, y, tau = unit_vectors(7), [0, 0, 1, 1, 1, 2, 0], 0.3
    each = []
    for i in range(7):
        others = [j for j in range(7) if j != i]
        positives = [j for j in others if y[j] == y[i]]
        if not positives:
            continue
        below = sum(math.exp(float(z[i] @ z[a]) / tau) for a in others)
        each.append(-sum(math.log(math.exp(float(z[i] @ z[p]) / tau) / below) for p in positives) / len(positives))
    assert len(each) == 6
    assert float(supervised_contrastive(z, torch.tensor(y), tau)) == pytest.approx(sum(each) / 6, rel=1e-9)
    assert float(supervised_contrastive(z, torch.arange(7), tau)) == 0


def test_cross_entropy_looks_at_directions_only() -> None:
    z, head, y, tau = unit_vectors(4), unit_vectors(3).flip(1), torch.tensor([0, 2, 1, 1]), 0.2
    each = []
    for i, c in enumerate(y.tolist()):
        scores = [math.exp(float(z[i] @ w) / tau) for w in head]
        each.append(-math.log(scores[c] / sum(scores)))
    sizes = torch.tensor([[2.0], [0.1], [7.0]], dtype=torch.float64)
    assert float(cosine_cross_entropy(z, y, head * sizes, tau)) == pytest.approx(sum(each) / 4, rel=1e-9)
