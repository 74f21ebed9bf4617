"""Kernel ridge regression with an intercept: exact leave-one-out, and what follows from it.

With the kernel matrix K over N shots, a ridge r and a constant b that is not penalised, the solution of

    | K + r I   1 | | a |   | y |
    |   1'      0 | | b | = | 0 |,          M the inverse of the matrix,

predicts m(x) = k(x)'a + b. Leaving shot i out changes that to m(x) - h_i(x) e_i, with h(x) = (k(x)', 1) M and the
residual of the shot left out e_i = a_i / M_ii (by the inverse of a matrix without one row and column). So all N
leave-one-out models cost no more than one.

Kernel: s k_1 + (1 - s) k_2, with k_1(x, x') = x'x and k_2 = exp(-|x - x'|^2 / (2 l^2)), on vectors centred and scaled
to a mean squared length of one. Share s, length l and ridge r have the least leave-one-out error on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SHARES = (1.0, 0.5, 0.0)
LENGTHS = (0.5, 1.0, 2.0)
RIDGES = tuple(10.0 ** (k / 2) for k in range(-8, 5))
#: The grid is tried on so many shots at most; time grows with their third power.
MOST_TRIED = 1500
#: With more shots, what a choice among these few kernels gains by chance is no matter.
MOST_NESTED = 300
_SHAPES = tuple((s, length) for s in SHARES for length in (LENGTHS if s < 1 else LENGTHS[:1]))


class Kernel(NamedTuple):
    """What is chosen.

    Attributes:
        share: s, of the linear part.
        length: l.
        ridge: r.
    """

    share: float
    length: float
    ridge: float

    def of(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare vectors.

        Args:
            a: (N, D).
            b: (M, D).

        Returns:
            (N, M).
        """
        k = self.share * (a @ b.T) if self.share else a.new_zeros(len(a), len(b))
        if self.share < 1:
            # Of differences and not of products, so that a row does not depend on its neighbours.
            squares = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
            k = k + (1 - self.share) * torch.exp(-squares / (2 * self.length**2))
        return k

    def itself(self, a: Tensor) -> Tensor:
        """Compare each vector with itself.

        Args:
            a: (N, D).

        Returns:
            (N,).
        """
        return self.share * a.square().sum(1) + (1 - self.share)


class Scale(NamedTuple):
    """How vectors are centred and scaled.

    Attributes:
        centre: (D,).
        size: root of the mean squared length around it.
        unit: True where vectors are first brought to length one.
    """

    centre: Tensor
    size: float
    unit: bool

    @staticmethod
    def of(z: Tensor, unit: bool) -> Scale:
        """Fit to shots.

        Args:
            z: (N, D).
            unit: True for embeddings, whose length means nothing.

        Returns:
            The scale.
        """
        v = torch.nn.functional.normalize(z.double(), dim=-1) if unit else z.double()
        centre = v.mean(0)
        return Scale(centre, max(float((v - centre).square().sum(1).mean().sqrt()), 1e-12), unit)

    def apply(self, z: Tensor) -> Tensor:
        """Centre and scale.

        Args:
            z: (N, D).

        Returns:
            float64 (N, D).
        """
        v = torch.nn.functional.normalize(z.double(), dim=-1) if self.unit else z.double()
        return (v - self.centre) / self.size


