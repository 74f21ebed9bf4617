"""Conv4 (square images, pooling, batch statistics) as one operation with its own backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kshot.nn.native.build import library
from kshot.nn.native.design import N_BLOCKS, Design, design_of
from kshot.nn.native.kernels import Pool, trunk_backward, trunk_forward

pool = Pool("trunk")


class Trunk(NamedTuple):
    """What the trunk returns.

    Attributes:
        features: (G, N, D).
        means: mean of each convolution without its bias, over all pixels of a group, (G, 4, C); no gradient.
        variances: biased variance of the same, (G, 4, C); no gradient.
    """

    features: Tensor
    means: Tensor
    variances: Tensor


def trunk(x: Tensor, parameters: Sequence[Tensor], pools: int = N_BLOCKS) -> Trunk:
    """Embed G groups of N images, each group normalised by its own statistics.

    Memory is about 150 kB until the backward pass for an image of 28 x 28 and 64 filters (float32).

    Args:
        x: (G, N, channels, side, side), float32 or float64.
        parameters: the four convolutions, the scales and the shifts of the four norms; see ``Design.shapes``.
        pools: blocks that pool, the first ones.

    Returns:
        Features, which can be differentiated once by the parameters, and statistics.

    Raises:
        ValueError: shapes, types or devices are none that the kernel knows, or a gradient by images is asked for.
    """
    design = design_of(x, parameters, pools)
    check_parameters(parameters, design.shapes, x.dtype)
    return Trunk(*_Trunk.apply(design, x, *parameters))  # pyright: ignore[reportGeneralTypeIssues]


def embed(x: Tensor, parameters: Sequence[Tensor], means: Tensor, variances: Tensor, pools: int = N_BLOCKS) -> Tensor:
    """Embed images by given statistics, without gradients.

    Args:
        x: (G, N, channels, side, side), float32 or float64.
        parameters: as ``trunk`` takes them.
        means: of each convolution without its bias, (4, C).
        variances: of the same.
        pools: blocks that pool, the first ones.

    Returns:
        (G, N, D).

    Raises:
        ValueError: shapes, types or devices are none that the kernel knows.
    """
    design = design_of(x, parameters, pools)
    check_parameters(parameters, design.shapes, x.dtype)
    check_parameters([means, variances], [(N_BLOCKS, design.filters)] * 2, x.dtype)
    kernel, features = pool.take(library(x.dtype, design)), x.new_empty(*x.shape[:2], design.n_features)
    given = (means.contiguous(), variances.contiguous())
    n_images, threads = x.shape[0] * x.shape[1], torch.get_num_threads()
    kernel("embed", flatten(parameters), x.contiguous(), n_images, *given, features, threads)
    pool.put_back(kernel)
    return features


def check_parameters(parameters: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
    """Refuse parameters that the kernels cannot read.

    Args:
        parameters: the tensors.
        shapes: what their shapes should be.
        dtype: what their type should be.

    Raises:
        ValueError: they are something else.
    """
    got = [(tuple(p.shape), p.dtype, p.device.type) for p in parameters]
    if got != [(shape, dtype, "cpu") for shape in shapes]:
        raise ValueError(f"expected parameters of shapes {list(shapes)} in {dtype} on the CPU, got {got}")


def check_labels(y: Tensor, shape: tuple[int, ...], ways: int) -> None:
    """Refuse labels that would make a kernel read beyond its memory.

    Args:
        y: should be int64 of 0..ways-1, on the CPU.
        shape: what its shape should be.
        ways: number of classes.

    Raises:
        ValueError: they are something else.
    """
    if tuple(y.shape) != shape or 0 in shape or y.dtype != torch.int64 or y.device.type != "cpu":
        raise ValueError(f"expected int64 labels {shape} on the CPU, got {tuple(y.shape)} of {y.dtype} on {y.device}")
    low, high = (int(v) for v in torch.aminmax(y))
    if low < 0 or high >= ways:
        raise ValueError(f"expected labels 0..{ways - 1}, got {low}..{high}")


def flatten(parameters: Sequence[Tensor]) -> Tensor:
    """Copy tensors into one, end to end.

    Args:
        parameters: of any shapes.

    Returns:
        (n,).
    """
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def unflatten(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Undo ``flatten``.

    Args:
        flat: (n,).
        shapes: of the parts.

    Returns:
        Views.
    """
    parts = flat.split([torch.Size(shape).numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class _Trunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, design: Design, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, flat = x.contiguous(), flatten(parameters)
        ctx.kernel, ctx.design, ctx.n_parameters = pool.take(library(x.dtype, design)), design, len(flat)
        features, means, variances = trunk_forward(ctx.kernel, design, flat, x, torch.get_num_threads())
        ctx.save_for_backward(x)  # whose address the kernel remembers
        ctx.mark_non_differentiable(means, variances)
        return features, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with pool.resumed(ctx) as kernel:
            grad = trunk_backward(kernel, grad_outputs[0].contiguous(), ctx.n_parameters)
        return None, None, *unflatten(grad, ctx.design.shapes)
