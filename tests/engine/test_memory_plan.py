"""The memory that a plan predicts against what is counted and what PyTorch's allocator says; and what is chosen."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from kshot.algorithms import ANIL, IMAML, MAML, MAMLpp, MetaCurvature, ProtoNet
from kshot.core import Episode, Learner, Spec, UserError
from kshot.engine import auto, memory_plan
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.memory_plan import Need, free_memory, in_words, measured, plan, predict, within
from kshot.nn.conv import Conv4
from kshot.nn.mlp import MLP
from kshot.testing import synthetic_episodes

IMAGES, VECTORS = Spec("classification", (1, 28, 28), 5), Spec("regression", (2,), 2)
#: A prediction is as good as this, relative to what is measured.
NEAR = 0.25


def learner(cls: type[Learner] = MAML, n_inner_steps: int = 3, hidden: int = 64) -> Learner:
    made = cls.from_backbone(MLP(2, (hidden, hidden)), VECTORS, n_inner_steps=n_inner_steps)
    return made.train()


def batch(n_tasks: int = 6, n_shot: int = 40) -> Episode:
    return synthetic_episodes(VECTORS, n_tasks, n_shot=n_shot, n_query=40, dtype=torch.float32)


def counted(made: Learner, episodes: Episode, batching: Batching) -> int:
    step = OuterStep(made, batching)
    with measured() as peak:
        step(episodes)
    return peak()


def allocated(made: Learner, episodes: Episode, batching: Batching) -> int:
    """The peak of PyTorch's allocator, scratch buffers of kernels included."""
    step = OuterStep(made, batching)
    step(episodes)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(episodes)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


BATCHINGS = [Batching("loop"), Batching("vmap"), Batching("loop", recompute=True), Batching("vmap", recompute=True)]


@pytest.mark.parametrize("batching", [BATCHINGS[0], BATCHINGS[3]], ids=str)
@pytest.mark.parametrize("cls", [ANIL, IMAML, MAMLpp, MetaCurvature])
def test_predicted_is_near_what_is_counted(cls: type[Learner], batching: Batching) -> None:
    made, episodes = learner(cls), batch()
    predicted = predict(made, episodes, batching).of(6)
    assert predicted == pytest.approx(counted(made, episodes, batching), rel=NEAR)


@pytest.mark.filterwarnings("ignore")  # the profiler's own
@pytest.mark.parametrize("batching", BATCHINGS, ids=str)
def test_predicted_is_near_what_the_allocator_says(batching: Batching) -> None:
    made, episodes = learner(), batch()
    assert predict(made, episodes, batching).of(6) == pytest.approx(allocated(made, episodes, batching), rel=NEAR)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batching", BATCHINGS, ids=str)
@pytest.mark.parametrize("steps", [1, 5])
def test_predicted_is_near_on_the_network_of_the_papers(steps: int, batching: Batching) -> None:
    made = MAML.from_backbone(Conv4(normalisation="episode"), IMAGES, n_inner_steps=steps).train()
    episodes = synthetic_episodes(IMAGES, 4, n_shot=1, n_query=5, dtype=torch.float32)
    assert predict(made, episodes, batching).of(4) == pytest.approx(allocated(made, episodes, batching), rel=NEAR)


def test_a_rehearsal_takes_no_memory_and_changes_nothing() -> None:
    made, episodes = learner(MAMLpp), batch()
    before = {k: t.clone() for k, t in made.state_dict().items()}
    predict(made, episodes, Batching("vmap"))
    assert all(type(t) in (torch.Tensor, nn.Parameter) for t in (*made.parameters(), *made.buffers()))
    assert all(torch.equal(t, before[k]) for k, t in made.state_dict().items())


def test_memory_grows_with_the_steps_and_with_their_root_when_they_are_recomputed() -> None:
    episodes = batch(1)

    def growth(batching: Batching) -> float:
        few, many = (predict(learner(n_inner_steps=k), episodes, batching).of(1) for k in (4, 16))
        return many / few

    assert growth(Batching("loop")) > 3  # four times the steps: nearly four times the memory
    assert growth(Batching("loop", recompute=True)) < 2.1  # or twice, and a constant


def test_memory_of_the_implicit_gradient_does_not_grow_with_the_steps() -> None:
    few, many = (predict(learner(IMAML, k), batch(1), Batching("loop")).of(1) for k in (2, 12))
    assert many == pytest.approx(few, rel=0.01)


def test_the_plan_takes_the_fastest_way_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    made, episodes = learner(n_inner_steps=4), batch()
    known = {b: predict(made, episodes, b) for b in BATCHINGS}  # a rehearsal of each is enough
    monkeypatch.setattr(memory_plan, "predict", lambda made, episodes, batching: known[batching])
    whole, again = (known[Batching("vmap", recompute=r)] for r in (False, True))
    alone, least = (known[Batching("loop", recompute=r)].of(1) for r in (False, True))
    assert least < alone < whole.of(2)
    sums = 16 * sum(p.numel() for p in made.parameters())

    def chosen(budget: int) -> Batching:
        found = plan(made, episodes, budget=budget)
        assert found.predicted <= found.budget == budget
        return found.batching

    assert chosen(whole.of(6)) == Batching("vmap")
    assert chosen(whole.of(3) + sums) == Batching("vmap", 3)
    assert chosen(alone) == Batching("loop")
    assert again.of(6) < alone or chosen(alone - 1).recompute
    assert chosen(least) == Batching("loop", recompute=True)
    assert plan(made, episodes, kind="loop", budget=whole.of(6)).batching == Batching("loop")


def test_what_does_not_fit_is_refused_with_advice() -> None:
    with pytest.raises(
        UserError, match=r"one task to fit into 1e\+03 bytes.*first_order=True, which needs .*imaml"
    ) as e:
        plan(learner(), batch(), budget=1000)
    assert "even with its inner steps recomputed" in str(e.value)


def test_layers_that_write_in_place_are_looped_over() -> None:
    made = MAML(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))).train()
    assert plan(made, batch()).batching == Batching("loop")


def test_only_what_fits_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    made, episodes = learner(n_inner_steps=4), batch()
    found = auto.candidates(made, episodes)
    assert within(found, made, episodes) == found
    room = int(predict(made, episodes, Batching("vmap")).of(3) / memory_plan.SHARE) + 100_000
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: room)
    (only,) = within(found, made, episodes)
    assert only.kind == "vmap"
    assert 2 <= only.chunk <= 4
    assert auto.choose(made, episodes, repeats=1)[0] == only
    # Methods without an inner loop are no concern of the plan.
    protonet = ProtoNet(MLP(2, (4,)))
    assert within(found, protonet, episodes) == found


@pytest.mark.parametrize(
    ("n", "words"), [(12, "12 bytes"), (2048, "2 KiB"), (3.5 * 2**20, "3.5 MiB"), (2**41, "2.05e+03 GiB")]
)
def test_bytes_in_words(n: float, words: str) -> None:
    assert in_words(n) == words


def test_free_memory_is_a_sensible_number() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
    assert Need(5, 3).of(4) == 17
