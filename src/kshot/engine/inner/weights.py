"""A network's tensors outside the network: take them out, run the module with others, put buffers back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from kshot.core.functional import functional_call
from kshot.core.tree import Tree, tree_map

Named = dict[str, Tensor]

#: Weight and bias of a linear head that is made within a task. No module has an empty name, so that no layer of a
#: network is called the same.
HEAD = (".head.weight", ".head.bias")


class Weights(NamedTuple):
    """A network's tensors, taken out of the module so that they can be changed without touching it.

    Attributes:
        params: name -> tensor that gradient steps change.
        buffers: name -> tensor that the forward pass may replace, such as normalisation statistics.
    """

    params: Named
    buffers: Named


def weights_of(module: nn.Module) -> Weights:
    """Take the parameters and buffers out of a module.

    Args:
        module: the network.

    Returns:
        Its tensors, not copied.
    """
    return Weights(dict(module.named_parameters()), dict(module.named_buffers()))


def call(module: nn.Module, weights: Weights, x: Tree) -> tuple[Tensor, Weights]:
    """Run a module with other weights than its own, leaving the module as it was.

    Args:
        module: the network.
        weights: what to run it with.
        x: its input.

    Returns:
        The output, and the weights with the buffers as the forward pass left them.
    """
    merged = {**weights.params, **weights.buffers}
    if writes_in_place(module):
        # Statistics that are written in place have no gradient, and may not ask for one.
        merged |= {k: b.detach().clone() for k, b in weights.buffers.items()}
    with _second_derivatives(module) if _twice.get() else _first_derivatives(module):
        out = functional_call(module, merged, (x,))
    # functional_call writes replaced buffers back into the dict that it was given.
    return out, Weights(weights.params, {k: merged[k] for k in weights.buffers})


def writes_in_place(module: nn.Module) -> bool:
    """Tell whether a forward pass overwrites buffers: PyTorch's own batch norms do, while training.

    Args:
        module: the network.

    Returns:
        True if so; ``vmap`` refuses such a network, and a pure call needs copies of its buffers.
    """
    return any(
        isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None and m.training
        for m in module.modules()
    )


def replace_buffers(module: nn.Module, buffers: Named) -> None:
    """Put new tensors in the place of a module's buffers.

    Args:
        module: the network.
        buffers: name -> tensor; detached, since a module that holds a graph could not be copied.
    """
    for name, tensor in buffers.items():
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, tensor.detach())


def mean_of_tasks(buffers: Tensor) -> Tensor:
    """Average what several tasks left in one buffer.

    Args:
        buffers: (T, ...).

    Returns:
        The mean; a constant, such as a mask of -inf, to the last bit as it was; of whole numbers the first.
    """
    first = buffers[0]
    if not buffers.is_floating_point():
        return first
    return first + torch.where(buffers == first, 0.0, buffers - first).mean(0)


def known(number: Tensor) -> int | None:
    """Read a whole number, such as a counter, where there is one to be read.

    Args:
        number: a scalar tensor.

    Returns:
        The number; None while a program is traced or rehearsed, which must hold for every number.
    """
    if isinstance(number, FakeTensor) or get_proxy_mode() is not None or torch.compiler.is_compiling():
        return None
    return int(number)


@contextmanager
def outside_inference_mode(given: Tree) -> Iterator[Any]:
    """Leave inference mode, in which no gradient step can be taken; without gradients for whoever called.

    Args:
        given: tensors; those that were made in inference mode are copied, since no graph may hold them.

    Yields:
        The tensors.
    """
    if not torch.is_inference_mode_enabled():
        yield given
        return
    with torch.inference_mode(False), torch.no_grad():
        yield tree_map(lambda t: t.clone() if t.is_inference() else t, given)


class OtherPathWarning(UserWarning):
    """A layer runs by another path than its fastest, which has no second derivative. The numbers are the same."""


_twice: ContextVar[bool] = ContextVar("twice", default=False)
_told: set[str] = set()
_seen: WeakSet[nn.Module] = WeakSet()


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """While open, ``call`` runs networks by paths that can be differentiated twice.

    Fused attention has no second derivative on any device, cuDNN's recurrent layers have none on a GPU, oneDNN's LSTM
    has none on a CPU. Attention then runs as matrix products, recurrent layers by PyTorch's own kernels; ``call`` says
    so once for each kind. Attention that is a function within a layer is seen at the first call of the network.

    Yields:
        Nothing.
    """
    token = _twice.set(True)
    try:
        yield
    finally:
        _twice.reset(token)


@contextmanager
def _second_derivatives(module: nn.Module) -> Iterator[None]:
    kinds = {_kind_without(m) for m in module.modules()}
    for kind in sorted(kinds - {""}):
        _tell(kind)
    cudnn, onednn = torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled
    torch.backends.cudnn.enabled = cudnn and RECURRENT not in kinds
    torch.backends.mkldnn.enabled = onednn and LSTM not in kinds  # pyright: ignore[reportAttributeAccessIssue]
    try:
        # Attention may also be a function within a layer that is not ours, so its path is set in any case.
        with sdpa_kernel(SDPBackend.MATH), nullcontext() if module in _seen else _Seeing():
            yield
        _seen.add(module)
    finally:
        torch.backends.cudnn.enabled = cudnn
        torch.backends.mkldnn.enabled = onednn  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def _first_derivatives(module: nn.Module) -> Iterator[None]:
    # Of recurrent layers that do not train, cuDNN has not even a first derivative, which adapting a network needs.
    cudnn = torch.backends.cudnn.enabled
    resting = (m for m in module.modules() if isinstance(m, nn.RNNBase) and not m.training)
    torch.backends.cudnn.enabled = cudnn and not (
        torch.is_grad_enabled() and any(_kind_without(m) == RECURRENT for m in resting)
    )
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = cudnn


class _Seeing(TorchFunctionMode):
    """Sees attention that is a function; it costs a little at every operation, so it is open once for each network."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            _tell(ATTENTION)
        return func(*args, **(kwargs or {}))


ATTENTION, RECURRENT, LSTM = "attention", "recurrent layers", "LSTM layers"
_PATHS = {
    ATTENTION: "matrix products in the place of the fused kernel",
    RECURRENT: "PyTorch's own kernels in the place of cuDNN's",
    LSTM: "PyTorch's own kernels in the place of oneDNN's",
}


def _kind_without(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return ATTENTION
    if not isinstance(module, nn.RNNBase):
        return ""
    if any(p.is_cuda for p in module.parameters()):
        return RECURRENT
    # oneDNN has no float64, and of recurrent layers only this one.
    by_onednn = isinstance(module, nn.LSTM) and torch.backends.mkldnn.is_available()
    return LSTM if by_onednn and any(p.dtype != torch.float64 for p in module.parameters()) else ""


def _tell(kind: str) -> None:
    if kind in _told:
        return
    _told.add(kind)
    warnings.warn(
        f"the inner loop is differentiated twice, so {kind} run by {_PATHS[kind]}; the numbers are the same, and "
        "first order keeps the faster path",
        OtherPathWarning,
        stacklevel=2,
    )
