"""Reports of run folders: reads what a run kept, looks at its learner at work, and writes one HTML file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.core import Learner, UserError
from kshot.data.catalog import dataset
from kshot.data.source import TaskSource
from kshot.engine.distributed import resolve_device
from kshot.evaluation.evaluate import accuracy_by_shots, accuracy_by_step, optimal_score, states_of
from kshot.evaluation.gather import gather
from kshot.evaluation.history import read_history
from kshot.evaluation.pictures import Pictures
from kshot.evaluation.record import Record, read_record
from kshot.evaluation.report import ReportInput, RunReport, write_report
from kshot.evaluation.report.film import write_film
from kshot.evaluation.report.still import write_still
from kshot.evaluation.scores import Curve
from kshot.experiment.build import open_split
from kshot.experiment.config import RunConfig
from kshot.experiment.folder import run_config
from kshot.experiment.grid import FILE as WAYS_AND_SHOTS
from kshot.experiment.grid import read_curves
from kshot.experiment.growing import by_size, sequence_pictures
from kshot.experiment.run import load_run, validated_on

#: Support examples of a class at which a report measures every learner, as far as the data go.
SHOTS = (1, 2, 3, 5, 10)
#: Inner steps up to which a report measures learners that have them.
STEPS = 10
#: Episodes behind each point of a curve: enough for its shape, few enough not to wait for.
N_EPISODES = 40

OnPart = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Look:
    """How closely a report looks at a learner.

    Attributes:
        n_episodes: episodes behind each point of a curve, and for pictures.
        device: where.
        root: the data root.
        on_part: told (what, done, all) while it goes on.
    """

    n_episodes: int = N_EPISODES
    device: str = "auto"
    root: Path | None = None
    on_part: OnPart | None = None

    def tell(self, what: str) -> Callable[[int, int], None] | None:
        """Make the listener of one part.

        Args:
            what: which part.

        Returns:
            A function of (done, all), or None where nobody listens.
        """
        told = self.on_part
        return None if told is None else lambda done, total: told(what, done, total)


def write_run_report(
    run: Path, *, root: Path | None = None, device: str = "auto", on_part: OnPart | None = None
) -> Path:
    """Write the report of one run into its folder.

    Args:
        run: the run folder.
        root: the data root.
        device: where to look at the learner.
        on_part: told (what, done, all) while it goes on.

    Returns:
        The file.
    """
    path = run / "report.html"
    write_reports([run], path, Look(root=root, device=device, on_part=on_part))
    return path


def write_reports(
    runs: Sequence[Path], out: Path, look: Look | None = None, *, title: str = "", notes: Sequence[str] = ()
) -> None:
    """Write one report of one run or several; beside it, of learners that tell, their steps as PNG and memory as GIF.

    Args:
        runs: run folders, or JSON records of evaluations.
        out: the HTML file.
        look: how closely.
        title: the heading; made of names and data if empty.
        notes: remarks to stand at the end.
    """
    look = look or Look()
    names = _names(runs)
    parts = [run_report(run, name, look) for run, name in zip(runs, names, strict=True)]
    write_report(out, ReportInput(parts, title=title, notes=tuple(notes)))
    for part in parts:
        _write_beside(out, part, alone=len(parts) == 1)


def _write_beside(out: Path, part: RunReport, alone: bool) -> None:
    pictures = part.pictures or Pictures()
    shown = next((p for p in (*pictures.sequences, *pictures.readings) if p.trace), None)
    if shown is None:
        return
    # Names differ, but may be paths whose ends do not.
    own = re.sub(r"[^\w.-]+", "-", part.name).strip("-")
    name = out.stem if alone else f"{out.stem}-{own}"
    write_still(out.with_name(f"{name}-steps.png"), shown)
    if "memory" in shown.trace:
        write_film(out.with_name(f"{name}-memory.gif"), shown)


def run_report(run: Path, name: str, look: Look) -> RunReport:
    """Collect what a report shows of one run.

    Args:
        run: the run folder, or the JSON record of an evaluation, of which there are only numbers.
        name: what to call it.
        look: how closely.

    Returns:
        The part of the report.
    """
    if run.is_file():
        return RunReport(name, read_record(run))
    config, learner, _ = load_run(run, root=look.root)
    learner.to(resolve_device(look.device))
    record = read_record(run / "result.json") if (run / "result.json").exists() else None
    metrics = run / "metrics.csv"
    source = open_split(config, "meta_test", root=look.root)
    return RunReport(
        name,
        record=record,
        history=read_history(metrics) if metrics.exists() else None,
        by_shots=_by_shots(config, learner, look, name),
        by_step=_by_step(config, learner, source, look, name),
        by_way=read_curves(run / WAYS_AND_SHOTS),
        pictures=_pictures(config, learner, source, look),
        command=_command(run, record),
        best_validation=_best_validation(config, look),
    )


def _pictures(config: RunConfig, learner: Learner, source: TaskSource, look: Look) -> Pictures:
    if source.spec.kind == "sequence":
        return Pictures(sequences=sequence_pictures(config, learner, look.root))
    return gather(learner, source, seed=config.evaluation.eval_seed, n_episodes=look.n_episodes)


def _best_validation(config: RunConfig, look: Look) -> float | None:
    if dataset(config.data).kind != "sequence":
        return None  # nobody knows the best answers to images
    return optimal_score(open_split(config, "meta_val", root=look.root), **validated_on(config))


def _command(run: Path, record: Record | None) -> str:
    if record is not None and record.extra.get("command"):
        return str(record.extra["command"])
    return f"kshot train --config {run / 'config.toml'} --out NEW"


def _by_shots(config: RunConfig, learner: Learner, look: Look, name: str) -> Curve | None:
    def open_with(n_shot: int) -> TaskSource:
        return open_split(config, "meta_test", root=look.root, n_shot=n_shot)

    if dataset(config.data).kind == "sequence":
        return by_size(config, learner, look.root, _options(config, look, f"{name}: beyond training"))
    shots = _possible_shots(open_with)
    if len(shots) < 2:
        return None
    return accuracy_by_shots(learner, open_with, shots, **_options(config, look, f"{name}: accuracy against shots"))


def _possible_shots(open_with: Callable[[int], TaskSource]) -> list[int]:
    # A class has so many examples; with the queries taken off, larger K may not be left.
    possible = []
    for n_shot in SHOTS:
        try:
            open_with(n_shot)
        except UserError:
            break
        possible.append(n_shot)
    return possible


def _by_step(config: RunConfig, learner: Learner, source: TaskSource, look: Look, name: str) -> Curve | None:
    if states_of(learner) is None:
        return None
    options = _options(config, look, f"{name}: accuracy against inner steps")
    return accuracy_by_step(learner, source, n_steps=STEPS, **options)


def _options(config: RunConfig, look: Look, what: str) -> dict[str, Any]:
    return {
        "n_episodes": look.n_episodes,
        "seed": config.evaluation.eval_seed,
        "on_progress": look.tell(what),
    }


def _names(runs: Sequence[Path]) -> list[str]:
    """Give each run a short name that no other has.

    Returns:
        The algorithms where they differ, else the folders' names, else their whole paths.
    """
    algorithms = [_algorithm(run) for run in runs]
    for names in (algorithms, [run.resolve().stem for run in runs]):
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _algorithm(run: Path) -> str:
    return read_record(run).algorithm if run.is_file() else run_config(run).algorithm
