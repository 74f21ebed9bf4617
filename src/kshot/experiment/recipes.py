"""Published results as recipes: how to train, what to test, which number the paper prints, and how sure of it we are.

A recipe is run by ``kshot reproduce NAME``; its result is a JSON file, committed under ``benchmarks/quality``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from kshot.core import UserError
from kshot.core.files import write_atomically
from kshot.core.registry import unknown
from kshot.engine.train import TrainConfig
from kshot.evaluation.record import Record
from kshot.evaluation.scores import higher_is_better
from kshot.evaluation.statistics import over_seeds
from kshot.experiment.config import BackboneConfig, EvalConfig, RunConfig, TaskConfig
from kshot.experiment.run import OnEvent, evaluate_run, train_run

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One number of a paper.

    Attributes:
        name: what is measured.
        published: the paper's number, a share of 1 or an error; None where the paper has none.
        least: the least that we ask of ourselves; None for a number that stands beside it.
        source: where the published number was read.
        test: how ``evaluate_run`` is called.
    """

    name: str
    published: float | None
    least: float | None
    source: str
    test: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How to repeat a published result.

    Attributes:
        name: what one types.
        paper: the reference.
        config: the settings of training.
        rows: the numbers.
        protocol: what one must know to compare: who sees what, and what differs from the paper.
    """

    name: str
    paper: str
    config: RunConfig
    rows: tuple[Row, ...]
    protocol: str


_PROTONET = "Snell et al. 2017, arXiv:1703.05175, Table 1, as quoted by a replication"
_MAML = "Finn et al. 2017, arXiv:1703.03400, Table 1"
_SINUSOID = "Finn et al. 2017, arXiv:1703.03400, section 5.1 and appendix"

_RECIPES = (
    Recipe(
        name="protonet-omniglot",
        paper="Snell, Swersky, Zemel, NeurIPS 2017",
        config=RunConfig(
            "protonet",
            "omniglot",
            task=TaskConfig(n_way=60, n_shot=1, n_query=5, n_tasks=1),
            evaluation=EvalConfig(eval_n_way=20, eval_n_query=5, eval_episodes=0, val_episodes=100),
            train=TrainConfig(steps=8000, schedule="step", lr_every=2000, validate_every=500, checkpoint_every=250),
        ),
        rows=tuple(
            Row(f"{w}-way {k}-shot", p, least, _PROTONET, {"n_way": w, "n_shot": k, "n_query": 15, "n_episodes": 1000})
            for w, k, p, least in (
                (5, 1, 0.988, 0.983),
                (5, 5, 0.997, 0.994),
                (20, 1, 0.960, 0.945),
                (20, 5, 0.989, 0.984),
            )
        ),
        protocol="Inductive (running statistics). One training at 60-way 1-shot for all rows; the paper trains 1-shot "
        "and 5-shot models apart. The best step by 20-way 1-shot accuracy on meta_val is tested. Rotations are new "
        "classes.",
    ),
    Recipe(
        name="maml-omniglot",
        paper="Finn, Abbeel, Levine, ICML 2017",
        config=RunConfig(
            "maml",
            "omniglot",
            task=TaskConfig(n_way=5, n_shot=1, n_query=1, n_tasks=32),
            evaluation=EvalConfig(eval_n_query=1, eval_episodes=0, val_episodes=200),
            network=BackboneConfig(downsample="stride"),
            train=TrainConfig(
                steps=10000, schedule="cosine", batching="vmap", validate_every=500, checkpoint_every=250
            ),
        ),
        rows=(
            Row("5-way 1-shot, transductive", 0.987, 0.970, _MAML, {"n_query": 1, "n_episodes": 1000}),
            Row("5-way 1-shot, transductive, 15 queries a class", None, None, "", {"n_query": 15, "n_episodes": 1000}),
            Row(
                "5-way 1-shot, inductive (statistics of the support)",
                None,
                None,
                "",
                {"n_query": 1, "n_episodes": 1000, "normalisation": "support"},
            ),
        ),
        protocol="Second order, 1 inner step of 0.4 in training and 3 in the test, 32 tasks, 1 query a class, strided "
        "convolutions, as in the authors' code; 10,000 outer steps, their rate falling to zero by a cosine, where "
        "that has 60,000 at one rate. Transductive: queries are normalised by their own batch. The inductive row is "
        "the same weights under the statistics of the support.",
    ),
    Recipe(
        name="maml-sinusoid",
        paper="Finn, Abbeel, Levine, ICML 2017",
        config=RunConfig(
            "maml",
            "sinusoid",
            task=TaskConfig(n_shot=5, n_query=5, n_tasks=25),
            evaluation=EvalConfig(eval_n_query=100, eval_episodes=0, val_episodes=200),
            train=TrainConfig(steps=70000, batching="vmap", validate_every=5000, checkpoint_every=5000, log_every=100),
        ),
        rows=tuple(
            Row(f"5-shot, after {k} steps", p, least, _SINUSOID, {"n_query": 100, "n_episodes": 1000, "steps": k})
            for k, p, least in ((1, 0.67, 0.75), (5, 0.38, 0.42), (10, 0.35, 0.39))
        ),
        protocol="Second order, trained for 1 inner step of 0.01 on 25 tasks of 5 points, 70,000 outer steps; "
        "mean squared error on 100 new points of each of 1,000 new tasks.",
    ),
)


def recipes() -> dict[str, Recipe]:
    """Return every recipe by name.

    Returns:
        A new dict.
    """
    return {r.name: r for r in _RECIPES}


def recipe(name: str) -> Recipe:
    """Look a recipe up.

    Args:
        name: its name.

    Returns:
        The recipe.

    Raises:
        UserError: no such name.
    """
    known = recipes()
    if name not in known:
        raise UserError(unknown("recipe", name, list(known)))
    return known[name]


def verdict(row: Row, metric: str, mean: float) -> bool | None:
    """Judge a measured number against the least that is asked.

    Args:
        row: what is asked.
        metric: "accuracy" or "mse".
        mean: what was measured.

    Returns:
        True or False; None where nothing is asked.
    """
    if row.least is None:
        return None
    return mean >= row.least if higher_is_better(metric) else mean <= row.least


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
    on_row: Callable[[Row, Record], None] | None = None,
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
        UserError: training was interrupted; the same command goes on.
    """
    seconds, measured = [], []
    for seed in seeds:
        config = _config(found, seed, steps, threads)
        folder = out / f"seed-{seed}"
        resume = (folder / "config.toml").exists()
        outcome = train_run(config, folder, resume=resume, root=root, fabric=fabric, on_event=on_event)
        if outcome.progress.stopped == "interrupted":
            raise UserError(f"interrupted at step {outcome.progress.step}; give the same command again to go on")
        seconds.append(round(outcome.progress.seconds, 1))
        measured.append([_measure(row, folder, root, on_row) for row in found.rows])
    flags = "".join(f" {seed}" for seed in seeds) + (f" --steps {steps}" if steps else "")
    return {
        "schema": SCHEMA,
        "recipe": found.name,
        "paper": found.paper,
        "protocol": found.protocol,
        "command": f"kshot reproduce {found.name} --seeds{flags}",
        "seeds": list(seeds),
        "steps": steps or found.config.train.steps,
        "train_seconds": seconds,
        "rows": [_row(row, [records[i] for records in measured]) for i, row in enumerate(found.rows)],
    }


