"""Closed forms and short fixed iterations that heads are fitted by: ridge, logistic, softmax regression, Sinkhorn.

Everything here works for one task, under ``vmap``, and can be differentiated through, twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def solve_positive(a: Tensor, b: Tensor) -> Tensor:
    """Solve a x = b for a symmetric positive definite matrix, which rounding may have made singular.

    Args:
        a: (N, N).
        b: (N, M).

    Returns:
        (N, M). A few units of rounding are added to the diagonal, so that equal examples do no harm.
    """
    factor = cholesky(a)
    half = torch.linalg.solve_triangular(factor, b, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def cholesky(a: Tensor) -> Tensor:
    """Factorise a symmetric positive definite matrix, which rounding may have made singular.

    Args:
        a: (..., N, N).

    Returns:
        L (..., N, N), lower triangular, with L L^T = a, to whose diagonal a few units of rounding were added, each in
        its own size; NaN where even that is not positive.
    """
    info = torch.finfo(a.dtype)
    own = a.diagonal(dim1=-2, dim2=-1)
    found = torch.linalg.cholesky_ex(a + torch.diag_embed(info.eps * max(8, a.shape[-1]) * own + info.tiny))
    # A factor that failed half way is finite, and wrong.
    return torch.where(found.info[..., None, None] == 0, found.L, torch.nan)


def ridge(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Solve ridge regression, min |x w - y|^2 + penalty |w|^2, on the smaller side (Woodbury).

    Args:
        x: (S, D).
        y: (S, O).
        penalty: above zero, a scalar or (S,) one for each example's slack.

    Returns:
        w (D, O). Time S^3 or D^3, whichever is less, and S D min(S, D).
    """
    n, d = x.shape
    if n <= d or penalty.ndim:
        eye = torch.eye(n, dtype=x.dtype, device=x.device)
        return x.mT @ solve_positive(x @ x.mT + penalty * eye, y)
    return solve_positive(x.mT @ x + penalty * torch.eye(d, dtype=x.dtype, device=x.device), x.mT @ y)


def logistic(x: Tensor, y: Tensor, penalty: Tensor, n_steps: int) -> Tensor:
    """Fit logistic regressions by Newton's method (iteratively reweighted least squares), one for each column.

    Minimises sum log(1 + exp(-t)) + penalty / 2 |w|^2 over examples, t the margin.

    Args:
        x: (S, D).
        y: (S, O) of zeros and ones.
        penalty: above zero, a scalar.
        n_steps: Newton steps from w = 0.

    Returns:
        w (D, O).
    """
    return torch.stack([_logistic_column(x, column, penalty, n_steps) for column in y.unbind(-1)], -1)


def _logistic_column(x: Tensor, y: Tensor, penalty: Tensor, n_steps: int) -> Tensor:
    w = torch.zeros_like(x[0])
    least = torch.finfo(x.dtype).eps ** 0.5
    for _ in range(n_steps):
        eta = x @ w
        mu = torch.sigmoid(eta)
        # A weight of zero would ask for an infinite target.
        s = (mu * (1 - mu)).clamp(min=least)
        w = ridge(x, (eta + (y - mu) / s).unsqueeze(-1), penalty / s).squeeze(-1)
    return w


