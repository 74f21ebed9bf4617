"""``kshot evaluate``: test a trained run on new tasks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Positional, arg

from kshot.cli.fitted import check_json_free
from kshot.cli.flags import first_positional, parse, peek
from kshot.cli.live import Display, RunView
from kshot.cli.settings import algorithm_group, data_group, given, owners
from kshot.cli.tables import show, table
from kshot.cli.words import command_line, estimate, inference
from kshot.core import UserError, method, methods
from kshot.evaluation.record import Record
from kshot.evaluation.report.wording import duration, is_share, metric_name, task_and_queries
from kshot.experiment.config import RunConfig
from kshot.experiment.folder import run_config
from kshot.experiment.grid import FILE as WAYS_AND_SHOTS
from kshot.experiment.grid import N_QUERY, evaluate_grid, write_grid
from kshot.experiment.instances import by_instance, told
from kshot.experiment.rows import memory_warning
from kshot.experiment.run import evaluate_run
from kshot.experiment.untrained import evaluate_untrained
from kshot.experiment.weights import best_together
from kshot.nn.norm import NORMALISATIONS

_ABOUT = """\
Test the run in folder RUN, as it was trained or on other tasks, ways, shots,
data or statistics. Its weights are those of the best validation. Methods with
nothing to train (nearest, hausdorff) are named in the place of a run.

examples:
  kshot evaluate runs/proto
  kshot evaluate runs/proto --n-way 20 --n-shot 5 --n-episodes 1000
  kshot evaluate runs/maml --n-inner-steps-eval 10 --normalisation support
  kshot evaluate runs/proto --data glyphs --json - | jq .mean
  kshot evaluate runs/proto --ways 2 5 10 20 50 --shots 1 5 15
  kshot evaluate hausdorff --data omniglot_challenge --image-size 105

