"""Every example is short, runs, and does what it says."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kshot.core import registry

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _same_methods_afterwards(monkeypatch):
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))


def _load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_are_short_and_are_run_here():
    here = Path(__file__).read_text()
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) < 100, path.name
        assert f'_load("{path.stem}")' in here, path.name


def test_train_protonet(capsys):
    assert _load("train_protonet").main(steps=20, n_episodes=20) > 0.3
    assert "95% interval over 20 episodes" in capsys.readouterr().out


def test_maml_sinusoid():
    errors = _load("maml_sinusoid").main(steps=800, n_episodes=50)
    assert len(errors) == 11
    assert errors[10] < 0.7 * errors[0], "adaptation helps"


def test_own_learner(capsys):
    assert _load("own_learner").main(steps=10) > 0.3
    said = capsys.readouterr().out
    assert "kept  leak" in said


def test_own_learner_has_the_command_line():
    done = subprocess.run(
        [sys.executable, FOLDER / "own_learner.py", "train", "soft_vote", "--data", "glyphs", "--help"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0
    assert "--temperature FLOAT" in done.stdout
    assert "the more equal are the votes" in " ".join(done.stdout.split())


def test_own_data():
    assert _load("own_data").main(steps=30, n_episodes=40) > 0.3


def test_own_classes(capsys):
    pytest.importorskip("sklearn", reason="fitting needs scikit-learn")
    assert _load("own_classes").main() > 0.9
    said = capsys.readouterr().out
    assert "before any test: " in said
    mine, lemons = (float(v) for v in re.search(r"unknown: (\d+)% .*, (\d+)% of lemons", said).groups())
    assert mine < 20 < 60 < lemons
