"""Kernels of batches under ``torch.func.vmap``: the mapped axis becomes more of the batch. Without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

#: Of x (L, B, ...) and states (B, ...), to outputs (L, B, ...) and states.
Function = Callable[..., tuple[Tensor, ...]]


def reaches_kernels(*tensors: Tensor) -> bool:
    """Tell whether tensors have contents that a kernel can read, perhaps below ``vmap``.

    Args:
        *tensors: what a kernel would be given.

    Returns:
        False while something traces, counts or rehearses operations, and for tensors that ``torch.func.grad`` follows.
    """
    if torch._C._len_torch_dispatch_stack():
        return False
    return all(type(_unwrapped(t)) in (Tensor, torch.nn.Parameter) for t in tensors)


def _unwrapped(t: Tensor) -> Tensor | None:
    while is_batchedtensor(t):
        t = get_unwrapped(t)
    return None if is_functorch_wrapped_tensor(t) else t


def is_mapped(t: Tensor) -> bool:
    """Tell whether ``vmap`` goes over a tensor.

    Args:
        t: the tensor.

    Returns:
        True if so.
    """
    return is_batchedtensor(t)


def mapped(function: Function, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """Call a function of a batch of sequences; under ``vmap`` once for all.

    Args:
        function: reads tensors without looking at how they are mapped.
        x: (L, B, ...).
        *state: (B, ...).

    Returns:
        What the function returns: (L, B, ...), and states.
    """
    return _Mapped.apply(function, x, *state)  # pyright: ignore[reportReturnType]


class _Mapped(torch.autograd.Function):
    @staticmethod
    def forward(function: Function, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() if any(t is s for s in state) else t for t in function(x, *state))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], function: Function, x: Tensor, *state: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        n = info.batch_size
        x, *states = (
            t.unsqueeze(at).expand(*t.shape[:at], n, *t.shape[at:]) if d is None else t.movedim(d, at)
            for t, d, at in zip((x, *state), in_dims[1:], (1, *(0 for _ in state)), strict=True)
        )
        found, *after = _Mapped.apply(function, x.flatten(1, 2), *(t.flatten(0, 1) for t in states))
        apart = [found.unflatten(1, (n, -1)), *(t.unflatten(0, (n, -1)) for t in after)]
        return tuple(apart), (1, *(0 for _ in after))
