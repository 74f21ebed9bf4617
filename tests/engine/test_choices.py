"""Choices that are kept: used again for the same thing, measured anew for another, and never believed when odd."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.algorithms import MAML, ProtoNet
from kshot.core import Episode, Learner
from kshot.engine import auto, choices
from kshot.engine.batch import Batching
from kshot.engine.choices import choose_once, key_of
from kshot.testing import synthetic_episodes, tiny_backbone
from kshot.testing.synthetic import SPECS

SPEC = SPECS["classification"]
EPISODES = synthetic_episodes(SPEC, 3, dtype=torch.float32)
SLOW = {"loop": 2.0, "native": 1.0, "vmap": 3.0}


def protonet() -> ProtoNet:
    return ProtoNet(tiny_backbone(SPEC, "running")).train()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    return tmp_path / "batching"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, on a clock of our own."""
    found: list[str] = []

    def measure(step: Any, *rest: Any, **options: Any) -> float:
        found.append(str(step.batching))
        return SLOW[found[-1]]

    monkeypatch.setattr(auto, "_measure", measure)
    monkeypatch.setattr(auto, "cores", lambda: 1)
    return found


def test_measured_once(cache: Path, measured: list[str]) -> None:
    first = choose_once(protonet(), EPISODES)
    assert (str(first.batching), first.seconds, first.remembered) == ("native", SLOW, False)
    assert len(list(cache.iterdir())) == 1
    measured.clear()
    again = choose_once(protonet(), EPISODES)
    assert again == (first.batching, SLOW, True)
    assert not measured
    assert not choose_once(protonet(), EPISODES, anew=True).remembered
    assert measured == list(SLOW)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def foreign(path: Path) -> None:
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "key": {**held["key"], "threads": 99}}))


def of_another_version(path: Path) -> None:
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "batching": {"kind": "loop", "unheard": 1}}))


def not_on_offer(path: Path) -> None:
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "batching": {"kind": "fused"}}))


def several_processes(path: Path) -> None:
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "batching": {"kind": "processes", "inside": "loop", "workers": 2}}))


def no_json(path: Path) -> None:
    path.write_bytes(b"\xff\x00")


@pytest.mark.parametrize("spoil", [damaged, foreign, of_another_version, not_on_offer, several_processes, no_json])
def test_an_odd_file_counts_as_none_and_is_written_again(
    cache: Path, measured: list[str], spoil: Callable[[Path], None]
) -> None:
    choose_once(protonet(), EPISODES)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    spoil(path)
    assert path.read_bytes() != whole
    choice = choose_once(protonet(), EPISODES)
    assert (str(choice.batching), choice.remembered) == ("native", False)
    assert path.read_bytes() == whole
    assert choose_once(protonet(), EPISODES).remembered


def test_a_folder_that_cannot_be_written_costs_a_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "file"))
    assert [choose_once(protonet(), EPISODES).remembered for _ in range(2)] == [False, False]


def test_what_could_not_run_is_kept_too(cache: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SLOW, "vmap", float("inf"))
    choose_once(protonet(), EPISODES)
    assert choose_once(protonet(), EPISODES).seconds["vmap"] == float("inf")


def test_several_processes_are_remembered_where_there_are_cores(
    cache: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SLOW, "2 processes of native", 0.1)
    monkeypatch.setattr(auto, "cores", lambda: 2)
    monkeypatch.setattr(auto.torch, "get_num_threads", lambda: 2)
    first, again = (choose_once(protonet(), EPISODES, n_steps=1000, compiled="off") for _ in range(2))
    assert first.batching == again.batching == Batching("processes", inside="native", workers=2)
    assert again.remembered
    monkeypatch.setattr(auto, "cores", lambda: 1)
    assert str(choose_once(protonet(), EPISODES, n_steps=1000, compiled="off").batching) == "native"


def key(learner: Learner, episodes: Episode = EPISODES, **settings: Any) -> str:
    return key_of(learner, episodes, settings)


def test_what_the_outcome_hangs_on_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def maml(**options: Any) -> MAML:
        return MAML.from_backbone(tiny_backbone(SPEC, "episode"), SPEC, **options).train()

    class Mine(MAML):
        pass

    same = key(maml())
    assert key(maml()) == same
    frozen = maml()
    next(frozen.parameters()).requires_grad_(False)
    fewer = EPISODES._replace(query=EPISODES.query._replace(y=EPISODES.query.y[:, 1:]))
    others = [
        key(maml(n_inner_steps=3)),
        key(maml(first_order=True)),
        key(maml().double()),
        key(maml().eval()),
        key(Mine.from_backbone(tiny_backbone(SPEC, "episode"), SPEC).train()),
        key(MAML.from_backbone(tiny_backbone(SPEC, "running"), SPEC).train()),
        key(frozen),
        key(maml(), fewer),
        key(maml(), synthetic_episodes(SPEC, 4, dtype=torch.float32)),
        key(maml(), EPISODES, compiled="on"),
    ]
    monkeypatch.setattr(choices.torch, "get_num_threads", lambda: 77)
    others.append(key(maml()))
    monkeypatch.setattr(choices, "processor", lambda: "another one")
    others.append(key(maml()))
    assert len({same, *others}) == 1 + len(others)


def test_the_trainer_says_so(toy: Any, cache: Path) -> None:
    def how(**options: Any) -> str:
        events = toy.Events()
        toy.trainer(batching="auto", steps=2, on_event=events, **options).fit()
        return events.named("start")[0][1].get("how", "")

    assert [how(), how(), how(measure_anew=True), how(deterministic=True)] == [
        "measured",
        "measured before",
        "measured",
        "",
    ]


def test_deterministic_runs_measure_nothing_and_keep_nothing(toy: Any, cache: Path) -> None:
    toy.trainer(batching="auto", steps=2, deterministic=True).fit()
    assert not cache.exists()
