"""Rows without a training of their own: heads on the network of another run, and methods that learn nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from kshot.core import Learner, method
from kshot.core.learner import options_of
from kshot.data.image_tasks import ImageTasks
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.record import Record, record_of
from kshot.experiment.build import build_learner, open_split, open_training, resolve
from kshot.experiment.config import RunConfig
from kshot.experiment.embedded import feature_tasks, renamed
from kshot.experiment.folder import run_config
from kshot.experiment.frozen import HEADS, Frozen, freeze_run, make_head
from kshot.experiment.recipes.recipe import Row
from kshot.experiment.untrained import evaluate_untrained
from kshot.experiment.weights import load_weights

_CHUNK = 64


def measure_head(row: Row, run: Path, root: Path | None) -> Record:
    """Test a method by the network that another one's run trained.

    Args:
        row: its ``test`` names the method as "head", beside ways, shots, queries and episodes.
        run: the folder of that run.
        root: the data root.

    Returns:
        The record, under the head's name, with what trained the network.
    """
    test = dict(row.test)
    head, n_episodes, seed = test.pop("head"), test.pop("n_episodes"), test.pop("seed", 0)
    config = run_config(run)
    source = open_split(config, "meta_test", root=root, **test)
    if head in HEADS and isinstance(source, ImageTasks):
        frozen = freeze_run(run, root=root)
        learner = _head(head, frozen, source)
        tasks = feature_tasks(frozen.features, source)
        scores = evaluate(learner, tasks, n_episodes=n_episodes, seed=seed, chunk=_CHUNK)
        scores = renamed(scores, source, n_episodes)
    else:
        learner = _whole(head, config, run, root)
        scores = evaluate(learner, source, n_episodes=n_episodes, seed=seed)
    record = record_of(scores, learner, source, algorithm=head, split="meta_test", **_about(head, config))
    return dataclasses.replace(record, normalisation=config.network.normalisation)


def _head(name: str, frozen: Frozen, source: ImageTasks) -> Learner:
    return make_head(name, frozen.features.features.shape[1], source.spec.n_outputs, frozen.centre)


def _whole(name: str, config: RunConfig, run: Path, root: Path | None) -> Learner:
    """Build a method that changes the network itself, with the weights of another one's run.

    Returns:
        The learner, in evaluation mode.
    """
    trained = open_training(config, root=root)
    own = resolve(dataclasses.replace(config, algorithm=name, options={}), trained.spec)
    learner = build_learner(own, trained.spec)
    load_weights(learner, run)
    return learner.eval()


def _about(head: str, config: RunConfig) -> dict[str, Any]:
    return {
        "trained_as": config.algorithm,
        "train_seed": config.train.seed,
        "options": {name: p.default for name, p in options_of(method(head).learner).items()},
        "network": dataclasses.asdict(config.network),
        "data_options": config.data_options,
    }


def measure_untrained(row: Row, config: RunConfig, root: Path | None) -> Record:
    """Test a method that learns nothing beforehand.

    Args:
        row: what is asked.
        config: names the method and the data.
        root: the data root.

    Returns:
        The record.
    """
    test = dict(row.test)
    own = {**config.data_options, **test.pop("data_options", {})}
    config = dataclasses.replace(config, data=test.pop("data", config.data), data_options=own)
    return evaluate_untrained(config, root=root, **test)[3]
