"""The outer losses of MAML on Conv4 with a linear head, and their gradient through the inner steps, as one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kshot.nn.native import conv4
from kshot.nn.native.build import library
from kshot.nn.native.kernels import N_FILTERS, Inner, Labelled, Pool, maml_run

_pool = Pool("maml")


def maml_losses(support: Labelled, query: Labelled, parameters: Sequence[Tensor], inner: Inner) -> Tensor:
    """Query losses after the inner steps.

    Memory is about 300 kB for each support image, inner step and thread (float32), whatever the number of tasks.

    Args:
        support: what each task is learnt from.
        query: what it is judged on.
        parameters: as ``conv4.trunk`` takes them, then the head (W, 64) and its bias (W,).
        inner: the inner loop.

    Returns:
        (T,) losses; only their mean, or another multiple of their sum, can be differentiated, once.

    Raises:
        ValueError: shapes, types or labels are none that the kernel knows.
    """
    ways = parameters[-1].numel()
    shapes = [*conv4.SHAPES, (ways, N_FILTERS), (ways,)]
    conv4.check_parameters(parameters, shapes, support.x.dtype)
    for part in (support, query):
        _check(part, ways, n_tasks=len(support.x), dtype=support.x.dtype)
    return _Maml.apply(support, query, inner, shapes, *parameters)  # pyright: ignore[reportReturnType]


def _check(part: Labelled, ways: int, n_tasks: int, dtype: torch.dtype) -> None:
    conv4.check_images(part.x)
    if tuple(part.y.shape) != (n_tasks, part.x.shape[1]) or part.x.shape[0] != n_tasks or part.x.dtype != dtype:
        raise ValueError(
            f"expected {n_tasks} tasks of {dtype} images with a label each, "
            f"got images {tuple(part.x.shape)} of {part.x.dtype} and labels {tuple(part.y.shape)}"
        )
    if part.y.dtype != torch.int64 or int(part.y.min()) < 0 or int(part.y.max()) >= ways:
        raise ValueError(f"expected int64 labels 0..{ways - 1}, got {part.y.dtype} {part.y.min()}..{part.y.max()}")


class _Maml(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, support: Labelled, query: Labelled, inner: Inner, shapes: Any, *parameters: Tensor) -> Tensor:
        kernel, flat = _pool.take(library(support.x.dtype)), conv4.flatten(parameters)
        losses, grad = maml_run(kernel, flat, len(parameters[-1]), support, query, inner, torch.get_num_threads())
        _pool.put_back(kernel)
        ctx.shapes = shapes
        ctx.save_for_backward(grad)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weights = grad_outputs[0]
        if not bool((weights == weights[0]).all()):
            raise RuntimeError("native MAML knows the gradient of the mean loss, not of tasks that weigh differently")
        (grad,) = ctx.saved_tensors
        return None, None, None, None, *conv4.unflatten(grad * weights.sum(), ctx.shapes)
