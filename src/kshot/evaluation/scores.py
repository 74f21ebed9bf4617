"""What an evaluation found: one number per episode, from which means, intervals and comparisons are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.core import Kind, UserError
from kshot.evaluation.metrics import calibration_error
from kshot.evaluation.statistics import Comparison, Estimate, mean_ci95, over_seeds, paired


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one learner on E episodes.

    Attributes:
        metric: name of the main number, see ``metric_of``.
        per_episode: name -> float64 (E,): "accuracy", "nll" and "brier"; "mse"; or "bits" and "wrong_bits".
        bins: (3, B) calibration bins summed over all episodes (see ``metrics.confidence_bins``); None without classes.
        seed: of the episodes.
        seconds: wall time of the evaluation, sampling included.
        fingerprint: hash of the episodes' plans; equal where and only where two evaluations saw identical episodes.
        run_length: how many episodes in a row share their classes. Intervals are over such runs, by Student's t.
    """

    metric: str
    per_episode: dict[str, Tensor]
    bins: Tensor | None
    seed: int
    seconds: float
    fingerprint: str
    run_length: int = 1

    @property
    def runs(self) -> Tensor | None:
        """The main number of each run, (R,); None where episodes are independent, or all of one run."""
        return self.runs_of(self.metric)

    @property
    def n_episodes(self) -> int:
        """Number of episodes E."""
        return len(self.per_episode[self.metric])

    @property
    def estimate(self) -> Estimate:
        """The main metric's mean with its 95% interval over episodes, or over runs."""
        return self.estimate_of(self.metric)

    @property
    def ece(self) -> float | None:
        """Expected calibration error over all queries; None without classes."""
        return None if self.bins is None else calibration_error(self.bins)

    def estimate_of(self, name: str) -> Estimate:
        """Return the mean and interval of one of the scores.

        Args:
            name: a key of ``per_episode``.

        Returns:
            The estimate.

        Raises:
            UserError: no such score, or fewer than two episodes.
        """
        if name not in self.per_episode:
            raise UserError(f"unknown score {name!r}; this evaluation has {', '.join(self.per_episode)}")
        return estimate_in_runs(self.per_episode[name], self.run_length)

    def runs_of(self, name: str) -> Tensor | None:
        """Average a score over runs of episodes that share their classes.

        Args:
            name: a key of ``per_episode``.

        Returns:
            (R,), the last of which may be of fewer episodes; None where episodes are independent, or all of one run.
        """
        return means_of_runs(self.per_episode[name], self.run_length)


class Curve(NamedTuple):
    """A score against a number that varies, such as shots or inner steps.

    Attributes:
        along: what varies: "shots", "inner steps", or what a data set grows in.
        metric: see ``metric_of``.
        x: its values, ascending.
        estimates: the score at each of them.
    """

    along: str
    metric: str
    x: tuple[int, ...]
    estimates: tuple[Estimate, ...]


def means_of_runs(values: Tensor, run_length: int) -> Tensor | None:
    """Average numbers over runs of episodes that share their classes.

    Args:
        values: (E,) one number an episode.
        run_length: episodes of a run.

    Returns:
        (R,), the last of which may be of fewer episodes; None where episodes are independent, or all of one run.
    """
    if run_length == 1 or len(values) <= run_length:
        return None
    return torch.stack([run.mean() for run in values.split(run_length)])


def estimate_in_runs(values: Tensor, run_length: int) -> Estimate:
    """Mean over episodes with its 95% interval: over runs, where episodes come in such.

    Args:
        values: (E,) one number an episode.
        run_length: episodes of a run; 1 where all are independent.

    Returns:
        The estimate. Episodes of one run alone count as independent: no more can be told from them.
    """
    runs = means_of_runs(values, run_length)
    if runs is None:
        return mean_ci95(values)
    found = over_seeds(runs)
    # A last run that is cut short counts in the mean for the episodes that it has.
    return found._replace(mean=float(values.mean())) if len(values) % run_length else found


def metric_of(kind: Kind) -> str:
    """Name the main number of a kind of task.

    Args:
        kind: see ``kshot.core.Spec``.

    Returns:
        "accuracy", "mse" for regression, "bits" (per sequence) for sequences.
    """
    return {"regression": "mse", "sequence": "bits"}.get(kind, "accuracy")


def higher_is_better(metric: str) -> bool:
    """Tell which way a metric improves.

    Args:
        metric: its name.

    Returns:
        True for accuracy, False for errors and losses.
    """
    return metric == "accuracy"


def compare(first: Scores, second: Scores, name: str | None = None) -> Comparison:
    """Compare two learners that were evaluated on identical episodes.

    Args:
        first: scores of one learner.
        second: scores of the other.
        name: which score; the main metric if None.

    Returns:
        First minus second; where episodes come in runs that share their classes, over runs.

    Raises:
        UserError: the episodes are not identical, or one has no such score.
    """
    name = name or first.metric
    if first.fingerprint != second.fingerprint:
        raise UserError(
            "a paired comparison needs identical episodes, got two different sets; "
            "evaluate both on the same data with the same seed, ways, shots, queries and number of episodes"
        )
    missing = [s.metric for s in (first, second) if name not in s.per_episode]
    if missing:
        raise UserError(f"both evaluations need the score {name!r}, got one of {missing[0]}; compare like with like")
    a, b = (s.per_episode[name] if (runs := s.runs_of(name)) is None else runs for s in (first, second))
    return paired(a, b)
