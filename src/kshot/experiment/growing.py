"""Looks at a trained learner on sequences that are larger than those of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kshot.core import Learner
from kshot.data.catalog import dataset
from kshot.data.source import TaskSource
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.gather_sequence import sequence_picture
from kshot.evaluation.pictures import SequencePicture
from kshot.evaluation.scores import Curve
from kshot.experiment.build import open_split
from kshot.experiment.config import RunConfig


def trained_size(config: RunConfig) -> int:
    """Return the largest size up to which a run's training tasks grew in every way.

    Args:
        config: of a run on a data set whose tasks grow.

    Returns:
        The size; 0 where they do not grow.
    """
    found = dataset(config.data)
    if found.growth is None:
        return 0
    sizes = {name: config.data_options.get(name, found.options[name].default) for name in found.growth.options}
    # Where several things grow, such as length and copies, the least of their largest sizes.
    return min(size for name, size in sizes.items() if name.startswith("max_"))


def sized(config: RunConfig, size: int, root: Path | None) -> TaskSource:
    """Open the test tasks of one size.

    Args:
        config: of a run on a data set whose tasks grow.
        size: the size.
        root: the data root.

    Returns:
        The source.
    """
    growth = dataset(config.data).growth
    return open_split(config, "meta_test", root=root, **dict.fromkeys(growth.options if growth else (), size))


def by_size(config: RunConfig, learner: Learner, root: Path | None, options: dict[str, Any]) -> Curve | None:
    """Score a learner on tasks that grow beyond those of training.

    Args:
        config: of the run.
        learner: trained by it.
        root: the data root.
        options: of ``evaluate``.

    Returns:
        The curve, or None where the data set does not say how its tasks grow.
    """
    growth = dataset(config.data).growth
    if growth is None:
        return None
    sizes = tuple(sorted({trained_size(config), *growth.values}))
    scores = [evaluate(learner, sized(config, size, root), **options) for size in sizes]
    return Curve(growth.along, scores[0].metric, sizes, tuple(s.estimate for s in scores))


def sequence_pictures(config: RunConfig, learner: Learner, root: Path | None) -> list[SequencePicture]:
    """Picture a learner on the largest sequence of its training, on the next larger ones, and on the largest.

    Args:
        config: of the run.
        learner: trained by it.
        root: the data root.

    Returns:
        The pictures; all but the last with what the learner did, where it tells.
    """
    growth, seed = dataset(config.data).growth, config.evaluation.eval_seed
    if growth is None:
        return [sequence_picture(learner, open_split(config, "meta_test", root=root), seed=seed)]
    trained = trained_size(config)
    larger = [size for size in growth.values if size > trained]
    titles = {trained: f"{growth.along}: {trained}, the largest in training".capitalize()}
    titles |= {size: f"{growth.along}: {size}, beyond training".capitalize() for size in [*larger[:1], *larger[-1:]]}
    last = max(titles)
    return [
        sequence_picture(learner, sized(config, size, root), title, seed=seed, telling=size < last or size == trained)
        for size, title in titles.items()
    ]
