"""MAML++: the weights of its losses, what becomes of it with every remedy off, and other step counts than trained."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms import MAML, MAMLpp
from kshot.algorithms.gradient.mamlpp import importance
from kshot.core import Episode, Spec, UserError
from kshot.engine.batch import Batching, OuterStep
from kshot.nn.mlp import MLP
from kshot.testing import synthetic_episode, synthetic_episodes
from kshot.testing.synthetic import TinyConv

IMAGES, VECTORS = Spec("classification", (1, 8, 8), 3), Spec("regression", (2,), 2)


def network(normalisation: str = "episode") -> nn.Sequential:
    body = TinyConv(1, 8, normalisation)
    return nn.Sequential(body, nn.Linear(body.n_features, 3)).double()


def at(step: int, n_steps: int = 5, until: int = 100) -> list[float]:
    return importance(n_steps, torch.tensor(step), until).tolist()


def test_losses_weigh_alike_at_first_and_the_last_alone_in_the_end() -> None:
    assert at(0) == pytest.approx([0.2] * 5)
    assert at(50) == pytest.approx([0.1] * 4 + [0.6])
    assert at(99) == pytest.approx([0.03 / 5] * 4 + [1 - 4 * 0.03 / 5])  # never less than the least
    assert at(100) == [0, 0, 0, 0, 1]
    assert at(7, n_steps=1) == [1.0]
    assert all(sum(at(step)) == pytest.approx(1) for step in range(0, 120, 7))


def test_without_its_remedies_it_is_maml() -> None:
    """One rate for all, and a network without scales of its own: nothing is left that differs."""
    model, episode = nn.Sequential(MLP(2, (6, 5)), nn.Linear(5, 2)).double(), synthetic_episode(VECTORS)
    maml = MAML(model, inner_lr=0.125, n_inner_steps=3).train()
    plus = MAMLpp(model, inner_lr=0.125, n_inner_steps=3).double().train()
    assert plus.model is not model
    torch.testing.assert_close(plus.outer_loss(episode), maml.outer_loss(episode), rtol=1e-12, atol=0)


def test_the_network_that_is_given_stays_as_it_is() -> None:
    model = network("running")
    before = copy.deepcopy(model.state_dict())
    learner = MAMLpp(model, n_inner_steps=4)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    norm = learner.model[0].first.norm  # pyright: ignore
    assert {t.shape for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)} == {(4, 4)}


def test_scales_of_a_step_are_used_at_that_step_alone() -> None:
    """The gradient of a single loss after the last step reaches the scales of every step; the rates too."""
    learner = MAMLpp(network(), n_inner_steps=3).double().train()
    learner.outer_loss(synthetic_episode(IMAGES, n_shot=3)).backward()
    scale = learner.model[0].first.norm.weight  # pyright: ignore
    assert (scale.grad.abs().sum(1) > 0).all()
    assert all(r.grad is not None and r.grad.shape == (3,) for r in learner.rates)


def test_running_statistics_are_those_of_each_step() -> None:
    learner, episode = (
        MAMLpp(network("running"), n_inner_steps=3, inner_lr=0.5).double().train(),
        synthetic_episode(IMAGES),
    )
    body = learner.model[0]
    seen = body.first.conv(episode.support.x).mean((0, 2, 3)).detach()  # pyright: ignore
    learner.outer_loss(episode)
    after = body.first.norm.running_mean  # pyright: ignore
    # The first step averaged the support under the starting weights into its own row.
    torch.testing.assert_close(after[0], 0.1 * seen)
    assert len({tuple(row) for row in after.tolist()}) == 3


@pytest.mark.parametrize("normalisation", ["episode", "running", "support", "layer"])
def test_other_step_counts_than_trained(normalisation: str) -> None:
    learner = MAMLpp(network(normalisation), n_inner_steps=2).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.05 * torch.randn_like(p))
    support, query = synthetic_episode(IMAGES, n_shot=3)
    learner.train().outer_loss(Episode(support, query))
    states = learner.eval().states(support, 6)
    assert len(states) == 7
    answers = [learner.predict(s, query.x) for s in states]
    assert all(a.shape == (len(query.y), 3) and bool(torch.isfinite(a).all()) for a in answers)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(answers))
    learner.n_inner_steps_eval = 6
    torch.testing.assert_close(learner.predict(learner.adapt(support), query.x), answers[-1])
    assert len(learner.states(support, 1)) == 2


def test_pytorchs_batch_norm_has_its_own_for_every_step_too() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    learner = MAMLpp(model, n_inner_steps=2).double().train()
    got = OuterStep(learner, Batching("loop"))(synthetic_episodes(IMAGES, 2))
    assert got.buffers["model.2.running_mean"].shape == (2, 5)
    assert got.grads["model.2.weight"].abs().sum(1).gt(0).all()


def test_order_annealing_ends_when_it_should() -> None:
    """First order until the counter says so, then second; and a traced program, which holds both, agrees."""
    model, episodes = nn.Sequential(MLP(2, (6, 5)), nn.Linear(5, 2)).double(), synthetic_episodes(VECTORS, 2)
    annealed = MAMLpp(model, inner_lr=0.25, first_order_steps=1).double().train()
    second = MAMLpp(model, inner_lr=0.25).double().train()
    first = MAML(model, inner_lr=0.25, n_inner_steps=2, first_order=True).train()

    def gradient(learner: MAML | MAMLpp) -> Tensor:
        grads = OuterStep(learner, Batching("vmap"))(episodes).grads
        return torch.cat([g.flatten() for k, g in grads.items() if k.startswith("model.")])

    assert not annealed.exact_gradient
    torch.testing.assert_close(gradient(annealed), gradient(first), rtol=1e-10, atol=1e-12)
    assert float((gradient(annealed) - gradient(second)).abs().max()) > 1e-4
    annealed.outer_steps += 1
    assert annealed.exact_gradient
    torch.testing.assert_close(gradient(annealed), gradient(second), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("done", [0, 1])
def test_a_traced_program_holds_both_orders(done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from kshot.algorithms.gradient import mamlpp as room

    model, episodes = nn.Sequential(MLP(2, (6, 5)), nn.Linear(5, 2)).double(), synthetic_episodes(VECTORS, 2)
    learner = MAMLpp(model, inner_lr=0.25, first_order_steps=1, multi_step_steps=1).double().train()
    learner.outer_steps += done
    expected = OuterStep(learner, Batching("vmap"))(episodes)
    monkeypatch.setattr(room, "known", lambda number: None)  # what it says while a program is traced
    got = OuterStep(learner, Batching("vmap"))(episodes)
    torch.testing.assert_close(got.losses, expected.losses)
    for mine, theirs in zip(got.grads.values(), expected.grads.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_counter_counts_outer_steps_in_training_only() -> None:
    learner, episode = MAMLpp(network(), multi_step_steps=3).double(), synthetic_episode(IMAGES)
    learner.eval().outer_loss(episode)
    assert int(learner.outer_steps) == 0
    learner.train().outer_loss(episode)
    assert int(learner.outer_steps) == 1
    assert "outer_steps" in learner.state_dict()


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="outer steps >= 0, got -1 and 0"):
        MAMLpp(nn.Linear(1, 1), multi_step_steps=-1)
