"""Sequences are scored in bits: by closed forms, beside the best possible answers, and reported as what they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kshot.core import Episode, Learner, Spec, Split, UserError
from kshot.data import Copy, NGrams
from kshot.evaluation import evaluate
from kshot.evaluation.draw import Draw
from kshot.evaluation.evaluate import optimal_score
from kshot.evaluation.metrics import bits, wrong_bits
from kshot.evaluation.record import read_record, record_of
from kshot.evaluation.report import wording
from kshot.evaluation.scores import higher_is_better, metric_of


class Remembers(Learner):
    """Copies what it read, sure to a degree; or forgets, and gives even odds."""

    kinds = ("sequence",)

    def __init__(self, odds: float = 3.0) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(math.log(odds)))

    def adapt(self, support: Split) -> Tensor:
        return support.x[:-1, :-1]

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return self.sure * (2 * state - 1)


def test_the_cost_of_a_sequence_in_bits() -> None:
    y = torch.tensor([[True, False], [True, True]])
    logits = torch.tensor([[3.0, 1.0], [1.0, 1 / 7]], dtype=torch.float64).log()
    # Odds of 3 to 1, and twice even, and 1 to 7: -log2 of 3/4, 1/2, 1/2 and 1/8.
    assert float(bits(logits, y)) == pytest.approx(-math.log2(0.75) + 1 + 1 + 3)
    assert float(wrong_bits(logits, y)) == 3 - 1  # even odds count as a zero
    both = torch.stack([logits, -logits])
    assert bits(both, y.expand_as(both)).shape == wrong_bits(both, y.expand_as(both)).shape == (2,)
    huge = torch.tensor([[1e4]], dtype=torch.float64)
    assert float(bits(huge, torch.tensor([[False]]))) == pytest.approx(1e4 / math.log(2))


def test_an_evaluation_sums_over_each_sequence() -> None:
    source = Copy(max_length=4, n_bits=2, one_length=False)
    scores = evaluate(Remembers(3.0), source, n_episodes=70)
    lengths = torch.cat([torch.full((len(e.query.y),), e.query.y.shape[1]) for _, e in Draw(source, 70, 0).chunks(16)])
    assert set(lengths.tolist()) == {1, 2, 3, 4}
    assert scores.metric == "bits"
    expected = lengths.double() * 2 * math.log2(4 / 3)
    torch.testing.assert_close(scores.per_episode["bits"], expected, rtol=1e-6, atol=0)
    assert scores.per_episode["wrong_bits"].tolist() == [0.0] * 70
    assert scores.bins is None
    wrong = evaluate(Remembers(1 / 3), source, n_episodes=70)
    assert torch.equal(wrong.per_episode["wrong_bits"], lengths.double() * 2)
    assert wrong.estimate.mean > scores.estimate.mean
    assert not higher_is_better(scores.metric)


class Even(Remembers):
    """Knows nothing."""

    def adapt(self, support: Split) -> Tensor:
        return support.x

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return x * 0 * self.sure


def test_the_best_possible_answers_are_scored_beside_the_learner() -> None:
    scores = evaluate(Even(), NGrams(), n_episodes=64)
    assert scores.estimate.mean == pytest.approx(200)
    assert 125 < scores.estimate_of("optimal_bits").mean < 140
    assert "optimal_bits" not in evaluate(Remembers(), Copy(), n_episodes=4).per_episode


def test_a_record_of_sequences(tmp_path) -> None:
    learner, source = Remembers(), Copy(min_length=3, max_length=3)
    record = record_of(
        evaluate(learner, source, n_episodes=8), learner, source, algorithm="remembers", split="meta_test"
    )
    record.write(tmp_path / "r.json")
    assert read_record(tmp_path / "r.json") == record
    assert (record.n_way, record.n_shot, record.n_query, record.metric) == (None, 4, 3, "bits")
    assert record.mean == pytest.approx(24 * math.log2(4 / 3))
    assert record.extra["wrong_bits"] == 0
    assert wording.task_and_queries(record) == wording.task(record) == "sequences of up to 4 steps read, 3 asked"
    assert wording.metric_name(record.metric) == "bits per sequence"


def test_kinds_have_their_metric() -> None:
    assert [metric_of(kind) for kind in ("classification", "regression", "sequence")] == ["accuracy", "mse", "bits"]


def test_other_widths_are_refused() -> None:
    learner = Remembers()
    learner.spec = Spec("sequence", (9,), 8)
    evaluate(learner, Copy(max_length=2), n_episodes=2)
    with pytest.raises(UserError, match=r"built for sequence of inputs \(9,\), got sequence of \(7,\)"):
        evaluate(learner, Copy(n_bits=6), n_episodes=2)
    learner.spec = Spec("sequence", (9,), 7)
    with pytest.raises(UserError, match="built for 7 outputs, got tasks with 8; choose such data, or train another"):
        evaluate(learner, Copy(), n_episodes=2)


def test_bits_are_not_given_where_none_is_asked() -> None:
    class Asks(Copy):
        def episodes(self, plan) -> Episode:
            support, query = super().episodes(plan)
            return Episode(support._replace(y=query.y[:, :1].expand(-1, support.x.shape[1], -1)), query)

    with pytest.raises(UserError, match="nothing is asked while a sequence is read"):
        evaluate(Remembers(), Asks(), n_episodes=2)


def test_the_best_possible_is_scored_without_a_learner() -> None:
    source = NGrams(n_bits=30)
    beside = evaluate(Even(), source, n_episodes=20, seed=3).estimate_of("optimal_bits").mean
    assert optimal_score(source, n_episodes=20, seed=3) == pytest.approx(beside)
    assert optimal_score(Copy(), n_episodes=4, seed=0) is None
