"""The shapes of Conv4 that the kernels can be compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Blocks of the network, and the epsilon of their normalisations.
N_BLOCKS, EPS = 4, 1e-5
#: C++ types.
REALS = {torch.float32: "float", torch.float64: "double"}
#: Channels come in vectors of 16 (two at a time in float64); what is beyond the others was never measured.
_LANES, _MOST_INPUTS, _MOST_SIDE, _MOST_FILTERS = 32, 4, 128, 256


class Design(NamedTuple):
    """A Conv4 that halves by pooling; a library is compiled for each.

    Attributes:
        inputs: channels of the images.
        side: of the square images, in pixels.
        filters: channels of every block.
        pools: blocks that pool, the first ones.
    """

    inputs: int = 1
    side: int = 28
    filters: int = 64
    pools: int = N_BLOCKS

    @property
    def possible(self) -> bool:
        """True if the kernels can be compiled for it."""
        fits = self.filters % _LANES == 0 and 0 < self.filters <= _MOST_FILTERS
        big_enough = 1 <= self.pools <= N_BLOCKS and 2**N_BLOCKS <= self.side <= _MOST_SIDE
        return fits and big_enough and 1 <= self.inputs <= _MOST_INPUTS

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of an image."""
        return self.inputs, self.side, self.side

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of the images that each block sees."""
        return tuple(self.side // 2 ** min(block, self.pools) for block in range(N_BLOCKS))

    @property
    def n_features(self) -> int:
        """D, length of a feature vector."""
        return self.filters * (self.side // 2**self.pools) ** 2

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters: the convolutions, then scales, then shifts of the normalisations."""
        inputs = [self.inputs, *[self.filters] * (N_BLOCKS - 1)]
        return [*((self.filters, i, 3, 3) for i in inputs), *[(self.filters,)] * (2 * N_BLOCKS)]

    @property
    def defines(self) -> list[str]:
        """What the compiler is told."""
        told = {"INPUTS": self.inputs, "SIDE": self.side, "FILTERS": self.filters, "POOLS": self.pools}
        return [f"-DKSHOT_{name}={value}" for name, value in told.items()]


def design_of(x: Tensor, parameters: Sequence[Tensor], pools: int = N_BLOCKS) -> Design:
    """Read the design off images and parameters, and refuse images that the kernels cannot read.

    Args:
        x: (G, N, inputs, side, side), float32 or float64, on the CPU.
        parameters: as ``Design.shapes`` lists them, and perhaps more.
        pools: blocks that pool, which neither tells.

    Returns:
        The design.

    Raises:
        ValueError: they are something else.
    """
    filters = len(parameters[0]) if parameters and parameters[0].ndim else 0
    channels, side = x.shape[2:4] if x.ndim == 5 else (0, 0)
    design = Design(channels, side, filters, pools)
    if tuple(x.shape[2:]) != design.image_shape or x.dtype not in REALS or x.device.type != "cpu":
        raise ValueError(
            "expected square images (groups, images, channels, side, side) of float32 or float64 on the CPU, "
            f"got {tuple(x.shape)} of {x.dtype} on {x.device}"
        )
    if not design.possible:
        raise ValueError(
            f"the kernels know images of at most {_MOST_INPUTS} channels and 16 to {_MOST_SIDE} pixels a side, and "
            f"filters in multiples of {_LANES} up to {_MOST_FILTERS}, with 1 to {N_BLOCKS} poolings; got {design}"
        )
    if x.numel() == 0 or x.requires_grad:
        raise ValueError(f"expected images that need no gradient, got {tuple(x.shape)}, {x.requires_grad=}")
    return design