`kshot evaluate RUN --help` also shows the options of its algorithm and data."""

_NONE = "(default: none)"
#: Episodes below which equal accuracies say little of how much others would differ.
_FEW = 30
#: Intervals below this are none: what rounding leaves of equal numbers.
_SAME = 1e-9
# Names of the groups of options while it is unknown whose they are.
_ALGORITHM, _DATA = "algorithm_options", "data_options"


def run(args: Sequence[str]) -> int:
    """Evaluate.

    Args:
        args: the command line after ``kshot evaluate``.

    Returns:
        The exit status.

    Raises:
        UserError: no run is named, or the arguments make no sense.
    """
    folder = first_positional(args) or ""
    config = _config(folder, peek(args, "data")) if folder else None
    data = peek(args, "data") or (config.data if config else "")
    found = parse(shape(config, data), args, prog="kshot evaluate", about=_ABOUT, owners=owners())
    if config is None:
        raise UserError("expected the folder of a run first: kshot evaluate RUN ...")
    check_json_free(found.json)
    _check_best(args, config, found)
    if found.ways or found.shots:
        return _grid(args, Path(folder), config, data, found)
    record = _evaluate(args, Path(folder), config, data, found)
    if found.json == "-":
        print(record.to_json(), end="")
        return 0
    _print(record)
    if found.json:
        record.write(found.json)
        print(f"written to {found.json}")
    return 0


def _check_best(args: Sequence[str], config: RunConfig, found: Any) -> None:
    if _given(found.best, "best", args) is None:
        return
    if found.ways or found.shots or found.instances:
        raise UserError("expected --best alone, for it is of one test; leave out --ways, --shots and --instances")
    if method(config.algorithm).learner.trained_on == "nothing":
        raise UserError(f"{config.algorithm} has nothing to train, and so no validations; leave out --best")


def _config(folder: str, data: str | None) -> RunConfig:
    known = methods()
    if folder not in known or Path(folder).exists():
        return run_config(Path(folder))
    if known[folder].learner.trained_on != "nothing":
        raise UserError(f"{folder} has to be trained first: kshot train {folder} --data {data or 'NAME'} --out RUN")
    if not data:
        raise UserError(f"expected a data set: kshot evaluate {folder} --data NAME")
    return RunConfig(folder, data)


def _flag(name: str, kind: Any, default: Any, meaning: str, metavar: str | None, hint: str | None) -> Any:
    return name, Annotated[kind, arg(metavar=metavar, help=meaning, help_behavior_hint=hint)], default


#: Flags that are the same for every algorithm and data set.
_REST: list[Any] = [
    _flag(
        "normalisation",
        str,
        "",
        "take other statistics than in training: support is inductive where episode is transductive",
        f"{{{','.join(NORMALISATIONS)}}}",
        "(default: as in training)",
    ),
    _flag(
        "best",
        int,
        0,
        "let the weights of the N best validations answer together, of a run trained with --keep-best",
        "N",
        "(default: the best alone)",
    ),
    ("device", Annotated[str, arg(help="auto, cpu, cuda, cuda:0, mps")], "auto"),
    ("threads", Annotated[int, arg(help="threads on a CPU; 0 for PyTorch's choice")], 0),
    _flag(
        "instances",
        int,
        0,
        "also tell accuracy at the 1st to Nth example of a class, along sequences of all classes mixed",
        "N",
        "(default: none)",
    ),
    _flag("ways", tuple[int, ...], (), "test at each of these numbers of classes; with --shots", "N ...", _NONE),
    _flag("shots", tuple[int, ...], (), "and at each of these of support examples of a class", "N ...", _NONE),
    _flag("json", str, "", "write the record there; - for standard output alone", "FILE", "(default: none)"),
    _flag("data_root", str, "", "where data sets lie", "DIR", "(default: KSHOT_DATA, or the user's cache folder)"),
]


def shape(config: RunConfig | None, data: str) -> type:
    """Make the class that holds every flag of an evaluation.

    Args:
        config: settings of the run, or None while it is unknown.
        data: name of the data set, or "".

    Returns:
        A dataclass; the options of the algorithm and of the data set are groups of these two names.
    """
    ours = "(default: as the run was tested)"
    empty = dataclasses.make_dataclass("Options", [], frozen=True)
    mine = algorithm_group(config.algorithm, data, config.task.n_way, config.options) if config else empty
    theirs = data_group(data, config.data_options if config and config.data == data else {}) if data else empty
    return dataclasses.make_dataclass(
        "Evaluate",
        [
            ("run", Annotated[Positional[str], arg(metavar="RUN", help="the run folder", help_behavior_hint="")], ""),
            _flag("data", str, "", "data set", "NAME", "(default: as the run was trained)"),
            ("split", Annotated[Literal["meta_train", "meta_val", "meta_test"], arg(help="part of it")], "meta_test"),
            _flag("n_way", int, 0, "classes of a task", None, ours),
            _flag("n_shot", int, 0, "support examples of each class, or points of a regression task", None, ours),
            _flag("n_query", int, 0, "query examples of each class, or points of a regression task", None, ours),
            ("n_episodes", Annotated[int, arg(help="how many tasks")], 600),
            ("seed", Annotated[int, arg(help="of the episodes; the same seed gives the same episodes")], 0),
            *_REST,
            (config.algorithm if config else _ALGORITHM, mine, dataclasses.field(default=mine())),
            (data or _DATA, theirs, dataclasses.field(default=theirs())),
        ],
    )


def _evaluate(args: Sequence[str], folder: Path, config: RunConfig, data: str, found: Any) -> Record:
    if found.threads > 0:
        torch.set_num_threads(found.threads)
    with Display() as display:
        view = RunView(display, f"{config.algorithm} on {data}", 0)
        view.wait(f"opening {data}")
        own = {"options": given(args, getattr(found, config.algorithm))}
        own["data_options"] = given(args, getattr(found, data))
        asked: dict[str, Any] = {
            "split": found.split,
            "n_way": _given(found.n_way, "n_way", args),
            "n_shot": _given(found.n_shot, "n_shot", args),
            "n_query": _given(found.n_query, "n_query", args),
            "n_episodes": found.n_episodes,
            "seed": found.seed,
            "device": found.device,
            "root": Path(found.data_root) if found.data_root else None,
            "on_progress": view.on_progress,
            "on_download": view.on_download,
            "command": command_line("evaluate", args),
        }
        if method(config.algorithm).learner.trained_on == "nothing":
            learner, source, _, record = evaluate_untrained(dataclasses.replace(config, **own), **asked)
        else:
            if best := _given(found.best, "best", args):
                asked["scorer"], asked["steps_together"] = best_together(folder, best)
            learner, source, _, record = evaluate_run(
                folder, data=data, normalisation=found.normalisation or None, **own, **asked
            )
        instances = _given(found.instances, "instances", args)
        if warning := memory_warning(learner, source, instances=instances or 0):
            display.say(f"warning: {warning}")
        if instances is None:
            return record
        sequences: dict[str, Any] = {k: asked[k] for k in ("n_episodes", "seed", "on_progress")}
        return told(record, by_instance(learner, source, instances, **sequences))


def _grid(args: Sequence[str], folder: Path, config: RunConfig, data: str, found: Any) -> int:
    """Test at many ways and shots; a test of the run's own data is kept in its folder, where the report finds it.

    Returns:
        The exit status.

    Raises:
        UserError: there is no run, --ways or --shots is missing, or something else says how large tasks are.
    """
    if method(config.algorithm).learner.trained_on == "nothing" or not (found.ways and found.shots):
        raise UserError("expected a run, --ways and --shots together: kshot evaluate RUN --ways 2 5 20 --shots 1 5")
    _check_alone(args)
    if found.threads > 0:
        torch.set_num_threads(found.threads)
    quiet = found.json == "-"
    made = table("ways", "shots", "accuracy", "seconds")

    def on_cell(record: Record) -> None:
        made.add_row(f"{record.n_way}", f"{record.n_shot}", estimate(record), f"{record.seconds:.1f}")

    with Display() as display, display.waiting(f"{len(found.ways) * len(found.shots)} kinds of tasks on {data}"):
        grid = evaluate_grid(
            folder,
            found.ways,
            found.shots,
            n_query=_given(found.n_query, "n_query", args) or N_QUERY,
            on_cell=on_cell,
            data=data,
            split=found.split,
            n_episodes=found.n_episodes,
            seed=found.seed,
            device=found.device,
            normalisation=found.normalisation or None,
            options=given(args, getattr(found, config.algorithm)),
            data_options=given(args, getattr(found, data)),
            root=Path(found.data_root) if found.data_root else None,
        )
    grid = {**grid, "command": command_line("evaluate", args)}
    if quiet:
        print(json.dumps(grid, indent=2))
        return 0
    show(made)
    # The report draws what lies in the folder as the run's own test.
    own = data == config.data and found.split == "meta_test" and not given(args, getattr(found, data))
    for path in ([folder / WAYS_AND_SHOTS] if own else []) + ([Path(found.json)] if found.json else []):
        write_grid(path, grid)
        print(f"written to {path}")
    return 0


def _check_alone(args: Sequence[str]) -> None:
    others = [flag for flag in ("--n-way", "--n-shot", "--instances") if _typed(flag, args)]
    if others:
        raise UserError(
            f"expected --ways and --shots alone to say how large tasks are, got {', '.join(others)} too; leave "
            f"{'it' if len(others) == 1 else 'them'} out"
        )


def _typed(flag: str, args: Sequence[str]) -> bool:
    return any(a.partition("=")[0].replace("_", "-") == flag for a in args)


def _given(value: int, name: str, args: Sequence[str]) -> int | None:
    # 0 stands for "not given" in the flags, but is no number of anything.
    if _typed(f"--{name.replace('_', '-')}", args) and value < 1:
        raise UserError(f"expected {name} >= 1, got {value}")
    return value or None


def _weights(extra: dict[str, Any]) -> str:
    if "steps_trained" not in extra:
        return ""
    steps = extra.get("steps_together", [extra["steps_trained"]])
    which = f"steps {', '.join(map(str, steps))} together" if len(steps) > 1 else f"step {steps[0]}"
    return f"{which}, training seed {extra.get('train_seed', '?')}"


def _print(record: Record) -> None:
    made = table()
    extra = record.extra
    rows = {
        "tasks": f"{task_and_queries(record)}, {record.data} {record.split}",
        metric_name(record.metric): f"{estimate(record)}  (95% interval)",
        "the best possible": f"{extra['optimal_bits']:.4g} {metric_name('bits')}" if "optimal_bits" in extra else "",
        "wrong bits": f"{extra['wrong_bits']:.4g} per sequence" if "wrong_bits" in extra else "",
        "negative log-likelihood": f"{extra['nll']:.4f}" if "nll" in extra else "",
        "calibration error": f"{100 * extra['ece']:.2f} %" if "ece" in extra else "",
        "inference": f"{inference(record.transductive)}, normalisation {record.normalisation}",
        "episodes": f"{record.n_episodes:,}, seed {record.seed}, {duration(record.seconds)}",
        "weights": _weights(extra),
    }
    for name, text in rows.items():
        if text:
            made.add_row(name, text)
    print(record.algorithm)
    show(made)
    if "instances" in extra:
        print("\naccuracy at the Nth example of a class, all classes mixed in one sequence")
        places = table("N", *(str(row["instance"]) for row in extra["instances"]))
        places.add_row("%", *(f"{100 * row['mean']:.1f}" for row in extra["instances"]))
        places.add_row("±", *(f"{100 * row['ci95']:.1f}" for row in extra["instances"]))
        show(places)
    _warn_of_few(record)
    seen = extra.get("classes_seen_in_training", 0)
    if seen:
        print(f"note: {seen:,} classes of this test were trained on; it does not tell how new classes are learnt")


def _warn_of_few(record: Record) -> None:
    # Accuracies that are all equal have an interval of nothing, which nobody should believe of so few.
    if record.n_episodes < _FEW and is_share(record.metric) and record.ci95 < _SAME:
        print(
            f"note: few episodes: all {record.n_episodes} came out the same, and do not tell how others may differ; "
            "test on more (--n-episodes 600)"
        )
