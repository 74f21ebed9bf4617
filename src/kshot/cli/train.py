"""``kshot train``: meta-train an algorithm on a data set, into a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from kshot.cli.flags import first_positional, parse, peek, typed
from kshot.cli.live import Display, Parts, RunView
from kshot.cli.settings import algorithm_group, data_group, given, owners
from kshot.cli.signals import Stopped
from kshot.cli.words import command_line, estimate, inference, network_line, option_list, resume_command, task_line
from kshot.core import DivergedError, UserError
from kshot.core.registry import methods
from kshot.data.catalog import dataset, datasets
from kshot.engine.checkpoint import Checkpoints
from kshot.engine.distributed import disconnect
from kshot.evaluation.report.wording import duration, metric_name
from kshot.experiment.config import (
    BackboneConfig,
    DeviceConfig,
    EvalConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
    differences,
    load_config,
)
from kshot.experiment.folder import MAY_CHANGE, run_config
from kshot.experiment.reporting import write_run_report
from kshot.experiment.run import Outcome, launch, train_run

_ABOUT = """\
Meta-train ALGORITHM on the data set NAME, into a run folder: config.toml (it
repeats the run), metrics.csv, checkpoints/, result.json and report.html.
Ctrl-C saves, and says how to go on.

examples:
  kshot train protonet --data omniglot --n-way 20 --steps 5000 --out runs/proto
  kshot train maml --data sinusoid --n-shot 5 --n-tasks 25 --steps 5000
  kshot train --resume --out runs/proto
  kshot train --config runs/proto/config.toml --seed 1 --out runs/proto-1
  kshot train feat --data omniglot --n-way 20 --start runs/baseline

