"""The demo: one learner of each family, meta-trained on the same episodes and tested on scripts that none has seen.

Offline and small enough for two cores and a few minutes. Steps are fixed, not timed: the same seed gives the same
numbers on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from kshot.algorithms.metric.protonet import ProtoNet
from kshot.core import Learner
from kshot.data.source import TaskSource
from kshot.engine.config import TrainConfig
from kshot.engine.distributed import resolve_device
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.record import Record, record_of, scores_of
from kshot.evaluation.scores import compare
from kshot.evaluation.statistics import Comparison
from kshot.experiment.build import build_learner, open_split, resolve
from kshot.experiment.config import BackboneConfig, DeviceConfig, EvalConfig, RunConfig, TaskConfig
from kshot.experiment.reporting import Look, OnPart, write_reports
from kshot.experiment.run import train_run

#: One learner of each family, and how its tasks are batched; another joins by one line.
LEARNERS = {
    "protonet": "native",
    "maml": "vmap",
    "snail": "native",
}
#: Options of theirs that the demo's tasks ask for.
_OPTIONS = {"snail": {"length": 6}}
DATA = "glyphs"
#: Episodes behind a validation, and behind each point of the report's curves.
_N_LOOK = 30

_NOTES = (
    "All learners were trained on the same episodes, for as many outer steps, and tested on the same episodes. "
    "The scripts of meta_test appear in no training episode.",
    "A small network and a few hundred steps: these numbers show the tool at work and are no benchmark.",
    "MAML answers with the statistics of the query batch, as its authors' code does: it is transductive, and so sees "
    "more than the others.",
    "SNAIL has to find out by itself that like belongs to like, which the others are built on: it begins slowly.",
)


@dataclass(frozen=True)
class Plan:
    """How large a demo is.

    Attributes:
        steps: outer steps of each learner.
        n_episodes: test episodes.
        seed: of weights and episodes.
        device: auto, cpu, cuda, cuda:0, mps.
        threads: threads on a CPU; 0 for PyTorch's choice. One is as good as two for work in such small pieces, and
            many times better where others use the same cores.
    """

    steps: int = 500
    n_episodes: int = 600
    seed: int = 0
    device: str = "auto"
    threads: int = 1


class Watcher(Protocol):
    """Is told how one learner's run goes on; see ``kshot.experiment.run.train_run``."""

    def on_event(self, name: str, step: int, values: dict[str, Any]) -> None:
        """Hear an event."""
        ...

    def on_progress(self, done: int, total: int) -> None:
        """Hear how far the test is."""
        ...


@dataclass(frozen=True)
class Result:
    """What a demo found.

    Attributes:
        records: name -> test result: baselines first, then the learners.
        pairs: differences of learners on the same episodes: (first, second, difference).
        report: the HTML file.
        known: names of the learners that had been trained before.
    """

    records: dict[str, Record]
    pairs: list[tuple[str, str, Comparison]]
    report: Path
    known: list[str] = field(default_factory=list)


def demo_config(algorithm: str, plan: Plan) -> RunConfig:
    """Give the settings of one learner of the demo; training episodes are the same for all.

    Args:
        algorithm: registered name.
        plan: how large the demo is.

    Returns:
        The settings.
    """
    return RunConfig(
        algorithm,
        DATA,
        task=TaskConfig(n_way=5, n_shot=1, n_query=5, n_tasks=4),
        evaluation=EvalConfig(
            eval_episodes=plan.n_episodes, eval_seed=plan.seed, val_episodes=min(_N_LOOK, plan.n_episodes)
        ),
        network=BackboneConfig(n_filters=32, downsample="stride"),
        train=TrainConfig(
            steps=plan.steps,
            outer_lr=3e-3,
            batching=LEARNERS[algorithm],
            seed=plan.seed,
            validate_every=max(1, plan.steps // 5),
            checkpoint_every=max(1, plan.steps // 5),
            # Nothing is left to a clock.
            deterministic=True,
        ),
        where=DeviceConfig(device=plan.device, threads=plan.threads),
        options=dict(_OPTIONS.get(algorithm, {})),
    )


def run_demo(
    out: Path, plan: Plan, watch: Callable[[str, int], Watcher], on_part: OnPart | None = None
) -> Result | None:
    """Train and test every learner, measure the baselines, and write the report.

    Args:
        out: a folder; each learner has its run folder there, and a learner that was trained there before is taken as
            it is.
        plan: how large the demo is.
        watch: makes the watcher of a run from its name and its steps.
        on_part: told how far the report is.

    Returns:
        What was found, or None if it was asked to stop; the same call then goes on there.
    """
    records: dict[str, Record] = {}
    known = []
    for name in LEARNERS:
        watcher, folder = watch(name, plan.steps), out / name
        resume = (folder / "config.toml").exists()
        if (folder / "result.json").exists():
            known.append(name)
        outcome = train_run(
            demo_config(name, plan), folder, resume=resume, on_event=watcher.on_event, on_progress=watcher.on_progress
        )
        if outcome.record is None:
            return None
        records[name] = outcome.record
    records = {**_baselines(out, plan, watch), **records}
    report = out / "report.html"
    runs = [out / f"{name}.json" if (out / f"{name}.json").exists() else out / name for name in records]
    look = Look(n_episodes=min(_N_LOOK, plan.n_episodes), device=plan.device, on_part=on_part)
    write_reports(runs, report, look, title="New characters from one example each", notes=_NOTES)
    return Result(records, _pairs(records), report, known)


def _baselines(out: Path, plan: Plan, watch: Callable[[str, int], Watcher]) -> dict[str, Record]:
    """Measure what learning adds to: the nearest mean image, and the network before its training.

    Returns:
        Name -> test result.
    """
    config = demo_config("protonet", plan)
    source = open_split(config, "meta_test")
    config = resolve(config, source.spec)
    made = {"pixels": ProtoNet(nn.Flatten()), "untrained": build_learner(config, source.spec)}
    found = {}
    for name, learner in made.items():
        found[name] = _measure(learner, source, plan, watch(name, 0))
        found[name].write(out / f"{name}.json")
    return found


def _measure(learner: Learner, source: TaskSource, plan: Plan, watcher: Watcher) -> Record:
    learner.to(resolve_device(plan.device))
    source.to(resolve_device(plan.device))
    scores = evaluate(learner, source, n_episodes=plan.n_episodes, seed=plan.seed, on_progress=watcher.on_progress)
    return record_of(scores, learner, source, algorithm="protonet", split="meta_test", steps_trained=0)


def _pairs(records: dict[str, Record]) -> list[tuple[str, str, Comparison]]:
    known = [(name, scores_of(records[name])) for name in LEARNERS]
    return [
        (a, b, compare(first, second))
        for i, (a, first) in enumerate(known)
        for b, second in known[i + 1 :]
        if first is not None and second is not None
    ]
