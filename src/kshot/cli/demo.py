"""``kshot demo``: see it work, offline, in a few minutes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from kshot.cli.flags import parse
from kshot.cli.live import Display, Parts, RunView
from kshot.cli.signals import Stopped
from kshot.cli.tables import show, table
from kshot.cli.words import command_line, estimate, inference
from kshot.core.registry import method
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.evaluation.report.wording import duration, number, p_value
from kshot.experiment.build import open_split
from kshot.experiment.demo import LEARNERS, Plan, Result, demo_config, run_demo

_ABOUT = """\
Meta-train one learner of each family on the same episodes of the embedded data
set glyphs, test them on scripts that none of them has seen, and write a report.
Needs no network; a few minutes on two cores.

examples:
  kshot demo
  kshot demo --out runs/demo --seed 1"""

_BASELINES = {"pixels": "nearest mean image", "untrained": "network not trained"}


@dataclass(frozen=True)
class Demo:
    """Settings of ``kshot demo``.

    Attributes:
        out: folder of the runs and the report; runs that are there are gone on with.
        steps: outer steps of each learner.
        n_episodes: test episodes.
        seed: of weights and episodes; the same seed gives the same numbers.
        device: auto, cpu, cuda, cuda:0, mps.
        threads: threads on a CPU; 0 for PyTorch's choice.
    """

    out: Annotated[str, arg(metavar="DIR")] = "demo"
    steps: int = Plan.steps
    n_episodes: int = Plan.n_episodes
    seed: int = 0
    device: str = "auto"
    threads: int = Plan.threads


def run(args: Sequence[str]) -> int:
    """Run the demo.

    Args:
        args: the command line after ``kshot demo``.

    Returns:
        The exit status.

    Raises:
        Stopped: it was interrupted, in order.
    """
    asked = parse(Demo, args, prog="kshot demo", about=_ABOUT)
    plan = Plan(asked.steps, asked.n_episodes, asked.seed, asked.device, asked.threads)
    out, began = Path(asked.out), time.monotonic()
    again = f"Go on with:\n  {command_line('demo', args)}"
    try:
        with Display() as display:
            _introduce(display, plan)
            parts = Parts(display)
            result = run_demo(out, plan, lambda name, steps: RunView(display, name, steps), parts)
            parts.close()
    except KeyboardInterrupt as stop:
        raise Stopped(f"stopped. {again}") from stop
    if result is None:
        raise Stopped(f"interrupted; what was trained is saved. {again}")
    _print(result, out, time.monotonic() - began)
    return 0


def _introduce(display: Display, plan: Plan) -> None:
    with display.waiting("drawing the data set glyphs (once)"):
        config = demo_config(next(iter(LEARNERS)), plan)
        train, test = (open_split(config, split) for split in ("meta_train", "meta_test"))
    display.say("kshot demo: learn new characters from one example of each.")
    images = [source.images for source in (train, test) if isinstance(source, ImageTasks)]
    learnt, new = (i if isinstance(i, ImageSet) else None for i in images)
    if learnt and new:
        display.say(f"  learn how on  {len(learnt.group_names)} scripts, {learnt.n_classes:,} characters")
        display.say(f"  tested on     {', '.join(new.group_names)}: scripts that no learner has seen")
    t = config.task
    display.say(
        f"  a task        {t.n_way} characters, {t.n_shot} example of each; sort {t.n_way * t.n_query} more; "
        f"guessing gives {100 / t.n_way:.0f} %"
    )


def _print(result: Result, out: Path, seconds: float) -> None:
    made = table(
        "learner", "what it is", "accuracy", "NLL", "calibration error", "normalisation", "inference", "trained in"
    )
    for name, record in result.records.items():
        extra = record.extra
        spent = "" if name in _BASELINES else duration(extra["train_seconds"])
        family = _BASELINES.get(name) or f"{method(name).family}-based"
        made.add_row(
            name,
            family,
            estimate(record),
            f"{extra['nll']:.3f}",
            f"{100 * extra['ece']:.1f} %",
            record.normalisation,
            inference(record.transductive),
            spent,
        )
    show(made)
    first = next(iter(result.records.values()))
    print(
        f"\naccuracy on {first.n_episodes:,} test tasks with its 95% interval, seed {first.seed}; "
        f"guessing: {100 / (first.n_way or 1):.0f} %"
    )
    for a, b, found in result.pairs:
        mean, half = number(found.difference, first.metric, signed=True)
        print(f"{a} minus {b}, on the same tasks: {mean} ± {half} points, {p_value(found.p_value)}")
    if result.known:
        print(f"found trained in {out}: {', '.join(result.known)}; remove the folder to train again")
    print(f"all of it took {duration(seconds)}\n\nreport: {result.report}\nnext:")
    for line in (
        ["evaluate", str(out / "protonet"), "--n-way", "20", "--n-shot", "5"],
        ["evaluate", str(out / "maml"), "--normalisation", "support"],
        ["train", "protonet", "--data", "glyphs", "--steps", "3000", "--out", "runs/first"],
        ["list"],
    ):
        print(f"  {command_line(line[0], line[1:])}")
