"""Calibration, unknowns, expected accuracy, audit: against formulas and known answers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.estimator.test_heads import shots

from kshot.core import generator
from kshot.estimator.audit import doubtful_labels, label_next, near_duplicates
from kshot.estimator.calibrate import calibrated_loss, fit_temperature, log_loss, probabilities
from kshot.estimator.expected import LEARNING_RATE, expected_accuracy, learning_rate, wilson
from kshot.estimator.held_out import HeldOut, folds
from kshot.estimator.unknown import SHRINKAGE, Familiarity, held_out_strangeness, p_values, smallest_rate


def answers(n=4000, scale=3.0, seed=0):
    """Logits whose softmax is the truth, times a scale."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 4, generator=g, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=g).squeeze(1)
    return HeldOut(torch.arange(n), scale * logits, labels)


@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0])
def test_temperature_undoes_a_wrong_scale(scale):
    assert fit_temperature(answers(scale=scale)) == pytest.approx(scale, rel=0.06)


def test_temperature_is_where_the_loss_is_least():
    found = answers(200)
    t = fit_temperature(found)
    assert calibrated_loss(found) == log_loss(found, t)
    least = log_loss(found, t, platt=True)
    assert all(log_loss(found, t * f, platt=True) > least for f in (0.9, 0.99, 1.01, 1.1))


def test_a_perfect_record_is_no_certainty():
    logits = torch.eye(3).repeat(4, 1)  # twelve shots, all told right by the same margin
    found = HeldOut(torch.arange(12), logits, logits.argmax(1))
    p = probabilities(logits, fit_temperature(found)).max(1).values
    torch.testing.assert_close(p, torch.full((12,), 13 / 14, dtype=torch.float64), rtol=1e-3, atol=0)


def test_classes_weigh_the_same_in_the_loss():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    got = log_loss(HeldOut(torch.arange(4), logits, torch.tensor([0, 0, 0, 1])), 1.0)
    assert got == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2)


def test_probabilities_sum_to_one_even_for_huge_logits():
    p = probabilities(torch.tensor([[1e6, 0.0, -1e6]]), 1e-3)
    assert p.tolist() == [[1.0, 0.0, 0.0]]


def test_strangeness_is_the_relative_mahalanobis_distance():
    z, y = shots()
    found = Familiarity.of(z, y, 4)
    u = torch.nn.functional.normalize(torch.nn.functional.normalize(z) - found.centre)
    means = torch.stack([u[y == c].mean(0) for c in range(4)])

    def inverse(r, freedom):
        s = r.T @ r / freedom
        return torch.linalg.inv((1 - SHRINKAGE) * s + SHRINKAGE * s.trace() / 5 * torch.eye(5, dtype=s.dtype))

    within, overall = inverse(u - means[y], len(y) - 4), inverse(u - u.mean(0), len(y) - 1)
    near = torch.stack([((u - m) @ within * (u - m)).sum(1) for m in means], 1).min(1).values
    far = ((u - u.mean(0)) @ overall * (u - u.mean(0))).sum(1)
    torch.testing.assert_close(found.strangeness(z), near - far)


def test_what_belongs_nowhere_is_stranger():
    z, y = shots(d=20, spread=0.2)
    g = torch.Generator().manual_seed(5)
    other = torch.randn(50, 20, generator=g, dtype=torch.float64)
    parts = folds(y, generator(0, "folds"))
    reference = held_out_strangeness(z, y, 4, parts)
    p = p_values(Familiarity.of(z, y, 4).strangeness(other), reference)
    assert float((p <= smallest_rate(reference) + 1e-9).double().mean()) > 0.9


def test_one_shot_of_each_class_vouches_for_nothing():
    z, y = shots()[0][[0, 6]], torch.arange(2)
    assert bool(torch.isfinite(Familiarity.of(z, y, 2).strangeness(z)).all())
    assert len(held_out_strangeness(z, y, 2, [])) == 0
    three = torch.cat([z, z[:1] + 0.1])
    assert len(held_out_strangeness(three, torch.tensor([0, 1, 0]), 2, [torch.tensor([2])])) == 0
    assert p_values(torch.tensor([1e9]), torch.zeros(0)).tolist() == [1.0]
    assert float(p_values(torch.ones(1), torch.zeros(19))) <= 0.05  # exactly, not a rounding above it


def test_p_values_count():
    reference = torch.tensor([0.0, 1.0, 2.0, 3.0])
    p = p_values(torch.tensor([-1.0, 0.0, 0.5, 3.0, 4.0]), reference)
    assert p.tolist() == pytest.approx([1.0, 1.0, 0.8, 0.4, 0.2])
    assert smallest_rate(reference) == pytest.approx(0.2)


@given(st.integers(0, 10_000))
def test_the_error_rate_holds_on_average(seed):
    # Exchangeable scores: p is at most alpha with probability at most alpha; here all orders at once.
    scores = torch.rand(20, generator=torch.Generator().manual_seed(seed))
    p = torch.stack([p_values(scores[i : i + 1], scores[torch.arange(20) != i].sort().values) for i in range(20)])
    for alpha in (0.05, 0.1, 0.5):
        assert float((p <= alpha + 1e-6).double().mean()) <= alpha + 1e-6


