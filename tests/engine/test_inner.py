"""The inner loop on a quadratic with known steps, and calls of a network with other weights that leave no trace."""

import pytest
import torch
from torch import Tensor, nn

from kshot.core import Split
from kshot.engine.inner import Inner, Weights, call, replace_buffers, unrolled, weights_of, writes_in_place
from kshot.nn.norm import Norm

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
B = torch.tensor([1.0, -1.0], dtype=torch.float64)
START = torch.tensor([0.5, 2.0], dtype=torch.float64)
LR = 0.1


def quadratic(weights: Weights) -> tuple[Tensor, Weights]:
    """x A x / 2 - b x, whose gradient is A x - b; counts its calls in a buffer."""
    x = weights.params["x"]
    return x @ A @ x / 2 - B @ x, Weights(weights.params, {"calls": weights.buffers["calls"] + 1})


def steps(n: int, start: Tensor = START, **options: bool) -> list[Weights]:
    began, nothing = Weights({"x": start}, {"calls": torch.tensor(0)}), Split(torch.empty(0), torch.empty(0))
    return list(unrolled(lambda w, _, i: quadratic(w), began, nothing, Inner(LR, n, **options), every=True))


def test_steps_on_a_quadratic_have_a_closed_form() -> None:
    """x_k = best + (I - lr A)^k (x_0 - best) with A best = b."""
    best, shrink = torch.linalg.solve(A, B), torch.eye(2, dtype=torch.float64) - LR * A
    taken = steps(6)
    assert len(taken) == 7
    for k, weights in enumerate(taken):
        expected = best + torch.linalg.matrix_power(shrink, k) @ (START - best)
        torch.testing.assert_close(weights.params["x"], expected, rtol=1e-12, atol=1e-14)
        assert int(weights.buffers["calls"]) == k


@pytest.mark.parametrize(("first_order", "power"), [(False, 4), (True, 0)])
def test_the_gradient_through_the_steps_has_one_too(first_order: bool, power: int) -> None:
    start = START.clone().requires_grad_()
    got = torch.autograd.functional.jacobian(
        lambda s: steps(4, s, first_order=first_order)[-1].params["x"], start, create_graph=False
    )
    shrink = torch.eye(2, dtype=torch.float64) - LR * A
    torch.testing.assert_close(got, torch.linalg.matrix_power(shrink, power), rtol=1e-12, atol=1e-14)


def test_steps_can_be_mapped_over_tasks() -> None:
    starts = torch.stack([START, -START, 2 * START])
    mapped = torch.func.vmap(lambda s: steps(3, s)[-1].params["x"])(starts)
    torch.testing.assert_close(mapped, torch.stack([steps(3, s)[-1].params["x"] for s in starts]))


def test_no_steps_give_the_start() -> None:
    (only,) = steps(0)
    assert only.params["x"] is START


def network(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize("norm", [Norm(2, "running"), nn.BatchNorm2d(2)], ids=["ours", "PyTorch's"])
def test_a_call_leaves_the_network_as_it_was(norm: nn.Module) -> None:
    model, x = network(norm).train(), torch.randn(5, 1, 4, 4)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    held = dict(model.named_buffers())
    other = Weights({k: 2 * p for k, p in weights_of(model).params.items()}, weights_of(model).buffers)
    out, after = call(model, other, x)

    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert all(b is held[k] for k, b in model.named_buffers())
    assert after.params is other.params
    assert not torch.equal(after.buffers["1.running_mean"], before["1.running_mean"])
    # The same as in a network that has these weights for its own.
    model.load_state_dict({**before, **other.params})
    torch.testing.assert_close(model(x), out)
    assert all(torch.equal(b, after.buffers[k]) for k, b in model.named_buffers())


def test_layers_that_write_in_place() -> None:
    assert writes_in_place(network(nn.BatchNorm2d(2)).train())
    assert not writes_in_place(network(nn.BatchNorm2d(2)).eval())
    assert not writes_in_place(network(nn.BatchNorm2d(2, track_running_stats=False)).train())
    assert not writes_in_place(network(Norm(2, "running")).train())


def test_replaced_buffers_hold_no_graph() -> None:
    model = network(Norm(2, "running"))
    replace_buffers(model, {"1.running_mean": torch.ones(2, requires_grad=True) * 3})
    assert model.get_buffer("1.running_mean").tolist() == [3, 3]
    assert not model.get_buffer("1.running_mean").requires_grad
    assert "1.running_mean" in dict(model.named_buffers())
