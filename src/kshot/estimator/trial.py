"""What a trial is: a public set, draws of the shots, and the numbers that come out, with their intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.apps.text.intents import draw_shots
from kshot.core import OnProgress, generator
from kshot.estimator.fit import ONE_SHOT_HEAD, Fit, fit
from kshot.evaluation.metrics import calibration_error, confidence_bins
from kshot.evaluation.provenance import commit, environment
from kshot.evaluation.statistics import over_seeds

SCHEMA = 1


@dataclass(frozen=True)
class TrialRow:
    """One number.

    Attributes:
        name: what is measured.
        metric: "accuracy", "ece", "auroc", "share" or "seconds".
        least: the least that we ask; for "ece" and "seconds" the most; None for a number that stands beside it.
        beside: what others measured, in words.
    """

    name: str
    metric: str
    least: float | None = None
    beside: str = ""

    def passed(self, mean: float) -> bool | None:
        """Judge a measured mean.

        Args:
            mean: the number.

        Returns:
            Whether the least is reached; None where none is asked.
        """
        if self.least is None:
            return None
        return mean <= self.least if self.metric in ("ece", "seconds") else mean >= self.least


class Features(NamedTuple):
    """A data set, encoded.

    Attributes:
        z: embeddings to draw shots from, (N, D).
        y: int64 (N,).
        test_z: embeddings to measure on; None to measure on what was not drawn.
        test_y: their labels.
        outside_z: embeddings of no class.
        names: embedded names of the classes.
        one_shot_head: see ``kshot.estimator.fit``.
    """

    z: Tensor
    y: Tensor
    test_z: Tensor | None = None
    test_y: Tensor | None = None
    outside_z: Tensor | None = None
    names: Tensor | None = None
    one_shot_head: str = ONE_SHOT_HEAD

    def fit(self, z: Tensor, y: Tensor, seed: int, *, named: bool = True) -> Fit:
        """Fit to drawn shots.

        Args:
            z: their embeddings.
            y: their labels.
            seed: of the folds.
            named: False to leave the names of the classes out.

        Returns:
            The classifier.
        """
        names = self.names if named else None
        return fit(z, y, int(y.max()) + 1, seed=seed, names=names, one_shot_head=self.one_shot_head)

    def draw(self, n_shot: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw shots, and give what to measure on.

        Args:
            n_shot: K.
            seed: of the draw.

        Returns:
            z, y of the shots; z, y of the test.
        """
        shots = draw_shots(self.y, n_shot, generator(seed, "shots"))
        if self.test_z is not None and self.test_y is not None:
            return self.z[shots], self.y[shots], self.test_z, self.test_y
        rest = torch.ones(len(self.y), dtype=torch.bool)
        rest[shots] = False
        return self.z[shots], self.y[shots], self.z[rest], self.y[rest]


#: What was read, and the seed of a draw -> row name -> number.
Measure = Callable[[Any, int], dict[str, float]]


@dataclass(frozen=True)
class Trial:
    """A public data set and what is measured on it.

    Attributes:
        name: what one types.
        title: what it is.
        protocol: what one must know to compare.
        rows: the numbers.
        read: reads and encodes the data under a root.
        measure: measures one draw: row name -> number.
        n_draws: draws of the shots.
    """

    name: str
    title: str
    protocol: str
    rows: tuple[TrialRow, ...]
    read: Callable[[Path | None, OnProgress | None], Any]
    measure: Measure
    n_draws: int = 3


def run_trial(
    trial: Trial,
    *,
    n_draws: int = 0,
    root: Path | None = None,
    on_progress: OnProgress | None = None,
    on_draw: OnProgress | None = None,
) -> dict[str, Any]:
    """Measure a trial.

    Args:
        trial: which.
        n_draws: draws of the shots, seeds 0, 1, ...; 0 for the trial's own number.
        root: the data root.
        on_progress: told of the encoding.
        on_draw: told how many draws are done.

    Returns:
        The result, as it is written under ``benchmarks/quality``.
    """
    features = trial.read(root, on_progress)
    draws = n_draws or trial.n_draws
    measured = []
    for seed in range(draws):
        measured.append(trial.measure(features, seed))
        if on_draw:
            on_draw(seed + 1, draws)
    rows = []
    for row in trial.rows:
        values = [m[row.name] for m in measured]
        mean = sum(values) / len(values)
        rows.append(
            {
                "name": row.name,
                "metric": row.metric,
                "least": row.least,
                "beside": row.beside,
                "passed": row.passed(mean),
                "mean": mean,
                "ci95_draws": over_seeds(values).ci95 if len(values) > 1 else None,
                "values": values,
            }
        )
    return {
        "schema": SCHEMA,
        "recipe": trial.name,
        "paper": trial.title,
        "protocol": trial.protocol,
        "command": f"kshot reproduce {trial.name} --draws {draws}",
        "seeds": list(range(draws)),
        "commit": commit(),
        "environment": environment("cpu"),
        "rows": rows,
    }


def ece(p: Tensor, y: Tensor) -> float:
    """Give the expected calibration error.

    Args:
        p: probabilities (N, C).
        y: int64 (N,).

    Returns:
        The error over 15 bins of equal width.
    """
    return calibration_error(confidence_bins(p.log().float(), y))


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Give the chance that an outside example scores higher than an inside one, ties counting half.

    Args:
        inside: scores (N,).
        outside: scores (M,).

    Returns:
        The area under the curve.
    """
    ordered = inside.sort().values
    below = torch.searchsorted(ordered, outside.contiguous())
    not_above = torch.searchsorted(ordered, outside.contiguous(), right=True)
    return float((below + not_above).double().mean() / 2 / len(inside))
