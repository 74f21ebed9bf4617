"""Own data, measured: what ``fit`` gives on public sets, over several draws of the shots, run by ``kshot reproduce``.

Features are frozen and cached on disk; the test split is used to measure and for nothing else. Everything that is
chosen (head, strength, temperature, threshold) is chosen on the shots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.apps.text.intents import banking77, clinc150, draw_shots
from kshot.apps.vision.faces import orl_faces
from kshot.core import OnProgress, UserError, generator
from kshot.core.registry import unknown
from kshot.estimator.calibrate import probabilities
from kshot.estimator.encode import encode
from kshot.estimator.encoders import make_encoder
from kshot.estimator.fit import ONE_SHOT_HEAD, ONE_SHOT_HEADS, Fit, fit
from kshot.estimator.names import spoken
from kshot.evaluation.metrics import calibration_error, confidence_bins
from kshot.evaluation.provenance import commit, environment
from kshot.evaluation.statistics import over_seeds

SCHEMA = 1
#: The error rate at which unknowns are told, in the rows about them.
RATE = 0.05


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


Measure = Callable[[Features, int], dict[str, float]]


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
    read: Callable[[Path | None, OnProgress | None], Features]
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


def _accuracy(p: Tensor, y: Tensor) -> float:
    return float((p.argmax(1) == y).double().mean())


def _encode(kind: str, examples: Sequence[Any], on_progress: OnProgress | None) -> Tensor:
    return encode(make_encoder("auto", kind), examples, on_progress=on_progress)


def _read_banking(root: Path | None, on_progress: OnProgress | None) -> Features:
    data = banking77(root)
    z, test = (_encode("text", x, on_progress) for x in (data.train_x, data.test_x))
    return Features(z, data.train_y, test, data.test_y, names=_names(data.class_names))


def _read_clinc(root: Path | None, on_progress: OnProgress | None) -> Features:
    data = clinc150(root)
    z, test, outside = (_encode("text", x, on_progress) for x in (data.train_x, data.test_x, data.outside_x))
    return Features(z, data.train_y, test, data.test_y, outside, _names(data.class_names))


def _names(classes: Sequence[str]) -> Tensor:
    return _encode("text", [spoken(name) for name in classes], None)


def _read_orl(root: Path | None, on_progress: OnProgress | None) -> Features:
    pictures, people = orl_faces(root)
    names = sorted(set(people))
    z, y = _encode("image", pictures, on_progress), torch.tensor([names.index(p) for p in people])
    return Features(z, y, one_shot_head=ONE_SHOT_HEADS["image"])


def _banking(features: Features, seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for k in (1, 5, 10):
        z, y, test_z, test_y = features.draw(k, seed)
        start = time.perf_counter()
        model = features.fit(z, y, seed)
        found[f"{k}-shot, seconds of fit"] = time.perf_counter() - start
        p = model.probabilities(test_z)
        raw = probabilities(model.head.logits(test_z), 1.0)
        unnamed = features.fit(z, y, seed, named=False).probabilities(test_z)
        found |= {
            f"{k}-shot accuracy": _accuracy(p, test_y),
            f"{k}-shot accuracy, names of intents left out": _accuracy(unnamed, test_y),
            f"{k}-shot calibration error": ece(p, test_y),
            f"{k}-shot calibration error, raw softmax": ece(raw, test_y),
        }
    return found


def _clinc(features: Features, seed: int) -> dict[str, float]:
    z, y, test_z, test_y = features.draw(10, seed)
    model = features.fit(z, y, seed)
    if features.outside_z is None:
        raise ValueError("this measure needs examples of no class")
    inside, outside = (model.familiarity.strangeness(x) for x in (test_z, features.outside_z))
    at_rate = float(inside.double().quantile(1 - RATE))
    return {
        "accuracy in scope": _accuracy(model.probabilities(test_z), test_y),
        "AUROC": auroc(inside, outside),
        "recall at 5% false alarm": float((outside > at_rate).double().mean()),
        "recall at the stated rate of 5%": float((model.p_values(features.outside_z) <= RATE).double().mean()),
        "false alarm at the stated rate of 5%": float((model.p_values(test_z) <= RATE).double().mean()),
    }


def _orl(features: Features, seed: int) -> dict[str, float]:
    found = {}
    for k in (1, 3, 5):
        z, y, test_z, test_y = features.draw(k, seed)
        model = features.fit(z, y, seed)
        found[f"{k} photograph{'s' * (k > 1)}"] = _accuracy(model.probabilities(test_z), test_y)
    return found


def _text_rows() -> Iterator[TrialRow]:
    for k, least, beside in ((1, None, ""), (5, 0.80, "logistic head 80.7"), (10, 0.86, "logistic head 86.3")):
        yield TrialRow(f"{k}-shot accuracy", "accuracy", least, beside)
        yield TrialRow(f"{k}-shot accuracy, names of intents left out", "accuracy")
        yield TrialRow(f"{k}-shot calibration error", "ece", 0.04 if k == 10 else None)
        yield TrialRow(f"{k}-shot calibration error, raw softmax", "ece")
        yield TrialRow(f"{k}-shot, seconds of fit", "seconds")


_FROZEN = "Frozen encoder; head, strength and temperature chosen by leave-one-out on the shots. "
_TRIALS = (
    Trial(
        "banking77",
        "BANKING77, 77 intents, all-MiniLM-L6-v2",
        _FROZEN + "K random training sentences an intent; measured on the 3,080 test sentences. The names of the "
        "intents count as one more shot where that helps on shots left out. Encoding apart.",
        tuple(_text_rows()),
        _read_banking,
        _banking,
    ),
    Trial(
        "clinc150",
        "CLINC150, 150 intents and out of scope, all-MiniLM-L6-v2",
        _FROZEN + "10 random training sentences an intent; measured on 4,500 test sentences and 1,000 out of scope, of "
        "which nothing was seen before.",
        (
            TrialRow("accuracy in scope", "accuracy", 0.90, "logistic head 90.2"),
            TrialRow("AUROC", "auroc", 0.955, "energy 0.961, largest cosine 0.959, nearest neighbours 0.950"),
            TrialRow("recall at 5% false alarm", "share"),
            TrialRow("recall at the stated rate of 5%", "share"),
            TrialRow("false alarm at the stated rate of 5%", "share"),
        ),
        _read_clinc,
        _clinc,
    ),
    Trial(
        "orl-faces",
        "ORL faces, 40 people, EfficientNet-Lite0",
        _FROZEN + "K random photographs a person; measured on the others.",
        (
            TrialRow("1 photograph", "accuracy", 0.86, "prototypes 86.0, pixels 69.0"),
            TrialRow("3 photographs", "accuracy", 0.95, "prototypes 95.3, pixels 86.1"),
            TrialRow("5 photographs", "accuracy", 0.97, "prototypes 96.9, pixels 91.1"),
        ),
        _read_orl,
        _orl,
        n_draws=50,
    ),
)


def trials() -> dict[str, Trial]:
    """Return every trial by name.

    Returns:
        A new dict.
    """
    return {trial.name: trial for trial in _TRIALS}


def trial(name: str) -> Trial:
    """Return one trial.

    Args:
        name: its name.

    Returns:
        The trial.

    Raises:
        UserError: no such trial.
    """
    if name not in trials():
        raise UserError(unknown("trial", name, list(trials())))
    return trials()[name]
