"""Kernel ridge regression, against models that were really fitted without a shot."""

from __future__ import annotations

import math

import pytest
import torch

from kshot.estimator.kernel_ridge import (
    Kernel,
    Scale,
    choose_kernel,
    fit_kernel_ridge,
    left_out_errors,
    nested_residuals,
)


def problem(n: int = 14, d: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=g, dtype=torch.float64)
    return z, z[:, 0] + torch.sin(2 * z[:, 1]) + 0.1 * torch.randn(n, generator=g, dtype=torch.float64) + 5


def solved(kernel: Kernel, x: torch.Tensor, y: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Predictions by the bordered system itself."""
    n = len(x)
    system = torch.zeros(n + 1, n + 1, dtype=x.dtype)
    system[:n, :n] = kernel.of(x, x) + kernel.ridge * torch.eye(n, dtype=x.dtype)
    system[n, :n] = system[:n, n] = 1
    answer = torch.linalg.solve(system, torch.cat([y, y.new_zeros(1)]))
    return kernel.of(at, x) @ answer[:n] + answer[n]


@pytest.mark.parametrize("kernel", [Kernel(1.0, 1.0, 0.3), Kernel(0.0, 0.7, 0.01), Kernel(0.5, 1.0, 1.0)])
@pytest.mark.parametrize("unit", [True, False])
def test_answers_and_leave_one_out_are_exact(kernel: Kernel, unit: bool) -> None:
    z, y = problem()
    new, _ = problem(5, seed=1)
    fitted = fit_kernel_ridge(z, y, unit=unit, order=torch.arange(len(z)), kernel=kernel)
    x, q = fitted.scale.apply(z), fitted.scale.apply(new)
    torch.testing.assert_close(fitted.mean(new), solved(kernel, x, y, q), rtol=1e-9, atol=1e-9)
    means = []
    for i in range(len(z)):
        kept = torch.arange(len(z)) != i
        means.append(solved(kernel, x[kept], y[kept], q))
        own = y[i] - solved(kernel, x[kept], y[kept], x[i : i + 1])[0]
        torch.testing.assert_close(fitted.residuals[i], own, rtol=1e-7, atol=1e-9)
    # The jackknife+ by its definition, with coverage 0.8: ranks 3 and 12 of 14.
    size = fitted.residuals.abs()
    low = (torch.stack(means, 1) - size).sort(1).values[:, 2]
    high = (torch.stack(means, 1) + size).sort(1).values[:, 11]
    torch.testing.assert_close(fitted.interval(new, 0.8), torch.stack([low, high], 1), rtol=1e-7, atol=1e-8)


def test_errors_of_a_whole_path_are_those_of_single_fits() -> None:
    z, y = problem()
    ridges = [1e-3, 0.1, 10.0]
    x = Scale.of(z, unit=False).apply(z)
    values, vectors = torch.linalg.eigh(Kernel(0.5, 1.0, 1.0).of(x, x))
    for ridge, error in zip(ridges, left_out_errors(values, vectors, y, ridges), strict=True):
        kernel = Kernel(0.5, 1.0, ridge)
        fitted = fit_kernel_ridge(z, y, unit=False, order=torch.arange(len(z)), kernel=kernel)
        assert error == pytest.approx(float(fitted.residuals.square().mean()), rel=1e-7)


def test_deviation_is_that_of_a_gaussian_process_with_a_flat_prior_on_the_constant() -> None:
    z, y = problem()
    kernel = Kernel(0.0, 1.0, 0.1)
    fitted = fit_kernel_ridge(z, y, unit=False, order=torch.arange(len(z)), kernel=kernel)
    x = fitted.scale.apply(z)
    # A constant of very great variance stands for a flat prior.
    flat = 1e4
    k = kernel.of(x, x) + flat + kernel.ridge * torch.eye(len(x), dtype=x.dtype)
    at = kernel.of(x[:3] + 0.5, x) + flat
    variance = 1 + flat + kernel.ridge - (torch.linalg.solve(k, at.T).T * at).sum(1)
    new = (x[:3] + 0.5) * fitted.scale.size + fitted.scale.centre
    torch.testing.assert_close(fitted.deviation(new), (fitted.noise * variance).sqrt(), rtol=1e-3, atol=1e-6)


def test_the_kernel_fits_the_problem() -> None:
    z, _ = problem(60)
    x = Scale.of(z, unit=False).apply(z)
    assert choose_kernel(x, x @ torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)).share > 0
    bent = choose_kernel(x, (x.square().sum(1) * 3).cos())
    assert bent.share < 1


def test_too_few_shots_vouch_for_nothing() -> None:
    z, y = problem(8)
    fitted = fit_kernel_ridge(z, y, unit=False, order=torch.arange(8))
    assert fitted.interval(z, 0.9).abs().min() == math.inf
    z, y = problem(9)
    fitted = fit_kernel_ridge(z, y, unit=False, order=torch.arange(9))
    assert bool(torch.isfinite(fitted.interval(z, 0.9)).all())


def test_equal_shots_and_equal_targets_are_no_trouble() -> None:
    z = torch.ones(6, 2, dtype=torch.float64)
    fitted = fit_kernel_ridge(z, torch.arange(6.0, dtype=torch.float64), unit=False, order=torch.arange(6))
    assert float(fitted.mean(z)[0]) == pytest.approx(2.5)
    z, _ = problem(6)
    flat = fit_kernel_ridge(z, torch.full((6,), 3.0, dtype=torch.float64), unit=True, order=torch.arange(6))
    assert flat.mean(z).tolist() == pytest.approx([3.0] * 6)
    assert float(flat.deviation(z).max()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kernel", [Kernel(1.0, 1.0, 0.3), Kernel(0.5, 1.0, 0.05)])
def test_intervals_of_shots_are_those_of_the_others(kernel: Kernel) -> None:
    z, y = problem()
    fitted = fit_kernel_ridge(z, y, unit=False, order=torch.arange(len(z)), kernel=kernel)
    got = fitted.left_out_intervals(y, torch.tensor([0, 5, 13]), 0.75)
    x = fitted.scale.apply(z)
    for row, i in enumerate((0, 5, 13)):
        others = [j for j in range(len(z)) if j != i]
        low, high = [], []
        for j in others:
            kept = [k for k in others if k != j]
            at_i, at_j = solved(kernel, x[kept], y[kept], x[[i, j]])
            size = (y[j] - at_j).abs()
            low.append(float(at_i - size))
            high.append(float(at_i + size))
        # Of 13 others ranks 3 and 11 hold three quarters.
        assert got[row].tolist() == pytest.approx([sorted(low)[2], sorted(high)[10]], rel=1e-7)


def test_so_few_others_vouch_for_nothing() -> None:
    z, y = problem(8)
    fitted = fit_kernel_ridge(z, y, unit=False, order=torch.arange(8), kernel=Kernel(1.0, 1.0, 0.3))
    assert fitted.left_out_intervals(y, torch.arange(8), 0.9).abs().min() == math.inf
    few = fit_kernel_ridge(z[:2], y[:2], unit=False, order=torch.arange(2), kernel=Kernel(1.0, 1.0, 0.3))
    assert few.left_out_intervals(y[:2], torch.arange(2), 0.5).abs().min() == math.inf


def test_the_nearest_shot_of_a_shot_is_itself() -> None:
    z, y = problem()
    fitted = fit_kernel_ridge(z, y, unit=True, order=torch.arange(len(z)))
    distances, index = fitted.nearest(z, 2)
    assert index[:, 0].tolist() == list(range(len(z)))
    assert bool((distances[:, 0] < 1e-9).all())
    assert bool((distances[:, 1] > 1e-3).all())


@pytest.mark.parametrize("n", [4, 5, 14])
def test_the_kernel_is_chosen_without_the_shot_that_is_left_out(n: int) -> None:
    z, y = problem(n)
    x = Scale.of(z, unit=False).apply(z)
    got, chosen = nested_residuals(x, y), []
    for i in range(n):
        kept = torch.arange(n) != i
        chosen.append(choose_kernel(x[kept], y[kept]))
        own = y[i] - solved(chosen[-1], x[kept], y[kept], x[i : i + 1])[0]
        torch.testing.assert_close(got[i], own, rtol=1e-6, atol=1e-8)
    assert len(set(chosen)) > 1, "else it would be no test of the choice"


def test_the_error_to_expect_is_neither_too_low_nor_too_high() -> None:
    told, plain, true = [], [], []
    for seed in range(150):
        g = torch.Generator().manual_seed(seed)
        z = torch.randn(510, 5, generator=g, dtype=torch.float64)
        y = z[:, 0] + torch.sin(2 * z[:, 1]) + 0.5 * torch.randn(510, generator=g, dtype=torch.float64)
        fitted = fit_kernel_ridge(z[:10], y[:10], unit=False, order=torch.arange(10))
        told.append(float(nested_residuals(fitted.x, y[:10]).square().mean()))
        plain.append(float(fitted.residuals.square().mean()))
        true.append(float((fitted.mean(z[10:]) - y[10:]).square().mean()))
    mean = {name: sum(found) / len(found) for name, found in (("told", told), ("plain", plain), ("true", true))}
    assert math.sqrt(mean["told"] / mean["true"]) == pytest.approx(1, abs=0.1), mean
    assert math.sqrt(mean["plain"] / mean["true"]) < 0.9
