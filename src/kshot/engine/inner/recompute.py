"""Less memory for a long inner loop: keep a few weights on the way, and run the steps between them again.

The outer gradient runs backward through every inner step, and so needs what each of them computed. With k steps in
about sqrt(k) pieces, only the weights between the pieces are kept; a piece is run again when its turn comes. Memory is
that of sqrt(k) steps, and one more forward pass is paid for it (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from kshot.core.tree import Tree, leaves, tree_map

#: (state, constants, step from 0 on) -> state. All tensors that it uses come as arguments.
Step = Callable[[Tree, Tree, int], Tree]

_on: ContextVar[bool] = ContextVar("recompute", default=False)


@contextmanager
def recomputing(on: bool = True) -> Iterator[None]:
    """While open, inner loops keep only what they need to run their steps again.

    Args:
        on: False to change nothing.

    Yields:
        Nothing.
    """
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


def recompute_is_on() -> bool:
    """Tell whether ``recomputing`` is open.

    Returns:
        True within it.
    """
    return _on.get()


def unroll(step: Step, state: Tree, constants: Tree, n_steps: int, *, every: bool) -> Iterator[Tree]:
    """Apply a step again and again.

    Args:
        step: pure.
        state: where to begin: a tree of tensors.
        constants: what all steps use.
        n_steps: how often.
        every: yield the state after each step, else that after the last alone.

    Yields:
        n_steps states, or one (the start itself if there are no steps).
    """
    length = 1 if every or not _on.get() else math.ceil(math.sqrt(n_steps))
    for first in range(0, n_steps, length):
        steps = range(first, min(first + length, n_steps))
        state = _again(step, state, constants, steps) if _on.get() else step(state, constants, first)
        if every:
            yield state
    if not every:
        yield state


def _again(step: Step, state: Tree, constants: Tree, steps: range) -> Tree:
    def piece(now: Tree, fixed: Tree) -> Tree:
        for i in steps:
            now = step(now, fixed, i)
        return now

    return run_twice(piece, state, state, constants)


def run_twice(function: Callable[..., Tree], like: Tree, *args: Tree) -> Tree:
    """Call a function, keep its arguments alone, and call it again when a gradient comes back.

    Args:
        function: of trees of tensors to a tree of tensors; pure. All tensors with a gradient come as arguments.
        like: a tree with the structure of what it returns.
        *args: the arguments.

    Returns:
        What it returns.
    """

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        found = function(*_like(args, tensors))
        # A copy, where something is handed on as it came: an output may not be an input.
        return tuple(t.clone() if any(t is s for s in tensors) else t for t in leaves(found))

    return _like(like, _Piece.apply(run, Random(), *leaves(args)))


def _like(tree: Tree, tensors: Any) -> Tree:
    one = iter(tensors)
    return tree_map(lambda _: next(one), tree)


class Random:
    """Remembers the global generators, so that dropout draws the same numbers the second time."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    @contextmanager
    def again(self) -> Iterator[None]:
        """While open, the generators go on from where they were remembered; afterwards from where they are now.

        Yields:
            Nothing.
        """
        with torch.random.fork_rng(devices=None if self.cuda is not None else []):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            yield


class _Piece(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(run: Callable[..., tuple[Tensor, ...]], random: Random, *tensors: Tensor) -> tuple[Tensor, ...]:
        return run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.run, ctx.random, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors = ctx.saved_tensors
        real = [i for i, t in enumerate(tensors) if t.is_floating_point()]

        def of_real(*some: Tensor) -> tuple[Tensor, ...]:
            every = list(tensors)
            for i, t in zip(real, some, strict=True):
                every[i] = t
            return tuple(t for t in ctx.run(*every) if t.is_floating_point())

        with ctx.random.again():
            outputs, pull = torch.func.vjp(of_real, *(tensors[i] for i in real))[:2]
        arrived = [g for g in grad_outputs if g is not None and g.is_floating_point()]
        found = dict(zip(real, pull(tuple(arrived[: len(outputs)])), strict=True))
        return None, None, *(found.get(i) for i in range(len(tensors)))
