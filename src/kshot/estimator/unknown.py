"""Telling what belongs to none of the classes, at an error rate that is stated beforehand.

Score: relative Mahalanobis distance (Ren et al. 2021, arXiv:2106.09022, Eq. 2 and 3), with both covariances shrunk half
way towards a sphere: the distance to the nearest class, less the distance to all classes taken together. Threshold:
conformal (Vovk et al. 2005; Bates et al. 2023, Eq. 3): with scores s_1 ... s_n of shots left out,

    p(x) = (1 + #{i: s_i >= s(x)}) / (n + 1),

and an example is unknown where p(x) <= alpha. If new examples of the classes come from where the shots came from, no
more than a share alpha of them is refused; shots are few, so the share holds on average over draws of the shots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.estimator.heads import Spread, centre_of, class_means, units
from kshot.estimator.held_out import leave_out

SHRINKAGE = 0.5


class Metric(NamedTuple):
    """A Mahalanobis distance.

    Attributes:
        spread: the decomposed deviations.
        a: weight of their scatter matrix.
        b: weight of the sphere.
    """

    spread: Spread
    a: float
    b: float

    @staticmethod
    def of(deviations: Tensor, freedom: int) -> Metric:
        """Fit to deviations from a mean or several.

        Args:
            deviations: (N, D).
            freedom: degrees of freedom, N less the number of means.

        Returns:
            The metric; a sphere where there is no freedom.
        """
        n, d = deviations.shape
        extent = float(deviations.square().sum())
        if freedom < 1 or extent <= 0:
            return Metric(Spread(deviations[:0], deviations.new_zeros(0)), 0.0, max(extent / max(n, 1) / d, 1e-12))
        return Metric(Spread.of(deviations), (1 - SHRINKAGE) / freedom, SHRINKAGE * extent / freedom / d)

    def whiten(self, x: Tensor) -> Tensor:
        """Split vectors so that squared lengths are squared distances.

        Args:
            x: (N, D).

        Returns:
            (N, K + D): |row|^2 = x (a R'R + b I)^-1 x'.
        """
        inside = x @ self.spread.rows.T
        outside = x - inside @ self.spread.rows
        return torch.cat([inside / (self.a * self.spread.values + self.b).sqrt(), outside / self.b**0.5], dim=1)


class Familiarity(NamedTuple):
    """Scores how strange an example is.

    Attributes:
        centre: of the embeddings, (D,).
        within: distances to classes are measured by it.
        classes: whitened class means, (C, ...).
        overall: distances to all classes taken together are measured by it.
        mean: mean of all, (D,).
    """

    centre: Tensor
    within: Metric
    classes: Tensor
    overall: Metric
    mean: Tensor

    @staticmethod
    def of(z: Tensor, y: Tensor, n_classes: int) -> Familiarity:
        """Fit to shots.

        Args:
            z: (N, D).
            y: int64 (N,), each class at least once.
            n_classes: C.

        Returns:
            The scorer.
        """
        centre = centre_of(z, y, n_classes)
        u = units(z, centre)
        means = class_means(u, y, n_classes)
        within = Metric.of(u - means[y], len(u) - n_classes)
        mean = u.mean(0)
        return Familiarity(centre, within, within.whiten(means), Metric.of(u - mean, len(u) - 1), mean)

    def strangeness(self, z: Tensor) -> Tensor:
        """Give the relative Mahalanobis distance.

        Args:
            z: (N, D).

        Returns:
            (N,); greater is stranger.
        """
        u = units(z, self.centre)
        near = torch.cdist(self.within.whiten(u), self.classes).square().min(1).values
        return near - self.overall.whiten(u - self.mean).square().sum(1)


def held_out_strangeness(z: Tensor, y: Tensor, n_classes: int, parts: Sequence[Tensor]) -> Tensor:
    """Score shots by a scorer that has not seen them.

    Args:
        z: (N, D).
        y: int64 (N,).
        n_classes: C.
        parts: the folds.

    Returns:
        (H,) in rising order; empty where no class has two shots, or a fold leaves no class with two.
    """
    # Without a second shot of any class that is left, nothing says how far its examples lie from each other.
    if not parts or any(len(y) - len(part) <= n_classes for part in parts):
        return z.new_zeros(0)

    def fit(kept: Tensor, out: Tensor) -> list[Tensor]:
        return [Familiarity.of(z[kept], y[kept], n_classes).strangeness(z[out])]

    return leave_out(z, y, n_classes, parts, fit)[0].sort().values


def p_values(strangeness: Tensor, reference: Tensor) -> Tensor:
    """Give the conformal p-value of each score.

    Args:
        strangeness: (N,) of new examples.
        reference: (H,) of shots left out, in rising order.

    Returns:
        float64 (N,) within 1 / (H + 1) .. 1; ones where there is no reference.
    """
    if not len(reference):
        return torch.ones_like(strangeness, dtype=torch.float64)
    at_least = len(reference) - torch.searchsorted(reference, strangeness.contiguous())
    # In float32 one in twenty would be above 0.05, and nothing refused at that very rate.
    return (1 + at_least).double() / (len(reference) + 1)


def smallest_rate(reference: Tensor) -> float:
    """Give the least error rate that so many shots can vouch for.

    Args:
        reference: (H,) of shots left out.

    Returns:
        1 / (H + 1); at a lower rate nothing is ever called unknown.
    """
    return 1 / (len(reference) + 1)
