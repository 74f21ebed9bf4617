"""Numbers, tasks and settings as the command line words them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.evaluation.report.wording import is_share, number
from kshot.evaluation.statistics import Estimate
from kshot.nn.norm import normalisation_of

# What only types name is not loaded: with it, every command would load the whole engine.
if TYPE_CHECKING:
    from kshot.core import Kind, Learner
    from kshot.evaluation.record import Record
    from kshot.experiment.config import RunConfig


def score(value: float, metric: str) -> str:
    """Write one score.

    Args:
        value: the score.
        metric: of what.

    Returns:
        Such as "97.3%".
    """
    if is_share(metric):
        return f"{100 * value:.1f}%"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def estimate(record: Record) -> str:
    """Write a record's number with its interval.

    Args:
        record: the record.

    Returns:
        Such as "97.31 ± 0.22 %".
    """
    mean, half = number(Estimate(record.mean, record.ci95, record.n_episodes), record.metric)
    return f"{mean} ± {half}" + (" %" if is_share(record.metric) else "")


def inference(transductive: bool) -> str:
    """Name the way of answering.

    Args:
        transductive: True if the answer to a query depends on the other queries.

    Returns:
        A word.
    """
    return "transductive" if transductive else "inductive"


def task_line(config: RunConfig, kind: Kind) -> str:
    """Describe the tasks of training.

    Args:
        config: the settings.
        kind: of the tasks.

    Returns:
        One line.
    """
    t = config.task
    ends = f"{config.train.steps:,} steps, seed {config.train.seed}"
    if kind == "sequence":
        return f"{t.n_tasks} sequence{'s' if t.n_tasks > 1 else ''} a step, {ends}"
    ways, each = (f"{t.n_way}-way ", " a class") if kind == "classification" else ("", "")
    return f"{ways}{t.n_shot}-shot, {t.n_query} queries{each}, {t.n_tasks} tasks a step, {ends}"


def network_line(config: RunConfig, learner: Learner) -> str:
    """Describe the network and its normalisation.

    Args:
        config: the settings, resolved.
        learner: built from them.

    Returns:
        One line.
    """
    n = config.network
    size = sum(p.numel() for p in learner.parameters())
    forms = {"conv4": f"conv4, {n.n_filters} filters, {n.downsample}", "none": "no backbone"}
    forms |= {"resnet12": "resnet12", "wrn28_10": "wrn28_10"}
    form = forms.get(n.backbone, f"{n.backbone}, {'x'.join(map(str, n.hidden))}")
    return f"{form}: {size:,} parameters; normalisation {normalisation_of(learner)} ({inference(learner.transductive)})"


def option_list(options: dict[str, Any]) -> str:
    """Write options in a row.

    Args:
        options: name -> value.

    Returns:
        Such as "inner_lr=0.4, first_order=False"; "none" where there are none.
    """
    return ", ".join(f"{k}={v}" for k, v in options.items()) or "none"


def command_line(name: str, args: Sequence[str]) -> str:
    """Write a command as one would type it.

    Args:
        name: of the command.
        args: its arguments.

    Returns:
        The line, quoted where a shell needs it.
    """
    return shlex.join(["kshot", name, *args])


def resume_command(out: Path, root: Path | None) -> str:
    """Write the command that goes on with a run.

    Args:
        out: the run folder.
        root: the data root, if one was named.

    Returns:
        The line.
    """
    return command_line("train", ["--resume", "--out", str(out), *(["--data-root", str(root)] if root else [])])
