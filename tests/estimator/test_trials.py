"""Trials on own data: the measures against their definitions, the draws, the verdicts."""

import pytest
import torch
from tests.estimator.test_heads import shots

from kshot.cli.reproduce import TRIALS
from kshot.core import UserError
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
