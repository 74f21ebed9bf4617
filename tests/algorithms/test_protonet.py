"""ProtoNet's own doors and helpers; its equations are in tests/reference."""

import pytest
import torch
from torch import nn

from kshot.algorithms import ProtoNet
from kshot.algorithms.metric.protonet import class_means
from kshot.core import UserError
from kshot.nn.conv import Conv4
from kshot.nn.mlp import MLP


def test_class_means_of_unequal_classes_in_any_order() -> None:
    z = torch.tensor([[1.0, 0.0], [5.0, 5.0], [3.0, 2.0], [9.0, 9.0]])
    assert class_means(z, torch.tensor([1, 0, 1, 2]), 3).tolist() == [[5, 5], [2, 1], [9, 9]]


def test_class_means_can_be_mapped_over_tasks() -> None:
    z, y = torch.randn(3, 6, 2), torch.stack([torch.randperm(6) % 3 for _ in range(3)])
    mapped = torch.func.vmap(lambda z, y: class_means(z, y, 3))(z, y)
    torch.testing.assert_close(mapped, torch.stack([class_means(*task, 3) for task in zip(z, y, strict=True)]))


def test_native_batching_needs_a_network_that_takes_tasks() -> None:
    assert ProtoNet(Conv4(1, 4, 16)).native
    assert not ProtoNet(Conv4(1, 4, 16, "support")).native
    assert not ProtoNet(MLP(3)).native


def test_distances_far_from_the_origin_are_not_negative() -> None:
    """|z|^2 - 2 z c + |c|^2 cancels: in float32 far out the distance is off by rounding, and no more than that."""
    learner = ProtoNet(nn.Identity())
    z = 100 + torch.randn(5, 64)
    got = -learner.apply_head(z, z)
    assert float(got.diagonal().abs().max()) < 1e-5 * 64 * 100**2


def test_unknown_distances_are_refused() -> None:
    with pytest.raises(UserError, match="distance must be one of squared_euclidean, cosine, got 'euclid'"):
        ProtoNet(nn.Identity(), distance="euclid")
