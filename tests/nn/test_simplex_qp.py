"""The quadratic program over simplices: feasible, optimal, differentiable."""

import pytest
import torch

from kshot.nn.simplex_qp import BARRIER, solve_simplex_qp


def problem(n: int, ways: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(n)
    y = torch.eye(ways, dtype=torch.float64)[torch.arange(n) % ways]
    x = 2 * torch.randn(n, width, generator=g, dtype=torch.float64)
    return (x @ x.T).to(dtype), y.to(dtype)


@pytest.mark.parametrize(("n", "ways", "width"), [(5, 5, 12), (15, 3, 4), (12, 4, 40), (4, 1, 6)])
def test_the_answer_keeps_the_optimality_conditions(n: int, ways: int, width: int) -> None:
    gram, y = problem(n, ways, width)
    p = solve_simplex_qp(gram, y, 0.1)
    assert float(p.min()) > 0
    torch.testing.assert_close(p.sum(1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-9)
    # In each row the slope is one level where there is mass, and no lower elsewhere: slope - level = barrier / p.
    slope = 0.1 * gram @ (p - y) + y
    gap = slope - BARRIER / p
    torch.testing.assert_close(gap, gap.mean(1, keepdim=True).expand_as(gap), rtol=0, atol=1e-7)


def test_float32_gives_the_same_answer() -> None:
    exact = solve_simplex_qp(*problem(12, 4, 40), 0.1)
    single = solve_simplex_qp(*problem(12, 4, 40, torch.float32), 0.1)
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-4)


def test_more_steps_change_nothing() -> None:
    gram, y = problem(15, 3, 4)
    few, many = solve_simplex_qp(gram, y, 0.1), solve_simplex_qp(gram, y, 0.1, n_steps=40)
    torch.testing.assert_close(few, many, rtol=0, atol=1e-10)


def test_equal_examples_do_no_harm() -> None:
    gram, y = torch.ones(6, 6, dtype=torch.float64), torch.eye(2, dtype=torch.float64)[torch.arange(6) % 2]
    assert bool(torch.isfinite(solve_simplex_qp(gram, y, 0.1)).all())


def test_first_and_second_derivatives() -> None:
    gram, y = problem(6, 3, 5)
    half = torch.linalg.cholesky(gram + torch.eye(6, dtype=torch.float64)).requires_grad_()

    def solution(h: torch.Tensor) -> torch.Tensor:
        return solve_simplex_qp(h @ h.T, y, 0.1)

    assert torch.autograd.gradcheck(solution, half, rtol=1e-4)
    assert torch.autograd.gradgradcheck(solution, half, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("n", "ways"), [(25, 5), (20, 20)])
def test_derivatives_hold_in_float32_where_features_are_short(n: int, ways: int) -> None:
    """The blocks hold numbers of very different sizes: what is added to their diagonals must follow each."""
    g = torch.Generator().manual_seed(3)
    x = torch.nn.functional.normalize(torch.randn(n, 32, generator=g, dtype=torch.float64), dim=-1)
    y, weight = torch.arange(n) % ways, torch.randn(n, ways, generator=g, dtype=torch.float64)

    def slope(dtype: torch.dtype) -> torch.Tensor:
        z = x.to(dtype).requires_grad_()
        p = solve_simplex_qp(z @ z.mT, torch.nn.functional.one_hot(y, ways).to(dtype), 0.1)
        return torch.autograd.grad((p * weight.to(dtype)).sum(), z)[0].double()

    exact = slope(torch.float64)
    assert float((slope(torch.float32) - exact).norm() / exact.norm()) < 1e-3