def test_wilson():
    # Brown, Cai, DasGupta 2001: 0 of 10, and the textbook example of 10 of 50.
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert wilson(0.2, 50) == pytest.approx((0.11244, 0.33037), abs=1e-4)


def test_expected_accuracy_allows_for_the_shot_left_out():
    labels = torch.arange(2).repeat_interleave(50)
    logits = torch.nn.functional.one_hot(labels, 2).double()
    logits[:10] = logits[:10].flip(1)  # ten errors in class 0
    found = expected_accuracy(HeldOut(torch.arange(100), logits, labels), n_shots=2.0)
    assert found.accuracy == pytest.approx(1 - 0.1 * math.sqrt(0.5))
    assert found.low < 0.9 < found.accuracy < found.high
    assert found.n == 100
    many = expected_accuracy(HeldOut(torch.arange(100), logits, labels), n_shots=1000.0)
    assert many.accuracy == pytest.approx(0.9, abs=1e-3)


def _with_errors(n):
    labels = torch.arange(2).repeat_interleave(50)
    logits = torch.nn.functional.one_hot(labels, 2).double()
    logits[:n] = logits[:n].flip(1)
    return HeldOut(torch.arange(100), logits, labels)


def test_learning_rate_is_the_power_of_the_errors():
    assert learning_rate(_with_errors(20), _with_errors(10), 1.0, 2.0) == pytest.approx(1.0)
    assert learning_rate(_with_errors(20), _with_errors(10), 1.0, 4.0) == pytest.approx(0.5)
    assert learning_rate(_with_errors(40), _with_errors(0), 1.0, 2.0) == 2.0
    assert learning_rate(_with_errors(10), _with_errors(20), 1.0, 2.0) == 0.25
    assert learning_rate(_with_errors(4), _with_errors(1), 1.0, 2.0) == LEARNING_RATE


def test_expected_accuracy_follows_the_rate():
    found = expected_accuracy(_with_errors(20), 4.0, n_seen=2.0, rate=1.0)
    assert found.accuracy == pytest.approx(0.9)
    assert found.high > expected_accuracy(_with_errors(20), 4.0, n_seen=2.0, rate=0.5).high


def test_expected_accuracy_of_a_perfect_record_is_no_certainty():
    labels = torch.arange(2).repeat_interleave(5)
    found = expected_accuracy(HeldOut(torch.arange(10), torch.nn.functional.one_hot(labels, 2).double(), labels), 5.0)
    assert found.accuracy == 1.0
    assert found.low == pytest.approx(1 - 0.27753, abs=1e-4)
    assert found.high == 1.0


def test_a_wrong_label_is_in_doubt():
    z, y = shots(n=10, d=8, spread=0.1)
    wrong = y.clone()
    wrong[3] = 2
    from kshot.estimator.fit import fit

    found = fit(z, wrong, 4).doubts
    assert [(d.index, d.label, d.instead) for d in found] == [(3, 2, 0)]
    assert found[0].other > found[0].own
    assert fit(z, y, 4).doubts == []


def test_doubts_leave_uncertain_shots_alone():
    flat = HeldOut(torch.arange(4), torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))
    assert doubtful_labels(flat, 1.0, 2) == []


def test_near_duplicates_are_pairs_once_each():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(6, 30, generator=g)
    z[4] = 2 * z[1]
    z[5] = z[0] + 0.05 * torch.randn(30, generator=g)
    found = near_duplicates(z)
    assert [(p.first, p.second) for p in found] == [(1, 4), (0, 5)]
    assert found[0].similarity == pytest.approx(1.0)
    assert len(near_duplicates(z, most=1)) == 1


def test_label_next_asks_about_what_is_uncertain_and_not_twice():
    p = torch.tensor([[0.5, 0.5], [0.51, 0.49], [0.99, 0.01], [0.6, 0.4]])
    u = torch.tensor([[1.0, 0.0], [1.0, 0.001], [0.0, 1.0], [-1.0, 0.0]])
    assert label_next(p.log(), u, 2) == [0, 3]
    assert sorted(label_next(p.log(), u, 99)) == [0, 1, 2, 3]


def test_label_next_weighs_margins_and_distances():
    p = torch.softmax(torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).double(), 1)
    u = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(2)).double(), dim=1)
    top = p.sort(1, descending=True).values
    chosen: list[int] = []
    for _ in range(8):
        far = [min([1.0] + [1 - float(u[i] @ u[j]) for j in chosen]) for i in range(40)]
        gain = [-1.0 if i in chosen else float(1 - top[i, 0] + top[i, 1]) * far[i] for i in range(40)]
        chosen.append(max(range(40), key=lambda i: gain[i]))
    assert label_next(p.log() + 3, u, 8) == chosen


def test_label_next_tells_answers_apart_that_look_certain():
    margins = torch.tensor([900.0, 300.0, 40.0, 700.0])
    logits = torch.stack([margins, torch.zeros(4), torch.full((4,), -2000.0)], 1).double()
    assert logits.softmax(1)[:, 0].tolist() == [1.0] * 4
    assert label_next(logits, torch.eye(4), 4) == [2, 1, 3, 0]
