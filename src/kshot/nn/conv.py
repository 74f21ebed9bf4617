"""The four-block convolutional embedding of the few-shot literature (Conv4), with its normalisation named.

Vinyals et al. 2016 (arXiv:1606.04080) set the design: four blocks of 3x3 convolution, batch norm, ReLU and a halving of
the side. ProtoNet halves by 2x2 max-pooling, MAML on Omniglot by strided convolutions; Relation Networks pool in the
first two blocks only, so that a map is left to look at.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core.errors import UserError
from kshot.nn import native
from kshot.nn.norm import Norm

DOWNSAMPLES = ("pool", "stride", "first2", "first3")
_FIRST = {"first2": 2, "first3": 3}


class ConvBlock(nn.Module):
    """3x3 convolution, normalisation, ReLU, and a halving of the side.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        normalisation: see ``kshot.nn.norm``.
        downsample: "pool" (2x2 max-pooling, floor), "stride" (stride 2, ceiling) or "no" (the side stays).
    """

    def __init__(self, in_channels: int, out_channels: int, normalisation: str, downsample: str) -> None:
        super().__init__()
        self.pool = downsample == "pool"
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2 if downsample == "stride" else 1, padding=1)
        self.norm = Norm(out_channels, normalisation)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (N, C, H, W), or (T, N, C, H, W) for T tasks.

        Returns:
            (..., out_channels, about H / 2, about W / 2).
        """
        return self.after_norm(self.norm(_conv(self.conv, x)))

    def after_norm(self, x: Tensor) -> Tensor:
        """Apply what comes after the normalisation.

        Args:
            x: (N, out_channels, H, W), or (T, N, out_channels, H, W) for T tasks.

        Returns:
            (..., out_channels, about H / 2, about W / 2).
        """
        if not self.pool:
            return F.relu(x)
        # Max-pooling commutes with ReLU exactly, and pooling first leaves a quarter of the work.
        return F.relu(F.max_pool2d(x.flatten(0, -4), 2).unflatten(0, x.shape[:-3]))


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return conv(x.flatten(0, -4)).unflatten(0, x.shape[:-3])


