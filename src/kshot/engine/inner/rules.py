"""Inner optimisers: how a step turns gradients into a direction. Pure, like everything in the inner loop.

A step is theta <- theta - lr * direction. The learning rate is no part of a rule, since methods learn it: one number,
one for each tensor or element, one for each step, or both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.core import UserError
from kshot.core.registry import unknown
from kshot.core.tree import Tree
from kshot.engine.inner.weights import Named

#: One rate for all tensors, or name -> rate (a scalar, or one for each element).
Rate = float | Tensor | Named
#: The same at every step, or one for each; steps beyond the last take the last.
Rates = Rate | Sequence[Rate]


class Rule(NamedTuple):
    """An inner optimiser.

    Attributes:
        start: params -> what the rule remembers from step to step.
        direction: (gradients, memory, step from 0 on, tensors) -> directions and the new memory.
        tensors: what ``direction`` learns with, such as matrices; handed to it, so that gradients reach them.
    """

    start: Callable[[Named], Tree]
    direction: Callable[[Named, Tree, int, Tree], tuple[Named, Tree]]
    tensors: Tree = ()


_SGD = Rule(lambda params: (), lambda grads, memory, step, tensors: (grads, memory))


def sgd() -> Rule:
    """Gradient descent: the direction is the gradient.

    Returns:
        The rule.
    """
    return _SGD


def is_plain(rule: Rule | None) -> bool:
    """Tell whether a rule is gradient descent.

    Args:
        rule: of an inner loop, where None is gradient descent.

    Returns:
        True for None and for ``sgd()``.
    """
    return rule is None or rule is _SGD


def momentum(mu: float = 0.9) -> Rule:
    """Heavy-ball momentum: v <- mu v + g, and the direction is v.

    Args:
        mu: share of the last direction that is kept, from 0 to below 1.

    Returns:
        The rule.

    Raises:
        UserError: mu is out of its range.
    """
    if not 0 <= mu < 1:
        raise UserError(f"expected a momentum from 0 to below 1, got {mu}; 0.9 is usual")

    def direction(grads: Named, memory: Named, step: int, tensors: Tree) -> tuple[Named, Named]:
        new = {k: mu * memory[k] + g for k, g in grads.items()}
        return new, new

    return Rule(_zeros, direction)


def adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1), differentiable where a second moment is zero too.

    Args:
        beta1: decay of the first moment; 0 in Reptile.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.

    Returns:
        The rule.

    Raises:
        UserError: a number is out of its range.
    """
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and eps > 0):
        raise UserError(f"expected 0 <= beta < 1 and eps > 0, got {beta1}, {beta2}, {eps}; see the defaults")

    def direction(grads: Named, memory: Tree, step: int, tensors: Tree) -> tuple[Named, Tree]:
        first = {k: beta1 * memory[0][k] + (1 - beta1) * g for k, g in grads.items()}
        second = {k: beta2 * memory[1][k] + (1 - beta2) * g * g for k, g in grads.items()}
        whole1, whole2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        return {k: first[k] / whole1 / (_root(second[k] / whole2) + eps) for k in grads}, (first, second)

    return Rule(lambda params: (_zeros(params), _zeros(params)), direction)


def clipped(rule: Rule, max_norm: float) -> Rule:
    """Scale gradients down, before a rule sees them, so that their common norm is at most ``max_norm``.

    Args:
        rule: any rule.
        max_norm: the bound.

    Returns:
        The rule.

    Raises:
        UserError: the bound is not positive.
    """
    if not max_norm > 0:
        raise UserError(f"expected max_norm > 0, got {max_norm}; leave clipping out instead")

    def direction(grads: Named, memory: Tree, step: int, tensors: Tree) -> tuple[Named, Tree]:
        norm = _root(torch.stack([(g * g).sum() for g in grads.values()]).sum())
        scale = max_norm / norm.clamp(min=max_norm)
        return rule.direction({k: g * scale for k, g in grads.items()}, memory, step, tensors)

    return rule._replace(direction=direction)


def named_rule(name: str, clip: float = 0.0) -> Rule:
    """Make a rule from options.

    Args:
        name: "sgd", "momentum" (0.9) or "adam".
        clip: bound of the gradient's norm; 0 for none.

    Returns:
        The rule.

    Raises:
        UserError: an unknown name, or a bound below zero.
    """
    known = {"sgd": sgd, "momentum": momentum, "adam": adam}
    if name not in known:
        raise UserError(unknown("inner_optimiser", name, list(known)))
    return clipped(known[name](), clip) if clip else known[name]()


def preconditioned(change: Callable[[Named, Tree], Named], tensors: Tree, rule: Rule | None = None) -> Rule:
    """Change gradients, before a rule sees them, by tensors that may be learned.

    Args:
        change: (gradients, tensors) -> gradients.
        tensors: what ``change`` takes.
        rule: what comes after; ``sgd`` if None.

    Returns:
        The rule.
    """
    after = rule or sgd()

    def direction(grads: Named, memory: Tree, step: int, own: Tree) -> tuple[Named, Tree]:
        mine, others = own
        return after.direction(change(grads, mine), memory, step, others)

    return Rule(after.start, direction, (tensors, after.tensors))


def rate_at(rates: Rates, step: int) -> Callable[[str], Any]:
    """Find the rates of one step.

    Args:
        rates: as a method has them.
        step: from 0 on.

    Returns:
        name -> rate.
    """
    rate = rates[min(step, len(rates) - 1)] if isinstance(rates, list | tuple) else rates
    return rate.__getitem__ if isinstance(rate, dict) else lambda name: rate


def _zeros(params: Named) -> Named:
    return {k: torch.zeros_like(p) for k, p in params.items()}


def _root(t: Tensor) -> Tensor:
    # The slope of a root at zero is infinite, and infinity times zero is no number.
    positive = t > 0
    return torch.where(positive, torch.where(positive, t, 1.0).sqrt(), 0.0)
