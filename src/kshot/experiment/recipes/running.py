"""Runs a recipe: trains it for each seed, measures its rows, and makes the JSON object of the result."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from kshot.core import UserError, method
from kshot.core.files import write_atomically
from kshot.evaluation.record import Record
from kshot.evaluation.statistics import over_seeds
from kshot.experiment.config import RunConfig
from kshot.experiment.folder import run_config
from kshot.experiment.recipes.measure import Milestone, measure
from kshot.experiment.recipes.recipe import Recipe, Row, verdict
from kshot.experiment.recipes.standing import measure_untrained
from kshot.experiment.run import OnEvent, train_run

SCHEMA = 1

OnRow = Callable[[Row, "Record | Milestone"], None]


def reproduce(
    found: Recipe,
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    threads: int = 0,
    root: Path | None = None,
    fabric: Fabric | None = None,
    on_event: OnEvent | None = None,
    on_row: OnRow | None = None,
) -> dict[str, Any]:
    """Run a recipe: for each seed train (or go on, or find it trained), then measure every row.

    Args:
        found: the recipe.
        out: the folder of its runs, ``seed-0`` and so on.
        seeds: of the trainings.
        steps: another number of outer steps than the recipe's; the result says so.
        threads: of a CPU; 0 for PyTorch's choice.
        root: the data root.
        fabric: devices and processes.
        on_event: told what happens in training.
        on_row: told each row of each seed as it is measured.

    Returns:
        The result as a JSON object: rows with published, least, measured and verdict.

    Raises:
        UserError: a seed is named twice.
    """
    if len(set(seeds)) < len(seeds):
        raise UserError(f"expected seeds that differ, got {' '.join(map(str, seeds))}; each is a training of its own")
    learns = method(found.config.algorithm).learner.trained_on != "nothing"
    home = out.parent / found.stands_on if found.stands_on else out
    runs, seconds = [], []
    measured: list[list[Record | Milestone]] = [[] for _ in found.rows]
    for seed in seeds if learns else ():
        spent, run = _trained(found, home, seed, steps, threads, root=root, fabric=fabric, on_event=on_event)
        runs.append(run)
        seconds.append(spent)
        for row, records in zip(found.rows, measured, strict=True):
            if "together" not in row.test:
                records.append(_told(row, measure(row, runs[-1:], root), on_row))
    for row, records in zip(found.rows, measured, strict=True):
        if not records:
            of_all = measure(row, runs, root) if runs else measure_untrained(row, found.config, root)
            records.append(_told(row, of_all, on_row))
    flags = f" --seeds{''.join(f' {seed}' for seed in seeds)}" if learns else ""
    return {
        "schema": SCHEMA,
        "recipe": found.name,
        "paper": found.paper,
        "protocol": found.protocol,
        "command": f"kshot reproduce {found.name}{flags}" + (f" --steps {steps}" if steps else ""),
        "seeds": list(seeds) if learns else [],
        "steps": (steps or found.config.train.steps) if learns else 0,
        "train_seconds": seconds,
        "rows": [_row(row, records) for row, records in zip(found.rows, measured, strict=True)],
    }


def _trained(
    found: Recipe, home: Path, seed: int, steps: int | None, threads: int, **opening: Any
) -> tuple[float, Path]:
    """Train one seed, and before it what it starts from.

    Returns:
        Seconds of all training, and the folder of the run.

    Raises:
        UserError: a run lies there that started from another one.
    """
    config, spent = _config(found, seed, steps, threads), 0.0
    # A first look is a run of its own: its rate fell along other steps, or it starts from a first look.
    run = home / f"seed-{seed}{f'-steps-{steps}' if _shortened(found, steps) else ''}"
    if first := found.starts_from:
        spent, start = _trained(first, home.parent / first.name, seed, steps, threads, **opening)
        held = run_config(run).start if (run / "config.toml").exists() else ""
        if held and Path(held).parts[-2:] != start.resolve().parts[-2:]:
            raise UserError(f"{run} started from {held}, expected {start}; move it away, or choose another --out")
        config = dataclasses.replace(config, start=held or str(start.resolve()))
    return round(spent + _train(config, run, **opening), 1), run


def _shortened(found: Recipe | None, steps: int | None) -> bool:
    if found is None or steps is None:
        return False
    return steps != found.config.train.steps or _shortened(found.starts_from, steps)


def _train(config: RunConfig, folder: Path, **opening: Any) -> float:
    """Train, or go on, or find it trained.

    Returns:
        Seconds of training.

    Raises:
        UserError: training was interrupted; the same command goes on.
    """
    outcome = train_run(config, folder, resume=(folder / "config.toml").exists(), **opening)
    if outcome.progress.stopped == "interrupted":
        raise UserError(f"interrupted at step {outcome.progress.step}; give the same command again to go on")
    return round(outcome.progress.seconds, 1)


def _config(found: Recipe, seed: int, steps: int | None, threads: int) -> RunConfig:
    train = dataclasses.replace(found.config.train, seed=seed, steps=steps or found.config.train.steps)
    return dataclasses.replace(
        found.config, train=train, where=dataclasses.replace(found.config.where, threads=threads)
    )


def _row(row: Row, records: list[Record | Milestone]) -> dict[str, Any]:
    # The interval over episodes says how sure one training's number is; the one over seeds, how much trainings differ.
    numbers = [r.mean for r in records]
    value = {"mean": statistics.fmean, "median": statistics.median, "largest": max}[row.over_seeds](numbers)
    known = len(records) > 1 and all(map(math.isfinite, numbers))
    slim = [{k: v for k, v in r.to_dict().items() if k not in ("per_episode", "calibration_bins")} for r in records]
    return {
        "name": row.name,
        "published": row.published,
        "least": row.least,
        "source": row.source,
        "passed": verdict(row, records[0].metric, value),
        "metric": records[0].metric,
        "over_seeds": row.over_seeds,
        "mean": value if math.isfinite(value) else None,
        "ci95_episodes": max(r.ci95 for r in records),
        "ci95_seeds": over_seeds(numbers).ci95 if known else None,
        "normalisation": records[0].normalisation,
        "transductive": records[0].transductive,
        "records": slim,
    }


def _told(row: Row, found: Record | Milestone, on_row: OnRow | None) -> Record | Milestone:
    if on_row:
        on_row(row, found)
    return found


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a recipe's result.

    Args:
        path: the JSON file.
        result: what ``reproduce`` returned.

    Raises:
        UserError: it cannot be written.
    """
    write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