`kshot train ALGORITHM --data NAME --help` also shows the options of both."""


# What PyTorch's collectives say where the process at the other end is gone.
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "NCCL error")
# Names of the groups of options while it is unknown whose they are.
_ALGORITHM, _DATA = "algorithm_options", "data_options"


@dataclass(frozen=True)
class Request:
    """What a command line of ``kshot train`` asks for.

    Attributes:
        config: the settings.
        out: the run folder, or None for a new one with a name of its own.
        resume: go on with the run that lies there.
        root: the data root, or None.
        command: as typed.
        notes: what the user should know about how the line was read.
    """

    config: RunConfig
    out: Path | None
    resume: bool
    root: Path | None
    command: str
    notes: tuple[str, ...] = ()


def run(args: Sequence[str]) -> int:
    """Train.

    Args:
        args: the command line after ``kshot train``.

    Returns:
        The exit status.
    """
    request = read(args)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = launch(request.config)
    # One process chooses a free name for all of them.
    out = fabric.broadcast(request.out or free_folder(request.config))
    with Display(fabric.is_global_zero) as display:
        for note in request.notes:
            display.say(f"note: {note}")
        outcome, view = _train(request, out, fabric, display)
        view.close()
    if fabric.is_global_zero:
        _conclude(outcome, out, request)
    disconnect()
    return 0


def read(args: Sequence[str]) -> Request:
    """Read the command line.

    Args:
        args: the arguments.

    Returns:
        What they ask for.

    Raises:
        UserError: they make no sense, alone or beside the run that is resumed.
    """
    base, where = _base(args)
    algorithm = first_positional(args) or (base.algorithm if base else "")
    data = peek(args, "data") or (base.data if base else "")
    found = parse(shape(algorithm, data, args, base), args, prog="kshot train", about=_ABOUT, owners=owners())
    if found.algorithm and found.algorithm != algorithm:
        raise UserError(f"expected the algorithm before all flags, got {found.algorithm!r} behind them; put it first")
    if not algorithm:
        raise UserError(f"expected an algorithm first: kshot train ALGORITHM ..., one of {', '.join(methods())}")
    if not data:
        raise UserError(f"expected a data set: add --data NAME, one of {', '.join(datasets())}")
    config = RunConfig(
        algorithm,
        data,
        found.task,
        found.evaluation,
        found.network,
        _with_groups(found.train, base, args),
        found.where,
        options={**_kept(base, "algorithm", algorithm), **given(args, getattr(found, algorithm))},
        data_options={**_kept(base, "data", data), **given(args, getattr(found, data))},
        start=found.start and str(Path(found.start).resolve()),
        started_from=base.started_from if base else {},
    )
    out = Path(found.out) if found.out else None
    if found.resume and base is not None and out is not None:
        _check_continuation(base, config, out)
        typed_line = command_line("train", ["--config", str(out / "config.toml"), "--out", "NEW"])
    else:
        typed_line = command_line("train", args)
    root = Path(found.data_root) if found.data_root else None
    return Request(config, out, found.resume, root, typed_line, _notes(base, where, config))


def _base(args: Sequence[str]) -> tuple[RunConfig | None, str]:
    """Find the settings that the flags are laid over: those of the run to go on with, or of a file.

    Returns:
        The settings or None, and where they came from.

    Raises:
        UserError: the run or the file is not there, or cannot be read.
    """
    file, out = peek(args, "config"), peek(args, "out")
    if "--resume" in args:
        if out is None:
            raise UserError("expected the folder of the run to go on with: kshot train --resume --out DIR")
        if file is not None:
            raise UserError("--resume takes its settings from the run folder; leave --config out")
        path = Path(out) / "config.toml"
        if not path.exists():
            raise UserError(f"nothing to resume in {out}: expected a config.toml there; start without --resume")
        return run_config(path.parent), str(path)
    return (load_config(Path(file)), file) if file is not None else (None, "")


def shape(algorithm: str, data: str, args: Sequence[str], base: RunConfig | None) -> type:
    """Make the class that holds every flag of a training run.

    Args:
        algorithm: its name, or "" while it is unknown.
        data: name of the data set, or "".
        args: the arguments.
        base: settings that stand in the place of the defaults.

    Returns:
        A dataclass; the options of the algorithm and of the data set are groups of these two names.
    """
    held = base or RunConfig("", "")
    ways = peek(args, "n-way") or peek(args, "n_way") or ""
    n_way = int(ways) if ways.isdigit() else held.task.n_way
    options, data_options = _kept(base, "algorithm", algorithm), _kept(base, "data", data)
    empty = dataclasses.make_dataclass("Options", [], frozen=True)
    mine = algorithm_group(algorithm, data, n_way, options) if algorithm else empty
    theirs = data_group(data, data_options) if data else empty
    groups: list[tuple[str, Any, Any]] = [
        ("task", TaskConfig, held.task),
        (algorithm or _ALGORITHM, mine, mine()),
        (data or _DATA, theirs, theirs()),
        ("network", BackboneConfig, held.network),
        # A table of its own would be a flag for each of its keys.
        ("train", TrainConfig, dataclasses.replace(held.train, outer_groups={})),
        ("evaluation", EvalConfig, held.evaluation),
        ("where", DeviceConfig, held.where),
    ]
    return dataclasses.make_dataclass(
        "Train", [*_run_flags(held.start), *((n, kind, dataclasses.field(default=d)) for n, kind, d in groups)]
    )


def _with_groups(train: TrainConfig, base: RunConfig | None, args: Sequence[str]) -> TrainConfig:
    if base is None or "outer_groups" in typed(args, TrainConfig):
        return train
    return dataclasses.replace(train, outer_groups=base.train.outer_groups)


def _run_flags(start: str) -> list[tuple[str, Any, Any]]:
    def text(name: str, metavar: str, meaning: str, hint: str, default: str = "") -> tuple[str, Any, Any]:
        return name, Annotated[str, arg(metavar=metavar, help=meaning, help_behavior_hint=hint)], default

    resume = arg(help="go on with the run in --out, with its own settings")
    named = arg(metavar="ALGORITHM", help="a name that `kshot list algorithms` shows", help_behavior_hint="")
    return [
        ("algorithm", Annotated[Positional[str], named], ""),
        text("data", "NAME", "data set, a name that `kshot list datasets` shows", "(needed without --config)"),
        text("out", "DIR", "the run folder", "(default: a new one, runs/ALGORITHM-DATA-...)"),
        ("resume", Annotated[bool, FlagCreatePairsOff, resume], False),
        text("config", "FILE", "settings of a run (its config.toml); flags override them", "(default: none)"),
        text("start", "RUN", "start from the weights of this run, as far as they fit", "(default: from none)", start),
        text("data_root", "DIR", "where data sets lie", "(default: KSHOT_DATA, or the user's cache folder)"),
    ]


def _kept(base: RunConfig | None, what: str, name: str) -> dict[str, Any]:
    # Options mean something only to the algorithm, or the data set, that they are of.
    if base is None or getattr(base, what) != name:
        return {}
    return base.options if what == "algorithm" else base.data_options


def _notes(base: RunConfig | None, where: str, config: RunConfig) -> tuple[str, ...]:
    notes = []
    if base is not None and base.algorithm != config.algorithm and base.options:
        notes.append(f"the options of {base.algorithm} in {where} are left out: this run is {config.algorithm}")
    if base is not None and base.data != config.data and base.data_options:
        notes.append(f"the options of {base.data} in {where} are left out: this run is on {config.data}")
    return tuple(notes)


def _check_continuation(held: RunConfig, wanted: RunConfig, out: Path) -> None:
    changed = []
    for line in differences(held, wanted):
        name, _, values = line.partition(": ")
        if not name.startswith(MAY_CHANGE):
            before, _, after = values.partition(" / ")
            flag = name.split(".")[:2][-1].replace("_", "-")
            changed.append(f"--{flag} {after} (the run has {before})")
    if changed:
        raise UserError(
            f"{out} holds a run with other settings, which a continuation cannot change: {', '.join(changed)}; "
            "leave them out, or start a new run with another --out"
        )


def free_folder(config: RunConfig) -> Path:
    """Choose a folder for a run that was given none.

    Args:
        config: the settings.

    Returns:
        Such as ``runs/protonet-omniglot-5w1s``, with a number behind it where that is taken.
    """
    t, seed = config.task, config.train.seed
    kind = dataset(config.data).kind
    ways = f"{t.n_way}w" if kind == "classification" else ""
    shots = "" if kind == "sequence" else f"-{ways}{t.n_shot}s"
    name = f"{config.algorithm}-{config.data}{shots}" + (f"-seed{seed}" if seed else "")
    number, path = 1, Path("runs") / name
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def _train(request: Request, out: Path, fabric: Any, display: Display) -> tuple[Outcome, RunView]:
    view = RunView(display, request.config.algorithm, request.config.train.steps)
    built: dict[str, Any] = {}

    def on_event(name: str, step: int, values: dict[str, Any]) -> None:
        if name == "built":
            built.update(values)
        if name == "start":
            before = values.get("how") == "measured before"
            how = values["batching"] + ", as measured before (--measure-anew measures again)" * before
            _introduce(display, built, fabric, out, how, step)
        view.on_event(name, step, values)

    try:
        outcome = train_run(
            request.config,
            out,
            resume=request.resume,
            root=request.root,
            fabric=fabric,
            on_event=on_event,
            on_progress=view.on_progress,
            on_download=view.on_download,
            command=request.command,
        )
    except DivergedError as error:
        raise UserError(f"{error}. {_last_good(out)}") from error
    except RuntimeError as error:
        if fabric.world_size == 1 or not any(words in str(error) for words in _LOST):
            raise
        # Whatever ended the other process, it has said so itself.
        raise UserError(_how_to_go_on("another process of this run has ended", out, request)) from error
    except KeyboardInterrupt as stop:
        raise Stopped(_how_to_go_on("stopped", out, request)) from stop
    if outcome.progress.stopped == "interrupted":
        at = f"interrupted at step {outcome.progress.step:,} of {outcome.config.train.steps:,}; all of it is saved"
        raise Stopped(_how_to_go_on(at, out, request))
    return outcome, view


def _last_good(out: Path) -> str:
    # What was written before the first step is no help to anyone.
    steps = Checkpoints(out / "checkpoints").steps()
    kept = f"It is {steps[0][1]}. " if steps and steps[0][0] else ""
    return f"{kept}A run keeps its settings: start a new one with another --out"


def _how_to_go_on(what: str, out: Path, request: Request) -> str:
    if not (out / "config.toml").exists():
        return f"{what} before the run began; nothing was written"
    return f"{what}. Go on with:\n  {resume_command(out, request.root)}"


def _introduce(display: Display, built: dict[str, Any], fabric: Any, out: Path, batching: str, step: int) -> None:
    config, learner = built["config"], built["learner"]
    processes = f"{fabric.world_size} processes" if fabric.world_size > 1 else "1 process"
    lines = {
        "tasks": task_line(config, dataset(config.data).kind),
        "network": network_line(config, learner),
        "options": option_list(config.options),
        "data": option_list(config.data_options) if config.data_options else "",
        "start": built["start"],
        "device": f"{fabric.device}, {processes}, {config.where.precision}; tasks batched: {batching}",
        "folder": str(out),
    }
    display.say(f"{config.algorithm} on {config.data}" + (f", going on at step {step:,}" if step else ""))
    for name, text in lines.items():
        if text:
            display.say(f"  {name:8} {text}")


def _conclude(outcome: Outcome, out: Path, request: Request) -> None:
    progress, record = outcome.progress, outcome.record
    early = " (stopped early: no better validation)" if progress.stopped == "early" else ""
    print(f"{outcome.config.algorithm}: {progress.step:,} steps in {duration(progress.seconds)}{early}")
    if record is None:
        print(f"  not tested (--eval-episodes 0); test it with: {command_line('evaluate', [str(out)])}")
    else:
        print(f"  {record.split} {metric_name(record.metric)} {estimate(record)}")
        print(
            f"  95% interval over {record.n_episodes:,} episodes, seed {record.seed}; "
            f"{inference(record.transductive)}, normalisation {record.normalisation}"
        )
        print(f"  result  {out / 'result.json'}", flush=True)
    with contextlib.suppress(BrokenPipeError), Display() as display:
        _report(out, request, display)
    root = ["--data-root", str(request.root)] if request.root else []
    print("next:")
    print(f"  {command_line('evaluate', [str(out), *_other_tasks(outcome.config), *root])}")
    print(f"  {command_line('train', ['--config', str(out / 'config.toml'), '--seed', '1', *root])}")


def _other_tasks(config: RunConfig) -> list[str]:
    """Name tasks that the run was not trained on.

    Returns:
        Flags of ``kshot evaluate``.
    """
    found, trained = dataset(config.data), config.task.n_shot
    if (growth := found.growth) is not None:
        return [part for o in growth.options for part in (f"--{o.replace('_', '-')}", str(growth.values[-1]))]
    if found.kind == "sequence":
        return ["--n-episodes", "1000"]
    return ["--n-shot", str(2 * trained if found.kind == "regression" else 5 if trained == 1 else 1)]


def _report(out: Path, request: Request, display: Display) -> None:
    # The run is safe by now, whatever happens to its report.
    parts, again = Parts(display), command_line("report", [str(out)])
    try:
        path = write_run_report(out, root=request.root, device=request.config.where.device, on_part=parts)
        parts.close()
        print(f"  report  {path}")
    except (UserError, OSError) as error:
        display.say(f"warning: no report: {error}. Try again with: {again}")
    except KeyboardInterrupt:
        display.say(f"no report; make it with: {again}")
