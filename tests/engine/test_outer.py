"""Optimisers and schedules of the outer loop in closed form; clipping."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kshot.core import UserError
from kshot.engine.outer import SCHEDULES, clip, make_optimiser, rate_factor


def factors(name: str, n: int = 10, **options: float) -> list[float]:
    return [rate_factor(step, n, name, **options) for step in range(n)]  # pyright: ignore[reportArgumentType]


def test_constant() -> None:
    assert factors("constant") == [1.0] * 10


def test_steps_halve_the_rate() -> None:
    assert factors("step", every=4) == [1] * 4 + [0.5] * 4 + [0.25] * 2
    assert factors("step", every=5, gamma=0.1) == [1] * 5 + [0.1] * 5


def test_cosine_falls_from_one_to_zero() -> None:
    got = factors("cosine")
    assert got == [pytest.approx(0.5 * (1 + math.cos(math.pi * s / 10))) for s in range(10)]
    assert got[5] == pytest.approx(0.5)
    assert rate_factor(10, 10, "cosine") == pytest.approx(0)
    assert rate_factor(15, 10, "cosine") == pytest.approx(0)  # a run made longer by hand


def test_a_cosine_begins_again_lower() -> None:
    once = factors("cosine", 5)
    assert factors("cosine", 12, every=5, gamma=0.4) == [
        *once,
        *(pytest.approx(0.4 * f) for f in once),
        *(pytest.approx(0.16 * f) for f in once[:2]),
    ]
    assert rate_factor(9, 99, "cosine", warmup=4, every=5, gamma=0.4) == pytest.approx(0.4)


def test_warmup_rises_and_the_schedule_begins_after_it() -> None:
    rise = [0.25, 0.5, 0.75, 1.0]
    assert factors("constant", warmup=4) == rise + [1.0] * 6
    assert factors("step", every=3, warmup=4) == [*rise, 1, 1, 1, 0.5, 0.5, 0.5]
    assert factors("cosine", warmup=4)[:5] == [*rise, 1.0]
    assert rate_factor(7, 10, "cosine", warmup=4) == pytest.approx(0.5)


@given(st.sampled_from(SCHEDULES), st.integers(1, 50), st.integers(0, 60), st.integers(0, 20), st.integers(1, 9))
def test_factors_are_shares(name: str, n_steps: int, step: int, warmup: int, every: int) -> None:
    assert 0 <= rate_factor(step, n_steps, name, warmup=warmup, every=every) <= 1


def test_schedules_that_are_none() -> None:
    with pytest.raises(UserError, match="schedule must be one of constant, step, cosine, got 'linear'"):
        rate_factor(0, 10, "linear")
    with pytest.raises(UserError, match="lr_every >= 1 for the step schedule, got 0"):
        rate_factor(0, 10, "step")


def step_once(name: str, *, decay: float = 0.0, momentum: float = 0.0) -> float:
    """One step from 2 by a gradient of 1 at a rate of 0.1."""
    p = nn.Parameter(torch.tensor(2.0))
    optimiser = make_optimiser([p], name, 0.1, decay, momentum)
    p.grad = torch.tensor(1.0)
    optimiser.step()
    return float(p.detach())


def test_first_steps_of_the_optimisers() -> None:
    assert step_once("sgd") == pytest.approx(1.9)
    assert step_once("sgd", momentum=0.9) == pytest.approx(2 - 0.1 * 1.9)  # Nesterov looks ahead
    assert step_once("sgd", decay=0.5) == pytest.approx(2 - 0.1 * (1 + 0.5 * 2))
    assert step_once("adam") == pytest.approx(1.9, abs=1e-6)
    assert step_once("adamw", decay=0.5) == pytest.approx(2 * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)


def test_optimisers_that_are_none() -> None:
    with pytest.raises(UserError, match="optimiser must be one of adam, adamw, sgd, rmsprop, got 'lion'"):
        make_optimiser([nn.Parameter(torch.zeros(1))], "lion", 0.1, 0, 0)
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="outer_lr > 0"):
            make_optimiser([nn.Parameter(torch.zeros(1))], "adam", rate, 0, 0)


def test_rmsprop_follows_graves_step_by_step() -> None:
    """Equations 38 to 41 by hand, for one weight and then for another shape beside it."""
    g = torch.Generator().manual_seed(0)
    p, q = nn.Parameter(torch.tensor(2.0, dtype=torch.float64)), nn.Parameter(torch.zeros(3, 2))
    optimiser = make_optimiser([p, q], "rmsprop", 0.1, 0.5, 0.9)
    w, n, m, step = 2.0, 0.0, 0.0, 0.0
    for _ in range(20):
        p.grad = torch.randn((), generator=g, dtype=torch.float64)
        q.grad = torch.ones(3, 2)
        slope = float(p.grad) + 0.5 * w
        n = 0.95 * n + 0.05 * slope**2
        m = 0.95 * m + 0.05 * slope
        step = 0.9 * step - 0.1 * slope / math.sqrt(n - m**2 + 1e-9)
        w += step
        optimiser.step()
        assert float(p.detach()) == pytest.approx(w, rel=1e-9, abs=1e-12)
    assert bool((q < 0).all())


def test_rmsprop_stays_finite_where_a_gradient_does_not_vary() -> None:
    """A variance that is a difference of averages comes out below zero by rounding; its root would be no number."""
    p = nn.Parameter(torch.zeros(64))
    optimiser = make_optimiser([p], "rmsprop", 1e-6, 0, 0.9)
    slope = torch.linspace(0.1, 3, 64)
    for _ in range(600):
        p.grad = slope.clone()
        optimiser.step()
    assert bool(torch.isfinite(p).all())
    assert bool((p < 0).all())


def test_rmsprop_goes_on_from_its_state() -> None:
    def run(steps: int, p: nn.Parameter, state: dict | None) -> tuple[nn.Parameter, dict]:
        optimiser = make_optimiser([p], "rmsprop", 0.01, 0, 0.9)
        if state:
            optimiser.load_state_dict(state)
        for _ in range(steps):
            p.grad = p.detach() - 1
            optimiser.step()
        return p, optimiser.state_dict()

    whole, _ = run(6, nn.Parameter(torch.zeros(2)), None)
    half, state = run(3, nn.Parameter(torch.zeros(2)), None)
    assert torch.equal(run(3, half, state)[0], whole)


def test_clipping_bounds_every_entry_first() -> None:
    grads = {"a": torch.tensor([3.0, -40.0]), "b": torch.tensor([[4.0]])}
    clipped, norm = clip(grads, 0, 10.0)
    assert float(norm) == pytest.approx(math.sqrt(9 + 1600 + 16))
    assert {k: g.tolist() for k, g in clipped.items()} == {"a": [3.0, -10.0], "b": [[4.0]]}
    both, _ = clip(grads, 1.0, 3.0)
    length = math.sqrt(27)
    assert both["a"].tolist() == pytest.approx([3 / length, -3 / length], rel=1e-5)
    assert not torch.isfinite(clip({"a": torch.tensor([float("inf")])}, 0, 1.0)[1])


def test_numbers_whose_squares_overflow_have_a_norm_and_are_clipped() -> None:
    grads = {"a": torch.tensor([3e30, -4e30]), "b": torch.tensor([0.5])}
    clipped, norm = clip(grads, 0, 10.0)
    assert float(norm) == pytest.approx(5e30)
    assert {k: g.tolist() for k, g in clipped.items()} == {"a": [10.0, -10.0], "b": [0.5]}
    scaled, _ = clip(grads, 1.0)
    torch.testing.assert_close(scaled["a"], torch.tensor([0.6, -0.8]))


def test_clipping_bounds_the_common_norm_and_keeps_the_direction() -> None:
    grads = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    same, norm = clip(grads, 0)
    assert float(norm) == 5
    assert same is grads
    clipped, norm = clip(grads, 1.0)
    assert float(norm) == 5
    torch.testing.assert_close(clipped["a"], torch.tensor([0.6, 0.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(clipped["b"], torch.tensor([[0.8]]), rtol=1e-5, atol=0)
    small, _ = clip(grads, 10.0)
    assert all(torch.equal(small[k], grads[k]) for k in grads)
    assert not torch.isfinite(clip({"a": torch.tensor([1.0, float("nan")])}, 1.0)[1])
