"""Sequence tasks: every channel and mark where the paper has it, by plain loops; lengths, ranges, bad sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kshot.core import Episode, Spec, UserError, generator
from kshot.core.checks import check_episode
from kshot.core.episode import n_tasks, select, unbind
from kshot.data import AssociativeRecall, Copy, NGrams, PrioritySort, RepeatCopy, dataset, datasets, open_source
from kshot.data.loader import EpisodeLoader
from kshot.data.sequences import SequenceSource
from kshot.data.sequences.ngrams import optimal_probabilities
from kshot.evaluation.metrics import bits as cost

ALL = [Copy, RepeatCopy, AssociativeRecall, NGrams, PrioritySort]


def drawn(source: SequenceSource, n: int = 4, seed: int = 0) -> tuple[dict[str, Tensor], Episode]:
    plan = source.draw(n, generator(seed))
    return plan, source.episodes(plan)


def numbers(t: Tensor) -> list:
    return [[float(v) for v in row] for row in t]


def row(width: int, **marks: float) -> list[float]:
    made = [0.0] * width
    for channel, value in marks.items():
        made[int(channel[1:])] = value
    return made


def test_copy() -> None:
    plan, episodes = drawn(Copy())
    for bits, (support, query) in zip(plan["bits"], unbind(episodes), strict=True):
        expected = [[*vector, 0.0] for vector in numbers(bits)]
        assert numbers(support.x) == [*expected, row(9, c8=1.0)]
        assert numbers(query.x) == [row(9)] * len(bits)
        assert numbers(query.y) == numbers(bits)


def test_repeat_copy() -> None:
    source = RepeatCopy(min_length=3, max_length=3, min_repeats=4, max_repeats=4)
    plan, episodes = drawn(source)
    # Four copies, less the mean of 1..10, over their deviation.
    shown = (4 - 5.5) / math.sqrt(sum((r - 5.5) ** 2 for r in range(1, 11)) / 10)
    for bits, (support, query) in zip(plan["bits"], unbind(episodes), strict=True):
        vectors = [[*vector, 0.0] for vector in numbers(bits)]
        assert numbers(support.x)[:3] == vectors
        assert numbers(support.x)[3] == pytest.approx(row(9, c8=shown))
        assert numbers(query.x) == [row(9)] * 13
        assert numbers(query.y) == [*vectors * 4, row(9, c8=1.0)]
    beyond = RepeatCopy(min_length=1, max_length=1, min_repeats=20, max_repeats=20)
    assert float(drawn(beyond)[1].support.x[0, 1, 8]) == pytest.approx(14.5 / math.sqrt(8.25))


def test_associative_recall() -> None:
    plan, episodes = drawn(AssociativeRecall(min_items=4, max_items=4), 50)
    assert set(plan["shown"].tolist()) == {0, 1, 2}
    for items, shown, (support, query) in zip(plan["items"], plan["shown"].tolist(), unbind(episodes), strict=True):
        lists = [[[*vector, 0.0, 0.0] for vector in numbers(item)] for item in items]
        expected = [step for item in lists for step in (row(8, c6=1.0), *item)]
        assert numbers(support.x) == [*expected, row(8, c7=1.0), *lists[shown], row(8, c7=1.0)]
        assert numbers(query.x) == [row(8)] * 3
        assert numbers(query.y) == numbers(items[shown + 1])


def test_ngrams_show_each_bit_after_it_was_asked() -> None:
    plan, episodes = drawn(NGrams())
    for bits, (support, query) in zip(plan["bits"], unbind(episodes), strict=True):
        assert numbers(support.x) == [[0.0]]
        assert query.y[:, 0].tolist() == bits.bool().tolist()
        assert query.x[:, 0].tolist() == [0.0, *bits[:-1].float().tolist()]


def test_priority_sort() -> None:
    plan, episodes = drawn(PrioritySort())
    for bits, priority, (support, query) in zip(plan["bits"], plan["priority"], unbind(episodes), strict=True):
        pairs = sorted(zip(priority.tolist(), numbers(bits), strict=True), reverse=True)
        assert numbers(support.x[:, :8]) == numbers(bits)
        assert support.x[:, 8].tolist() == priority.tolist()
        assert numbers(query.x) == [row(9)] * 16
        assert numbers(query.y) == [vector for _, vector in pairs[:16]]
    many = PrioritySort().draw(500, generator(0))["priority"]
    assert -1 <= float(many.min()) < -0.99 < 0.99 < float(many.max()) <= 1


@pytest.mark.parametrize("make", ALL)
def test_what_holds_for_all(make: Callable[[], SequenceSource]) -> None:
    source = make()
    assert source.spec.kind == "sequence"
    assert (source.sha256, source.classes, source.varying) == ("", None, False)
    assert datasets()[source.name].kind == "sequence"
    plan, episodes = drawn(source, 3)
    for episode in unbind(episodes):
        check_episode(episode, source.spec)
    assert episodes.support.y.shape == (*episodes.support.x.shape[:2], 0)
    assert episodes.support.x.shape[1] <= source.n_shot
    assert episodes.query.x.shape[1] <= source.n_query
    # A part of a plan is the same part of the episodes; another seed, another plan.
    part = source.episodes({k: t[1:2] for k, t in plan.items()})
    assert torch.equal(part.support.x[0], episodes.support.x[1])
    assert torch.equal(part.query.y[0], episodes.query.y[1])
    again, other = drawn(source, 3)[1], drawn(source, 3, seed=1)[1]
    assert torch.equal(again.query.y, episodes.query.y)
    assert other.query.y.shape != episodes.query.y.shape or not torch.equal(other.query.y, episodes.query.y)


def test_settings_of_the_paper() -> None:
    specs = {make.name: (make().spec, make().n_shot, make().n_query) for make in ALL}
    assert specs == {
        "copy": (Spec("sequence", (9,), 8), 21, 20),
        "repeat_copy": (Spec("sequence", (9,), 9), 11, 101),
        "associative_recall": (Spec("sequence", (8,), 6), 29, 3),
        "ngrams": (Spec("sequence", (1,), 1), 1, 200),
        "priority_sort": (Spec("sequence", (9,), 8), 20, 16),
    }


LENGTHS = {"copy": range(2, 22), "repeat_copy": range(2, 12), "associative_recall": range(13, 30, 4)}


@pytest.mark.parametrize("name", LENGTHS)
def test_training_has_one_length_a_batch_and_tests_have_all(name: str) -> None:
    standard = {"n_way": 5, "n_shot": 1, "n_query": 15}
    train, test = (open_source(name, split, **standard) for split in ("meta_train", "meta_test"))
    assert (train.varying, test.varying) == (False, True)
    loader = EpisodeLoader(train, 4, seed=0)
    batches = [next(loader) for _ in range(200)]
    assert all(isinstance(b, Episode) and n_tasks(b) == 4 for b in batches)
    assert {b.support.x.shape[1] for b in batches if isinstance(b, Episode)} == set(LENGTHS[name])
    plans = test.plan(200, generator(0))
    assert {test.episodes(p).support.x.shape[1] for p in plans} == set(LENGTHS[name])
    assert n_tasks(test.episodes(plans[0])) == 1


def test_one_size_is_a_rectangular_batch_in_tests_too() -> None:
    for name, entry in datasets().items():
        if entry.growth is None:
            continue
        options = dict.fromkeys(entry.growth.options, entry.growth.values[-1])
        source = open_source(name, "meta_test", n_way=5, n_shot=1, n_query=15, **options)
        assert not source.varying
        assert n_tasks(source.episodes(source.plan(2, generator(0)))) == 2
    assert dataset("sinusoid").growth is None


def test_the_optimal_estimator_is_the_mean_of_the_posterior() -> None:
    """Against an integral over the table's entry, by brute force on a grid: Beta(1/2, 1/2) times the likelihood."""
    bits = NGrams(n_bits=60, context_bits=2).draw(1, generator(0))["bits"][0].tolist()
    angles = [(i + 0.5) / 4000 * math.pi / 2 for i in range(4000)]
    grid = [math.sin(a) ** 2 for a in angles]  # equal steps of the angle have equal mass under Beta(1/2, 1/2)
    got = optimal_probabilities(torch.tensor([bits]), 2)[0].tolist()
    assert got[:2] == [0.5, 0.5]
    for t in range(2, 60):
        before = [bits[i] for i in range(2, t) if bits[i - 2 : i] == bits[t - 2 : t]]
        weights = [p ** sum(before) * (1 - p) ** (len(before) - sum(before)) for p in grid]
        mean = sum(p * w for p, w in zip(grid, weights, strict=True)) / sum(weights)
        assert got[t] == pytest.approx(mean, abs=1e-6)


