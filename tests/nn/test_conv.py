"""Conv4: sizes as in the papers, pooling before ReLU equal to pooling after it, a task axis equal to a loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import UserError
from kshot.nn.conv import Conv4, by_kernels, known_to_kernels
from kshot.nn.norm import NORMALISATIONS


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


SIZES = {  # (channels, side, downsample) -> D with 64 filters, and number of parameters
    "ProtoNet on Omniglot": ((1, 28, "pool"), 64, 111_936),
    "MAML on Omniglot": ((1, 28, "stride"), 256, 111_936),
    "miniImageNet": ((3, 84, "pool"), 1600, 113_088),
}
#: (channels, side) -> D with 512 filters, and number of parameters; as docs/do/train.md has them.
CONV4_512 = {"28 x 28": ((1, 28), 512, 7_088_640), "84 x 84 in colour": ((3, 84), 12_800, 7_097_856)}


@pytest.mark.parametrize(("network", "n_features", "n_parameters"), SIZES.values(), ids=SIZES.keys())
def test_sizes_of_the_papers(network: tuple[int, int, str], n_features: int, n_parameters: int) -> None:
    channels, side, downsample = network
    conv = Conv4(channels, 64, side, downsample=downsample)
    assert conv.n_features == n_features
    assert conv(torch.zeros(2, channels, side, side)).shape == (2, n_features)
    assert sum(p.numel() for p in conv.parameters()) == n_parameters


@pytest.mark.parametrize(("image", "n_features", "n_parameters"), CONV4_512.values(), ids=CONV4_512.keys())
def test_conv4_512_embeds_images_of_either_size(image: tuple[int, int], n_features: int, n_parameters: int) -> None:
    channels, side = image
    conv = Conv4(channels, 512, side).eval()
    z = conv(images(2, channels, side, side).float())
    assert z.shape == (2, n_features) == (2, conv.n_features)
    assert bool(torch.isfinite(z).all())
    assert not torch.equal(z[0], z[1])
    assert sum(p.numel() for p in conv.parameters()) == n_parameters
    assert conv.design is None  # no compiled kernel knows so many filters


@pytest.mark.parametrize("side", [16, 17, 31, 33])
@pytest.mark.parametrize("downsample", ["pool", "stride", "first2", "first3"])
def test_n_features_is_told_right_for_odd_sides(side: int, downsample: str) -> None:
    conv = Conv4(2, 3, side, "none", downsample)
    assert conv(torch.zeros(1, 2, side, side)).shape == (1, conv.n_features)


@pytest.mark.parametrize("downsample", ["pool", "stride", "first2", "first3"])
def test_a_block_is_convolution_batch_norm_relu_and_halving(downsample: str) -> None:
    conv, x = Conv4(2, 3, 20, "running", downsample).double(), images(5, 2, 20, 20)
    expected = x
    for i, block in enumerate(conv.blocks):
        stride = 2 if downsample == "stride" else 1
        expected = F.conv2d(expected, block.conv.weight, block.conv.bias, stride=stride, padding=1)
        expected = F.relu(F.batch_norm(expected, None, None, block.norm.weight, block.norm.bias, training=True))
        halved = downsample == "pool" or i < {"first2": 2, "first3": 3}.get(downsample, 0)
        expected = F.max_pool2d(expected, 2) if halved else expected
    torch.testing.assert_close(conv(x), expected.flatten(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalisation", [n for n in NORMALISATIONS if n != "support"])
@pytest.mark.parametrize("training", [True, False])
def test_a_task_axis_equals_a_loop(normalisation: str, training: bool) -> None:
    conv, x = Conv4(1, 3, 16, normalisation).double().train(training), images(4, 5, 1, 16, 16)
    # Running statistics stay as they are in the loop: in training they have no say in the output.
    expected = torch.stack([conv(task) for task in x])
    torch.testing.assert_close(conv(x), expected, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(UserError, match="downsample must be one of pool, stride, first2, first3, got 'mean'"):
        Conv4(downsample="mean")
    with pytest.raises(UserError, match="side of at least 16 pixels, got 15"):
        Conv4(image_size=15)


def test_kernels_are_for_a_conv4_alone():
    assert not by_kernels(nn.Flatten())
    with pytest.raises(TypeError, match="expected a Conv4, got a Flatten"):
        known_to_kernels(nn.Flatten())
    body = Conv4(downsample="stride")
    assert not by_kernels(body)
    assert known_to_kernels(body) is body
