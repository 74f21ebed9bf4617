"""A self-contained HTML report of one run or several: one file, no network, light and dark, for screen and paper.

The data classes here say what can stand in a report. Every part is optional; what is missing is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kshot.core import UserError
from kshot.core.files import write_atomically
from kshot.evaluation.report import curves, results, samples
from kshot.evaluation.report.inputs import ReportInput


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
        "sequences": samples.sequences(runs),
        "readings": samples.readings(runs),
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
