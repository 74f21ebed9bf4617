"""A network cut in two: body and tail are the whole, or it is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kshot.apps.vision.split import Body, blocks, cut
from kshot.core import UserError


class Chain(nn.Module):
    """Stem, three blocks in two stages, a norm behind them, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stages = nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block()))
        self.norm = nn.BatchNorm2d(4)
        self.unused = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.stages(self.stem(x))).mean((2, 3))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


class Skipping(Chain):
    """What comes to the last block is not all that goes on."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (self.norm(self.stages(x)) + x).mean((2, 3))


def made(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return kind().eval(), torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(("n", "first"), [(1, "stages.1.0"), (2, "stages.0.1"), (9, "stages.0.1")])
def test_body_and_tail_are_the_whole(n: int, first: str) -> None:
    network, x = made(Chain)
    assert [name for name, _ in blocks(network)] == ["stages.0.0", "stages.0.1", "stages.1.0"]
    name, tail = cut(network, n, x)
    assert name == first
    expected = network(x)
    torch.testing.assert_close(tail(Body(network, name)(x)), expected)


def test_what_is_trained_lies_behind_the_cut() -> None:
    network, x = made(Chain)
    name, tail = cut(network, 1, x)
    found = tail.trainable(torch.ones(2, 4, 8, 8))
    assert sorted(found) == ["norm.bias", "norm.weight", "stages.1.0.conv.bias", "stages.1.0.conv.weight"]
    assert sum(p.requires_grad for p in tail.parameters()) == 4
    assert name == "stages.1.0"
    assert all(p.grad is None for p in network.parameters())


def test_networks_that_cannot_be_cut() -> None:
    network, x = made(Skipping)
    with pytest.raises(UserError, match=r"run from its block stages\.1\.0 on.*leave finetune out"):
        cut(network, 1, x)
    with pytest.raises(UserError, match="chain of at least two blocks, got 0"):
        cut(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 1, x)
