"""The inner loop: gradient steps on a task's support set, as a pure function of parameters and buffers.

Everything here works for one task, composes with ``torch.func.vmap`` and ``torch.func.grad``, and can be differentiated
once more: the outer gradient runs through the steps unless ``first_order`` cuts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.core.tree import Tree

Named = dict[str, Tensor]


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
        merged |= {k: b.clone() for k, b in weights.buffers.items()}
    out = torch.func.functional_call(module, merged, (x,))
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


def sgd_steps(
    loss: Callable[[Weights], tuple[Tensor, Weights]],
    start: Weights,
    *,
    lr: float,
    n_steps: int,
    first_order: bool = False,
) -> Iterator[Weights]:
    """Yield the weights after 0, 1, ..., n_steps steps of gradient descent: theta <- theta - lr * grad L(theta).

    Args:
        loss: the support loss (scalar) of some weights, and the weights with the buffers as the forward pass left them.
        start: where to begin.
        lr: inner learning rate (alpha in MAML).
        n_steps: number of steps.
        first_order: treat the gradients as constants, so that no second derivative is taken.

    Yields:
        n_steps + 1 weights. Memory grows with n_steps if an outer gradient is taken, else it is constant.
    """

    def of_params(params: Named, buffers: Named) -> tuple[Tensor, Named]:
        value, after = loss(Weights(params, buffers))
        return value, after.buffers

    weights = start
    yield weights
    for _ in range(n_steps):
        grads, buffers = torch.func.grad(of_params, has_aux=True)(*weights)
        if first_order:
            grads = {name: g.detach() for name, g in grads.items()}
        weights = Weights({name: p - lr * grads[name] for name, p in weights.params.items()}, buffers)
        yield weights
