"""The implicit gradient: differentiate the end of an inner loop without going back through its steps.

Where phi minimises L(phi) + lambda / 2 |phi - theta|^2, the implicit function theorem gives, with H the second
derivatives of L at phi,

    d phi / d theta = (I + H / lambda)^-1

So the outer gradient needs one linear system, solved by conjugate gradients (Hestenes and Stiefel 1952) with products
H v alone, and its memory does not depend on the number of inner steps (Rajeswaran et al. 2019, arXiv:1909.04630).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.core.tree import Tree, leaves, tree_map
from kshot.engine.inner import Named, twice_differentiable

#: (phi, constants) -> the loss L, without the pull to theta.
Loss = Callable[[Named, Tree], Tensor]
Vector = tuple[Tensor, ...]


class Proximal(NamedTuple):
    """What was minimised, and how well the system is solved.

    Attributes:
        strength: lambda, of the pull to theta.
        n_cg_steps: conjugate-gradient steps; as many as there are parameters would solve it exactly.
        damping: added to lambda in the system alone, as if the pull were stronger there: where H has large negative
            curvature, or the inner loop stopped early, I + H / lambda is no matrix that conjugate gradients can solve.
    """

    strength: float
    n_cg_steps: int
    damping: float = 0.0


def at_optimum(loss: Loss, theta: Named, phi: Named, constants: Tree, how: Proximal) -> Named:
    """Return phi with a gradient: phi as it is, and d phi / d theta by the implicit function theorem.

    Args:
        loss: L; all tensors that it uses come as arguments.
        theta: where the pull goes to.
        phi: the minimum; its own graph, if any, is not used.
        constants: handed to ``loss``; they get no gradient.
        how: strength and accuracy.

    Returns:
        name -> the numbers of phi. The backward pass costs ``n_cg_steps`` products with H, and the memory of one
        forward pass.
    """
    names = list(phi)
    flat = [phi[k].detach() for k in names], [theta[k] for k in names], leaves(constants)

    def of_vector(phi: Vector, fixed: Vector) -> Tensor:
        one = iter(fixed)
        return loss(dict(zip(names, phi, strict=True)), tree_map(lambda _: next(one), constants))

    found = _AtOptimum.apply(of_vector, how, len(names), *flat[0], *flat[1], *flat[2])
    return dict(zip(names, found, strict=True))  # pyright: ignore[reportArgumentType]


class _AtOptimum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(loss: Any, how: Proximal, n: int, *tensors: Tensor) -> Vector:
        return tuple(t.clone() for t in tensors[:n])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Vector) -> None:
        ctx.loss, ctx.how, ctx.n, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors, n = ctx.saved_tensors, ctx.n
        phi, fixed = tensors[:n], tensors[2 * n :]
        with twice_differentiable():
            pull = torch.func.vjp(lambda *p: torch.func.grad(ctx.loss)(p, fixed), *phi)[1]

        def times(v: Vector) -> Vector:
            # H is symmetric, so its product from the left is that from the right.
            return tuple(a + h / (ctx.how.strength + ctx.how.damping) for a, h in zip(v, pull(v), strict=True))

        solved = conjugate_gradients(times, tuple(grad_outputs), ctx.how.n_cg_steps)
        return None, None, None, *([None] * n), *solved, *([None] * len(fixed))


def conjugate_gradients(times: Callable[[Vector], Vector], b: Vector, n_steps: int) -> Vector:
    """Solve A x = b for a symmetric A that is known by its products, as far as A is positive.

    A direction along which A is not positive has no minimum: there the steps end with what they have, and with b itself
    if it is the first (Steihaug 1983, doi 10.1137/0720042, without his bound on the length of x).

    Args:
        times: v -> A v.
        b: the right-hand side, as several tensors.
        n_steps: at most so many steps; the number of unknowns gives the solution but for rounding.

    Returns:
        x. A step that has nothing left to do changes nothing, so that ``vmap`` works.
    """
    x = tuple(torch.zeros_like(t) for t in b)
    residual = direction = b
    size = _dot(residual, residual)
    enough = torch.finfo(size.dtype).eps ** 2 * size
    going = first = torch.ones_like(size, dtype=torch.bool)
    for step in range(n_steps):
        image = times(direction)
        curvature = _dot(direction, image)
        # Not "> 0", so that what is no number stays none, and is found.
        going = going & (~(curvature <= 0) | (size <= enough))
        if step == 0:
            first = going
        far = going & (size > enough)
        along = _ratio(size, curvature, far)
        x = _add(x, along, direction)
        residual = _add(residual, -along, image)
        before, size = size, _dot(residual, residual)
        direction = _add(residual, _ratio(size, before, far), direction)
    return tuple(torch.where(first, s, t) for s, t in zip(x, b, strict=True))


def _dot(a: Vector, b: Vector) -> Tensor:
    return torch.stack([(s * t).sum() for s, t in zip(a, b, strict=True)]).sum()


def _add(a: Vector, scale: Tensor, b: Vector) -> Vector:
    return tuple(s + scale * t for s, t in zip(a, b, strict=True))


def _ratio(a: Tensor, b: Tensor, sensible: Tensor) -> Tensor:
    return torch.where(sensible, a / torch.where(sensible, b, 1.0), 0.0)
