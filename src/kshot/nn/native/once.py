"""When a network may be computed by kernels of its own accord: where nothing takes a second derivative of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from kshot.nn.native.mapped import reaches_kernels

#: True, False, or None where nothing is said: then kernels serve without gradients alone.
_allowed: ContextVar[bool | None] = ContextVar("kernels_serve", default=None)


@contextmanager
def differentiated_once() -> Iterator[None]:
    """Promise that gradients which are taken within are not differentiated again.

    Yields:
        Nothing.
    """
    token = _allowed.set(_allowed.get() is not False)
    try:
        yield
    finally:
        _allowed.reset(token)


@contextmanager
def switched_off() -> Iterator[None]:
    """Keep networks from turning to kernels of their own accord, to compare both or to look inside.

    Yields:
        Nothing.
    """
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def suffices(x: Tensor, *parameters: Tensor) -> bool:
    """Tell whether kernels, which can be differentiated once by the parameters, can take a network's place.

    Args:
        x: its input.
        *parameters: what it is run with.

    Returns:
        False where something maps, traces, compiles or casts, or where a gradient by ``x`` is wanted.
    """
    allowed = _allowed.get()
    followed = torch.compiler.is_compiling() or torch.jit.is_tracing() or peek_interpreter_stack() is not None
    if allowed is False or x.requires_grad or followed or torch.is_autocast_enabled("cpu"):
        return False
    return bool(allowed or not torch.is_grad_enabled()) and reaches_kernels(x, *parameters)
