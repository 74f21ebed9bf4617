"""Losses whose gradient is computed along with them: to autograd one operation, without a graph behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kshot.nn.native.conv4 import flatten, unflatten

#: Flat parameters -> losses (T,), and the gradient of their mean by the parameters, flat.
Run = Callable[[Tensor], tuple[Tensor, Tensor]]


def with_gradient(run: Run, parameters: Sequence[Tensor]) -> Tensor:
    """Compute losses and their gradient at once.

    Args:
        run: computes both.
        parameters: what the gradient is taken by.

    Returns:
        (T,) losses; only their mean, or another multiple of their sum, can be differentiated, once.
    """
    return _WithGradient.apply(run, *parameters)  # pyright: ignore[reportReturnType]


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, *parameters: Tensor) -> Tensor:
        losses, grad = run(flatten(parameters))
        ctx.shapes = [p.shape for p in parameters]
        ctx.save_for_backward(grad)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weights = grad_outputs[0]
        if not bool((weights == weights[0]).all()):
            raise RuntimeError("native losses know the gradient of their mean, not of tasks that weigh differently")
        (grad,) = ctx.saved_tensors
        return None, *unflatten(grad * weights.sum(), ctx.shapes)
