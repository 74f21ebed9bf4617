"""Closed forms against their slow selves, and where systems are singular."""

import pytest
import torch

from kshot.nn.heads import class_means, squared_distances, unit
from kshot.nn.solvers import cholesky, conjugate_gradients, logistic, ridge, sinkhorn, softmax_regression


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_ridge_solves_the_normal_equations_on_either_side(shape: tuple[int, int]) -> None:
    x, y = drawn(*shape), drawn(shape[0], 3)
    w = ridge(x, y, torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(x.T @ (x @ w - y) + 0.3 * w, torch.zeros_like(w), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_system_has_an_answer(dtype: torch.dtype) -> None:
    """Equal examples and a penalty below rounding: the weights are those of least norm, and the fit is exact."""
    row = drawn(1, 20).to(dtype)
    x, y = row.expand(6, -1), torch.ones(6, 1, dtype=dtype)
    w = ridge(x, y, torch.tensor(1e-30, dtype=dtype))
    assert bool(torch.isfinite(w).all())
    torch.testing.assert_close(x @ w, y, rtol=0, atol=2e-3 if dtype == torch.float32 else 1e-6)


def test_logistic_reaches_the_stationary_point() -> None:
    x, y = drawn(12, 5), (drawn(12, 2) > 0).double()
    w = logistic(x, y, torch.tensor(0.5, dtype=torch.float64), 12)
    torch.testing.assert_close(x.T @ (torch.sigmoid(x @ w) - y) + 0.5 * w, torch.zeros_like(w), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("shape", "penalty"), [((10, 30), 1.0), ((30, 6), 0.1), ((15, 40), 0.01)])
def test_softmax_regression_reaches_the_stationary_point(shape: tuple[int, int], penalty: float) -> None:
    x, y = drawn(*shape), torch.eye(5, dtype=torch.float64)[torch.arange(shape[0]) % 5]
    w, b = softmax_regression(x, y, penalty)
    slope = torch.softmax(x @ w + b, -1) - y
    torch.testing.assert_close(x.T @ slope + penalty * w, torch.zeros_like(w), rtol=0, atol=1e-6)
    torch.testing.assert_close(slope.sum(0), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-6)


def test_conjugate_gradients_end_where_the_system_is_solved_and_stay_there() -> None:
    half = drawn(6, 6)
    h, target = half @ half.T + torch.eye(6, dtype=torch.float64), drawn(6, 1)
    for n_steps in (8, 60):
        torch.testing.assert_close(conjugate_gradients(lambda u: h @ u, target, n_steps), torch.linalg.solve(h, target))
    assert not conjugate_gradients(lambda u: h @ u, torch.zeros_like(target), 5).any()


def test_sinkhorn_brings_rows_and_columns_to_their_sums() -> None:
    plan = sinkhorn(drawn(12, 4), torch.tensor([2.0, 3.0, 3.0, 4.0], dtype=torch.float64), 200)
    torch.testing.assert_close(plan.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.tensor([2.0, 3.0, 3.0, 4.0], dtype=torch.float64))
    assert float(plan.min()) > 0


def test_zero_vectors_stay_zero_and_have_a_finite_gradient() -> None:
    z = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert not unit(z).any()
    (gradient,) = torch.autograd.grad(unit(z).sum(), z)
    assert bool(torch.isfinite(gradient).all())
    long = drawn(3, 4)
    torch.testing.assert_close(unit(long).norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_distances_and_means_by_hand() -> None:
    a, b = drawn(3, 4), drawn(2, 4)
    torch.testing.assert_close(squared_distances(a, b), torch.cdist(a, b) ** 2)
    far_a, far_b = (100_000 + t for t in (a.float(), b.float()))  # float32 keeps some two digits of these
    torch.testing.assert_close(squared_distances(far_a, far_b), torch.cdist(a, b).float() ** 2, rtol=0, atol=0.2)
    z = torch.tensor([[1.0, 0.0], [5.0, 5.0], [3.0, 2.0]])
    assert class_means(z, torch.tensor([1, 0, 1]), 2).tolist() == [[5, 5], [2, 1]]


def test_a_factor_that_failed_is_no_answer() -> None:
    spoiled = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert cholesky(spoiled).isnan().all()
    good = cholesky(torch.stack([spoiled, 4 * torch.eye(2)]))[1]
    torch.testing.assert_close(good, 2 * torch.eye(2))