def test_probabilities_of_ngrams_have_their_distribution() -> None:
    """Of a table entry from Beta(1/2, 1/2), two bits agree with probability E[p^2 + (1-p)^2] = 3/4.

    The first two bits behind each context are taken, for contexts that return often would weigh more.
    """
    firsts = []
    for sequence in NGrams(n_bits=400).draw(200, generator(0))["bits"].tolist():
        seen: dict[tuple, list[int]] = {}
        for i in range(5, 400):
            seen.setdefault(tuple(sequence[i - 5 : i]), []).append(sequence[i])
        firsts += [values[0] == values[1] for values in seen.values() if len(values) > 1]
    assert sum(firsts) / len(firsts) == pytest.approx(0.75, abs=0.02)


def test_fewer_bits_decide_in_some_sequences() -> None:
    """With one to two bits that decide, the bit before the last says nothing in half of the sequences."""
    source = NGrams(n_bits=3000, context_bits=2, min_context_bits=1)
    episodes = source.episodes(source.plan(200, generator(0)))
    assert source.optimal(episodes) is None  # Nobody is told how many.
    silent = 0
    for bits in episodes.query.y[..., 0].long():
        before, last, following = bits[:-2], bits[1:-1], bits[2:].double()
        rates = [[following[(before == a) & (last == b)].mean() for a in (0, 1)] for b in (0, 1)]
        silent += all(abs(float(one - other)) < 0.15 for one, other in rates)
    # Two entries of Beta(1/2, 1/2) are as near as that by chance in a fifth of all cases, two pairs in a twentieth.
    assert 85 <= silent <= 125


