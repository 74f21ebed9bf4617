"""What a recipe is made of: the settings of a training, and the numbers that are asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kshot.evaluation.scores import higher_is_better
from kshot.experiment.config import RunConfig


@dataclass(frozen=True)
class Row:
    """One number of a paper.

    Attributes:
        name: what is measured.
        published: the paper's number, a share of 1, an error or bits; None where the paper has none.
        least: the least that we ask of ourselves; None for a number that stands beside it.
        source: where the published number was read.
        test: how ``evaluate_run`` is called, beside what ``kshot.experiment.recipes.measure`` knows: "steps" (inner
            ones), "until" (a cost in validation), "reached" (an accuracy there, by the clock), "excess" (over the best
            possible), "instance" (of a class), "head" (another method on the network of the run), "views" (of each
            image), "together" (the runs of all seeds answer as one) or "best" (so many validations of a run do).
        over_seeds: what stands for several trainings: their mean, their median, or the largest number.
    """

    name: str
    published: float | None
    least: float | None
    source: str
    test: dict[str, Any] = field(default_factory=dict)
    over_seeds: Literal["mean", "median", "largest"] = "mean"


@dataclass(frozen=True)
class Recipe:
    """How to repeat a published result.

    Attributes:
        name: what one types.
        paper: the reference.
        config: the settings of training.
        rows: the numbers.
        protocol: what one must know to compare: who sees what, and what differs from the paper.
        stands_on: name of the recipe whose runs it tests, with the same settings of training; its own if empty.
        starts_from: the recipe whose runs its own start from, seed by seed; they are trained first.
    """

    name: str
    paper: str
    config: RunConfig
    rows: tuple[Row, ...]
    protocol: str
    stands_on: str = ""
    starts_from: Recipe | None = None


def verdict(row: Row, metric: str, mean: float) -> bool | None:
    """Judge a measured number against the least that is asked.

    Args:
        row: what is asked.
        metric: of the number.
        mean: what was measured.

    Returns:
        True or False; None where nothing is asked.
    """
    if row.least is None:
        return None
    return mean >= row.least if higher_is_better(metric) else mean <= row.least
