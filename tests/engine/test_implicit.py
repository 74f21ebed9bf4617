"""Conjugate gradients and the implicit gradient against dense linear algebra."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from kshot.engine.implicit import Proximal, at_optimum, conjugate_gradients

G = torch.Generator().manual_seed(0)
ROOT = torch.randn(5, 5, generator=G, dtype=torch.float64)
A = ROOT @ ROOT.T + torch.eye(5, dtype=torch.float64)
B = torch.randn(5, generator=G, dtype=torch.float64)


def times(v: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    image = A @ torch.cat([t.flatten() for t in v])
    return image[:2], image[2:].view(3, 1)


def test_as_many_steps_as_unknowns_solve_the_system() -> None:
    got = conjugate_gradients(times, (B[:2], B[2:].view(3, 1)), 5)
    torch.testing.assert_close(torch.cat([t.flatten() for t in got]), torch.linalg.solve(A, B), rtol=1e-9, atol=1e-9)


def test_steps_beyond_the_solution_do_no_harm() -> None:
    for b in (B, torch.zeros_like(B)):
        (got,) = conjugate_gradients(lambda v: (A @ v[0],), (b,), 60)
        torch.testing.assert_close(got, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-9)


def test_every_step_comes_nearer_in_the_norm_of_the_matrix() -> None:
    best = torch.linalg.solve(A, B)
    found = [conjugate_gradients(lambda v: (A @ v[0],), (B,), k)[0] - best for k in range(6)]
    far = [float(d @ A @ d) for d in found]
    assert all(b < a for a, b in itertools.pairwise(far))


def test_steps_end_where_a_direction_is_not_positive() -> None:
    """A of -1 gives b itself, a saddle what the steps before the bad direction came to; mapped tasks end each alone."""
    diagonals = torch.tensor([[-1.0, -1.0], [2.0, -1.0], [2.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([3.0, 0.5], dtype=torch.float64)
    one_step = b * (b @ b) / (b @ (diagonals[1] * b))

    def solve(diagonal: Tensor) -> Tensor:
        return conjugate_gradients(lambda v: (diagonal * v[0],), (b,), 4)[0]

    expected = [b, one_step, b / diagonals[2]]
    for found in ([solve(d) for d in diagonals], torch.func.vmap(solve)(diagonals)):
        for got, right in zip(found, expected, strict=True):
            torch.testing.assert_close(got, right)


def test_a_matrix_that_is_no_number_gives_no_number() -> None:
    (got,) = conjugate_gradients(lambda v: (v[0] * float("nan"),), (B,), 5)
    assert bool(got.isnan().all())


@pytest.mark.parametrize(("strength", "damping"), [(0.3, 0.0), (4.0, 0.0), (0.3, 2.0)])
def test_the_gradient_of_a_quadratic_minimum(strength: float, damping: float) -> None:
    """phi minimises phi A phi / 2 - c phi + s / 2 |phi - theta|^2, so d phi / d theta = s (A + s I)^-1; also mapped."""

    def loss(phi: dict[str, Tensor], c: Tensor) -> Tensor:
        return phi["p"] @ A @ phi["p"] / 2 - c @ phi["p"]

    pulled = A + strength * torch.eye(5, dtype=torch.float64)
    theta = torch.ones(5, dtype=torch.float64, requires_grad=True)

    def minimum(c: Tensor) -> Tensor:
        phi = torch.linalg.solve(pulled, c + strength * theta.detach())
        return at_optimum(loss, {"p": theta}, {"p": phi}, c, Proximal(strength, 5, damping))["p"]

    jacobian = torch.stack([torch.autograd.grad(minimum(B)[i], theta)[0] for i in range(5)])
    solved = torch.linalg.inv(torch.eye(5, dtype=torch.float64) + A / (strength + damping))
    torch.testing.assert_close(jacobian, solved, rtol=1e-8, atol=1e-10)
    many = torch.stack([B, -B, 2 * B])
    mapped = torch.func.vmap(minimum)(many)
    torch.testing.assert_close(mapped, torch.stack([minimum(c) for c in many]))
    (got,) = torch.autograd.grad(mapped.sum(), theta)
    torch.testing.assert_close(got, 3 * jacobian.sum(0), rtol=1e-8, atol=1e-10)
