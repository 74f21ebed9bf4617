from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.core import UserError
from kshot.evaluation import metrics


def logits_of(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logits whose softmax is the given rows."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_known_scores_of_two_queries():
    logits, y = logits_of((0.8, 0.2), (0.6, 0.4)), torch.tensor([0, 1])

    assert metrics.accuracy(logits, y).item() == 0.5
    assert metrics.nll(logits, y).item() == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    # (0.2^2 + 0.2^2 + 0.6^2 + 0.6^2) / 2
    assert metrics.brier(logits, y).item() == pytest.approx(0.4)


def test_mse_means_over_queries_and_width():
    prediction = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert metrics.mse(prediction, torch.zeros(2, 2)).item() == pytest.approx((1 + 4 + 9 + 16) / 4)


def test_an_ignorant_learner_scores_log_w():
    y = torch.arange(5)
    assert metrics.nll(torch.zeros(5, 5), y).item() == pytest.approx(math.log(5))


@pytest.mark.parametrize("score", [metrics.accuracy, metrics.nll, metrics.brier])
def test_leading_axes_are_scored_one_by_one(score):
    g = torch.Generator().manual_seed(1)
    logits, y = torch.randn(4, 2, 6, 3, generator=g), torch.randint(0, 3, (4, 2, 6), generator=g)

    together = score(logits, y)

    assert together.shape == (4, 2)
    assert together[3, 1].item() == pytest.approx(score(logits[3, 1], y[3, 1]).item())


def test_calibration_error_by_hand():
    # Bins of 0.1: three answers of 0.95 with two right, one of 0.55 that is wrong.
    logits = logits_of((0.95, 0.05), (0.95, 0.05), (0.95, 0.05), (0.55, 0.45))
    y = torch.tensor([0, 0, 1, 1])

    bins = metrics.confidence_bins(logits, y, n_bins=10)

    assert bins[0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    expected = 3 / 4 * abs(0.95 - 2 / 3) + 1 / 4 * abs(0.55 - 0)
    assert metrics.calibration_error(bins) == pytest.approx(expected)


def test_bins_are_closed_above_and_a_sure_answer_is_in_the_last():
    logits = torch.tensor([[0.0, 0.0], [50.0, -50.0]], dtype=torch.float64)  # confidences 0.5 and 1
    count = metrics.confidence_bins(logits, torch.tensor([0, 0]), n_bins=4)[0]
    assert count.tolist() == [0, 1, 0, 1]


def test_pooling_bins_is_not_averaging_errors():
    # Each episode alone is off by 0.5 (one right, one wrong, both at 0.5); together they are calibrated.
    right, wrong = (metrics.confidence_bins(logits_of((0.5, 0.5)), torch.tensor([label])) for label in (0, 1))

    assert metrics.calibration_error(right) == pytest.approx(0.5)
    assert metrics.calibration_error(right + wrong) == pytest.approx(0.0)


def test_reliability_table_rows():
    bins = metrics.confidence_bins(logits_of((0.9, 0.1), (0.9, 0.1)), torch.tensor([0, 1]), n_bins=2)
    empty, full = metrics.reliability_table(bins)

    assert (empty.n_queries, empty.confidence, empty.accuracy) == (0, None, None)
    assert (full.lower, full.upper, full.n_queries, full.accuracy) == (0.5, 1.0, 2, 0.5)
    assert full.confidence == pytest.approx(0.9)


def test_no_queries_no_calibration_error():
    with pytest.raises(UserError, match="at least one query"):
        metrics.calibration_error(torch.zeros(3, 15))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 30))
def test_bins_hold_every_query_and_bound_the_error(seed, n_way, n_query):
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n_query, n_way, generator=g, dtype=torch.float64)
    y = torch.randint(0, n_way, (n_query,), generator=g)

    bins = metrics.confidence_bins(logits, y)

    assert bins[0].sum().item() == n_query
    assert bins[2].sum().item() == pytest.approx(n_query * metrics.accuracy(logits, y).item())
    assert 0 <= metrics.calibration_error(bins) <= 1
