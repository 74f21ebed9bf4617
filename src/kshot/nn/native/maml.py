"""The outer losses of MAML on Conv4 with a linear head, and their gradient through the inner steps, as one operation."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.nn.native.build import library
from kshot.nn.native.conv4 import SUFFIX, check_images, pointer


class Inner(NamedTuple):
    """The inner loop.

    Attributes:
        lr: learning rate of the inner steps.
        n_steps: how many.
        first_order: leave second derivatives out.
    """

    lr: float
    n_steps: int
    first_order: bool


class Labelled(NamedTuple):
    """Examples of T tasks.

    Attributes:
        x: (T, N, 1, 28, 28).
        y: int64 (T, N), below the width of the head.
    """

    x: Tensor
    y: Tensor


def maml_losses(support: Labelled, query: Labelled, parameters: Sequence[Tensor], inner: Inner) -> Tensor:
    """Query losses after the inner steps.

    Args:
        support: what each task is learnt from.
        query: what it is judged on.
        parameters: four convolutions, four scales (64,), four shifts (64,), head (W, 64), its bias (W,).
        inner: the inner loop.

    Returns:
        (T,) losses; only their mean (or another multiple of their sum) can be differentiated.

    Raises:
        ValueError: shapes, types or labels are none that the kernel knows.
    """
    ways = parameters[-1].shape[0]
    shapes = [(64, 1, 3, 3), *[(64, 64, 3, 3)] * 3, *[(64,)] * 8, (ways, 64), (ways,)]
    for part in (support, query):
        check_images(part.x)
        if tuple(part.y.shape) != tuple(part.x.shape[:2]) or len(part.x) != len(support.x):
            raise ValueError(f"expected a label for each image of {tuple(part.x.shape)}, got {tuple(part.y.shape)}")
        if int(part.y.min()) < 0 or int(part.y.max()) >= ways:
            raise ValueError(f"expected labels below {ways}, got {int(part.y.min())}..{int(part.y.max())}")
    if [tuple(p.shape) for p in parameters] != shapes or any(p.dtype != support.x.dtype for p in parameters):
        raise ValueError(f"expected Conv4-64 and head, got {[(p.dtype, *p.shape) for p in parameters]}")
    return _Maml.apply(support, query, inner, *parameters)  # pyright: ignore[reportReturnType]


class _Maml(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, support: Labelled, query: Labelled, inner: Inner, *parameters: Tensor) -> Tensor:
        theta = _flatten(parameters)
        grad, losses = torch.empty_like(theta), theta.new_empty(len(support.x))
        examples: list[Any] = []
        keep = []
        for x, y in (support, query):
            keep += [x.contiguous(), y.to(torch.int32).contiguous()]
            examples += [pointer(keep[-2]), pointer(keep[-1]), x.shape[1]]
        getattr(library(), f"maml_{SUFFIX[theta.dtype]}")(
            *(pointer(theta), ctypes.c_long(theta.numel()), *examples),
            *(parameters[-1].shape[0], len(support.x), inner.n_steps, ctypes.c_double(inner.lr)),
            *(int(not inner.first_order), pointer(grad), pointer(losses), torch.get_num_threads()),
        )
        ctx.shapes = [p.shape for p in parameters]
        ctx.save_for_backward(grad)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        if not bool((g == g[0]).all()):
            raise RuntimeError(
                "native MAML knows the gradient of the mean loss only, not of differently weighted tasks"
            )
        (grad,) = ctx.saved_tensors
        return None, None, None, *_unflatten(grad * (g[0] * len(g)), ctx.shapes)


def _flatten(parameters: Sequence[Tensor]) -> Tensor:
    # Convolutions as [pixel][in][out], the order in which the kernels read them.
    return torch.cat([p.permute(2, 3, 1, 0).reshape(-1) if p.ndim == 4 else p.reshape(-1) for p in parameters])


def _unflatten(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = []
    for piece, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True):
        four = len(shape) == 4
        parts.append(piece.view(3, 3, shape[1], shape[0]).permute(3, 2, 0, 1) if four else piece.view(shape))
    return parts
