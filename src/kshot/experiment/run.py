"""A run: train as the settings say into a folder, and later load, evaluate and report what lies there.

The folder holds ``config.toml`` (resolved; it repeats the run), ``metrics.csv``, ``checkpoints/``, ``result.json`` and
``report.html``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from kshot.core import Learner, UserError, generator
from kshot.core.checks import check_episode, check_split
from kshot.core.episode import select
from kshot.core.errors import NotFiniteError
from kshot.data.download import OnProgress
from kshot.data.loader import EpisodeLoader
from kshot.data.source import TaskSource
from kshot.engine.checkpoint import Checkpoints
from kshot.engine.distributed import make_fabric, resolve_device
from kshot.engine.log import CsvLog, Log, TensorBoardLog
from kshot.engine.train import Progress, Trainer
from kshot.evaluation.draw import VALIDATION
from kshot.evaluation.evaluate import check_fits, evaluate
from kshot.evaluation.record import Record, record_of
from kshot.evaluation.scores import Scores, higher_is_better
from kshot.experiment.build import build_learner, open_split, open_training, resolve
from kshot.experiment.config import RunConfig
from kshot.experiment.folder import claim, run_config, taken
from kshot.experiment.rows import memory_warning
from kshot.experiment.starting import begin
from kshot.experiment.weights import load_weights

OnEvent = Callable[[str, int, dict[str, Any]], None]
UNSURPASSED = "no validation was better than that of the start, whose weights are kept as the best"


@dataclass(frozen=True)
class Outcome:
    """How a training run ended.

    Attributes:
        config: the resolved settings.
        learner: with the weights that were evaluated.
        progress: of the outer loop.
        scores: of the test, or None if it was interrupted or left out.
        record: of the test, or None.
    """

    config: RunConfig
    learner: Learner
    progress: Progress
    scores: Scores | None
    record: Record | None


def launch(config: RunConfig) -> Fabric:
    """Make the processes and devices of a run; with several, the command is started again for each.

    Args:
        config: the settings.

    Returns:
        The fabric, launched.
    """
    w = config.where
    fabric = make_fabric(w.device, w.devices, w.nodes, w.precision)
    fabric.launch()
    # Afterwards, since several processes are given shares of the cores when they are launched.
    if w.threads:
        torch.set_num_threads(w.threads)
    return fabric


def train_run(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    root: Path | None = None,
    fabric: Fabric | None = None,
    on_event: OnEvent | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_download: OnProgress | None = None,
    command: str = "",
) -> Outcome:
    """Train, validate, and test; everything is kept in a folder.

    Args:
        config: the settings.
        out: the run folder.
        resume: go on with the run that lies there.
        root: the data root.
        fabric: launched by ``launch``; made here if None.
        on_event: told what happens: "open" before the data are opened, "built" with the resolved ``config``, the
            ``learner`` and in words what it starts from, "test" before the test, and what
            ``kshot.engine.train.Trainer`` tells.
        on_progress: told (done, all) episodes of the test.
        on_download: told of downloads, see ``kshot.data.catalog.open_source``.
        command: that was typed, for the record.

    Returns:
        The outcome.

    Raises:
        UserError: the folder holds another run, or the settings do not fit each other or the data.
    """
    fabric, tell = fabric or launch(config), on_event or (lambda name, step, values: None)
    _check_precision(config)
    tell("open", 0, {"data": config.data})
    opening: dict[str, Any] = {"root": root, "on_progress": on_download}
    source = open_training(config, **opening)
    config = resolve(config, source.spec)
    _check_first(source)
    # All that can be wrong with the settings is found before the folder is taken.
    val = open_split(config, "meta_val", **opening).to(fabric.device)
    test = open_split(config, "meta_test", **opening) if config.evaluation.eval_episodes else None
    learner = build_learner(config, source.spec)
    for other in filter(None, (val, test)):
        check_fits(learner, other.spec)
    loader = _loader(source, config, fabric)
    begun = begin(learner, config, out, resume)
    config = claim(out, dataclasses.replace(config, started_from=begun.about), resume, writes=fabric.is_global_zero)
    tell("built", 0, {"config": config, "learner": learner, "start": begun.message})
    _warn(tell, config, learner, source, val)
    with taken(out, new=not resume):
        trainer = Trainer(
            learner,
            loader,
            config.train,
            fabric=fabric,
            out=out,
            validate=lambda learner: _validation(learner, val, config),
            on_event=on_event,
            logs=_logs(out, config),
            validate_first=bool(config.start),
        )
        progress = _told(trainer.fit(resume=resume and bool(Checkpoints(out / "checkpoints").steps())), tell)
    if progress.stopped == "interrupted" or test is None or not fabric.is_global_zero:
        return Outcome(config, learner, progress, None, None)
    tell("test", progress.step, {})
    step = load_weights(learner, out)
    scores, record = score_run(learner, config, test, progress, step, on_progress, command)
    record.write(out / "result.json")
    return Outcome(config, learner, progress, scores, record)


def _warn(tell: OnEvent, config: RunConfig, learner: Learner, source: TaskSource, val: TaskSource) -> None:
    if memory := memory_warning(learner, source, training=True):
        tell("warning", 0, {"message": memory})
    if config.train.validate_every and _seen(source, val):
        told = "classes of the validation are trained on; --validate-every 0 leaves it out"
        tell("warning", 0, {"message": told})


def _told(progress: Progress, tell: OnEvent) -> Progress:
    if progress.stopped != "interrupted" and progress.best is not None and progress.best_step == 0:
        tell("warning", progress.step, {"message": UNSURPASSED})
    return progress


def _loader(source: TaskSource, config: RunConfig, fabric: Fabric) -> EpisodeLoader:
    source, rank, world = source.to(fabric.device), fabric.global_rank, fabric.world_size
    return EpisodeLoader(source, config.task.n_tasks, seed=config.train.seed, rank=rank, world=world)


def _check_precision(config: RunConfig) -> None:
    if config.where.precision == "64-true":
        raise UserError("precision 64-true is for tests of single methods; use 32-true or bf16-mixed for runs")


def _check_first(source: TaskSource) -> None:
    """Look at one task, so that NaN or labels out of range are found as such, and not as a loss that is no number."""
    plan = source.plan(1, generator(0, "first look"))
    episode = select(source.episodes(plan[0] if isinstance(plan, list) else plan), 0)
    ways = source.spec.n_outputs if episode.support.n_way is None else episode.support.n_way
    spec = source.spec._replace(n_outputs=ways)
    if not source.shows_every_class:
        check_split(episode.support, spec, "support")
        check_split(episode.query, spec, "query")
    else:
        check_episode(episode, spec)


def _logs(out: Path, config: RunConfig) -> list[Log]:
    logs: list[Log] = [CsvLog(out / "metrics.csv")]
    return [*logs, TensorBoardLog(out / "tensorboard")] if config.where.tensorboard else logs


def validated_on(config: RunConfig) -> dict[str, Any]:
    """Say which episodes of meta_val a run is validated on.

    Args:
        config: its settings.

    Returns:
        n_episodes, seed and stream, as ``evaluate`` takes them; not those of the test, at any seed.
    """
    return {"n_episodes": config.evaluation.val_episodes, "seed": config.train.seed + 1, "stream": VALIDATION}


def _validation(learner: Learner, source: TaskSource, config: RunConfig) -> float:
    # Validation has episodes of its own, the same ones every time, so that its values can be compared.
    try:
        scores = evaluate(learner, source, **validated_on(config))
    except NotFiniteError:
        return -math.inf  # training may well find its way back; the trainer says so
    return scores.estimate.mean if higher_is_better(scores.metric) else -scores.estimate.mean


def load_run(run: Path, *, root: Path | None = None) -> tuple[RunConfig, Learner, int]:
    """Load a trained learner.

    Args:
        run: the run folder.
        root: the data root.

    Returns:
        The settings, the learner in evaluation mode on the CPU, and the step of its weights.
    """
    config = run_config(run)
    source = open_training(config, root=root)
    learner = build_learner(resolve(config, source.spec), source.spec)
    step = load_weights(learner, run)
    return config, learner.eval(), step


def evaluate_run(
    run: Path,
    *,
    data: str | None = None,
    split: str = "meta_test",
    n_way: int | None = None,
    n_shot: int | None = None,
    n_query: int | None = None,
    n_episodes: int = 600,
    seed: int = 0,
    device: str = "auto",
    normalisation: str | None = None,
    options: dict[str, Any] | None = None,
    data_options: dict[str, Any] | None = None,
    root: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_download: OnProgress | None = None,
    scorer: Callable[..., Scores] = evaluate,
    **extra: Any,
) -> tuple[Learner, TaskSource, Scores, Record]:
    """Evaluate a trained run.

    Args:
        run: the run folder.
        data: another data set than it was trained on.
        split: meta_train, meta_val or meta_test.
        n_way: W; by default as the run's settings say.
        n_shot: K.
        n_query: queries of each class.
        n_episodes: E.
        seed: of the episodes.
        device: where.
        normalisation: evaluate with other statistics than trained with, such as "support" for "episode".
        options: the algorithm's own options, in the place of the run's.
        data_options: the data set's own options, in the place of the run's.
        root: the data root.
        on_progress: told (done, all) episodes.
        on_download: told of downloads, see ``kshot.data.catalog.open_source``.
        scorer: called as ``evaluate`` is.
        **extra: more keys of the record.

    Returns:
        The learner, the source, the scores and the record.
    """
    where = resolve_device(device)
    opening: dict[str, Any] = {"root": root, "on_progress": on_download}
    config = held = run_config(run)
    trained = open_training(config, **opening)
    network = config.network
    if normalisation is not None:
        network = dataclasses.replace(network, normalisation=normalisation)
    config = dataclasses.replace(config, network=network, options={**config.options, **(options or {})})
    learner = build_learner(resolve(config, trained.spec), trained.spec)
    step = load_weights(learner, run)
    if data is not None and data != config.data:
        config = dataclasses.replace(config, data=data, data_options={})
    shape = {"n_way": n_way, "n_shot": n_shot, "n_query": n_query}
    source = open_split(config, split, **opening, **shape, **(data_options or {})).to(where)
    config = dataclasses.replace(config, data_options={**config.data_options, **(data_options or {})})
    learner = learner.to(where).eval()
    scores = scorer(learner, source, n_episodes=n_episodes, seed=seed, on_progress=on_progress)
    seen = _seen(trained, source)
    extra |= {"classes_seen_in_training": seen} if seen else {}
    if config.data != held.data:
        extra |= {"train_data": held.data, "train_data_options": held.data_options}
    record = record_of(
        scores, learner, source, algorithm=config.algorithm, split=split, **_about(config, step), **extra
    )
    return learner, source, scores, record


def score_run(
    learner: Learner,
    config: RunConfig,
    source: TaskSource,
    progress: Progress,
    step: int,
    on_progress: Callable[[int, int], None] | None = None,
    command: str = "",
) -> tuple[Scores, Record]:
    """Test a learner that was just trained.

    Args:
        learner: with the weights to be tested.
        config: its settings.
        source: of the test.
        progress: of the outer loop.
        step: that the weights are of.
        on_progress: told (done, all) episodes.
        command: that was typed, for the record.

    Returns:
        The scores and the record.
    """
    e = config.evaluation
    source.to(next(learner.parameters()).device)
    scores = evaluate(learner, source, n_episodes=e.eval_episodes, seed=e.eval_seed, on_progress=on_progress)
    extra = {"train_seconds": round(progress.seconds, 1), **_about(config, step)}
    if command:
        extra["command"] = command
    return scores, record_of(scores, learner, source, algorithm=config.algorithm, split="meta_test", **extra)


def _seen(trained: TaskSource, source: TaskSource) -> int:
    """Count the classes of a test that were trained on: two schemes may split the same classes differently.

    Returns:
        Their number; 0 where the two are different data sets.
    """
    if trained.name == source.name:
        return len(set(trained.classes or ()) & set(source.classes or ()))
    if trained.name != source.taken_from:
        return 0
    # A quarter turn of a character is another class, but what is tested is then one that was trained on upright.
    known, asked = ({name.partition(" @")[0] for name in s.drawn_from} for s in (trained, source))
    return len(known & asked)


def _about(config: RunConfig, step: int) -> dict[str, Any]:
    begun = {"started_from": config.started_from} if config.started_from else {}
    return {
        **begun,
        "steps_trained": step,
        "train_seed": config.train.seed,
        "options": config.options,
        "network": dataclasses.asdict(config.network),
        "train_task": dataclasses.asdict(config.task),
        "data_options": config.data_options,
    }
