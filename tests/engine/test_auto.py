"""The choice of a batching: the measured fastest, on a clock of our own, and what is left out of the race."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from kshot.algorithms import MAML, ProtoNet
from kshot.core import Episode, Learner, UserError
from kshot.core.episode import unbind
from kshot.engine import auto
from kshot.engine.auto import candidates, choose, compiling_pays
from kshot.engine.batch import Batching, OuterStep
from kshot.testing import synthetic_episodes, tiny_backbone
from kshot.testing.synthetic import SPECS

SPEC = SPECS["classification"]
FEW, MANY = (synthetic_episodes(SPEC, n, dtype=torch.float32) for n in (3, 9))


def protonet(normalisation: str = "running") -> ProtoNet:
    return ProtoNet(tiny_backbone(SPEC, normalisation)).train()


def names(learner: Learner, episodes: Episode | list[Episode]) -> list[str]:
    return [str(b) for b in candidates(learner, episodes)]


def test_candidates() -> None:
    assert names(protonet(), FEW) == ["loop", "native", "vmap"]
    assert names(protonet(), MANY) == ["loop", "native", "vmap", "vmap, chunks of 8"]
    assert names(protonet("support"), FEW) == ["loop", "vmap"]
    assert names(protonet(), synthetic_episodes(SPEC, 1)) == ["loop", "native"]
    assert names(protonet(), list(unbind(FEW))) == ["loop"]


def test_layers_that_write_in_place_are_not_mapped() -> None:
    learner = MAML(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))).train()
    assert names(learner, FEW) == ["loop"]
    assert choose(learner, FEW)[0] == Batching("loop")


Race = Callable[[dict[str, float]], list[str]]


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Race:
    """Set how long each batching takes; returns the list that is filled with what was measured."""

    def start(seconds: dict[str, float]) -> list[str]:
        measured: list[str] = []

        def measure(step: OuterStep, episodes: object, repeats: int, give_up: float = float("inf")) -> float:
            measured.append(str(step.batching))
            if seconds[measured[-1]] < 0:
                raise RuntimeError("cannot\nrun")
            return seconds[measured[-1]]

        monkeypatch.setattr(auto, "_measure", measure)
        monkeypatch.setattr(auto, "cores", lambda: 1)
        return measured

    return start


@pytest.mark.parametrize("fastest", ["loop", "native", "vmap", "vmap, chunks of 8"])
def test_the_measured_fastest_is_chosen(race: Race, fastest: str) -> None:
    times = {"loop": 3.0, "native": 4.0, "vmap": 5.0, "vmap, chunks of 8": 6.0, fastest: 1.0}
    measured = race(times)
    chosen, seconds = choose(protonet(), MANY)
    assert str(chosen) == fastest
    assert seconds == times
    assert measured == list(times)


def test_what_cannot_be_mapped_is_left_out(race: Race) -> None:
    race({"loop": 2.0, "native": 3.0, "vmap": -1})
    chosen, seconds = choose(protonet(), FEW)
    assert str(chosen) == "loop"
    assert seconds["vmap"] == float("inf")


@pytest.mark.parametrize("broken", ["loop", "native"])
def test_errors_of_the_learner_itself_are_not_hidden(race: Race, broken: str) -> None:
    race({"loop": 2.0, "native": 2.0, "vmap": 1.0, broken: -1})
    with pytest.raises(RuntimeError, match="cannot"):
        choose(protonet(), FEW)


TIMES = {"loop": 2.0, "native": 1.0, "vmap": 3.0}


@pytest.mark.parametrize(
    ("compiled", "n_steps", "program", "expected"),
    [
        ("off", 10**9, None, "native"),
        ("auto", 499, None, "native"),  # 0.2 * 1 s * 499 steps is less than a compilation
        ("auto", 501, 0.5, "native, compiled"),
        ("auto", 501, 1.5, "native"),
        ("auto", 501, -1, "native"),
        ("on", 1, 1.5, "native, compiled"),
    ],
)
def test_compiling_where_it_pays(race: Race, compiled: str, n_steps: int, program: float | None, expected: str) -> None:
    measured = race(TIMES if program is None else {**TIMES, "native, compiled": program})
    chosen, seconds = choose(protonet(), FEW, n_steps=n_steps, compiled=compiled)
    assert str(chosen) == expected
    assert ("native, compiled" in measured) is (program is not None)
    assert seconds.keys() == set(measured)
    if program == -1:
        assert seconds["native, compiled"] == float("inf")


@pytest.mark.parametrize(
    ("seconds", "n_steps", "pays"), [(0.01, 17_000, True), (0.01, 16_000, False), (0.03, 16_000, False)]
)
def test_small_steps_are_hoped_to_save_more(seconds: float, n_steps: int, pays: bool) -> None:
    assert compiling_pays(seconds, n_steps) is pays


def test_a_compiler_that_was_asked_for_and_does_not_work(race: Race) -> None:
    race({**TIMES, "native, compiled": -1})
    with pytest.raises(UserError, match="working compiler for compile=on, got: cannot; install a C"):
        choose(protonet(), FEW, compiled="on")


def test_an_unknown_setting() -> None:
    with pytest.raises(UserError, match="compile must be auto, on or off, got 'yes'"):
        choose(protonet(), FEW, compiled="yes")


class Clock:
    """Each call of the step moves it by the next number of a list."""

    def __init__(self, *durations: float) -> None:
        self.now, self.durations, self.calls = 0.0, list(durations), 0

    def __call__(self, episodes: object) -> None:
        self.now += self.durations[self.calls]
        self.calls += 1

    learner = protonet()


@pytest.mark.parametrize(
    ("durations", "give_up", "median", "calls"),
    [
        ((50, 1, 9, 2), float("inf"), 2, 4),  # the first call does not count
        ((50, 7, 9, 2), 6, 7, 2),  # hopeless after one
        ((50, 7, 9, 2), 8, 7, 4),
    ],
)
def test_the_median_counts(
    monkeypatch: pytest.MonkeyPatch, durations: tuple[float, ...], give_up: float, median: float, calls: int
) -> None:
    clock = Clock(*durations)
    monkeypatch.setattr(auto.time, "perf_counter", lambda: clock.now)
    assert auto._measure(clock, FEW, 3, give_up) == median  # pyright: ignore[reportArgumentType]
    assert clock.calls == calls


def test_a_real_race_leaves_the_learner_as_it_was() -> None:
    learner = protonet()
    before = {k: t.clone() for k, t in learner.state_dict().items()}
    chosen, seconds = choose(learner, FEW, repeats=1)
    assert set(seconds) == {"loop", "native", "vmap"}
    assert seconds[str(chosen)] == min(seconds.values())
    assert all(torch.equal(t, before[k]) for k, t in learner.state_dict().items())


def test_a_learner_with_control_flow_on_data_is_looped_over() -> None:
    class Looks(ProtoNet):
        native = False  # pyright: ignore[reportAssignmentType]

        def outer_loss(self, episode: Episode) -> torch.Tensor:
            return super().outer_loss(episode) * (1.0 if float(episode.query.x.sum()) > 0 else 2.0)

    chosen, seconds = choose(Looks(tiny_backbone(SPEC)), FEW, repeats=1)
    assert chosen == Batching("loop")
    assert seconds["vmap"] == float("inf")


WITHOUT_COMPILER = """
import torch._inductor.config as config
from kshot.algorithms import ProtoNet
from kshot.core import Spec, UserError
from kshot.engine.auto import choose, computed
from kshot.engine.batch import Batching, OuterStep
from kshot.testing import synthetic_episodes, tiny_backbone

config.cpp.cxx = ("/nowhere/c++",)
spec = Spec("classification", (5,), 3)
learner, episodes = ProtoNet(tiny_backbone(spec)).double(), synthetic_episodes(spec, 2)
try:
    choose(learner, episodes, compiled="on", repeats=1)
except UserError as error:
    print(error)
chosen, seconds = choose(learner, episodes, compiled="auto", n_steps=10**9, repeats=1)
print(chosen.compiled, float("inf") in seconds.values())
try:
    computed(OuterStep(learner, Batching("loop", compiled=True)), episodes)
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_a_compiler_compiling_is_left_out(tmp_path: Path) -> None:
    # In a process of its own: PyTorch remembers for good that it found no compiler.
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=True)
    first, second, third = done.stdout.splitlines()
    assert first.startswith("expected a working compiler for compile=on, got: ")
    assert second == "False True"
    assert third.startswith("expected a working compiler for compile=on, got: ")
