"""Methods with nothing to train are evaluated as they are, without a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kshot.core import Learner, UserError, method
from kshot.data.download import OnProgress
from kshot.data.source import TaskSource
from kshot.engine.distributed import resolve_device
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.record import Record, record_of
from kshot.evaluation.scores import Scores
from kshot.experiment.build import build_learner, open_split, resolve
from kshot.experiment.config import RunConfig


def evaluate_untrained(
    config: RunConfig,
    *,
    split: str = "meta_test",
    n_way: int | None = None,
    n_shot: int | None = None,
    n_query: int | None = None,
    n_episodes: int = 600,
    seed: int = 0,
    device: str = "auto",
    root: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_download: OnProgress | None = None,
    **extra: Any,
) -> tuple[Learner, TaskSource, Scores, Record]:
    """Evaluate a method that has nothing to train, such as the nearest neighbour.

    Args:
        config: names the method and the data, with their options.
        split: meta_train, meta_val or meta_test.
        n_way: W; 5 by default.
        n_shot: K.
        n_query: queries of each class.
        n_episodes: E.
        seed: of the episodes.
        device: where.
        root: the data root.
        on_progress: told (done, all) episodes.
        on_download: told of downloads, see ``kshot.data.catalog.open_source``.
        **extra: more keys of the record.

    Returns:
        The learner, the source, the scores and the record.

    Raises:
        UserError: the method has to be trained first, or does not fit the data.
    """
    if method(config.algorithm).learner.trained_on != "nothing":
        raise UserError(
            f"{config.algorithm} has to be trained first: kshot train {config.algorithm} --data {config.data} --out RUN"
        )
    shape = {"n_way": n_way, "n_shot": n_shot, "n_query": n_query}
    # There is no training that ranges and shares could shape: what is asked for is asked of the test.
    shape |= config.data_options
    source = open_split(config, split, root=root, on_progress=on_download, **shape).to(resolve_device(device))
    config = resolve(config, source.spec)
    learner = build_learner(config, source.spec).eval()
    scores = evaluate(learner, source, n_episodes=n_episodes, seed=seed, device=source.device, on_progress=on_progress)
    about = {"options": config.options, "data_options": config.data_options, **extra}
    return learner, source, scores, record_of(scores, learner, source, algorithm=config.algorithm, split=split, **about)