def softmax_regression(
    x: Tensor, y: Tensor, penalty: float, *, n_steps: int = 12, n_conjugate: int = 30
) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression by Newton's method, each step by conjugate gradients, to convergence.

    Minimises the sum of cross-entropies + penalty / 2 |w|^2; the bias is not penalised. The length of each step is the
    best of a few, so that the loss never rises. The bias has one direction that the loss does not see; it stays put.

    Args:
        x: (S, D).
        y: (S, W), rows that sum to one.
        penalty: above zero.
        n_steps: Newton steps.
        n_conjugate: conjugate-gradient steps within each.

    Returns:
        w (D, W) and b (W,). Time n_steps * n_conjugate * S min(S, D) W.
    """
    n, d = x.shape
    basis, back = x, None
    if n < d:
        # The weights lie in the span of the examples: w = x^T L^-T v for x x^T = L L^T, and x w = L v, |w| = |v|.
        basis = cholesky(x @ x.mT)
        back = torch.linalg.solve_triangular(basis, x, upper=False).mT
    rows = torch.cat([basis, torch.ones_like(basis[:, :1])], 1)
    free = torch.ones_like(rows[0]).unsqueeze(-1) * penalty
    free = torch.cat([free[:-1], torch.zeros_like(free[-1:])])
    v = torch.zeros(rows.shape[1], y.shape[1], dtype=x.dtype, device=x.device)
    lengths = 0.5 ** torch.arange(9, dtype=x.dtype, device=x.device)

    def loss(v: Tensor) -> Tensor:
        f = rows @ v
        return (torch.logsumexp(f, -1) - (f * y).sum(-1)).sum() + (free * v * v).sum() / 2

    for _ in range(n_steps):
        p = torch.softmax(rows @ v, -1)

        def hessian(u: Tensor, p: Tensor = p) -> Tensor:
            f = rows @ u
            return _centred(rows.mT @ (p * (f - (p * f).sum(-1, keepdim=True))) + free * u)

        step = conjugate_gradients(hessian, -_centred(rows.mT @ (p - y) + free * v), n_conjugate)
        # A step that is no number is none: zero times it would not be zero.
        losses = torch.stack([loss(v + t * step) for t in lengths.unbind()]).nan_to_num(nan=math.inf, posinf=math.inf)
        v = torch.where(losses.amin(0) < loss(v), v + lengths[losses.argmin(0)] * step, v)
    return (v[:-1] if back is None else back @ v[:-1]), v[-1]


def _centred(u: Tensor) -> Tensor:
    # Adding one vector to all classes changes no answer: rounding must not make anything of that direction.
    return u - u.mean(-1, keepdim=True)


def conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor, n_steps: int) -> Tensor:
    """Solve H u = target for a positive semidefinite H that is known by its products.

    Args:
        product: u -> H u.
        target: of any shape.
        n_steps: steps; fixed, so that it works under ``vmap``.

    Returns:
        u, of the target's shape.
    """
    u, r = torch.zeros_like(target), target
    p, rr = r, (r * r).sum()
    tiny = torch.finfo(target.dtype).tiny
    # Below this all that is left is rounding, along directions that H does not see.
    floor = rr * (16 * torch.finfo(target.dtype).eps) ** 2 + tiny
    for _ in range(n_steps):
        hp = product(p)
        curve, moving = (p * hp).sum(), rr > floor
        step = torch.where(moving, rr / curve.clamp(min=tiny), 0.0)
        u, r = u + step * p, r - step * hp
        new = (r * r).sum()
        p = r + torch.where(moving, new / rr.clamp(min=tiny), 0.0) * p
        rr = new
    return u


def sinkhorn(scores: Tensor, columns: Tensor, n_steps: int = 60) -> Tensor:
    """Scale exp(scores) so that rows sum to one and columns to given numbers (Sinkhorn and Knopp 1967).

    Args:
        scores: (Q, W).
        columns: (W,), which sum to Q.
        n_steps: alternations; fixed, in logarithms.

    Returns:
        (Q, W); rows sum to one exactly, columns as nearly as the steps bring them.
    """
    log_columns = columns.log()
    for _ in range(n_steps):
        scores = scores - torch.logsumexp(scores, -2, keepdim=True) + log_columns
        scores = scores - torch.logsumexp(scores, -1, keepdim=True)
    return scores.exp()


def transport(scores: Tensor, rows: Tensor, columns: Tensor, n_steps: int) -> Tensor:
    """Move one distribution onto another where exp(scores) is large: entropic optimal transport, in logarithms.

    Maximises <flow, scores> plus the entropy of the flow; with large scores it comes near the linear program.

    Args:
        scores: (..., N, M).
        rows: (..., N), what there is; positive, sum one.
        columns: (..., M), what is wanted; positive, sum one.
        n_steps: alternations; fixed, so that it works under ``vmap``.

    Returns:
        The flow (..., N, M); its rows sum to ``rows`` exactly, its columns as nearly as the steps bring them.
    """
    log_rows, log_columns = rows.log(), columns.log()
    f = torch.zeros_like(log_rows)
    g = torch.zeros_like(log_columns)
    for _ in range(n_steps):
        g = log_columns - torch.logsumexp(scores + f.unsqueeze(-1), -2)
        f = log_rows - torch.logsumexp(scores + g.unsqueeze(-2), -1)
    return torch.exp(scores + f.unsqueeze(-1) + g.unsqueeze(-2))
