"""Own data, measured: what ``fit`` gives on public sets, over several draws of the shots, run by ``kshot reproduce``.

The test split is used to measure and for nothing else. Everything that is chosen (head, strength, temperature,
threshold) is chosen on the shots.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import Tensor

from kshot.core import UserError
from kshot.core.registry import unknown
from kshot.estimator.calibrate import probabilities
from kshot.estimator.coverage import COVERAGE
from kshot.estimator.public_sets import read_banking, read_clinc, read_orl
from kshot.estimator.trial import Features, Trial, TrialRow, auroc, ece
from kshot.estimator.trials_whole import WHOLE

#: The error rate at which unknowns are told, in the rows about them.
RATE = 0.05


def _accuracy(p: Tensor, y: Tensor) -> float:
    return float((p.argmax(1) == y).double().mean())


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
    COVERAGE,
    Trial(
        "banking77",
        "BANKING77, 77 intents, all-MiniLM-L6-v2",
        _FROZEN + "K random training sentences an intent; measured on the 3,080 test sentences. The names of the "
        "intents count as one more shot where that helps on shots left out. Encoding apart.",
        tuple(_text_rows()),
        read_banking,
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
        read_clinc,
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
        read_orl,
        _orl,
        n_draws=50,
    ),
    *WHOLE,
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
