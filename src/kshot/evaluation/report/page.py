"""A self-contained HTML report of one run or several: one file, no network, light and dark, for screen and paper.

The data classes here say what can stand in a report. Every part is optional; what is missing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kshot.core import UserError
from kshot.evaluation.history import History
from kshot.evaluation.pictures import Pictures
from kshot.evaluation.record import Record, scores_of, write_atomically
from kshot.evaluation.report import curves, results, samples
from kshot.evaluation.scores import Curve, Scores
from kshot.evaluation.statistics import Estimate


@dataclass(frozen=True)
class RunReport:
    """One learner of a report.

    Attributes:
        name: what to call it; names of one report differ.
        record: its result.
        scores: its scores of each episode; taken from the record where that kept them.
        history: its training curves (see ``history.read_history``).
        by_shots: its score against shots.
        by_step: its score against inner steps.
        pictures: what ``gather`` returned.
        command: the command that repeats it.
    """

    name: str
    record: Record | None = None
    scores: Scores | None = None
    history: History | None = None
    by_shots: Curve | None = None
    by_step: Curve | None = None
    pictures: Pictures | None = None
    command: str = ""

    @property
    def known_scores(self) -> Scores | None:
        """The scores of each episode, from wherever they are known."""
        if self.scores is not None or self.record is None:
            return self.scores
        return scores_of(self.record)

    @property
    def estimate(self) -> Estimate | None:
        """The headline number, or None."""
        if self.scores is not None:
            return self.scores.estimate
        return None if self.record is None else Estimate(self.record.mean, self.record.ci95, self.record.n_episodes)

    @property
    def metric(self) -> str | None:
        """Name of the headline number, or None."""
        if self.scores is not None:
            return self.scores.metric
        return None if self.record is None else self.record.metric


@dataclass(frozen=True)
class ReportInput:
    """What a report shows.

    Attributes:
        runs: the learners, in the order of their colours.
        title: the heading; made of names and data if empty.
        introduction: a sentence or two below the heading; made of the records if empty.
        notes: remarks to stand at the end.
    """

    runs: Sequence[RunReport]
    title: str = ""
    introduction: str = ""
    notes: Sequence[str] = field(default_factory=tuple)


def write_report(path: Path | str, inputs: ReportInput) -> None:
    """Write the report as one HTML file.

    Args:
        path: the file; its folder must exist.
        inputs: what it shows.

    Raises:
        UserError: there are no runs, two of one name, or the file cannot be written.
    """
    write_atomically(Path(path), render(inputs))


def render(inputs: ReportInput) -> str:
    """Make the report's HTML.

    Args:
        inputs: what it shows.

    Returns:
        A whole HTML document that refers to nothing outside itself.

    Raises:
        UserError: there are no runs, or two of one name.
    """
    names = [run.name for run in inputs.runs]
    if not names:
        raise UserError("expected at least one run in a report, got none; name the folder of a run")
    if len(set(names)) < len(names):
        raise UserError(f"runs of one report need different names, got {', '.join(names)}; rename one")
    runs = inputs.runs
    view: dict[str, Any] = {
        "title": inputs.title or results.title(runs),
        "introduction": inputs.introduction or results.introduction(runs),
        "legend": results.legend(runs),
        "headlines": results.headlines(runs),
        "tables": results.result_tables(runs),
        "pairs": results.pairs(runs),
        "training": curves.training(runs),
        "curves": curves.score_curves(runs),
        "tasks": curves.regression_tasks(runs),
        "episodes": samples.episodes(runs),
        "confusions": samples.confusions(runs),
        "embeddings": samples.embeddings(runs),
        "calibration": curves.calibration(runs),
        "repeats": results.repeats(runs),
        "notes": inputs.notes,
    }
    return _template("report.html.j2").render(view)


def _template(name: str) -> Any:
    # Imported here: `import kshot` stays quick for those who want no report.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kshot.evaluation.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
