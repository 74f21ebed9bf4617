"""Measures the rows of a recipe: tests of a trained run, and what its training itself tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kshot.core import Learner
from kshot.data.source import TaskSource
from kshot.evaluation.history import read_history
from kshot.evaluation.record import Record
from kshot.evaluation.scores import Scores
from kshot.evaluation.statistics import mean_ci95
from kshot.experiment.embedded import evaluate_embedded
from kshot.experiment.ensemble import Ensemble, with_views
from kshot.experiment.folder import run_config
from kshot.experiment.instances import by_instance, told
from kshot.experiment.recipes.recipe import Row
from kshot.experiment.recipes.standing import measure_head
from kshot.experiment.run import evaluate_run, load_run
from kshot.experiment.weights import best_together

#: Examples of each class in a sequence, as in the paper of MANN.
N_INSTANCES = 10


@dataclass(frozen=True)
class Milestone:
    """How many tasks a training had seen, or how long it had taken, when its validation first met a bound.

    Attributes:
        bound: a cost to fall below, or an accuracy to reach.
        mean: the number; infinite where it never did.
        ci95: 0, for there is one number.
        n_episodes: validations that there were.
        every: tasks, or seconds, between two validations, which is how finely it is known.
        metric: "sequences" or "seconds".
        normalisation: nothing.
        transductive: False.
    """

    bound: float
    mean: float
    n_episodes: int
    every: float
    metric: str = "sequences"
    ci95: float = 0.0
    normalisation: str = "none"
    transductive: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the milestone as a JSON object.

        Returns:
            A new dict; ``mean`` is None where the bound was never met.
        """
        return {**asdict(self), "mean": self.mean if math.isfinite(self.mean) else None}


def measure(row: Row, runs: Sequence[Path], root: Path | None) -> Record | Milestone:
    """Measure one row of one training, or of several that answer together.

    Args:
        row: what is asked.
        runs: the run folder; several for a row "together".
        root: the data root.

    Returns:
        The record of a test; or, for a row "until" a cost or "reached" accuracy, when its validation met it. Of a row
        with "excess" the number is what it costs more than the best possible answers, each sequence beside itself; of a
        row with "instance", accuracy at that example of a class, of ten. On the challenge of Omniglot the interval is
        one over its ten alphabets.
    """
    test, run = dict(row.test), runs[0]
    if "head" in test:
        return measure_head(row, run, root)
    if "until" in test:
        return milestone(run, test["until"])
    if "reached" in test:
        return seconds_until(run, test["reached"])
    steps, excess, instance, best = (test.pop(name, None) for name in ("steps", "excess", "instance", "best"))
    if instance is not None:
        return _at_instance(instance, test, run, root)
    options = {"n_inner_steps_eval": steps} if steps else None
    scorer = _scorer(test.pop("views", 1), runs if test.pop("together", False) else (), root)
    if best:
        scorer, test["steps_together"] = best_together(run, best, scorer)
    *_, scores, record = evaluate_run(run, options=options, root=root, scorer=scorer, **test)
    return _over_the_best(record, scores) if excess else record


def _over_the_best(record: Record, scores: Scores) -> Record:
    over = scores.per_episode[scores.metric] - scores.per_episode[f"optimal_{scores.metric}"]
    found = mean_ci95(over)
    kept = {k: v for k, v in record.extra.items() if k != "per_episode"} | {scores.metric: record.mean}
    return replace(record, metric=f"excess_{scores.metric}", mean=found.mean, ci95=found.ci95, extra=kept)


def _scorer(n_views: int, runs: Sequence[Path], root: Path | None) -> Callable[..., Scores]:
    def score(learner: Learner, source: TaskSource, **asked: Any) -> Scores:
        members = [learner, *(load_run(run, root=root)[1] for run in runs[1:])]
        looking = [with_views(member, n_views) for member in members]
        return evaluate_embedded(Ensemble(looking) if len(looking) > 1 else looking[0], source, **asked)

    return score


_OF_EPISODES = ("per_episode", "calibration_bins", "ece", "nll", "brier")


def _at_instance(instance: int, test: dict[str, Any], run: Path, root: Path | None) -> Record:
    learner, source, _, record = evaluate_run(run, root=root, **{**test, "n_episodes": 2})
    found = by_instance(learner, source, N_INSTANCES, n_episodes=test["n_episodes"])
    at = mean_ci95(found.scores(instance).per_episode["accuracy"])
    # Of the two episodes before, which are there to load the run, nothing may stay.
    kept = {k: v for k, v in told(record, found).extra.items() if k not in _OF_EPISODES}
    kept["episodes_sha256"] = found.fingerprint
    n_episodes, seconds = test["n_episodes"], round(found.seconds, 3)
    return replace(record, mean=at.mean, ci95=at.ci95, n_episodes=n_episodes, seconds=seconds, extra=kept)


def milestone(run: Path, below: float) -> Milestone:
    """Find when the validation of a run first fell below a bound.

    Args:
        run: the run folder.
        below: the bound, of an error or cost.

    Returns:
        The number of tasks, as finely as the run was validated.
    """
    config = run_config(run)
    tasks = config.task.n_tasks * config.train.accumulate
    # The trainer keeps costs with their sign turned.
    costs = [(step, -value) for step, value in read_history(run / "metrics.csv").validation]
    reached = [step * tasks for step, cost in costs if cost < below]
    return Milestone(below, min(reached, default=math.inf), len(costs), config.train.validate_every * tasks)


def seconds_until(run: Path, accuracy: float) -> Milestone:
    """Find how long a run had trained when its validation first reached an accuracy.

    Args:
        run: the run folder.
        accuracy: the bound.

    Returns:
        The seconds by the clock, validations and the choice of the fastest way among them.
    """
    history = read_history(run / "metrics.csv")
    seconds, scores = dict(history.seconds), history.validation
    reached = [seconds[step] for step, value in scores if value >= accuracy and step in seconds]
    total = max(seconds.values(), default=0.0)
    mean = min(reached, default=math.inf)
    return Milestone(accuracy, mean, len(scores), total / max(1, len(scores)), metric="seconds")
