"""Conv4 (1x28x28, 64 filters, pooling, batch statistics) as one operation with its own backward pass."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.nn.native.build import library

N_FEATURES = 64
IMAGE_SHAPE = (1, 28, 28)
SIDES = (28, 14, 7, 3)
EPS = 1e-5
SUFFIX = {torch.float32: "f", torch.float64: "d"}


class Trunk(NamedTuple):
    """What the trunk returns.

    Attributes:
        features: (G, N, 64).
        means: mean of each convolution's output without its bias, (4, G, 64).
        variances: biased variance of the same, (4, G, 64).
    """

    features: Tensor
    means: Tensor
    variances: Tensor


def trunk(x: Tensor, weights: Sequence[Tensor], gammas: Sequence[Tensor], betas: Sequence[Tensor]) -> Trunk:
    """Embed G groups of N images, each group normalised by its own statistics.

    Args:
        x: (G, N, 1, 28, 28), float32 or float64.
        weights: four convolutions, (64, 1, 3, 3) and (64, 64, 3, 3); biases have no effect.
        gammas: four scales (64,).
        betas: four shifts (64,).

    Returns:
        Features and statistics.

    Raises:
        ValueError: shapes, types or devices are none that the kernel knows.
    """
    parameters = (*weights, *gammas, *betas)
    check_images(x)
    shapes = [(64, 1, 3, 3), *[(64, 64, 3, 3)] * 3, *[(64,)] * 8]
    if [tuple(p.shape) for p in parameters] != shapes or any(p.dtype != x.dtype for p in parameters):
        raise ValueError(f"expected Conv4-64 parameters of {x.dtype}, got {[(p.dtype, *p.shape) for p in parameters]}")
    return Trunk(*_Trunk.apply(x, *parameters))  # pyright: ignore[reportGeneralTypeIssues]


def check_images(x: Tensor) -> None:
    """Refuse images that the kernels cannot read.

    Args:
        x: should be (G, N, 1, 28, 28), float32 or float64, on the CPU.

    Raises:
        ValueError: it is something else.
    """
    if x.ndim != 5 or tuple(x.shape[2:]) != IMAGE_SHAPE or x.dtype not in SUFFIX or x.device.type != "cpu":
        raise ValueError(
            f"expected images (groups, images, 1, 28, 28) of float32 or float64 on the CPU, "
            f"got {tuple(x.shape)} of {x.dtype} on {x.device}"
        )
    if x.shape[0] * x.shape[1] == 0:
        raise ValueError(f"expected at least one image, got shape {tuple(x.shape)}")


def pointer(t: Tensor) -> ctypes.c_void_p:
    """Return the address of a contiguous tensor.

    Returns:
        The address.
    """
    return ctypes.c_void_p(t.data_ptr())


def _pointers(ts: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(ts))(*[t.data_ptr() for t in ts])


class _Engine:
    # Activations between a forward and its backward pass, in memory that is used again.

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        new = getattr(library(), f"trunk_new_{suffix}")
        new.restype = ctypes.c_void_p
        self.handle = ctypes.c_void_p(new())
        self._free = getattr(library(), f"trunk_del_{suffix}")

    def __del__(self) -> None:
        self._free(self.handle)

    def call(self, name: str, *args: Any) -> None:
        getattr(library(), f"trunk_{name}_{self.suffix}")(self.handle, *args)


_idle: dict[str, list[_Engine]] = {"f": [], "d": []}


def _engine(suffix: str) -> _Engine:
    try:
        return _idle[suffix].pop()
    except IndexError:
        return _Engine(suffix)


class _Trunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups, each = x.shape[:2]
        x = x.contiguous()
        parameters = tuple(p.contiguous() for p in parameters)
        features = x.new_empty(groups, each, N_FEATURES)
        means, variances = x.new_empty(4, groups, 64), x.new_empty(4, groups, 64)
        offsets = (ctypes.c_int * (groups + 1))(*range(0, groups * each + 1, each))
        engine = _engine(SUFFIX[x.dtype])
        ctx.threads = torch.get_num_threads()
        engine.call(
            "fwd",
            *(pointer(x), groups * each, groups, offsets),
            *(_pointers(parameters[i : i + 4]) for i in (0, 4, 8)),
            *(pointer(t) for t in (features, means, variances)),
            ctx.threads,
        )
        # The engine keeps the address of the images, so they must live as long.
        ctx.engine, ctx.x, ctx.shapes = engine, x, [p.shape for p in parameters]
        ctx.parameters = parameters
        ctx.save_for_backward(features)
        ctx.mark_non_differentiable(means, variances)
        return features, means, variances

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.engine is None:
            raise RuntimeError("the native trunk can be differentiated once; call it again for another gradient")
        (features,) = ctx.saved_tensors
        grads = [features.new_empty(shape) for shape in ctx.shapes]
        grad_features = grad_outputs[0].contiguous()
        ctx.engine.call(
            "bwd",
            *(pointer(grad_features), pointer(features)),
            *(_pointers(grads[i : i + 4]) for i in (0, 4, 8)),
            ctx.threads,
        )
        _idle[ctx.engine.suffix].append(ctx.engine)
        ctx.engine = None
        return None, *grads
