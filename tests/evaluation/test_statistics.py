from __future__ import annotations

import itertools
import math

import pytest
import torch

from kshot.core import UserError, generator
from kshot.evaluation.statistics import mean_ci95, over_seeds, paired, student_95


def test_interval_over_episodes_by_hand():
    # mean 2, s^2 = (1 + 0 + 1) / 2 = 1
    estimate = mean_ci95([1.0, 2.0, 3.0])
    assert estimate.mean == 2
    assert estimate.ci95 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-6)
    assert (estimate.low, estimate.high, estimate.n) == (2 - estimate.ci95, 2 + estimate.ci95, 3)


def test_the_factor_over_episodes_is_students_up_to_30():
    def factor(n):
        x = torch.rand(n, generator=generator(0, "factor"), dtype=torch.float64)
        return mean_ci95(x).ci95 / float(x.std()) * math.sqrt(n)

    assert factor(2) == pytest.approx(12.7062)
    assert factor(30) == pytest.approx(2.0452)
    assert factor(31) == pytest.approx(1.959963984540054, rel=1e-14)


def test_many_episodes_have_the_interval_that_records_hold():
    x = torch.rand(600, generator=generator(0, "records"), dtype=torch.float64)
    assert mean_ci95(x).ci95 == 1.959963984540054 * float(x.std(correction=1)) / math.sqrt(600)


def test_interval_over_seeds_uses_student():
    # Two runs: s = |a - b| / sqrt(2), interval 12.706 * s / sqrt(2)
    assert over_seeds([0.90, 0.92]).ci95 == pytest.approx(12.7062 * 0.01, rel=1e-4)


@pytest.mark.parametrize("dof", [1, 2, 5, 10, 30, 31, 60, 200])
def test_student_factor_holds_95_percent(dof):
    edge = student_95(dof)
    # Simpson's rule over Student's density.
    n = 4000
    scale = math.exp(math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)) / math.sqrt(dof * math.pi)
    values = [scale * (1 + (i * edge / n) ** 2 / dof) ** (-(dof + 1) / 2) for i in range(n + 1)]
    half = edge / n / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))
    assert 2 * half == pytest.approx(0.95, abs=1e-5)


def test_interval_covers_the_truth_as_often_as_it_says():
    draws = torch.rand(400, 200, generator=generator(0, "coverage"), dtype=torch.float64)
    hits = sum(e.low <= 0.5 <= e.high for e in map(mean_ci95, draws))
    # 0.95 within four standard errors of a share over 400 trials (0.011).
    assert abs(hits / 400 - 0.95) < 0.044


@pytest.mark.parametrize("n", [3, 10])
def test_an_interval_over_few_episodes_covers_the_truth_as_often_as_it_says(n):
    draws = torch.randn(4000, n, generator=generator(0, "few"), dtype=torch.float64)
    hits = sum(e.low <= 0 <= e.high for e in map(mean_ci95, draws))
    # 0.95 within four standard errors of a share over 4000 trials (0.0034); with 1.96 it is 0.81 and 0.92.
    assert abs(hits / 4000 - 0.95) < 0.0138


@pytest.mark.parametrize("values", [[], 1.0, [1.0], [[1.0, 2.0], [3.0, 4.0]]])
def test_too_few_numbers_are_refused(values):
    for interval in (mean_ci95, over_seeds):
        with pytest.raises(UserError, match="at least 2"):
            interval(torch.tensor(values))


def test_nan_is_refused():
    with pytest.raises(UserError, match="1 NaN or infinite of 3"):
        mean_ci95([0.5, float("nan"), 0.5])


def test_paired_has_the_sign_of_first_minus_second():
    better, worse = [0.9, 0.8, 0.7], [0.8, 0.8, 0.5]
    assert paired(better, worse).difference.mean == pytest.approx(0.1)
    assert paired(worse, better).difference.mean == pytest.approx(-0.1)
    result = paired(better, worse)
    assert (result.first_better, result.second_better) == (2, 0)


def test_exact_p_value_is_the_share_of_sign_patterns():
    gaps = [0.3, 0.1, 0.2, -0.1, 0.4, 0.2]
    sums = [abs(sum(s * g for s, g in zip(signs, gaps, strict=True))) for signs in itertools.product((1, -1), repeat=6)]
    expected = sum(s >= sum(gaps) - 1e-9 for s in sums) / 64

    assert paired(gaps, [0.0] * 6).p_value == pytest.approx(expected)


def test_equal_learners_have_p_one_and_clear_ones_a_small_p():
    noise = torch.rand(300, generator=generator(1), dtype=torch.float64)
    assert paired(noise, noise).p_value == 1.0
    clear = paired(noise + 0.1, noise)
    assert clear.p_value == pytest.approx(1 / 10_000)
    assert paired(noise, noise + 0.1).p_value == clear.p_value


def test_random_patterns_agree_with_exact_ones():
    g = generator(2)
    a, b = torch.rand(12, generator=g), torch.rand(12, generator=g)
    exact = paired(a, b, n_permutations=4096).p_value
    drawn = paired(a, b, n_permutations=4000).p_value
    # Three standard errors of a share over 4000 draws are below 0.024.
    assert drawn == pytest.approx(exact, abs=0.024)


def test_p_values_of_equal_learners_are_uniform():
    g = generator(3)
    ps = [paired(torch.randn(20, generator=g), torch.zeros(20), n_permutations=199).p_value for _ in range(200)]
    # Share below 0.1 within four standard errors (0.021).
    assert abs(sum(p <= 0.1 for p in ps) / 200 - 0.1) < 0.085


def test_pairs_of_different_lengths_are_refused():
    with pytest.raises(UserError, match="identical episodes, got 2 and 3"):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])


def test_paired_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    paired(torch.rand(50, generator=generator(4)), torch.zeros(50))
    assert bool((torch.get_rng_state() == state).all())
