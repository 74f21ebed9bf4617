"""Gradient steps on a task's support set, as a pure function of weights: the inner loop of every gradient method.

Everything here works for one task, composes with ``torch.func.vmap`` and ``torch.func.grad``, and can be differentiated
once more: the outer gradient runs through the steps unless ``first_order`` cuts it. Where nothing will differentiate
through them (first order, or no gradient wanted at all) the steps build no graph and cost what plain fine-tuning does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from kshot.core import Split, UserError
from kshot.core.tree import Tree
from kshot.engine.inner.recompute import Step, unroll
from kshot.engine.inner.rules import Rates, Rule, rate_at, sgd
from kshot.engine.inner.weights import Named, Weights, twice_differentiable
from kshot.nn import native

#: (weights, support, step from 0 on) -> a scalar, and the weights with the buffers as the forward pass left them. All
#: tensors that it uses come as arguments: what it closes over gets no gradient where steps are recomputed.
SupportLoss = Callable[[Weights, Split, int], tuple[Tensor, Weights]]


class Inner(NamedTuple):
    """The settings of an inner loop.

    Attributes:
        lr: learning rates; see ``kshot.engine.inner.rules``.
        n_steps: number of steps.
        rule: the optimiser; plain gradient descent if None.
        first_order: treat gradients as constants, so that no second derivative is taken.
        adapted: patterns of names of the parameters that change, such as "head.*"; the others stay as they are.
        truncate: the outer gradient runs backward through so many last steps, and takes what those before them added to
            the start for a constant (Shaban et al. 2019, arXiv:1810.10667, for a start that is learned); 0 for all.
    """

    lr: Rates
    n_steps: int
    rule: Rule | None = None
    first_order: bool = False
    adapted: Sequence[str] = ("*",)
    truncate: int = 0


def unrolled(
    loss: SupportLoss, start: Weights, support: Split, inner: Inner, *, every: bool = False
) -> Iterator[Weights]:
    """Yield the weights after 0, 1, ..., k steps, or those after the last step alone.

    Args:
        loss: the support loss.
        start: where to begin.
        support: handed to ``loss``.
        inner: the settings.
        every: yield all of them.

    Yields:
        k + 1 weights, or one. Memory grows with the steps that the outer gradient runs through (with their root within
        ``recomputing`` and without ``every``), else it is constant.
    """
    moving = {k: start.params[k] for k in matching(start.params, inner.adapted)}
    fixed = {k: p for k, p in start.params.items() if k not in moving}
    rule = inner.rule or sgd()

    def step(state: Tree, constants: Tree, i: int) -> Tree:
        params, buffers, memory = state
        others, given, rates, tensors = constants

        def of_params(params: Named) -> tuple[Tensor, Named]:
            value, after = loss(Weights({**others, **params}, buffers), given, i)
            return value, after.buffers

        grads, buffers = gradient(of_params, params, constant=inner.first_order)
        direction, memory = rule.direction(grads, memory, i, tensors)
        rate = rate_at(rates, i)
        params = {k: p - rate(k) * direction[k] for k, p in params.items()}
        _look(grads, params, i)
        return params, buffers, memory

    if every:
        yield start
    state = (moving, start.buffers, rule.start(moving))
    constants = (fixed, support, inner.lr, rule.tensors)
    first = max(inner.n_steps - inner.truncate, 0) if inner.truncate else 0
    early = _without_graph(step, state, constants, first, every=every)
    state = early[-1] if early else state
    late = unroll(lambda s, c, i: step(s, c, first + i), state, constants, inner.n_steps - first, every=every)
    for params, buffers, _ in itertools.chain(early if every else (), late):
        yield Weights({k: params.get(k, p) for k, p in start.params.items()}, buffers)


def _without_graph(step: Step, state: Tree, constants: Tree, n_steps: int, *, every: bool) -> list[Tree]:
    # The states on the way, or the last: for the outer gradient each is the start and a constant.
    start, found = state[0], []
    with torch.no_grad():
        for i in range(n_steps):
            state = step(state, constants, i)
            found = [*found, state] if every else [state]
    return [({k: p + (start[k] - start[k].detach()) for k, p in now[0].items()}, *now[1:]) for now in found]


def gradient(
    loss: Callable[[Named], tuple[Tensor, Named]], params: Named, *, constant: bool = False
) -> tuple[Named, Named]:
    """Take the gradient of a loss.

    Args:
        loss: params -> a scalar, and buffers.
        params: where.
        constant: the result is not differentiated.

    Returns:
        name -> gradient, and the buffers. Neither has a graph where ``constant``, or where gradients are off.
    """
    constant = constant or not torch.is_grad_enabled()
    if constant and peek_interpreter_stack() is None:
        return _plain_gradient(loss, params)
    if constant:
        grads, buffers = torch.func.grad(loss, has_aux=True)(params)
        return {k: g.detach() for k, g in grads.items()}, buffers
    with twice_differentiable():
        return torch.func.grad(loss, has_aux=True)(params)


def _plain_gradient(loss: Callable[[Named], tuple[Tensor, Named]], params: Named) -> tuple[Named, Named]:
    # ``torch.func.grad`` always records a graph of the gradient; this does not.
    own = {k: p.detach().requires_grad_() for k, p in params.items()}
    with torch.enable_grad(), native.differentiated_once():
        value, buffers = loss(own)
        grads = torch.autograd.grad(value, list(own.values()), materialize_grads=True)
    return dict(zip(own, grads, strict=True)), {k: b.detach() for k, b in buffers.items()}


def matching(params: Named, patterns: Sequence[str]) -> list[str]:
    """Find the names that fit any of some patterns.

    Args:
        params: name -> tensor.
        patterns: with * and ?, such as "blocks.0.*".

    Returns:
        The names, in the order of ``params``.

    Raises:
        UserError: a pattern fits no name.
    """
    if tuple(patterns) == ("*",):
        return list(params)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in params):
            shown = ", ".join(list(params)[:8]) + (", ..." if len(params) > 8 else "")
            raise UserError(f"expected names of parameters that fit {pattern!r}, found none; the names are {shown}")
    return [name for name in params if any(fnmatchcase(name, pattern) for pattern in patterns)]


class InnerDivergence(ArithmeticError):
    """An inner step went to infinity; the message names the step and the tensor."""


_watched: ContextVar[bool] = ContextVar("watched", default=False)


@contextmanager
def watching() -> Iterator[None]:
    """While open, every inner step is looked at, and ``InnerDivergence`` names the first tensor that is not finite.

    Looking needs numbers, so it is for one task at a time and not for ``vmap``.

    Yields:
        Nothing.
    """
    token = _watched.set(True)
    try:
        yield
    finally:
        _watched.reset(token)


def _look(grads: Named, params: Named, step: int) -> None:
    if not _watched.get():
        return
    for name, t in ({f"the gradient of {k}": g for k, g in grads.items()} | params).items():
        if not bool(torch.isfinite(t).all()):
            raise InnerDivergence(f"{name} in inner step {step + 1}")
