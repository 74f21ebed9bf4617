"""Accuracy at the 1st, 2nd, ... instance of a class, of a learner and the data that it was just tested on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from kshot.core import Learner, UserError
from kshot.data.image_tasks import ImageTasks
from kshot.data.source import TaskSource
from kshot.evaluation.instances import Instances, accuracy_by_instance
from kshot.evaluation.record import Record


def by_instance(
    learner: Learner,
    source: TaskSource,
    n_instances: int,
    *,
    n_episodes: int = 600,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Instances:
    """Measure along sequences of so many examples of each class.

    Args:
        learner: any learner of classes.
        source: whose images, number of ways and share of tasks within a group are taken.
        n_instances: examples of each class.
        n_episodes: sequences.
        seed: of the sequences.
        on_progress: told (done, all) sequences.

    Returns:
        Accuracy at each instance.

    Raises:
        UserError: fewer than two instances, or the data are no images in classes.
    """
    if n_instances < 2:
        raise UserError(f"expected at least 2 instances of a class, got {n_instances}; the paper of MANN has 10")
    if not isinstance(source, ImageTasks):
        raise UserError(f"expected a data set of images in classes to count instances, got {source.name}")
    mixed = ImageTasks(
        source.images,
        name=source.name,
        n_way=source.spec.n_outputs,
        n_shot=1,
        n_query=n_instances - 1,
        within_group=source.sampler.within_group,
        turns_apart=source.turns_apart,
    )
    return accuracy_by_instance(
        learner, mixed.to(source.device), n_episodes=n_episodes, seed=seed, on_progress=on_progress
    )


def told(record: Record, found: Instances) -> Record:
    """Put instances into a record.

    Args:
        record: of the same learner.
        found: what was measured.

    Returns:
        The record with the key ``instances``: for each its number, mean and interval.
    """
    curve = found.curve
    rows: list[dict[str, Any]] = [
        {"instance": k, "mean": e.mean, "ci95": e.ci95} for k, e in zip(curve.x, curve.estimates, strict=True)
    ]
    return dataclasses.replace(record, extra={**record.extra, "instances": rows})
