"""A quadratic program over simplices, the dual of the Crammer-Singer machine, by an interior-point method.

    minimise over P (S, W)   c / 2 tr((Y - P)^T K (Y - P)) + sum of P * Y
    where every row of P lies in the simplex

K is a Gram matrix (S, S), Y (S, W) the labels as rows of zeros and a one. The steps are fixed in number, and each takes
W factorisations of (S, S): the Hessian is one block for each class. The solution is that of the problem with a small
logarithmic barrier, which is smooth in K, and its gradient is exact: the last two Newton steps are differentiated
through, from a point that is already the solution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kshot.nn.solvers import solve_positive

#: Weight of the barrier at the end: the objective is at most S * W times this above its least.
BARRIER = 1e-6


class Point(NamedTuple):
    """Where the method stands.

    Attributes:
        p: the unknowns (W, S), one row for each class.
        slack: multipliers of p >= 0, (W, S).
        level: multipliers of the sums, (S,).
    """

    p: Tensor
    slack: Tensor
    level: Tensor


def solve_simplex_qp(gram: Tensor, y: Tensor, c: float, n_steps: int = 15) -> Tensor:
    """Solve the program above.

    Args:
        gram: K (S, S), positive semidefinite.
        y: Y (S, W), zeros and ones.
        c: above zero.
        n_steps: interior-point steps; 10 are enough as a rule.

    Returns:
        P (S, W), differentiable twice with respect to ``gram``. Time n_steps * W * S^3.
    """
    labels = y.mT
    with torch.no_grad():
        at, held = _start(labels), gram.detach()
        for _ in range(n_steps):
            gap = (at.p * at.slack).mean()
            at = _step(at, held, labels, c, (0.1 * gap).clamp(min=BARRIER), damped=True)
    # At the solution a Newton step moves nothing, but its derivative is the solution's; a second one gives the second.
    barrier = torch.full_like(at.level[:1], BARRIER).squeeze(0)
    for _ in range(2):
        at = _step(at, gram, labels, c, barrier, damped=False)
    return at.p.mT


def _start(labels: Tensor) -> Point:
    p = torch.full_like(labels, 1 / labels.shape[0])
    return Point(p, torch.ones_like(labels), torch.zeros_like(labels[0]))


def _step(at: Point, gram: Tensor, labels: Tensor, c: float, barrier: Tensor, *, damped: bool) -> Point:
    # One primal-dual Newton step towards the point of a barrier.
    p, slack, level = at
    slope = c * (p - labels) @ gram + labels  # gradient of the objective, (W, S)
    dual = slope - slack + level
    sums = p.sum(0) - 1
    complementary = p * slack - barrier
    target = -dual - complementary / p
    blocks = c * gram + torch.diag_embed(slack / p)  # (W, S, S)
    both = torch.cat(
        [target.unsqueeze(-1), torch.eye(p.shape[1], dtype=p.dtype, device=p.device).expand_as(blocks)], -1
    )
    solved = solve_positive(blocks, both)
    moved, inverse = solved[..., 0], solved[..., 1:]
    d_level = solve_positive(inverse.sum(0), (moved.sum(0) + sums).unsqueeze(-1)).squeeze(-1)
    d_p = moved - (inverse @ d_level.unsqueeze(-1)).squeeze(-1)
    d_slack = -(complementary + slack * d_p) / p
    if not damped:
        return Point(p + d_p, slack + d_slack, level + d_level)
    far, far_slack = _room(p, d_p), _room(slack, d_slack)
    return Point(p + far * d_p, slack + far_slack * d_slack, level + far_slack * d_level)


def _room(value: Tensor, move: Tensor) -> Tensor:
    # The longest step, at most 1, that leaves every value above zero.
    most = torch.where(move < 0, -value / move.clamp(max=-torch.finfo(move.dtype).tiny), float("inf"))
    return (0.99 * most.amin()).clamp(max=1.0)
