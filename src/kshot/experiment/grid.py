"""Accuracy against ways and shots: one trained run on tasks of many sizes, kept in the run folder for its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kshot.core import UserError
from kshot.core.files import write_atomically
from kshot.evaluation.record import Record
from kshot.evaluation.scores import Curve
from kshot.evaluation.statistics import Estimate
from kshot.experiment.embedded import evaluate_embedded
from kshot.experiment.run import evaluate_run

SCHEMA = 1
#: Few, so that many shots leave enough examples of a class.
N_QUERY = 5
#: File of a run folder that the report draws curves from.
FILE = "ways_shots.json"
#: What stands for the whole grid; the rest is told of each cell.
_ABOUT = ("algorithm", "data", "split", "n_query", "n_episodes", "metric", "seed", "normalisation", "transductive")


def evaluate_grid(
    run: Path,
    ways: Sequence[int],
    shots: Sequence[int],
    *,
    n_query: int | None = N_QUERY,
    on_cell: Callable[[Record], None] | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Test a run at every pair of a number of ways and one of shots.

    Args:
        run: the run folder.
        ways: numbers of classes.
        shots: numbers of support examples of a class.
        n_query: queries of a class.
        on_cell: told each record as it is measured.
        **asked: of ``evaluate_run``.

    Returns:
        A JSON object: what holds for all, and ``cells`` with ``n_way``, ``n_shot``, ``mean``, ``ci95``.

    Raises:
        UserError: no ways or shots are given, or the run cannot do such tasks.
    """
    if not ways or not shots:
        raise UserError("expected at least one number of ways and one of shots: --ways 5 20 --shots 1 5")
    records = []
    for n_way in sorted(set(ways)):
        for n_shot in sorted(set(shots)):
            shape = {"n_way": n_way, "n_shot": n_shot, "n_query": n_query}
            records.append(evaluate_run(run, scorer=evaluate_embedded, **shape, **asked)[3])
            if on_cell is not None:
                on_cell(records[-1])
    told = records[0].to_dict()
    cells = [
        {"n_way": r.n_way, "n_shot": r.n_shot, "mean": r.mean, "ci95": r.ci95, "seconds": r.seconds} for r in records
    ]
    trained = {key: told[key] for key in ("steps_trained", "train_seed", "train_task") if key in told}
    about = {key: told[key] for key in (*_ABOUT, "commit", "environment", "data_sha256")}
    return {"schema": SCHEMA, **about, **trained, "cells": cells}


def write_grid(path: Path, grid: dict[str, Any]) -> None:
    """Write a grid.

    Args:
        path: the JSON file.
        grid: from ``evaluate_grid``.

    Raises:
        UserError: it cannot be written.
    """
    write_atomically(path, (json.dumps(grid, indent=2) + "\n").encode())


def read_curves(path: Path) -> dict[int, Curve]:
    """Read a grid as curves.

    Args:
        path: the JSON file.

    Returns:
        For each number of shots the score along "ways"; nothing where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))
        cells = sorted(grid["cells"], key=lambda c: (c["n_shot"], c["n_way"]))
        shots = sorted({c["n_shot"] for c in cells})
        return {k: _curve(grid, [c for c in cells if c["n_shot"] == k]) for k in shots}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); make it again by kshot evaluate RUN --ways ...") from error


def _curve(grid: dict[str, Any], cells: list[dict[str, Any]]) -> Curve:
    estimates = tuple(Estimate(float(c["mean"]), float(c["ci95"]), int(grid["n_episodes"])) for c in cells)
    return Curve("ways", str(grid["metric"]), tuple(int(c["n_way"]) for c in cells), estimates)
