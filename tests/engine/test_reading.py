"""Readers along long sequences: recomputed in pieces, and followed to where something went to infinity."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from kshot.algorithms import DNC, LSTM, MANN, NTM
from kshot.core import DivergedError, Episode, Spec, generator
from kshot.core.episode import select
from kshot.data.loader import EpisodeLoader
from kshot.data.sequences.copying import Copy
from kshot.engine import memory_plan
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.config import TrainConfig
from kshot.engine.memory_plan import measured
from kshot.engine.reading import Reader
from kshot.engine.train import Trainer
from kshot.nn.flat import Flat
from kshot.nn.memory.lrua import LRUACell
from kshot.nn.memory.lstm import LSTMCell
from kshot.nn.memory.ntm import NTMCell, NTMState
from kshot.testing import synthetic_episodes

SPEC = Spec("classification", (4,), 3)
SMALL: dict[type[Reader], dict[str, int]] = {
    LSTM: {"n_layers": 2},
    MANN: {"n_slots": 10, "slot_width": 3},
    DNC: {"n_slots": 6, "slot_width": 3},
    NTM: {"n_slots": 9, "slot_width": 4},
}


def reader(make: type[Reader], spec: Spec = SPEC) -> Reader:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make.from_backbone(Flat(spec.input_shape), spec, n_hidden=5, **SMALL[make])
    return made.double().train()


def gradient(learner: Reader, batching: Batching, episodes: Episode) -> tuple[dict[str, Tensor], int]:
    with torch.random.fork_rng(devices=[]), measured() as peak:
        torch.manual_seed(0)
        found = OuterStep(learner, batching)(episodes)
    return {"losses": found.losses, **found.grads}, peak()


@pytest.mark.parametrize("make", SMALL)
def test_pieces_computed_twice_give_the_gradient_from_less_memory(make: type[Reader]) -> None:
    learner, episodes = reader(make), synthetic_episodes(SPEC, 2, n_shot=2, n_query=10)
    plain, whole = gradient(learner, Batching("native"), episodes)
    again, pieces = gradient(learner, Batching("native", recompute=True), episodes)
    for name, right in plain.items():
        torch.testing.assert_close(again[name], right, rtol=1e-9, atol=1e-13)
    # 36 steps in 6 pieces: at most about 6 / 36 of what the steps keep, the states between the pieces, and weights.
    assert pieces < 0.5 * whole


@pytest.mark.parametrize("kind", ["loop", "vmap"])
def test_pieces_of_a_sequence_in_any_batching(kind: str) -> None:
    source = Copy(min_length=5, max_length=5, n_bits=2)
    episodes = source.episodes(source.plan(2, generator(0)))
    episodes = episodes._replace(**{k: s._replace(x=s.x.double()) for k, s in episodes._asdict().items()})
    learner = reader(NTM, source.spec)
    plain, _ = gradient(learner, Batching("native"), episodes)
    again, _ = gradient(learner, Batching(kind, recompute=True), episodes)
    for name, right in plain.items():
        torch.testing.assert_close(again[name], right, rtol=1e-9, atol=1e-13)


class Spoilt(torch.autograd.Function):
    """Hands a tensor on, and back an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] + math.inf


class Plant(NamedTuple):
    """Where a quantity is spoilt: the numbers of it, or their gradient."""

    name: str
    step: int
    by_gradient: bool


class Planted(NTMCell):
    plant: Plant
    at = 0

    def step(self, x: Tensor, state: NTMState) -> tuple[Tensor, NTMState, dict[str, Tensor]]:
        Planted.at += 1
        out, after, named = super().step(x, state)
        if self.plant.by_gradient or Planted.at != self.plant.step:
            return out, after, named
        return out * math.inf, after, {**named, self.plant.name: named[self.plant.name] * math.inf}

    def _place(self, address: Tensor, before: Tensor, memory: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.plant.by_gradient and Planted.at == self.plant.step + 1:
            before = Spoilt.apply(before) if self.plant.name == "weighting" else before
            memory = Spoilt.apply(memory) if self.plant.name == "memory" else memory
        return super()._place(address, before, memory)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (Plant("sharpening", 3, False), "the sharpening at step 3 of the sequence"),
        (Plant("key strength", 1, False), "the key strength at step 1 of the sequence"),
        (Plant("weighting", 4, True), "the gradient of the weighting at step 4 of the sequence"),
        (Plant("memory", 2, True), "the gradient of the memory at step 2 of the sequence"),
    ],
)
def test_what_was_planted_is_named(monkeypatch: pytest.MonkeyPatch, plant: Plant, said: str) -> None:
    learner, source = reader(NTM, Copy(n_bits=2).spec), Copy(min_length=4, max_length=4, n_bits=2)
    learner.cell.__class__ = Planted
    monkeypatch.setattr(Planted, "plant", plant, raising=False)
    monkeypatch.setattr(Planted, "at", 0)
    episodes = source.episodes(source.plan(2, generator(0)))
    learner = learner.float()
    assert learner.first_divergence(episodes, one=False) in (said, f"{said}, task 1 of 2")
    Planted.at = 0
    assert learner.first_divergence(select(episodes, 1), one=True) == said


