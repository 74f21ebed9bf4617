"""The face of ``check_learner``: what it takes, what it leaves alone, what it tells; and the parts it is made of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

import kshot
from kshot.algorithms import MAML, ProtoNet
from kshot.core import Episode, Spec, UserError
from kshot.core.checks import check_episode
from kshot.core.episode import n_tasks, unbind
from kshot.core.tree import leaves
from kshot.engine.checkpoint import flatten
from kshot.nn.mlp import MLP
from kshot.testing import CLAUSES, ContractError, check_learner, synthetic_episode, synthetic_episodes, tiny_backbone
from kshot.testing.case import difference
from kshot.testing.strategies import batches, episodes, specs, trees
from kshot.testing.synthetic import SPECS
from kshot.testing.traces import changes, snapshot

VECTORS = Spec("classification", (5,), 4)


def protonet(spec: Spec = VECTORS) -> ProtoNet:
    return ProtoNet(tiny_backbone(spec))


def test_a_class_is_checked_on_every_kind_of_task() -> None:
    report = check_learner(MAML, clauses=["declares", "ways"])
    assert [(line.clause, line.kept) for line in report] == [("declares", True), ("ways", False)] * 2
    assert "kind classification" in report[0].note
    assert "kind regression" in report[2].note
    assert "regression has no classes" in report[3].note


def test_a_function_or_an_instance_is_checked_on_a_given_kind() -> None:
    for learner in (protonet, protonet(), ProtoNet):
        report = check_learner(learner, VECTORS)
        assert [line.clause for line in report] == list(CLAUSES)
        assert all(line.note for line in report)


def test_an_instance_may_carry_its_spec() -> None:
    learner = protonet()
    with pytest.raises(UserError, match=r"got no spec; pass spec=Spec\(...\)"):
        check_learner(learner)
    learner.spec = VECTORS  # pyright: ignore[reportAttributeAccessIssue]
    assert check_learner(learner, clauses=["shapes"])[0].kept


def test_a_function_without_spec_is_asked_for_images() -> None:
    assert check_learner(protonet, clauses=["shapes"])[0].kept


def test_an_instance_and_the_global_generator_are_left_as_they_were() -> None:
    learner = ProtoNet(tiny_backbone(SPECS["classification"], "running")).train()
    before, rng = snapshot(learner), torch.get_rng_state()
    check_learner(learner, SPECS["classification"])
    assert changes(before, snapshot(learner)) == []
    assert torch.equal(torch.get_rng_state(), rng)


def test_another_normalisation_can_be_asked_for() -> None:
    assert "declared transductive" in check_learner(ProtoNet, clauses=["leak"], normalisation="episode")[0].note


@pytest.mark.parametrize("what", [nn.Linear, lambda spec: nn.Linear(1, 1)], ids=["class", "function"])
def test_what_is_no_learner(what: Any) -> None:
    with pytest.raises(ContractError, match=r"kshot\.core\.Learner") as caught:
        check_learner(what)
    assert caught.value.clause == "declares"


def test_unknown_clauses() -> None:
    with pytest.raises(UserError, match="unknown clause 'leek'; did you mean 'leak'"):
        check_learner(ProtoNet, clauses=["leek"])


def test_a_task_that_the_learner_does_not_do() -> None:
    with pytest.raises(ContractError, match="`kinds` to name 'regression'"):
        check_learner(protonet, SPECS["regression"])


def test_it_is_in_the_shop_window() -> None:
    assert kshot.check_learner is check_learner


# Episodes made up.


@given(specs().flatmap(lambda spec: batches(spec).map(lambda b: (spec, b))))
def test_batches_fit_their_spec(drawn: tuple[Spec, Episode]) -> None:
    spec, batch = drawn
    for episode in unbind(batch):
        check_episode(episode, spec)


@given(specs(["classification"]).flatmap(lambda spec: episodes(spec, max_shot=3).map(lambda e: (spec, e))))
def test_episodes_have_every_class_with_shots_of_its_own(drawn: tuple[Spec, Episode]) -> None:
    spec, episode = drawn
    counts = torch.bincount(episode.support.y, minlength=spec.n_outputs)
    assert int(counts.min()) >= 1
    assert int(counts.max()) <= 3
    assert torch.bincount(episode.query.y).unique().numel() == 1


def test_unequal_shots_are_drawn_at_all() -> None:
    found = []

    @given(episodes(SPECS["classification"]))
    def collect(episode: Episode) -> None:
        found.append(tuple(torch.bincount(episode.support.y).tolist()))

    collect()
    assert len(set(found)) > 5
    assert any(len(set(counts)) > 1 for counts in found)


@given(trees())
def test_trees_can_be_stored(tree: Any) -> None:
    tensors, _ = flatten(tree)
    assert len(tensors) == len(leaves(tree))


def test_an_episode_is_repeatable_and_can_be_learned() -> None:
    """A nearest-mean rule on raw inputs is right far more often than chance."""
    first, second = (synthetic_episode(VECTORS, n_shot=5, n_query=20) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(leaves(tuple(first)), leaves(tuple(second)), strict=True))
    support, query = first
    means = torch.stack([support.x[support.y == c].mean(0) for c in range(4)])
    assert float((torch.cdist(query.x, means).argmin(1) == query.y).double().mean()) > 0.7
    assert support.y.tolist() != sorted(support.y.tolist())


def test_tasks_of_a_batch_and_seeds_differ() -> None:
    batch, other = (synthetic_episodes(SPECS["regression"], 3, seed=s, dtype=torch.float32) for s in (0, 1))
    assert n_tasks(batch) == 3
    assert batch.support.x.dtype == torch.float32
    assert not torch.equal(batch.support.x[0], batch.support.x[1])
    assert not torch.equal(batch.support.x, other.support.x)


def test_images_lie_between_zero_and_one() -> None:
    x = synthetic_episode(SPECS["classification"]).support.x
    assert 0 <= float(x.min()) < float(x.max()) <= 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 9), (2, 4, 4), (6,)])
def test_tiny_networks_tell_their_width(shape: tuple[int, ...]) -> None:
    network = tiny_backbone(Spec("classification", shape, 2), "running")
    assert network(torch.rand(3, *shape)).shape == (3, network.n_features)


# Traces.


class Thing:
    def __init__(self) -> None:
        self.inner, self.itself = {"n": [1, 2]}, self


CHANGES = {
    "an array": ("array", lambda m: m.array.__setitem__(0, 5)),
    "an object, deep inside": ("thing.inner.n.1", lambda m: m.thing.inner["n"].__setitem__(1, 9)),
    "a set": ("tags", lambda m: m.tags.add("new")),
    "a number": ("number", lambda m: setattr(m, "number", 2)),
    "a function": ("rule", lambda m: setattr(m, "rule", lambda: 1)),
    "a mode": ("0.training", lambda m: m[0].eval()),
    "a flag of a parameter": ("0._parameters.weight", lambda m: m[0].weight.requires_grad_(False)),
    "a gradient": ("0._parameters.weight.grad", lambda m: setattr(m[0].weight, "grad", torch.ones(2, 2))),
    "a layer more": ("_modules", lambda m: m.append(nn.ReLU())),
    "a generator": ("generator", lambda m: torch.rand(1, generator=m.generator)),
    "an entry in a tensor": ("plain", lambda m: m.plain.add_(1)),
}


def module() -> nn.Sequential:
    made: Any = nn.Sequential(nn.Linear(2, 2), MLP(2, (3,)))
    made.array, made.thing, made.tags, made.number, made.rule = np.zeros(3), Thing(), {"a", "b"}, 1, len
    made.generator, made.plain, made.nothing = torch.Generator().manual_seed(0), torch.zeros(0, 2) + 1, None
    made.plain, made.space = torch.zeros(2, dtype=torch.bfloat16), SimpleNamespace(x=object())
    return made


@pytest.mark.parametrize(("path", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_seen_where_it_is(path: str, change: Any) -> None:
    changed = module()
    before = snapshot(changed)
    assert changes(before, snapshot(changed)) == []
    change(changed)
    found = changes(before, snapshot(changed))
    assert found
    assert any(name.lstrip(".").startswith(path) for name in found)


def test_differences_are_relative_to_the_largest_entry() -> None:
    a = torch.tensor([100.0, 1.0])
    assert difference(a, a) == 0
    assert difference(a + torch.tensor([0.0, 1.0]), a) == pytest.approx(0.01)
    assert difference(torch.tensor([0.5]), torch.tensor([0.25])) == pytest.approx(0.25)
    assert difference(torch.empty(0), torch.empty(0)) == 0
    infinite = torch.tensor([float("inf"), 1.0])
    assert difference(infinite, infinite) == 0
    assert difference(torch.tensor([1.0, 1.0]), infinite) == float("inf")
    assert difference(torch.tensor([float("nan")]), torch.tensor([1.0])) != 0
