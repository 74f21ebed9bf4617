"""``kshot predict`` with a model of numbers: means with intervals."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kshot.cli.fit_words import amount, brief, notes
from kshot.cli.fitted import examples_of, matched_columns, write_report
from kshot.cli.live import Display
from kshot.cli.tables import show, table
from kshot.core.files import write_atomically

if TYPE_CHECKING:
    from kshot.estimator.regressor import FewShotRegressor
    from kshot.estimator.sources import Source

#: Examples that are compared with all shots at once.
_ROWS = 512


class Told(NamedTuple):
    """What a model says of one example.

    Attributes:
        mean: the prediction.
        low: lower end of its interval.
        high: upper end; infinite where so few shots cannot vouch for the share.
        nearest: name of the nearest shot.
        nearest_target: its target.
        distance: to it, on the scale of the shots.
    """

    mean: float
    low: float
    high: float
    nearest: str
    nearest_target: float
    distance: float


def predict_numbers(
    model: FewShotRegressor, source: Source, display: Display, *, coverage: float, out: str, report: str
) -> None:
    """Predict, and write or print it.

    Args:
        model: the model.
        source: the examples; their labels are targets.
        display: where it is shown.
        coverage: share of targets that intervals are to hold.
        out: CSV file, - for standard output, or "" for a table.
        report: HTML file, or "".
    """
    from kshot.estimator.sources_targets import targets

    y = None if source.labels is None else targets(source, "the input")
    answers = told(model, source, coverage)
    actual = [""] * len(answers) if y is None else [f"{v:.10g}" for v in y]
    text = _csv(source, answers, None if y is None else actual)
    if out not in ("", "-"):
        write_atomically(Path(out), text)
    write_report(model, report, display, X=examples_of(source), y=y)
    if out == "-":
        print(text, end="")
        return
    least = math.ceil(round(1 / (1 - coverage), 9)) - 1
    short = [f"note: intervals of {100 * coverage:g} % take {least:,} shots or more"] if len(model.y_) < least else []
    for line in [*notes(source), *short]:
        display.say(line)
    if out:
        print(f"{amount(len(source), source.kind)}, written to {out}")
    else:
        _print_table(model, source, answers)
    if y is not None:
        _print_errors(y, answers, coverage)


def told(model: FewShotRegressor, source: Source, coverage: float) -> list[Told]:
    """Answer for examples, in blocks of bounded memory.

    Args:
        model: the model.
        source: the examples.
        coverage: share of targets that intervals are to hold.

    Returns:
        An answer for each.
    """
    with matched_columns():
        z = model.embed(examples_of(source))
    found = []
    for part in z.split(_ROWS):
        means, ends = model.fit_.mean(part).tolist(), model.fit_.interval(part, coverage).tolist()
        distances, shots = model.fit_.nearest(part, 1)
        for mean, (low, high), d, i in zip(means, ends, distances[:, 0].tolist(), shots[:, 0].tolist(), strict=True):
            found.append(Told(mean, low, high, model.names_[i], float(model.y_[i]), d))
    return found


def _csv(source: Source, answers: Sequence[Told], actual: Sequence[str] | None) -> str:
    texts = source.kind in ("text", "molecule")
    header = ["input", *(["text"] if texts else []), "prediction", "low", "high"]
    header += ["nearest", "nearest_target", "distance", *([] if actual is None else ["actual"])]
    written = io.StringIO()
    made = csv.writer(written, lineterminator="\n")
    made.writerow(header)
    for i, a in enumerate(answers):
        row: list[Any] = [source.names[i], *([source.examples[i]] if texts else [])]
        row += [f"{a.mean:.10g}", _end(a.low), _end(a.high), a.nearest, f"{a.nearest_target:.10g}", f"{a.distance:.6g}"]
        made.writerow([*row, *([] if actual is None else [actual[i]])])
    return written.getvalue()


def _end(value: float) -> str:
    return f"{value:.10g}" if math.isfinite(value) else ""


def _print_table(model: FewShotRegressor, source: Source, answers: Sequence[Told]) -> None:
    from kshot.estimator.report.wording import amount as written

    error = model.expected_error_.rmse
    made = table("input", "prediction", "between", "nearest shot", unbroken=("prediction", "between"))
    for i, a in enumerate(answers):
        name = brief(source.examples[i]) if source.kind in ("text", "molecule") else source.names[i]
        between = f"{written(a.low, error)} and {written(a.high, error)}" if math.isfinite(a.low) else ""
        made.add_row(name, written(a.mean, error), between, f"{a.nearest} ({written(a.nearest_target, error)})")
    show(made)


def _print_errors(y: Any, answers: Sequence[Told], coverage: float) -> None:
    import numpy as np

    from kshot.cli.fit_numbers import expected_error
    from kshot.estimator.regressor import error_of

    error = error_of(y, np.array([a.mean for a in answers]))
    print(f"error  {expected_error(error.rmse, error.mae, error.r2)}, on {len(y):,}")
    if math.isfinite(answers[0].low):
        held = sum(a.low <= v <= a.high for a, v in zip(answers, y, strict=True)) / len(y)
        print(f"intervals of {100 * coverage:g} % held {100 * held:.1f} %")
