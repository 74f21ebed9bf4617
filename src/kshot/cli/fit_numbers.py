"""``kshot fit --task regression``: from a table of a few examples to a model that predicts a number."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kshot.cli.fit_words import amount, notes, size, title
from kshot.cli.fitted import Encoding, examples_of, remember_columns, shot_names, write_report
from kshot.cli.live import Display
from kshot.cli.tables import show, table
from kshot.cli.words import command_line
from kshot.core import UserError
from kshot.evaluation.report.wording import duration

if TYPE_CHECKING:
    from kshot.cli.fit import FitSettings
    from kshot.estimator.regressor import FewShotRegressor
    from kshot.estimator.sources import Source

#: Shots whose numbers are far from what the others tell, at most.
_SHOWN = 5
#: Errors of more than so many times the expected one are worth a look.
_FAR = 2.5
_ONLY_CLASSES = ("head", "finetune", "unknown_rate", "use_class_names")
_COVERAGE = 0.9
_JUDGED = 2000


def fit_numbers(asked: FitSettings, typed: set[str]) -> int:
    """Fit a model of numbers and write it.

    Args:
        asked: the settings.
        typed: names of the settings that were typed.

    Returns:
        The exit status.

    Raises:
        UserError: a setting is typed that models of numbers have not, or something is wrong with the data.
    """
    from kshot.cli.fit import read_asked

    wrong = [f"--{name.replace('_', '-')}" for name in _ONLY_CLASSES if name in typed]
    if wrong:
        raise UserError(f"{', '.join(wrong)} is for classes, this is a regression; leave it out")
    began = time.monotonic()
    with Display() as display:
        source = read_asked(asked, display)
        with display.waiting("fitting"):
            from kshot.estimator.regressor import FewShotRegressor
            from kshot.estimator.sources_targets import targets

            model = FewShotRegressor(
                asked.encoder,
                kind=source.kind,
                cache=asked.cache,
                random_state=asked.seed,
                on_progress=Encoding(display, "encoding"),
            )
            model.fit(examples_of(source), targets(source, asked.data), names=shot_names(source))
        remember_columns(model, source)
        model.save(asked.out)
        write_report(model, asked.report, display)
    _print(asked, model, source, time.monotonic() - began)
    return 0


def _print(asked: FitSettings, model: FewShotRegressor, source: Source, seconds: float) -> None:
    from kshot.estimator.report.wording import amount as written

    error, y = model.expected_error_, model.y_
    made = table()
    what = f"{source.label_column or 'targets'} from {written(y.min(), error.rmse)} to {written(y.max(), error.rmse)}"
    made.add_row("read", f"{amount(len(source), source.kind)}, {what}")
    made.add_row("encoder", f"{model.encoder_.name}, {model.encoder_.dim:,} numbers for each")
    made.add_row("expected error", expected_error(error.rmse, error.mae, error.r2))
    made.add_row("intervals", _intervals(model))
    made.add_row("written", f"{asked.out}, {size(Path(asked.out))}, in {duration(seconds)}")
    show(made)
    for line in notes(source):
        print(line)
    _print_far(model, source)
    new = "NEW_IMAGES" if source.kind == "image" else "NEW.csv"
    print("\ngo on with:")
    print(f"  {command_line('predict', [asked.out, new, '--out', 'predictions.csv'])}")
    if not asked.report:
        print(f"  {command_line('info', [asked.out, '--report', 'report.html'])}")


def expected_error(rmse: float, mae: float, r2: float) -> str:
    """Write the error to expect.

    Args:
        rmse: root of the mean squared error.
        mae: mean absolute error.
        r2: share of the variance that is explained.

    Returns:
        One line.
    """
    return f"{rmse:.4g} (root mean square), {mae:.4g} (mean absolute); {100 * r2:.0f} % of the variance is explained"


def _intervals(model: FewShotRegressor) -> str:
    y = torch.from_numpy(model.y_.copy())
    rows = torch.arange(min(len(y), _JUDGED))
    ends = model.fit_.left_out_intervals(y, rows, _COVERAGE)
    if not bool(ends.isfinite().all()):
        least = math.ceil(round(1 / (1 - _COVERAGE), 9))
        return f"those of {100 * _COVERAGE:g} % can be judged from {least} examples on"
    held = float(((ends[:, 0] <= y[rows]) & (y[rows] <= ends[:, 1])).double().mean())
    width = float((ends[:, 1] - ends[:, 0]).median())
    return f"those of {100 * _COVERAGE:g} % are {width:.4g} wide, and held {100 * held:.0f} % of the shots left out"


def _print_far(model: FewShotRegressor, source: Source) -> None:
    from kshot.estimator.report.wording import amount as written

    off, error = model.fit_.residuals, model.expected_error_.rmse
    far = [i for i in off.abs().argsort(descending=True).tolist()[:_SHOWN] if abs(float(off[i])) > _FAR * error]
    if not far:
        return
    made = table("look again", "is", "the others tell", unbroken=("look again",))
    for i in far:
        y = float(model.y_[i])
        made.add_row(title(source, i), written(y, error), written(y - float(off[i]), error))
    print("\nfar from what the others tell:")
    show(made)
