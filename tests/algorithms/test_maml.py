"""MAML against closed forms: one weight, quadratic losses, every derivative by hand."""

import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms import MAML
from kshot.core import Episode, Spec, Split, UserError
from kshot.engine.inner import Weights
from kshot.engine.inner import learner as room
from kshot.nn.mlp import MLP
from kshot.testing import ContractError, check_learner

ALPHA = 0.05


def task() -> Episode:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 6, 1, generator=g, dtype=torch.float64) for _ in range(2))
    return Episode(Split(x[0], y[0]), Split(x[1], y[1]))


def learner(**options: object) -> MAML:
    line = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(line.weight, 1.7)
    return MAML(line, inner_lr=ALPHA, **options).train()  # pyright: ignore[reportArgumentType]


def parabola(split: Split) -> tuple[Tensor, Tensor]:
    """mean (w x - y)^2 = a (w - best)^2 + constant: returns a and best."""
    a = (split.x**2).mean()
    return a, (split.x * split.y).mean() / a


def outer_gradient(maml: MAML, episode: Episode) -> Tensor:
    (gradient,) = torch.autograd.grad(maml.outer_loss(episode), list(maml.parameters()))
    return gradient.squeeze()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_closed_form_on_a_parabola(steps: int) -> None:
    episode, w = task(), 1.7
    (a, best), (a_query, best_query) = parabola(episode.support), parabola(episode.query)
    shrink = 1 - 2 * ALPHA * a  # theta_k - best = shrink^k * (theta - best)
    adapted = best + shrink**steps * (w - best)

    states = learner(n_inner_steps=steps).states(episode.support)
    assert len(states) == steps + 1
    torch.testing.assert_close(states[0].params["weight"].squeeze(), torch.tensor(w, dtype=torch.float64))
    torch.testing.assert_close(states[-1].params["weight"].squeeze(), adapted, rtol=1e-12, atol=0)

    first = 2 * a_query * (adapted - best_query)
    second = first * shrink**steps
    got = outer_gradient(learner(n_inner_steps=steps), episode)
    torch.testing.assert_close(got, second, rtol=1e-12, atol=0)
    got = outer_gradient(learner(n_inner_steps=steps, first_order=True), episode)
    torch.testing.assert_close(got, first, rtol=1e-12, atol=0)


def test_inner_steps_by_other_rules() -> None:
    """Momentum of 0.9, a bounded slope, and Adam, whose first step is as long as its rate."""
    episode, w = task(), 1.7
    a, best = parabola(episode.support)

    def end(**options: object) -> Tensor:
        return learner(**options).adapt(episode.support).params["weight"].squeeze().detach()

    slope = 2 * a * (w - best)
    after = w - ALPHA * slope
    twice = after - ALPHA * (0.9 * slope + 2 * a * (after - best))
    torch.testing.assert_close(end(inner_optimiser="momentum", n_inner_steps=2), twice, rtol=1e-12, atol=0)
    torch.testing.assert_close(end(inner_clip=0.01), w - ALPHA * 0.01 * slope.sign(), rtol=1e-9, atol=0)
    torch.testing.assert_close(end(inner_optimiser="adam"), w - ALPHA * slope.sign(), rtol=1e-6, atol=0)
    for bad, message in (
        ({"inner_optimiser": "adan"}, "did you mean 'adam'"),
        ({"inner_clip": -1.0}, "max_norm > 0"),
        ({"adapted": ("head.*",)}, "fit 'head.\\*', found none; the names are weight"),
    ):
        with pytest.raises(UserError, match=message):
            learner(**bad)


def test_only_what_is_named_adapts() -> None:
    network = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    maml = MAML(network, adapted=("2.*", "0.bias"))
    before, after = maml.states(task().support)
    moved = {k for k, p in before.params.items() if not torch.equal(p, after.params[k])}
    assert moved == {"0.bias", "2.weight", "2.bias"}


def test_a_wrong_sign_of_the_second_order_term_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same weights after every step, but 1 + 2 alpha a in the place of 1 - 2 alpha a: both nets must hold it."""
    right = room.unrolled

    def wrong(*args: object, **options: object) -> list[Weights]:
        start, after = right(*args, **{**options, "every": True})  # pyright: ignore[reportArgumentType]
        moves = {k: after.params[k] - p for k, p in start.params.items()}
        flipped = {k: p - moves[k] + 2 * moves[k].detach() for k, p in start.params.items()}
        return [Weights(flipped, after.buffers)]

    sound = learner()
    expected = outer_gradient(sound, task())
    check_learner(MAML, Spec("regression", (2,), 1), clauses=["gradient"])
    monkeypatch.setattr(room, "unrolled", wrong)
    (a, best), (a_query, best_query) = parabola(task().support), parabola(task().query)
    adapted = best + (1 - 2 * ALPHA * a) * (1.7 - best)
    got = outer_gradient(sound, task())
    torch.testing.assert_close(got, 2 * a_query * (adapted - best_query) * (1 + 2 * ALPHA * a), rtol=1e-12, atol=0)
    assert abs(float(got - expected)) > 1e-3
    with pytest.raises(ContractError, match="'gradient'"):
        check_learner(MAML, Spec("regression", (2,), 1), clauses=["gradient"])


def test_number_of_steps_while_training_and_when_evaluating() -> None:
    maml, support = learner(n_inner_steps=2, n_inner_steps_eval=4), task().support
    assert len(maml.train().states(support)) == 3
    assert len(maml.eval().states(support)) == 5
    assert len(maml.states(support, n_steps=0)) == 1
    assert len(learner(n_inner_steps=2).eval().states(support)) == 3


def test_settings_of_the_paper() -> None:
    omniglot = Spec("classification", (1, 28, 28), 5)
    assert MAML.paper_options(Spec("regression", (1,), 1)) == {"inner_lr": 0.01, "n_inner_steps": 1}
    assert MAML.paper_options(omniglot) == {"inner_lr": 0.4, "n_inner_steps": 1, "n_inner_steps_eval": 3}
    twenty = MAML.paper_options(omniglot._replace(n_outputs=20))
    assert twenty == {"inner_lr": 0.1, "n_inner_steps": 5, "n_inner_steps_eval": 5}


def test_adapting_in_evaluation_works_without_gradients() -> None:
    with torch.no_grad():
        state = learner().eval().adapt(task().support)
    assert not state.params["weight"].requires_grad
    assert float(state.params["weight"]) != 1.7


def test_running_statistics_follow_the_queries_of_the_adapted_network() -> None:
    maml = MAML.from_backbone(MLP(1, (4,), "running"), Spec("regression", (1,), 1)).double().train()
    before = {k: b.clone() for k, b in maml.named_buffers()}
    maml.outer_loss(task())
    assert all(not torch.equal(b, before[k]) and not b.requires_grad for k, b in maml.named_buffers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_inner_steps": 0}, "n_inner_steps >= 1, got 0"),
        ({"n_inner_steps_eval": -1}, "got 1 .and -1 to evaluate"),
        ({"inner_lr": 0.0}, "inner_lr > 0, and finite, got 0.0"),
        ({"inner_lr": float("nan")}, "inner_lr > 0, and finite, got nan"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MAML(nn.Linear(1, 1), **options)  # pyright: ignore[reportArgumentType]