def test_the_best_possible_answers_cost_what_the_paper_shows() -> None:
    source = NGrams()
    episodes = source.episodes(source.plan(300, generator(0)))
    costs = cost(source.optimal(episodes), episodes.query.y)
    assert 130 < float(costs.mean()) < 135  # its figure 13 draws the line a little above 130
    assert Copy().optimal(drawn(Copy())[1]) is None


def test_the_best_possible_answers_use_no_later_bit() -> None:
    bits = NGrams().draw(2, generator(0))["bits"]
    other = bits.clone()
    other[:, 120:] = 1 - other[:, 120:]
    same, moved = optimal_probabilities(bits), optimal_probabilities(other)
    assert torch.equal(same[:, :121], moved[:, :121])
    assert not torch.equal(same[:, 121:], moved[:, 121:])
    assert optimal_probabilities(bits[:, :3]).tolist() == [[0.5] * 3] * 2


BAD: list[tuple[Callable[..., SequenceSource], dict[str, int], str]] = [
    (Copy, {"min_length": 0}, "1 <= min_length <= max_length, got 0 and 20"),
    (Copy, {"min_length": 9, "max_length": 8}, "got 9 and 8"),
    (Copy, {"n_bits": 0}, "n_bits of at least 1, got 0"),
    (RepeatCopy, {"min_repeats": 0}, "1 <= min_repeats <= max_repeats, got 0 and 10"),
    (AssociativeRecall, {"min_items": 1}, "2 <= min_items <= max_items, got 1 and 6"),
    (AssociativeRecall, {"item_length": 0}, "item_length of at least 1"),
    (NGrams, {"n_bits": 0}, "n_bits of at least 1"),
    (NGrams, {"context_bits": 0}, "context_bits of at least 1"),
    (NGrams, {"context_bits": 3, "min_context_bits": 4}, "min_context_bits of 0 to 3"),
    (PrioritySort, {"n_asked": 21}, "n_asked <= n_vectors, got 21 and 20; ask fewer or show more"),
]


@pytest.mark.parametrize(("make", "options", "message"), BAD)
def test_sizes_that_make_no_sense(make: Callable[..., SequenceSource], options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)


def test_no_tasks() -> None:
    for make, one in itertools.product((Copy, NGrams), (0, -1)):
        with pytest.raises(UserError, match="n_tasks of at least 1"):
            make().plan(one, generator(0))


def test_select_keeps_the_empty_targets() -> None:
    assert select(drawn(Copy())[1], 0).support.y.shape[1:] == (0,)
