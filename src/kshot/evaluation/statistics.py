"""How sure a number is: intervals over episodes and over seeds, and two learners compared on the same episodes.

Two different questions, two different intervals. Over *episodes*: how well is the mean of this one trained learner
known? Usually of hundreds, so the normal factor 1.96 stands (Student's for 600 is 1.964); of 30 or fewer it is
Student's factor, for with 1.96 an interval over 5 holds the truth in 88 %. Over *seeds*: how much does training again
move it? A handful of runs, so Student's factor is a must (12.7 for two runs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.core import UserError, generator

NORMAL_95 = 1.959963984540054
# Student's t at 0.975 for 1..30 degrees of freedom (any statistics textbook's table).
_STUDENT_95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_BLOCK = 1000


class Estimate(NamedTuple):
    """A mean and how sure it is.

    Attributes:
        mean: the mean.
        ci95: half the width of the 95% interval: mean - ci95 .. mean + ci95.
        n: how many numbers it was taken over.
    """

    mean: float
    ci95: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.ci95

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.ci95

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.ci95:.2g}"


class Comparison(NamedTuple):
    """Two learners on identical episodes.

    Attributes:
        difference: first minus second, per episode, with its interval.
        p_value: chance of a difference at least this large, in either direction, between two equal learners.
        first_better: in how many episodes the first number was larger.
        second_better: in how many the second was; the rest are ties.
    """

    difference: Estimate
    p_value: float
    first_better: int
    second_better: int


def mean_ci95(values: Tensor | Sequence[float]) -> Estimate:
    """Mean over episodes with its 95% interval, t * s / sqrt(n) where s has n - 1 in its denominator.

    The factor t is Student's for 30 episodes or fewer, and 1.96 for more.

    Args:
        values: (E,) one number per episode, independent draws.

    Returns:
        The estimate.

    Raises:
        UserError: fewer than two numbers, or one that is not finite.

    Example:
        >>> mean_ci95([0.0, 1.0, 1.0, 0.0]).mean
        0.5
    """
    return _interval(values, _over_episodes, "episodes")


def over_seeds(means: Tensor | Sequence[float]) -> Estimate:
    """Mean over independently trained runs with its 95% interval by Student's t.

    Args:
        means: (R,) one number per run, each the mean over its test episodes.

    Returns:
        The estimate.

    Raises:
        UserError: fewer than two runs, or a number that is not finite.
    """
    return _interval(means, _over_runs, "seeds")


def student_95(dof: int) -> float:
    """Student's t quantile at 0.975, the factor of a two-sided 95% interval.

    Args:
        dof: degrees of freedom, at least 1.

    Returns:
        The factor: the table up to 30, then the expansion in 1 / dof around the normal one (error below 1e-5).

    Raises:
        UserError: dof is below 1.
    """
    if dof < 1:
        raise UserError(f"expected at least 1 degree of freedom, got {dof}; an interval needs two numbers or more")
    if dof <= len(_STUDENT_95):
        return _STUDENT_95[dof - 1]
    z = NORMAL_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / dof + second / dof**2 + third / dof**3


def paired(
    first: Tensor | Sequence[float], second: Tensor | Sequence[float], *, n_permutations: int = 9999, seed: int = 0
) -> Comparison:
    """Compare two learners on identical episodes: mean difference, interval, and a sign-flip permutation test.

    Episodes differ much more in difficulty than learners do, so the difference within each episode is far better known
    than the two means are. Under the null hypothesis of equal learners the sign of each difference is a coin's. The
    interval of 30 numbers or fewer, such as means over runs that share their classes, is by Student's t.

    Args:
        first: (E,) one number per episode.
        second: (E,) the other learner's, on the same episodes in the same order.
        n_permutations: random sign patterns; all 2^E are tried instead where they are not more.
        seed: of the sign patterns.

    Returns:
        The comparison; cost O(n_permutations * E).

    Raises:
        UserError: lengths differ, fewer than two episodes, or a number that is not finite.
    """
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (first, second))
    if a.shape != b.shape:
        raise UserError(f"a paired comparison needs identical episodes, got {len(a)} and {len(b)} of them")
    gaps = a - b
    difference = _interval(gaps, _over_episodes, "episodes")
    return Comparison(
        difference, _sign_flip_p(gaps, n_permutations, seed), int((gaps > 0).sum()), int((gaps < 0).sum())
    )


def _over_episodes(n: int) -> float:
    # Beyond 30 the normal factor is within 5 % of Student's.
    return student_95(n - 1) if n <= len(_STUDENT_95) else NORMAL_95


def _over_runs(n: int) -> float:
    return student_95(n - 1)


def _interval(values: Tensor | Sequence[float], factor: Callable[[int], float], what: str) -> Estimate:
    x = torch.as_tensor(values, dtype=torch.float64)
    if x.ndim != 1 or len(x) < 2:
        raise UserError(
            f"an interval needs a list of at least 2 {what}, got shape {tuple(x.shape)}; evaluate more {what}"
        )
    if not bool(torch.isfinite(x).all()):
        raise UserError(f"expected finite scores, got {int((~torch.isfinite(x)).sum())} NaN or infinite of {len(x)}")
    return Estimate(float(x.mean()), factor(len(x)) * float(x.std(correction=1)) / math.sqrt(len(x)), len(x))


def _sign_flip_p(gaps: Tensor, n_permutations: int, seed: int) -> float:
    # Differences of accuracies are multiples of 1 / Q: exact ties with the observed sum are common and must count.
    observed = float(gaps.sum().abs()) - 1e-9 * float(gaps.abs().sum())
    n = len(gaps)
    if 2**n <= n_permutations:
        patterns = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=gaps.dtype)] * n)
        return float(((patterns @ gaps).abs() >= observed).double().mean())
    coins, reached = generator(seed, "sign flips"), 0
    for start in range(0, n_permutations, _BLOCK):
        rows = min(_BLOCK, n_permutations - start)
        signs = torch.randint(0, 2, (rows, n), generator=coins).to(gaps.dtype).mul_(2).sub_(1)
        reached += int(((signs @ gaps).abs() >= observed).sum())
    # The observed pattern is one of the possible ones, so p is never 0.
    return (1 + reached) / (1 + n_permutations)