class Conv4(nn.Module):
    """Four ``ConvBlock`` and a flattening: (N, C, H, W) to (N, n_features).

    Args:
        in_channels: channels of the images, 1 for Omniglot.
        n_filters: channels of every block, 64 in the papers.
        image_size: side of the square images in pixels; at least 16 when pooling.
        normalisation: see ``kshot.nn.norm``.
        downsample: "pool" (Matching, Prototypical Networks), "stride" (MAML on Omniglot), "first2" (Relation
            Networks: pooling in the first two blocks) or "first3".

    Attributes:
        takes_tasks: a leading task axis is allowed.
        design: what the compiled kernels are told of it; None where they do not know it.
        map_shape: (C, h, w) of the features before they are flattened.
        n_features: D, length of the embedding; 64 for 28x28 images and 64 filters with pooling,
            576 with "first3".

    Raises:
        UserError: images too small, or an unknown way to downsample.
    """

    takes_tasks = True

    def __init__(
        self,
        in_channels: int = 1,
        n_filters: int = 64,
        image_size: int = 28,
        normalisation: str = "running",
        downsample: str = "pool",
    ) -> None:
        super().__init__()
        if downsample not in DOWNSAMPLES:
            raise UserError(f"downsample must be one of {', '.join(DOWNSAMPLES)}, got {downsample!r}")
        n_pools = _FIRST.get(downsample)
        side, ways = image_size, [downsample] * 4 if n_pools is None else ["pool"] * n_pools + ["no"] * (4 - n_pools)
        for way in ways:
            side = {"pool": side // 2, "stride": (side + 1) // 2, "no": side}[way]
        if side < 1:
            raise UserError(
                f"Conv4 halves the image four times: expected a side of at least 16 pixels, got {image_size}"
            )
        channels = [in_channels, *[n_filters] * 4]
        self.blocks = nn.Sequential(
            *(ConvBlock(i, o, normalisation, w) for (i, o), w in zip(itertools.pairwise(channels), ways, strict=True))
        )
        self.map_shape = (n_filters, side, side)
        self.n_features = n_filters * side * side
        design = native.Design(in_channels, image_size, n_filters, ways.count("pool"))
        self.design = design if downsample != "stride" and design.possible else None

    @property
    def fusable(self) -> bool:
        """True if ``kshot.nn.native`` computes this very network, normalised by batch statistics, and works here."""
        return all(block.norm.mode in ("running", "episode") for block in self._own) and self._known(native.available)

    @property
    def pools(self) -> int:
        """Number of blocks that pool."""
        return sum(block.pool for block in self._own)

    def _known(self, works: Callable[[torch.dtype, native.Design], bool]) -> bool:
        if self.design is None or is_hooked(self.blocks) or not all(_is_plain(block) for block in self.blocks):
            return False
        kinds = {(p.dtype, p.device.type) for p in self.parameters()}
        dtype, device = next(iter(kinds))
        return len(kinds) == 1 and device == "cpu" and works(dtype, self.design)

    def fused(self, x: Tensor) -> Tensor:
        """Embed images of T tasks as ``forward`` does while training, by the compiled kernels; needs ``fusable``.

        Normalising by batch statistics cancels the convolutions' biases: their gradient is exactly zero here, and
        nearly zero in ``forward``.

        Args:
            x: (T, N, C, H, W).

        Returns:
            (T, N, D).
        """
        features, means, variances = native.trunk(x, self.kernel_parameters(), self.pools)
        self.average_in(means, variances, x.shape[1])
        return features

    def average_in(self, means: Tensor, variances: Tensor, n_images: int) -> None:
        """Average statistics that the kernels took into the running ones, where the normalisation keeps them.

        Args:
            means: of each convolution without its bias, (T, 4, C).
            variances: biased, of the same shape.
            n_images: N, images of each task.
        """
        if any(block.norm.mode in ("running", "support") for block in self._own):
            sides = self.design.sides if self.design else ()
            statistics = zip(means.mean(0).unbind(), variances.mean(0).unbind(), strict=True)
            for block, side, (mean, var) in zip(self._own, sides, statistics, strict=True):
                bias = block.conv.bias
                centre = mean if bias is None else mean + bias.detach()
                block.norm.average_in(centre, var, count=n_images * side * side)

    def kernel_names(self, prefix: str = "") -> list[str]:
        """Name what ``kernel_parameters`` lists.

        Args:
            prefix: put before each name.

        Returns:
            Names as ``named_parameters`` has them.
        """
        kinds = ("conv.weight", "norm.weight", "norm.bias")
        return [f"{prefix}blocks.{i}.{kind}" for kind in kinds for i in range(len(self.blocks))]

    def kernel_parameters(self) -> list[Tensor]:
        """List the parameters that the compiled kernels read.

        Returns:
            The four convolutions, then the scales and the shifts of the four normalisations.
        """
        convs: list[Tensor] = [block.conv.weight for block in self._own]
        return [*convs, *(block.norm.weight for block in self._own), *(block.norm.bias for block in self._own)]

    @property
    def _own(self) -> list[ConvBlock]:
        return [block for block in self.blocks if isinstance(block, ConvBlock)]

    def forward(self, x: Tensor) -> Tensor:
        """Embed images.

        Args:
            x: (N, C, H, W), or (T, N, C, H, W) for T tasks.

        Returns:
            (N, D), or (T, N, D). By the compiled kernels where these know the network and no second derivative is taken
            (``native.differentiated_once``); by given statistics, where no derivative is taken at all.
        """
        kernels = self._kernels_for(x)
        if kernels is None:
            return self.blocks(x).flatten(-3)
        return kernels(x.reshape(-1, *x.shape[-4:])).view(*x.shape[:-3], -1)

    def _kernels_for(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Choose the kernels that can take the place of the blocks.

        Returns:
            Maps (T, N, C, H, W) to (T, N, D); None if there are none.
        """
        if self.design is None or x.ndim not in (4, 5) or x.shape[-3:] != self.design.image_shape or not x.numel():
            return None
        kinds = {block.norm.statistics for block in self._own}
        if len(kinds) != 1 or not native.suffices(x, *self.parameters()):
            return None
        given = [(tuple(p.shape), p.dtype) for p in self.kernel_parameters()]
        if given != [(shape, x.dtype) for shape in self.design.shapes] or not self._known(native.ready):
            return None
        (kind,) = kinds
        if kind == "stored":
            return None if torch.is_grad_enabled() else self._by_statistics
        # Statistics of each of several supports would want buffers with an axis of tasks.
        several = x.ndim == 5 and any(block.norm.mode == "support" for block in self._own)
        return self.fused if kind == "batch" and not several else None

    def _by_statistics(self, x: Tensor) -> Tensor:
        own = self._own
        biases = [
            b.norm.running_mean.new_zeros(b.conv.out_channels) if b.conv.bias is None else b.conv.bias for b in own
        ]
        means = torch.stack([b.norm.running_mean - bias for b, bias in zip(own, biases, strict=True)])
        variances = torch.stack([b.norm.running_var for b in own])
        return native.embed(x, self.kernel_parameters(), means, variances, self.pools)


def by_kernels(module: nn.Module) -> TypeGuard[Conv4]:
    """Tell whether compiled kernels can compute a network.

    Args:
        module: any network.

    Returns:
        True for a Conv4 that they know, which is ``fusable``; not for one with a ``forward`` of its own.
    """
    if not isinstance(module, Conv4) or type(module).forward is not Conv4.forward:
        return False
    return not is_hooked(module) and module.fusable


def known_to_kernels(module: nn.Module) -> Conv4:
    """Take a network as the Conv4 that kernels compute.

    Args:
        module: a network of which ``by_kernels`` is true.

    Returns:
        The same.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(module, Conv4):
        raise TypeError(f"expected a Conv4, got a {type(module).__name__}; see `fused`")
    return module


def is_hooked(module: nn.Module) -> bool:
    """Tell whether hooks could change what a network computes, of which kernels know nothing.

    Args:
        module: the network.

    Returns:
        True if any of its layers has one.
    """
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())


def _is_plain(block: nn.Module) -> bool:
    # Subclasses and parametrisations compute something else than the kernels do.
    if not (type(block) is ConvBlock and type(block.conv) is nn.Conv2d and type(block.norm) is Norm):
        return False
    return block.norm.eps == native.EPS
