"""Residual networks: sizes as published, task axis, normalisation, refusals."""

import pytest
import torch

from kshot.core import UserError
from kshot.nn.resnet import ResNet12, WideResNet


def test_sizes_are_those_of_the_papers() -> None:
    """12.4 million parameters for ResNet-12 (MetaOptNet), 36.5 for WRN-28-10 (its Table 5, without the classifier)."""
    assert sum(p.numel() for p in ResNet12().parameters()) == pytest.approx(12.42e6, rel=0.005)
    assert sum(p.numel() for p in WideResNet().parameters()) == pytest.approx(36.5e6, rel=0.005)
    assert ResNet12().n_features == WideResNet().n_features == 640


@pytest.mark.parametrize("network", [ResNet12(1, 16, widths=(2, 3, 4, 5)), WideResNet(1, depth=10, width=1)])
@pytest.mark.parametrize("mode", [True, False])
def test_a_task_axis_gives_what_each_task_gives_alone(network: torch.nn.Module, mode: bool) -> None:
    network = network.double().train(mode)
    x = torch.rand(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    buffers = {k: b.clone() for k, b in network.named_buffers()}
    together = network(x)
    alone = []
    for task in x:
        network.load_state_dict(buffers, strict=False)
        alone.append(network(task))
    torch.testing.assert_close(together, torch.stack(alone))
    assert together.shape == (2, 3, network.n_features)


def test_small_images_and_odd_depths_are_refused() -> None:
    with pytest.raises(UserError, match="at least 16 pixels, got 12"):
        ResNet12(1, 12)
    with pytest.raises(UserError, match=r"6 n \+ 4, such as 28, got 27"):
        WideResNet(depth=27)