def _config(found: Recipe, seed: int, steps: int | None, threads: int) -> RunConfig:
    train = dataclasses.replace(found.config.train, seed=seed, steps=steps or found.config.train.steps)
    return dataclasses.replace(
        found.config, train=train, where=dataclasses.replace(found.config.where, threads=threads)
    )


def _row(row: Row, records: list[Record]) -> dict[str, Any]:
    # The interval over episodes says how sure one training's number is; the one over seeds, how much trainings differ.
    mean = sum(r.mean for r in records) / len(records)
    between = over_seeds([r.mean for r in records]).ci95 if len(records) > 1 else None
    slim = [{k: v for k, v in r.to_dict().items() if k not in ("per_episode", "calibration_bins")} for r in records]
    return {
        "name": row.name,
        "published": row.published,
        "least": row.least,
        "source": row.source,
        "passed": verdict(row, records[0].metric, mean),
        "metric": records[0].metric,
        "mean": mean,
        "ci95_episodes": max(r.ci95 for r in records),
        "ci95_seeds": between,
        "normalisation": records[0].normalisation,
        "transductive": records[0].transductive,
        "records": slim,
    }


def _measure(row: Row, run: Path, root: Path | None, on_row: Callable[[Row, Record], None] | None) -> Record:
    test = dict(row.test)
    steps = test.pop("steps", None)
    options = {"n_inner_steps_eval": steps} if steps else None
    record = evaluate_run(run, options=options, root=root, **test)[3]
    if on_row:
        on_row(row, record)
    return record


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a recipe's result.

    Args:
        path: the JSON file.
        result: what ``reproduce`` returned.

    Raises:
        UserError: it cannot be written.
    """
    write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
