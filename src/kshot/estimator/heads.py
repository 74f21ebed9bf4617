"""Linear heads on frozen embeddings: what is learnt from the shots themselves, in milliseconds.

Every head sees unit vectors around the centre of the classes, u = (v - c) / |v - c| with v = z / |z|, and answers
``u @ weight.T + bias``. They differ in how ``weight`` and ``bias`` are found:

==========  ======================================================================================================
prototypes  class means under the shared within-class covariance, shrunk towards a sphere: S(r) = (1 - r) S + r t I,
            with t = tr(S) / D; r = 1 is the nearest class mean (Snell et al. 2017, Eq. 2)
cosine      nearest direction of the class means
ridge       least squares on one-hot targets, every class weighing the same (Bertinetto et al. 2019, Eq. 4)
logistic    cross-entropy with an L2 penalty, every class weighing the same: |W|^2 / 2 + r sum of losses
==========  ======================================================================================================

Adding a constant to all logits changes no answer, so a squared distance is linear too: -|u - m|^2 / 2 = u m - |m|^2 / 2
up to a term that all classes share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.core import UserError

#: Head -> the strengths that are tried, from the most regular to the least; see the module's table.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "prototypes": (1.0, 0.7, 0.4, 0.2, 0.1),
    "cosine": (1.0,),
    "ridge": (3.0, 1.0, 0.3, 0.1),
    "logistic": (4.0, 20.0),
}
#: Of L-BFGS. Twenty give the answers of a hundred on the intents of BANKING77, to 0.1 points.
_LOGISTIC_ITERATIONS = 20
#: Beyond so many multiplications for one gradient, a logistic head takes minutes; closed forms are as good there.
LOGISTIC_LIMIT = 2e9


class Head(NamedTuple):
    """A linear classifier of embeddings.

    Attributes:
        name: one of ``STRENGTHS``.
        strength: see ``STRENGTHS``.
        centre: c, (D,).
        weight: (C, D).
        bias: (C,).
    """

    name: str
    strength: float
    centre: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, z: Tensor) -> Tensor:
        """Score embeddings.

        Args:
            z: (N, D).

        Returns:
            (N, C).
        """
        return units(z, self.centre) @ self.weight.T + self.bias


def units(z: Tensor, centre: Tensor) -> Tensor:
    """Map embeddings onto the unit sphere around a centre.

    Args:
        z: (N, D).
        centre: (D,), of the vectors z / |z|.

    Returns:
        (N, D); a vector of zeros stays one.
    """
    return torch.nn.functional.normalize(torch.nn.functional.normalize(z, dim=-1) - centre, dim=-1)


def centre_of(z: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """Average the class means of z / |z|, so that no class pulls the centre by its number of examples.

    Args:
        z: (N, D).
        y: int64 (N,), 0..C-1, each class at least once.
        n_classes: C.

    Returns:
        (D,).
    """
    return class_means(torch.nn.functional.normalize(z, dim=-1), y, n_classes).mean(0)


def class_means(u: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """Average the examples of each class.

    Args:
        u: (N, D).
        y: int64 (N,).
        n_classes: C.

    Returns:
        (C, D); zeros for a class without examples.
    """
    sums = u.new_zeros(n_classes, u.shape[1]).index_add_(0, y, u)
    return sums / torch.bincount(y, minlength=n_classes).clamp(min=1)[:, None]


def fit_head(z: Tensor, y: Tensor, n_classes: int, name: str, strength: float) -> Head:
    """Fit one head.

    Args:
        z: (N, D) embeddings of the shots.
        y: int64 (N,), 0..C-1, each class at least once.
        n_classes: C.
        name: see ``STRENGTHS``.
        strength: see ``STRENGTHS``; any positive number.

    Returns:
        The head.

    Raises:
        UserError: an unknown name, or a strength that is not positive.
    """
    return fit_path(z, y, n_classes, name, [strength])[0]


def fit_path(z: Tensor, y: Tensor, n_classes: int, name: str, strengths: Sequence[float]) -> list[Head]:
    """Fit a head for several strengths at once: the costly part is shared.

    Args:
        z: (N, D).
        y: int64 (N,).
        n_classes: C.
        name: see ``STRENGTHS``.
        strengths: see ``STRENGTHS``.

    Returns:
        A head for each strength.

    Raises:
        UserError: an unknown name, or a strength that is not positive.
    """
    if name not in _FITS:
        raise UserError(f"head must be one of auto, {', '.join(_FITS)}, got {name!r}")
    if not all(r > 0 for r in strengths):
        raise UserError(f"expected strengths of a head above 0, got {', '.join(map(str, strengths))}")
    centre = centre_of(z, y, n_classes)
    u = units(z, centre)
    found = _FITS[name](u, y, n_classes, strengths)
    return [Head(name, r, centre, w, b) for r, (w, b) in zip(strengths, found, strict=True)]


class Spread(NamedTuple):
    """The inverse of a R'R + b I for any a and b, by one eigendecomposition of the smaller side of R.

    Attributes:
        rows: an orthonormal basis of the row space of R, (K, D).
        values: the eigenvalues of R'R there, (K,).
    """

    rows: Tensor
    values: Tensor

    @staticmethod
    def of(r: Tensor) -> Spread:
        """Decompose.

        Args:
            r: R, (N, D).

        Returns:
            The decomposition; without the directions in which R has no extent.
        """
        n, d = r.shape
        side = (r @ r.T if n < d else r.T @ r).double()
        values, vectors = torch.linalg.eigh(side)
        keep = values > 1e-9 * values[-1].clamp(min=1e-30)
        values, vectors = values[keep], vectors[:, keep]
        rows = (vectors.T @ r.double()) / values.sqrt()[:, None] if n < d else vectors.T
        return Spread(rows.to(r.dtype), values.to(r.dtype))

    def solve(self, m: Tensor, a: float, b: float) -> Tensor:
        """Multiply vectors by the inverse.

        Args:
            m: (C, D).
            a: weight of R'R.
            b: weight of I, above 0.

        Returns:
            m (a R'R + b I)^-1, (C, D).
        """
        shrink = a * self.values / (b + a * self.values)
        return (m - (m @ self.rows.T * shrink) @ self.rows) / b


def _solve_once(r: Tensor, m: Tensor, a: float, b: float) -> Tensor:
    # As Spread.solve, for one strength alone: a Cholesky factor of the smaller side costs a tenth of its eigenvectors.
    if b < 1e-6 * a * float(r.square().sum()):  # too near to singular for a factor
        return Spread.of(r).solve(m, a, b)
    small = len(r) < r.shape[1]
    side = a * (r @ r.T if small else r.T @ r).double()
    side.diagonal().add_(b)
    factor, many = torch.linalg.cholesky(side), m.double()
    if small:
        rows = r.double()
        return ((many - a * torch.cholesky_solve(rows @ many.T, factor).T @ rows) / b).to(m.dtype)
    return torch.cholesky_solve(many.T, factor).T.to(m.dtype)


def _solver(r: Tensor, strengths: Sequence[float]) -> Callable[[Tensor, float, float], Tensor]:
    return Spread.of(r).solve if len(strengths) > 1 else partial(_solve_once, r)


_Fit = Callable[[Tensor, Tensor, int, Sequence[float]], list[tuple[Tensor, Tensor]]]


def _prototypes(u: Tensor, y: Tensor, n_classes: int, strengths: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    means = class_means(u, y, n_classes)
    residuals = u - means[y]
    freedom = len(y) - n_classes
    extent = float(residuals.square().sum())
    if freedom < 1 or extent <= 0:  # nothing tells how wide a class is
        return [(means, -means.square().sum(1) / 2) for _ in strengths]
    solve = _solver(residuals if min(strengths) < 1 else residuals[:0], strengths)
    found = []
    for r in strengths:
        sphere = min(r, 1.0) * extent / freedom / u.shape[1]
        w = solve(means, (1 - min(r, 1.0)) / freedom, sphere)
        found.append((w, -(w * means).sum(1) / 2))
    return found


def _cosine(u: Tensor, y: Tensor, n_classes: int, strengths: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    w = torch.nn.functional.normalize(class_means(u, y, n_classes), dim=-1)
    return [(w, w.new_zeros(n_classes)) for _ in strengths]


def _ridge(u: Tensor, y: Tensor, n_classes: int, strengths: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    weight = 1 / torch.bincount(y, minlength=n_classes)[y].to(u.dtype)
    mean = class_means(u, y, n_classes).mean(0)
    # The weighted right-hand side of the normal equations, centred: every class weighs one.
    moments = class_means(u - mean, y, n_classes)
    moments = moments - moments.mean(0)
    solve = _solver((u - mean) * weight.sqrt()[:, None], strengths)
    found = []
    for r in strengths:
        w = solve(moments, 1.0, r)
        found.append((w, 1 / n_classes - w @ mean))
    return found


def _logistic(u: Tensor, y: Tensor, n_classes: int, strengths: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    share = len(y) / n_classes / torch.bincount(y, minlength=n_classes).to(u.dtype)[y]
    w = u.new_zeros(n_classes, u.shape[1] + 1)
    found: dict[float, tuple[Tensor, Tensor]] = {}
    for r in sorted(strengths):  # each starts where the last one ended
        w = _minimise(w, u, y, share * r)
        found[r] = (w[:, :-1].clone(), w[:, -1].clone())
    return [found[r] for r in strengths]


def _minimise(start: Tensor, u: Tensor, y: Tensor, share: Tensor) -> Tensor:
    def losses(w: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(u @ w[:, :-1].T + w[:, -1], y, reduction="none")

    return _descend(start, losses, share)


def _descend(start: Tensor, losses: Callable[[Tensor], Tensor], share: Tensor) -> Tensor:
    # L-BFGS on sum of share * losses(w) + |w|^2 / 2, the last column of w being a bias, which is free.
    w = start.clone().requires_grad_()
    scale = float(share.sum())
    optimiser = torch.optim.LBFGS(
        [w], max_iter=_LOGISTIC_ITERATIONS, history_size=10, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        # Over the sum of the weights, so that the tolerance means the same for any number of shots.
        loss = ((losses(w) * share).sum() + w[:, :-1].square().sum() / 2) / scale
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return w.detach()


def extend(head: Head, z: Tensor, y: Tensor, n_classes: int) -> Head:
    """Add one class to a head: a logistic one keeps its rows and learns the new one; others are fitted again, as fast.

    Args:
        head: of C - 1 classes.
        z: embeddings of all shots, those of the new class with them, (N, D).
        y: int64 (N,); the new class is C - 1.
        n_classes: C.

    Returns:
        The head of C classes.
    """
    if head.name != "logistic":
        return fit_head(z, y, n_classes, head.name, head.strength)
    u, new = units(z, head.centre), y == n_classes - 1
    old = u @ head.weight.T + head.bias
    together, own = old.logsumexp(1), old.gather(1, y.clamp(max=n_classes - 2)[:, None]).squeeze(1)
    share = head.strength * len(y) / n_classes / torch.bincount(y, minlength=n_classes).to(u.dtype)[y]

    def losses(w: Tensor) -> Tensor:
        score = u @ w[0, :-1] + w[0, -1]
        return torch.logaddexp(together, score) - torch.where(new, score, own)

    w = _descend(u.new_zeros(1, u.shape[1] + 1), losses, share)
    return head._replace(weight=torch.cat([head.weight, w[:, :-1]]), bias=torch.cat([head.bias, w[:, -1]]))


_FITS: dict[str, _Fit] = {"prototypes": _prototypes, "cosine": _cosine, "ridge": _ridge, "logistic": _logistic}
