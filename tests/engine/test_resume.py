"""A run that was cut off and goes on ends with the same bits as one that was not: by requests, damage, and kill -9."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.engine.checkpoint import Checkpoints, load_tree
from kshot.engine.log import CsvLog

RUN = Path(__file__).with_name("toy_run.py")


def bits(run: Path) -> dict[str, Any]:
    """All that the newest checkpoint holds, but for the time that it took."""
    tree, _, problems = Checkpoints(run / "checkpoints").load_newest()
    assert not problems
    tree["progress"].pop("seconds")
    return tree


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def rows(run: Path) -> list[list[str]]:
    """Logged numbers, without the seconds."""
    return [line.split(",")[:-1] for line in (run / "metrics.csv").read_text().splitlines()]


SETTINGS = {
    "adam": {},
    "sgd with a schedule": {"optimiser": "sgd", "outer_lr": 0.01, "schedule": "cosine", "warmup": 3},
    "accumulation and clipping": {"optimiser": "adamw", "accumulate": 2, "clip_norm": 0.5},
    "deterministic": {"deterministic": True, "batching": "auto"},
    "vmap": {"batching": "vmap"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_interrupted_run_ends_with_the_same_bits(toy: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Dropout, running statistics, validation, early-stopping counters and metrics included."""

    def fit(out: Path, stop_at: int = 0, resume: bool = False) -> str:
        def on_event(name: str, step: int, values: dict[str, Any]) -> None:
            if name == "step" and step == stop_at:
                signal.raise_signal(signal.SIGINT)

        def validate(learner: torch.nn.Module) -> float:
            return float(sum(p.detach().abs().sum() for p in learner.parameters()))

        options = {"validate_every": 4, "steps": 20, "patience": 99, **settings}
        run = toy.trainer(toy.restless(), out, validate=validate, logs=[CsvLog(out / "metrics.csv")], **options)
        run.on_event = on_event
        return run.fit(resume=resume).stopped

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit(whole) == "done"
    for i, stop in enumerate((2, 6, 13)):
        assert fit(parts, stop_at=stop, resume=i > 0) == "interrupted"
    assert fit(parts, resume=True) == "done"
    assert same(bits(parts), bits(whole))
    assert rows(parts) == rows(whole)
    assert same(*(load_tree(run / "checkpoints" / "best.safetensors") for run in (whole, parts)))


def test_a_run_that_is_done_stays_done_and_may_be_made_longer(toy: Any, tmp_path: Path) -> None:
    toy.trainer(toy.maml(), tmp_path / "a", steps=6).fit()
    before = bits(tmp_path / "a")
    assert toy.trainer(toy.maml(), tmp_path / "a", steps=6).fit(resume=True).step == 6
    assert same(bits(tmp_path / "a"), before)
    toy.trainer(toy.maml(), tmp_path / "a", steps=9).fit(resume=True)
    toy.trainer(toy.maml(), tmp_path / "b", steps=9).fit()
    assert same(bits(tmp_path / "a"), bits(tmp_path / "b"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_a_damaged_newest_checkpoint_costs_a_warning_and_no_bit(toy: Any, tmp_path: Path, damage: str) -> None:
    toy.trainer(toy.maml(), tmp_path / "whole").fit()
    toy.trainer(toy.maml(), tmp_path / "cut", steps=7).fit()
    (_, newest), (step, _) = Checkpoints(tmp_path / "cut" / "checkpoints").steps()
    data = newest.read_bytes()
    newest.write_bytes(
        {"truncated": data[:-10], "flipped": data[:-1] + bytes([data[-1] ^ 1]), "foreign": b"PK\x03\x04"}[damage]
    )
    events = toy.Events()
    toy.trainer(toy.maml(), tmp_path / "cut", on_event=events).fit(resume=True)
    ((_, warning),) = events.named("warning")
    assert newest.name in warning["message"]
    assert "damaged" in warning["message"]
    assert "before it is used" in warning["message"]
    assert events.named("start")[0][0] == step == 6
    assert same(bits(tmp_path / "cut"), bits(tmp_path / "whole"))


def start(out: Path, steps: int = 60) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(RUN), str(out), str(steps)], env=env, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> int:
    _, errors = process.communicate(timeout=240)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_any_moment_costs_no_bit(tmp_path: Path) -> None:
    assert finish(start(tmp_path / "whole")) == 0
    chance, kills = random.Random(0), 0
    for _ in range(40):
        process = start(tmp_path / "cut")
        # Wait for the run's first sign of life, then for a moment that may fall anywhere: into a save, a row, a step.
        seen, deadline = _progress(tmp_path / "cut"), time.monotonic() + 200
        while process.poll() is None and _progress(tmp_path / "cut") == seen and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        if finish(process) == 0:
            break
        kills += 1
        if kills == 6:
            assert finish(start(tmp_path / "cut")) == 0
            break
    assert kills >= 3
    assert same(bits(tmp_path / "cut"), bits(tmp_path / "whole"))
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert not list((tmp_path / "cut" / "checkpoints").glob("*.part"))


def _progress(run: Path) -> set[str]:
    return {p.name for p in (run / "checkpoints").glob("*")} if (run / "checkpoints").exists() else set()


@pytest.mark.slow
def test_ctrl_c_from_outside_saves_and_leaves_cleanly(tmp_path: Path) -> None:
    process = start(tmp_path / "run", steps=10**6)
    deadline = time.monotonic() + 200
    while not Checkpoints(tmp_path / "run" / "checkpoints").steps()[:1] and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert finish(process) == 0
    tree = bits(tmp_path / "run")
    assert tree["progress"]["stopped"] == "interrupted"
    assert 0 < tree["progress"]["step"] < 10**6
