"""A run's metrics.csv, read with tolerance: a run may be stopped at any moment, and columns may come and go."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

from kshot.core import UserError

_STEP = ("step", "outer_step", "iteration", "global_step")
_LOSS = ("loss", "train_loss", "outer_loss", "meta_train_loss")
_SECONDS = ("seconds", "elapsed", "wall_seconds")
_VALIDATION = ("val", "validation", "meta_val", "val_accuracy", "val_mse", "val_score", "val_loss")

Points = list[tuple[float, float]]


class History(NamedTuple):
    """Training curves.

    Attributes:
        loss: (step, outer loss) pairs, by ascending step.
        validation: (step, validation score) pairs, by ascending step.
        validation_name: the column that the scores came from.
        seconds: (step, seconds of training) pairs, by ascending step.
    """

    loss: Points
    validation: Points
    validation_name: str = "val"
    seconds: Points = []  # noqa: RUF012  (a NamedTuple's default, which nobody writes to)


def read_history(path: Path | str) -> History:
    """Read the training curves of a run.

    The step is the column named step (the row number where there is none), the loss the one named loss, the validation
    score the first whose name starts with "val". Empty cells, cells that are no finite numbers and a last line cut
    short are left out. Where a step stands twice, as after a resumed run, the later row counts.

    Args:
        path: the CSV file, with a header.

    Returns:
        The curves; either may be empty.

    Raises:
        UserError: the file cannot be read, or has no header.
    """
    try:
        with Path(path).open(encoding="utf-8", errors="replace", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read the metrics at {path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise UserError(f"{path} is damaged: expected comma-separated metrics, got {error}") from error
    names = {str(name).strip().lower(): name for name in (rows[0] if rows else {}) if name is not None}
    step = _find(names, _STEP)
    validation = _find(names, _VALIDATION) or next((n for key, n in names.items() if key.startswith("val")), None)
    loss, seconds = (_column(rows, step, _find(names, known)) for known in (_LOSS, _SECONDS))
    return History(loss, _column(rows, step, validation), validation or "val", seconds)


def _find(names: dict[str, str], wanted: tuple[str, ...]) -> str | None:
    return next((names[key] for key in wanted if key in names), None)


def _column(rows: list[dict[str, str]], step: str | None, column: str | None) -> Points:
    if column is None:
        return []
    found: dict[float, float] = {}
    for number, row in enumerate(rows, 1):
        at = float(number) if step is None else _number(row.get(step))
        value = _number(row.get(column))
        if at is not None and value is not None:
            found[at] = value
    return sorted(found.items())


def _number(cell: object) -> float | None:
    try:
        value = float(str(cell))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