class Cliff(LRUACell):
    """Its memory is infinite once it has seen a number above 3."""

    def _step(self, sums: Tensor, state: Any) -> Any:
        out, after, named = super()._step(sums, state)
        memory = named["memory"] / (named["memory"].isfinite() & (sums.amax() < 1e3))
        return out + memory.sum() * 0, after._replace(memory=memory), {**named, "memory": memory}


@pytest.mark.parametrize("kind", ["loop", "native"])
def test_the_order_of_the_batch_is_met_again(kind: str) -> None:
    """Which step it is hangs on the random order of the examples: it must be that of the step that failed."""
    learner, episodes = reader(MANN).float(), synthetic_episodes(SPEC, 2, n_shot=2, n_query=3, dtype=torch.float32)
    learner.cell.__class__ = Cliff
    with torch.no_grad():
        episodes.support.x[1, 4] = 1e6
        assert isinstance(learner.cell, LRUACell)
        learner.cell.reads.weight.abs_()
    step, places = OuterStep(learner, Batching(kind)), set()
    with torch.random.fork_rng(devices=[]):
        for seed in range(3):
            torch.manual_seed(seed)
            orders = torch.rand(15, 2).argsort(0)[:, 1] if kind == "native" else second_order()
            torch.manual_seed(seed)
            assert not bool(step(episodes).losses.isfinite().all())
            place = int((orders == 4).nonzero()) + 1
            said = step.first_divergence()
            assert said is not None
            assert f"the memory at step {place} of the sequence" in said
            places.add(place)
    assert len(places) > 1


def second_order() -> Tensor:
    torch.rand(15)
    return torch.rand(15).argsort(0)


def test_training_names_the_quantity() -> None:
    source = Copy(min_length=2, max_length=2, n_bits=2)
    learner = reader(NTM, source.spec).float()
    assert isinstance(learner, NTM)
    with torch.no_grad():
        learner.cell.heads.bias[4] = math.inf  # beta of the read head, behind its key of four numbers
    said = "at step 1; .*It began with the key strength at step 1 of the sequence$"
    with pytest.raises(DivergedError, match=said):
        Trainer(learner, EpisodeLoader(source, 1, seed=0), TrainConfig(steps=2, batching="native")).fit()


@pytest.mark.parametrize("make", SMALL)
def test_what_is_finite_is_not_blamed(make: type[Reader]) -> None:
    step = OuterStep(reader(make), Batching("native"))
    step(synthetic_episodes(SPEC, 2, n_shot=1, n_query=2))
    assert step.first_divergence() is None


def test_a_long_sequence_that_does_not_fit_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Copy(min_length=50, max_length=50, n_bits=2)
    learner, episodes = reader(LSTM, source.spec).float(), source.episodes(source.plan(1, generator(0)))
    found = [Batching("loop"), Batching("fused"), Batching("native")]
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 2**40)
    assert memory_plan.within(found, learner, episodes) == found
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 100)
    again = [Batching("loop", recompute=True), Batching("native", recompute=True)]
    assert memory_plan.within(found, learner, episodes) == again
    monkeypatch.setattr(LSTMCell, "fused_is_lean", True)
    assert memory_plan.within(found, learner, episodes) == [Batching("fused")]
    short = Copy(min_length=5, max_length=5, n_bits=2)
    assert memory_plan.within(found, learner, short.episodes(short.plan(1, generator(0)))) == found
