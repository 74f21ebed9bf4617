"""What the tests of the command line share: commands run in this process, and small trained runs."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.cli.own_data import draw_folder, rows, write_table

from kshot.cli.main import main


class Ran(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def kshot(capsys) -> Callable[..., Ran]:
    """Run a command in this process."""

    def run(*args: object) -> Ran:
        capsys.readouterr()
        status = main([str(a) for a in args])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def refused(kshot) -> Callable[..., str]:
    """Run a command that must be refused: status 2, one message, no traceback; returns the message."""

    def run(*args: object) -> str:
        ran = kshot(*args)
        assert ran.status == 2, ran
        lines = [line for line in ran.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, ran.err
        assert "Traceback" not in ran.err
        assert ran.out == ""
        return lines[0]

    return run


SINUSOID = ("maml", "--data", "sinusoid", "--n-shot", 5, "--n-query", 5, "--n-tasks", 2, "--batching", "loop")
SHORT = ("--steps", 4, "--validate-every", 2, "--val-episodes", 4, "--eval-episodes", 8, "--checkpoint-every", 2)
TINY = ("--n-filters", 4, "--n-query", 3, "--n-tasks", 2, *SHORT)


@pytest.fixture(scope="session")
def sinusoid_run(tmp_path_factory) -> Path:
    """A trained MAML on sinusoids. Do not change it: copy it."""
    out = tmp_path_factory.mktemp("runs") / "maml"
    assert main([str(a) for a in ("train", *SINUSOID, *SHORT, "--out", out)]) == 0
    return out


@pytest.fixture(scope="session")
def glyphs_run(tmp_path_factory) -> Path:
    """A trained ProtoNet on glyphs. Do not change it: copy it."""
    out = tmp_path_factory.mktemp("runs") / "protonet"
    assert main([str(a) for a in ("train", "protonet", "--data", "glyphs", *TINY, "--out", out)]) == 0
    return out


@pytest.fixture(scope="session")
def table_model(tmp_path_factory) -> Path:
    """A model of three kinds of rows, eight shots each. Do not change it: copy it."""
    pytest.importorskip("sklearn", reason="fitting needs scikit-learn")
    folder = tmp_path_factory.mktemp("table")
    write_table(folder / "plants.csv", rows(8))
    assert main(["fit", str(folder / "plants.csv"), "--out", str(folder / "plants.kshot")]) == 0
    return folder / "plants.kshot"


@pytest.fixture(scope="session")
def shape_model(tmp_path_factory, glyphs_run) -> Path:
    """A model of three coloured shapes, by the small network of a run. Do not change it: copy it."""
    pytest.importorskip("sklearn", reason="fitting needs scikit-learn")
    folder = tmp_path_factory.mktemp("shapes")
    draw_folder(folder / "shapes", 6)
    line = ["fit", folder / "shapes", "--out", folder / "shapes.kshot", "--encoder", glyphs_run, "--no-cache"]
    assert main([str(a) for a in line]) == 0
    return folder / "shapes.kshot"