class KernelRidge(NamedTuple):
    """A fitted regression.

    Attributes:
        scale: of the vectors.
        kernel: what was chosen.
        x: scaled shots, (N, D), float64.
        inverse: M without its last row and column, (N, N).
        edge: the last column of M, (N + 1,).
        weights: a, (N,).
        intercept: b.
        residuals: e, (N,), of each shot left out.
        noise: variance of the targets for a kernel of one.
    """

    scale: Scale
    kernel: Kernel
    x: Tensor
    inverse: Tensor
    edge: Tensor
    weights: Tensor
    intercept: float
    residuals: Tensor
    noise: float

    def mean(self, z: Tensor) -> Tensor:
        """Predict.

        Args:
            z: (Q, D).

        Returns:
            float64 (Q,).
        """
        return self.kernel.of(self.scale.apply(z), self.x) @ self.weights + self.intercept

    def deviation(self, z: Tensor) -> Tensor:
        """Tell how far new targets are expected to lie from the predictions.

        The Gaussian process of this kernel, its scale chosen so that the shots left out have standard scores of mean
        square one.

        Args:
            z: (Q, D).

        Returns:
            float64 (Q,).
        """
        x = self.scale.apply(z)
        k = self.kernel.of(x, self.x)
        h = self._influence(k)
        full = torch.cat([k, k.new_ones(len(k), 1)], dim=1)
        variance = self.kernel.itself(x) + self.kernel.ridge - (full * h).sum(1)
        return (self.noise * variance.clamp(min=0)).sqrt()

    def interval(self, z: Tensor, coverage: float) -> Tensor:
        """Give intervals by the jackknife+ (Barber, Candes, Ramdas, Tibshirani 2021, arXiv:1905.02928, Eq. 1.6).

        Args:
            z: (Q, D).
            coverage: share of new targets that are to lie within; of a kernel that was chosen beforehand
                1 - 2 (1 - coverage) of them do for certain, on average over draws of the shots, and about ``coverage``
                in practice.

        Returns:
            float64 (Q, 2), lower and upper end; infinite where so few shots cannot vouch for the share.
        """
        k = self.kernel.of(self.scale.apply(z), self.x)
        means = (k @ self.weights + self.intercept)[:, None] - self._influence(k)[:, :-1] * self.residuals
        n = len(self.x)
        # Rounded, since (1 - 0.9) * 10 is a little less than one.
        rank = math.floor(round((1 - coverage) * (n + 1), 9))
        if rank < 1:
            return torch.tensor([-math.inf, math.inf], dtype=k.dtype).repeat(len(k), 1)
        size = self.residuals.abs()
        low = (means - size).kthvalue(rank, dim=1).values
        high = (means + size).kthvalue(n + 1 - rank, dim=1).values
        return torch.stack([low, high], dim=1)

    def left_out_intervals(self, y: Tensor, rows: Tensor, coverage: float) -> Tensor:
        """Give the interval of ``interval`` for shots, as it would be had each not been among the shots.

        The jackknife+ without shot i needs what is left when i and another shot j are both left out: with the two rows
        and columns of M, (e_i, e_j) = (M_ij)^-1 (a_i, a_j), again by the inverse of a matrix without rows. Time is
        that of one prediction for each of R shots.

        Args:
            y: targets of the shots, float64 (N,).
            rows: int64 (R,), which shots.
            coverage: share of new targets that are to lie within.

        Returns:
            float64 (R, 2), lower and upper end; infinite where so few other shots cannot vouch for the share.
        """
        n = len(self.x) - 1
        rank = math.floor(round((1 - coverage) * (n + 1), 9))
        if rank < 1 or n < 2:
            return torch.tensor([-math.inf, math.inf], dtype=y.dtype).repeat(len(rows), 1)
        diagonal, cross = self.inverse.diagonal(), self.inverse[rows]
        own, weight = diagonal[rows, None], self.weights[rows, None]
        determinant = own * diagonal - cross.square()
        itself = torch.arange(len(self.x)) == rows[:, None]
        determinant = determinant.masked_fill(itself, 1)
        means = y[rows, None] - (diagonal * weight - cross * self.weights) / determinant
        size = ((own * self.weights - cross * weight) / determinant).abs()
        # The shot itself comes last of all, where no rank reaches it.
        low = (means - size).masked_fill(itself, math.inf).kthvalue(rank, dim=1).values
        high = (means + size).masked_fill(itself, math.inf).kthvalue(n + 1 - rank, dim=1).values
        return torch.stack([low, high], dim=1)

    def nearest(self, z: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Find the shots most like each example.

        Args:
            z: (Q, D).
            n: so many.

        Returns:
            Distances on the scale of the shots (Q, n), least first, and indices of the shots (Q, n).
        """
        distances = torch.cdist(self.scale.apply(z), self.x, compute_mode="donot_use_mm_for_euclid_dist")
        found = distances.topk(min(n, len(self.x)), dim=1, largest=False)
        return found.values, found.indices

    def _influence(self, k: Tensor) -> Tensor:
        # h(x) = (k(x)', 1) M, (Q, N + 1).
        inside = k @ self.inverse + self.edge[:-1]
        return torch.cat([inside, (k @ self.edge[:-1] + self.edge[-1])[:, None]], dim=1)


def fit_kernel_ridge(z: Tensor, y: Tensor, *, unit: bool, order: Tensor, kernel: Kernel | None = None) -> KernelRidge:
    """Choose the kernel, and fit.

    Args:
        z: (N, D), N at least 2.
        y: float64 (N,).
        unit: see ``Scale``.
        order: a permutation of 0..N-1; the grid is tried on the first of it.
        kernel: None to choose it.

    Returns:
        The regression.
    """
    scale = Scale.of(z, unit)
    x = scale.apply(z)
    if kernel is None:
        some = order[:MOST_TRIED]
        kernel = choose_kernel(x[some], y[some])
    k = kernel.of(x, x)
    values, vectors = torch.linalg.eigh(k)
    return _solve(scale, kernel, x, y, values, vectors)


def choose_kernel(x: Tensor, y: Tensor) -> Kernel:
    """Find the kernel with the least leave-one-out error.

    Args:
        x: (N, D), scaled.
        y: (N,).

    Returns:
        The kernel.
    """
    tried: list[tuple[float, Kernel]] = []
    for share, length in _SHAPES:
        values, vectors = torch.linalg.eigh(Kernel(share, length, 1.0).of(x, x))
        errors = left_out_errors(values, vectors, y, RIDGES)
        tried += [(error, Kernel(share, length, ridge)) for ridge, error in zip(RIDGES, errors, strict=True)]
    least = min(error for error, _ in tried)
    # Where two are as good, the more regular one.
    return max((kernel for error, kernel in tried if error <= least * (1 + 1e-9)), key=lambda kernel: kernel.ridge)


def left_out_errors(values: Tensor, vectors: Tensor, y: Tensor, ridges: Sequence[float]) -> list[float]:
    """Give the mean squared leave-one-out error for several ridges from one eigendecomposition.

    Args:
        values: eigenvalues of K, (N,).
        vectors: its eigenvectors, (N, N).
        y: (N,).
        ridges: several.

    Returns:
        The errors.
    """
    ones, targets = vectors.sum(0), vectors.T @ y
    found = []
    for ridge in ridges:
        shrink = 1 / (values.clamp(min=0) + ridge)
        g_ones, g_y = vectors @ (shrink * ones), vectors @ (shrink * targets)
        total = float(g_ones.sum())
        diagonal = vectors.square() @ shrink - g_ones.square() / total
        weights = g_y - g_ones * float(g_y.sum()) / total
        found.append(float((weights / diagonal.clamp(min=1e-300)).square().mean()))
    return found


def nested_residuals(x: Tensor, y: Tensor) -> Tensor:
    """Leave each shot out of the choice of the kernel too.

    The least leave-one-out error of many kernels is too good to be true. So for shot i the kernel is chosen by the
    errors of the others in models without i, which need no further fit: with both i and j left out, j is missed by
    (M_ii a_j - M_ij a_i) / (M_ii M_jj - M_ij^2), from the two rows and columns of M.

    Args:
        x: (N, D), scaled, N from 4 to ``MOST_NESTED``.
        y: (N,).

    Returns:
        Residuals of each shot left out, (N,).
    """
    n, of_others, own, ridges = len(x), [], [], []
    for share, length in _SHAPES:
        values, vectors = torch.linalg.eigh(Kernel(share, length, 1.0).of(x, x))
        for ridge in RIDGES:
            m = _inverse(values, vectors, ridge)[0]
            a, diagonal = m @ y, m.diagonal()
            pairs = torch.outer(diagonal, diagonal) - m.square()
            missed = (torch.outer(diagonal, a) - m * a[:, None]) / pairs.clamp(min=1e-300)
            of_others.append(missed.fill_diagonal_(0).square().sum(1) / (n - 1))
            own.append(a / diagonal)
            ridges.append(ridge)
    errors = torch.stack(of_others)
    as_good = errors <= errors.amin(0) * (1 + 1e-9)
    # Where two are as good, the more regular one, as in the choice for all shots.
    chosen = (as_good * errors.new_tensor(ridges)[:, None]).argmax(0)
    return torch.stack(own).gather(0, chosen[None])[0]


def _inverse(values: Tensor, vectors: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    # M = [[inverse, g1 / total], [., -1 / total]].
    g = (vectors / (values.clamp(min=0) + ridge)) @ vectors.T
    g_ones = g.sum(1)
    total = float(g_ones.sum())
    edge = torch.cat([g_ones / total, g_ones.new_tensor([-1 / total])])
    return g - torch.outer(g_ones, g_ones) / total, edge


def _solve(scale: Scale, kernel: Kernel, x: Tensor, y: Tensor, values: Tensor, vectors: Tensor) -> KernelRidge:
    inverse, edge = _inverse(values, vectors, kernel.ridge)
    weights = inverse @ y
    residuals = weights / inverse.diagonal()
    noise = float((weights.square() / inverse.diagonal()).mean())
    return KernelRidge(scale, kernel, x, inverse, edge, weights, float(edge[:-1] @ y), residuals, noise)
