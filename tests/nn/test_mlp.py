"""The multi-layer perceptron: MAML's sinusoid network by default."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kshot.nn.mlp import MLP
from kshot.nn.norm import Norm


def test_it_is_two_layers_of_forty_with_relu() -> None:
    mlp, x = MLP(1), torch.randn(7, 1)
    first, second = (m for m in mlp.layers if isinstance(m, nn.Linear))
    expected = F.relu(F.linear(F.relu(F.linear(x, first.weight, first.bias)), second.weight, second.bias))
    torch.testing.assert_close(mlp(x), expected)
    assert mlp.n_features == 40
    assert sum(p.numel() for p in mlp.parameters()) == 1 * 40 + 40 + 40 * 40 + 40


def test_more_axes_are_flattened() -> None:
    assert MLP(6, (4, 3))(torch.randn(5, 2, 3)).shape == (5, 3)
    with pytest.raises(RuntimeError, match="shape"):
        MLP(6, (4, 3))(torch.randn(5, 2, 2))


@pytest.mark.parametrize("mode", ["running", "layer"])
def test_normalisation_stands_between_layers(mode: str) -> None:
    mlp = MLP(2, (4, 3), mode)
    assert [m.mode for m in mlp.modules() if isinstance(m, Norm)] == [mode, mode]
    assert mlp(torch.randn(5, 2)).shape == (5, 3)
