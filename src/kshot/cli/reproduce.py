"""``kshot reproduce``: list the published rows, or run one recipe and say published, ours and the verdict."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from kshot.cli.flags import first_positional, parse
from kshot.cli.live import Display, RunView
from kshot.cli.words import estimate, score
from kshot.core import DivergedError, UserError
from kshot.data.catalog import dataset
from kshot.evaluation.record import Record
from kshot.evaluation.scores import metric_of
from kshot.experiment.recipes import Milestone, Recipe, Row, recipe, recipes, reproduce, verdict, write_result
from kshot.experiment.recipes.tables import table, write_page

#: Trials of ``kshot.estimator.trials``, whose import takes the extras of ``kshot[fit]``.
TRIALS = ("banking77", "banking77-finetune", "banking77-fit", "clinc150", "orl-faces", "expected-accuracy")

#: Where committed results lie in a checkout.
_RESULTS = "benchmarks/quality"


@dataclass(frozen=True)
class Reproduce:
    """Settings of ``kshot reproduce``.

    Attributes:
        seeds: of the trainings; each is a training of its own.
        steps: another number of outer steps than the recipe's; 0 to keep it.
        out: folder of the runs; a run that is there is gone on with, or taken as it is if it has ended.
        record: folder that the result is written to, as NAME.json; none if empty.
        threads: threads on a CPU; 0 for PyTorch's choice.
        data_root: where data sets are; KSHOT_DATA or the user's cache folder if empty.
        draws: of a trial on own data: draws of the shots; 0 for its own number.
        table: print a table of the results in the folder of --record, and run nothing: omniglot, challenge, front,
            ways, sinusoid or sequences.
        page: file that the table is written into, between its marks, in the place of being printed.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int = 0
    out: str = ""
    record: str = ""
    threads: int = 0
    data_root: str = ""
    draws: int = 0
    table: str = ""
    page: str = ""


def run(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: after its name.

    Returns:
        The exit status: 0 also where a number does not reach the least, since that is a finding and no failure.

    Raises:
        UserError: training left the numbers.
    """
    name = first_positional(args)
    about = (
        "List the published rows there are recipes for, run one, or make a table of results: "
        "kshot reproduce [RECIPE] [options]"
    )
    asked = parse(Reproduce, args[1:] if name else args, prog="kshot reproduce", about=about)
    if asked.table:
        return _make_table(name, asked)
    if name is None:
        _print_all()
        return 0
    if name in TRIALS:
        return _run_trial(name, asked)
    found = recipe(name)
    out = Path(asked.out or f"runs/reproduce/{name}")
    steps = asked.steps or found.config.train.steps
    measured: dict[str, list[Record | Milestone]] = {}
    with Display() as display:
        display.say(f"{found.name}: {found.paper}\n{found.protocol}")
        view = RunView(display, found.name, steps)
        try:
            result = reproduce(
                found,
                out,
                seeds=asked.seeds,
                steps=asked.steps or None,
                threads=asked.threads,
                root=Path(asked.data_root) if asked.data_root else None,
                on_event=view.on_event,
                on_row=lambda row, record: measured.setdefault(row.name, []).append(record),
            )
        except DivergedError as error:  # a recipe has its settings, so there is nothing to try but another seed
            raise UserError(f"{error}. The settings are those of the recipe: try other --seeds") from error
        view.close()
    _print_result(found, measured)
    if asked.record:
        path = Path(asked.record) / f"{name}.json"
        write_result(path, result)
        print(f"written to {path}")
    if result["seeds"]:
        home = out.parent / found.stands_on if found.stands_on else out
        print(f"runs are in {home}; the same command finds them trained")
    return 0


def _make_table(name: str | None, asked: Reproduce) -> int:
    if name is not None:
        raise UserError(f"expected a recipe or --table, got {name} and a table of all recipes; leave one out")
    text = table(asked.table, Path(asked.record or _RESULTS), recipes())
    if not asked.page:
        print(text, end="")
        return 0
    write_page(Path(asked.page), asked.table, text)
    print(f"written into {asked.page}")
    return 0


def _run_trial(name: str, asked: Reproduce) -> int:
    from kshot.estimator.trial import run_trial
    from kshot.estimator.trials import trial

    found = trial(name)
    if asked.threads > 0:
        torch.set_num_threads(asked.threads)
    with Display() as display:
        display.say(f"{found.name}: {found.title}\n{found.protocol}")
        with display.waiting(f"{found.name}: encoding what is not in the cache, then fitting"):
            result = run_trial(found, n_draws=asked.draws, root=Path(asked.data_root) if asked.data_root else None)
    made = Table("row", "ours", "asked", "verdict", "beside it", box=None, pad_edge=False)
    for row in result["rows"]:
        wide = "" if row["ci95_draws"] is None else f" ± {_number(row['ci95_draws'], row['metric'])}"
        asked_for = "" if row["least"] is None else _number(row["least"], row["metric"])
        verdict_ = {True: "reached", False: "missed", None: ""}[row["passed"]]
        made.add_row(row["name"], _number(row["mean"], row["metric"]) + wide, asked_for, verdict_, row["beside"])
    _console().print(made)
    print(f"95% intervals over {len(result['seeds'])} draws of the shots")
    if asked.record:
        path = Path(asked.record) / f"{name}.json"
        write_result(path, result)
        print(f"written to {path}")
    return 0


def _number(value: float, metric: str) -> str:
    if metric in ("accuracy", "share"):
        return f"{100 * value:.2f} %"
    return f"{value:.2f} s" if metric == "seconds" else f"{value:.4f}"


def _print_all() -> None:
    made = Table("recipe", "row", "published", "least we ask", box=None, pad_edge=False)
    for found in recipes().values():
        for i, row in enumerate(found.rows):
            made.add_row(found.name if i == 0 else "", row.name, _asked(found, row.published), _asked(found, row.least))
    _console().print(made)
    print("\non frozen encoders, a few shots (needs kshot[fit]): " + ", ".join(TRIALS))
    print("\nkshot reproduce RECIPE runs one; published numbers, protocols and sources are in its record")


def _asked(found: Recipe, value: float | None) -> str:
    return "" if value is None else score(value, metric_of(dataset(found.config.data).kind))


def _print_result(found: Recipe, measured: dict[str, list[Record | Milestone]]) -> None:
    made = Table("row", "published", "ours", "verdict", "inference", box=None, pad_edge=False)
    for row in found.rows:
        for record in measured[row.name]:
            told = "transductive" if record.transductive else "inductive"
            made.add_row(row.name, _asked(found, row.published), _shown(record), _judged(row, record), told)
    _console().print(made)


def _shown(found: Record | Milestone) -> str:
    if isinstance(found, Record):
        return estimate(found)
    return f"{found.mean:,.0f}" if math.isfinite(found.mean) else "never"


def _judged(row: Row, record: Record | Milestone) -> str:
    judged = verdict(row, record.metric, record.mean)
    return {True: "reached", False: "not reached", None: ""}[judged]


def _console() -> Console:
    # Where there is no terminal, a table may be as wide as it is.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)
