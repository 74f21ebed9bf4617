"""metrics.csv: rows as they come, and a resumed run that leaves no row of the future nor half of one."""

import sys
from pathlib import Path

import pytest

from kshot.core import UserError
from kshot.engine.log import COLUMNS, CsvLog, TensorBoardLog

HEADER = ",".join(COLUMNS)


def test_rows_are_appended_under_one_header(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    log.write(1, {"loss": 0.5, "grad_norm": 2.0, "other": 9.0})
    log.write(20, {"val": 1 / 3})
    assert log.path.read_bytes().decode() == f"{HEADER}\n1,0.5,2.0,,,\n20,,,,{1 / 3!r},\n"


def test_rewinding_drops_later_and_broken_rows(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    for step in (1, 2, 3, 4):
        log.write(step, {"loss": step / 10})
    with log.path.open("a") as f:
        f.write("5,0.5,")  # a crash in the middle of a row
    log.rewind(3)
    assert log.path.read_text() == f"{HEADER}\n1,0.1,,,,\n2,0.2,,,,\n3,0.3,,,,\n"
    log.write(4, {"loss": 0.4})
    assert log.path.read_text().endswith("\n4,0.4,,,,\n")


def test_rewinding_to_nothing(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    log.rewind(3)
    assert not log.path.exists()
    log.write(5, {})
    log.rewind(0)
    assert log.path.read_text() == f"{HEADER}\n"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not write .*metrics.csv: .*--resume"):
        CsvLog(tmp_path / "nowhere" / "metrics.csv").write(1, {})


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    log = TensorBoardLog(tmp_path)
    log.write(3, {"loss": 0.25})
    assert any(b"loss" in events.read_bytes() for events in tmp_path.glob("events.out.tfevents.*"))


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'kshot\[tensorboard\]'"):
        TensorBoardLog(tmp_path)


def test_tensorboard_forgets_what_came_after_a_checkpoint(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no 'tensorboard'")
    first = TensorBoardLog(tmp_path)
    for step in (10, 20, 30):
        first.write(step, {"loss": float(step)})
    second = TensorBoardLog(tmp_path)
    second.rewind(10)
    second.write(20, {"loss": -20.0})
    found = reading.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in found] == [(10, 10.0), (20, -20.0)]
