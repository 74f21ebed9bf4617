"""The memory that a plan predicts against what is counted and what PyTorch's allocator says; and what is chosen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from kshot.algorithms import ANIL, IMAML, MAML, MAMLpp, MetaCurvature, ProtoNet
from kshot.core import Episode, Learner, Spec, UserError
from kshot.data.loader import EpisodeLoader
from kshot.data.sinusoid import Sinusoid
from kshot.engine import auto, memory_plan
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.inner import InnerLoop
from kshot.engine.memory_plan import (
    Need,
    UnplannedWarning,
    free_memory,
    in_words,
    measured,
    plan,
    predict,
    refuse_too_large,
    within,
)
from kshot.engine.train import TrainConfig, Trainer
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


# Networks that look at the numbers they compute.


class Branches(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 2 * z if float(z.detach().sum()) > 0 else z


class Picks(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z + z[z > 0].mean()


@pytest.mark.parametrize("layer", [Branches, Picks])
def test_a_network_that_looks_at_numbers_is_looped_over_unplanned(layer: type[nn.Module]) -> None:
    made = MAML(nn.Sequential(nn.Linear(2, 4), layer(), nn.Linear(4, 2)), inner_lr=0.1).train()
    with pytest.warns(UnplannedWarning, match="memory of MAML on this network is not planned") as told:
        chosen, seconds = auto.choose(made, batch(3, 4), repeats=1)
    assert len(told) == 1
    assert chosen == Batching("loop")
    assert list(seconds) == ["loop"]
    # Where somebody asked for the loop, nothing can be said beforehand, and nothing stands in the way.
    refuse_too_large(OuterStep(made, chosen), batch(3, 4))


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.unsqueeze(1))[0][:, -1])


def test_a_network_that_cannot_be_mapped_is_planned_as_a_loop() -> None:
    assert plan(MAML(Sequences(), inner_lr=0.1).train(), batch(3, 4)).batching == Batching("loop")


# Batchings that somebody asked for.


def test_what_was_asked_for_is_refused_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made, episodes = learner(n_inner_steps=4), batch()
    whole = predict(made, episodes, Batching("vmap"))

    def ask(batching: Batching, room: int) -> None:
        monkeypatch.setattr(memory_plan, "free_memory", lambda device: room)
        refuse_too_large(OuterStep(made, batching), episodes)

    ask(Batching("vmap"), whole.of(6))
    with pytest.raises(UserError, match=r"fit into .* of free memory; MAML needs .* for 6 tasks at once") as e:
        ask(Batching("vmap"), whole.of(6) - 1)
    for offer in ("batching auto", "recompute=True", "chunk=3", "first_order=True, which needs", "imaml"):
        assert offer in str(e.value)
    ask(Batching("vmap", chunk=3), whole.of(3))
    with pytest.raises(UserError, match="for one task at once"):
        ask(Batching("loop"), 1000)
    with pytest.raises(UserError, match="for 4 tasks at once"):
        ask(Batching("processes", inside="loop", workers=4), 4 * predict(made, episodes, Batching("loop")).of(1) - 1)


def test_a_run_is_refused_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Sinusoid(n_shot=4, n_query=4)
    made = MAML.from_backbone(MLP(1, (8,)), source.spec)
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 1000)
    trainer = Trainer(made, EpisodeLoader(source, 3, seed=0), TrainConfig(steps=2, batching="vmap"))
    with pytest.raises(UserError, match="of free memory; MAML needs"):
        trainer.fit()
    assert trainer.progress.step == 0


def test_a_rehearsal_is_held_only_where_there_is_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Batching] = []
    monkeypatch.setattr(memory_plan, "predict", lambda made, episodes, how, autocast: held.append(how) or Need(0, 0))
    made, episodes = learner(), batch()
    before = {k: t.clone() for k, t in made.state_dict().items()}
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 2**40)
    refuse_too_large(OuterStep(made, Batching("vmap")), episodes)
    assert held == []
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 1000)
    refuse_too_large(OuterStep(made, Batching("vmap")), episodes)
    assert held == [Batching("vmap")]
    assert all(torch.equal(t, before[k]) for k, t in made.state_dict().items())


@pytest.mark.parametrize("cls", [ANIL, IMAML, MAML, MAMLpp, MetaCurvature])
def test_no_doubt_is_enough_room(cls: type[Learner]) -> None:
    """What one task makes without a graph, so many times, is more than a rehearsal finds."""
    made = learner(cls)
    assert isinstance(made, InnerLoop)
    assert predict(made, batch(1), Batching("loop")).of(1) < memory_plan.AT_MOST * memory_plan._made(made, batch(1))


@pytest.mark.parametrize(
    ("n", "words"), [(12, "12 bytes"), (2048, "2 KiB"), (3.5 * 2**20, "3.5 MiB"), (2**41, "2.05e+03 GiB")]
)
def test_bytes_in_words(n: float, words: str) -> None:
    assert in_words(n) == words


def test_free_memory_is_a_sensible_number() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
    assert Need(5, 3).of(4) == 17
