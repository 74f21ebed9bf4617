"""The episode sampler: what every plan must hold, that draws are uniform, and its door."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kshot.core import UserError, generator
from kshot.data.sampler import EpisodeSampler


def shuffled_labels(counts: list[int], seed: int = 0) -> Tensor:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=generator(seed, "labels"))]


def sampler(counts: list[int], groups: list[int] | None = None, **options) -> EpisodeSampler:
    labels = shuffled_labels(counts)
    return EpisodeSampler(labels, torch.tensor(groups or [0] * len(counts)), **options)


def assert_uniform(counts: Tensor, what: str) -> None:
    """Hold Pearson's statistic of equal chances under its mean plus five standard deviations: seeds are fixed."""
    expected = counts.sum() / counts.numel()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.numel() - 1
    assert expected >= 20, "too few draws for the statistic"
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, what


@st.composite
def setups(draw: st.DrawFn) -> dict:
    n_way = draw(st.integers(1, 5))
    n_shot, n_query = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    least = n_shot + n_query
    counts = draw(st.lists(st.integers(least, least + 5), min_size=n_way, max_size=n_way + 6))
    groups = draw(st.lists(st.integers(0, 2), min_size=len(counts), max_size=len(counts)))
    fits = max(groups.count(g) for g in range(3)) >= n_way
    within_group = draw(st.sampled_from([0.0, 0.5, 1.0])) if fits else 0.0
    return {
        "counts": counts,
        "groups": groups,
        "n_way": n_way,
        "n_shot": n_shot,
        "n_query": n_query,
        "within_group": within_group,
    }


@settings(max_examples=60, deadline=None)
@given(setup=setups(), seed=st.integers(0, 2**31), n_tasks=st.integers(1, 6))
def test_every_task_has_distinct_classes_and_distinct_examples_of_them(setup: dict, seed: int, n_tasks: int) -> None:
    index = sampler(**setup).plan(n_tasks, generator(seed))
    labels = shuffled_labels(setup["counts"])
    n_way, n_each = setup["n_way"], setup["n_shot"] + setup["n_query"]
    assert index.shape == (n_tasks, n_way, n_each)
    for task in index:
        classes = labels[task]
        assert (classes == classes[:, :1]).all()
        assert classes[:, 0].unique().numel() == n_way
        assert task.unique().numel() == n_way * n_each
        if setup["within_group"] == 1:
            assert len({setup["groups"][c] for c in classes[:, 0].tolist()}) == 1


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(3, 12), min_size=6, max_size=12),
    ways=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted),
    shots=st.tuples(st.integers(1, 8), st.integers(1, 8)).map(sorted),
    within_group=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_varying_tasks_keep_within_their_ranges(
    counts: list[int], ways: list[int], shots: list[int], within_group: float, seed: int
) -> None:
    n_query, groups = 2, [c // 6 for c in range(len(counts))]
    counts = [max(count, shots[0] + n_query) for count in counts]
    tasks = sampler(
        counts,
        groups,
        n_way_range=(ways[0], ways[1]),
        n_shot_range=(shots[0], shots[1]),
        n_query=n_query,
        within_group=within_group,
    ).plan_varying(4, generator(seed))
    labels = shuffled_labels(counts)
    assert len(tasks) == 4
    for k, index in tasks:
        n_way, n_support = len(k), int(k.sum())
        support, query = labels[index[:n_support]], labels[index[n_support:]].view(n_way, n_query)
        classes = query[:, 0]
        assert ways[0] <= n_way <= ways[1]
        assert index.unique().numel() == index.numel() == n_support + n_way * n_query
        assert classes.unique().numel() == n_way
        assert torch.equal(query, classes[:, None].expand(-1, n_query))
        assert torch.equal(support, classes.repeat_interleave(k))
        for shot, c in zip(k.tolist(), classes.tolist(), strict=True):
            assert shots[0] <= shot <= min(shots[1], counts[c] - n_query)
        if within_group:
            assert len({groups[c] for c in classes.tolist()}) == 1


def test_classes_are_uniform_at_every_label_whatever_their_size() -> None:
    counts = [4, 4, 4, 30, 30, 4, 8, 8]
    index = sampler(counts, n_way=3, n_shot=1, n_query=3).plan(4000, generator(1))
    classes = shuffled_labels(counts)[index[..., 0]]
    for label in range(3):
        assert_uniform(classes[:, label].bincount(minlength=8), f"classes at label {label}")
    pairs = classes[:, 0] * 8 + classes[:, 1]
    distinct = [a * 8 + b for a in range(8) for b in range(8) if a != b]
    assert_uniform(pairs.bincount(minlength=64)[distinct], "ordered pairs of classes")


def test_examples_are_uniform_in_support_and_in_query() -> None:
    counts = [6, 9]
    index = sampler(counts, n_way=1, n_shot=1, n_query=2).plan(4000, generator(2))[:, 0]
    labels = shuffled_labels(counts)
    for place in range(3):
        drawn = index[:, place].bincount(minlength=15)
        for c in range(2):
            assert_uniform(drawn[labels == c], f"examples of class {c} at place {place}")


def test_within_group_is_the_share_of_confined_tasks_and_groups_are_uniform() -> None:
    groups = [0] * 3 + [1] * 10 + [2] * 2 + [3] * 20
    n_tasks = 3000
    labels = shuffled_labels([2] * 35)
    index = sampler([2] * 35, groups, n_way=3, n_shot=1, n_query=1, within_group=1.0).plan(n_tasks, generator(3))
    group = torch.tensor(groups)[labels[index[..., 0]]]
    assert (group == group[:, :1]).all()
    assert_uniform(group[:, 0].bincount(minlength=4)[[0, 1, 3]], "groups of enough classes")
    assert not (group == 2).any(), "a group of 2 classes cannot fill 3 ways"


def test_within_group_share_lies_between() -> None:
    # 40 groups of 2: free tasks fall into one group by chance 1 time in 79, far below the tolerance.
    groups = [c // 2 for c in range(80)]
    drawn = sampler([2] * 80, groups, n_way=2, n_shot=1, n_query=1, within_group=0.3).plan(4000, generator(4))
    group = torch.tensor(groups)[shuffled_labels([2] * 80)[drawn[..., 0]]]
    share = float((group[:, 0] == group[:, 1]).double().mean())
    expected = 0.3 + 0.7 / 79
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_varying_ways_and_shots_are_uniform_and_unequal_within_a_task() -> None:
    tasks = sampler([20] * 12, n_way_range=(2, 9), n_shot_range=(1, 10), n_query=5).plan_varying(3000, generator(5))
    assert_uniform(torch.tensor([len(k) - 2 for k, _ in tasks]).bincount(minlength=8), "ways")
    assert_uniform(torch.tensor([int(k[0]) - 1 for k, _ in tasks]).bincount(minlength=10), "shots")
    # All W shots of a task are equal in 1 task of 10^(W-1), in about 14 % of these at most.
    assert sum(len(set(k.tolist())) > 1 for k, _ in tasks) > 0.85 * len(tasks)


@pytest.mark.parametrize(
    "options", [{}, {"within_group": 0.5}, {"n_way_range": (1, 3)}, {"n_shot_range": (1, 3), "within_group": 0.5}]
)
def test_only_the_given_generator_decides(options: dict) -> None:
    s = sampler([6] * 9, [0] * 5 + [1] * 4, **({"n_way": 3, "n_shot": 2, "n_query": 2} | options))

    def drawn(seed: int) -> list:
        plan = s.plan_varying(20, generator(seed)) if s.varying else s.plan(20, generator(seed))
        return plan.tolist() if isinstance(plan, Tensor) else [(k.tolist(), index.tolist()) for k, index in plan]

    before = torch.get_rng_state()
    first = drawn(7)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == drawn(7)
    assert first != drawn(8)


def test_one_generator_goes_on() -> None:
    s, g = sampler([6] * 9, n_way=3, n_shot=2, n_query=2), generator(7)
    assert not torch.equal(s.plan(4, g), s.plan(4, g))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_way": 0}, "expected n_way .* at least 1, got 0"),
        ({"n_shot": 0}, "expected n_shot .* at least 1, got 0"),
        ({"n_query": -1}, "expected n_query .* at least 1, got -1"),
        ({"n_shot": 1.5}, "whole number"),
        ({"n_way": 7}, "n_way=7 classes, got 6; pass n_way=6"),
        ({"n_way_range": (2, 7)}, "n_way=7 classes, got 6"),
        ({"n_way_range": (3, 2)}, "n_way_range .* got \\(3, 2\\)"),
        ({"n_way_range": (0, 2)}, "n_way_range"),
        ({"n_shot_range": (1,)}, "n_shot_range"),
        ({"n_shot_range": (1, 2.5)}, "n_shot_range"),
        ({"n_shot": 3, "n_query": 3}, "3 \\+ 3 = 6 examples .* got 5 of class 'aleph'"),
        ({"n_shot_range": (3, 9), "n_query": 3}, "3 \\+ 3 = 6 examples .* got 5 of class 'aleph'"),
        ({"within_group": 1.1}, "within_group .* got 1.1"),
        ({"within_group": -0.1}, "within_group"),
        ({"within_group": float("nan")}, "within_group"),
        ({"n_way": 5, "within_group": 0.5}, "group of at least 5 classes .* largest has 4"),
        ({"n_way_range": (5, 6), "within_group": 0.5}, "group of at least 5 classes"),
    ],
)
def test_door_says_expected_got_and_what_to_do(options: dict, message: str) -> None:
    valid = {"n_way": 2, "n_shot": 1, "n_query": 1, "class_names": ["a", "b", "aleph", "d", "e", "f"]}
    with pytest.raises(UserError, match=message):
        sampler([9, 9, 5, 9, 9, 9], [0, 0, 0, 0, 1, 1], **(valid | options))


def test_door_refuses_labels_without_a_group() -> None:
    with pytest.raises(UserError, match=r"labels 0\.\.1"):
        EpisodeSampler(torch.tensor([0, 1, 2]), torch.tensor([0, 0]), n_way=1, n_shot=1, n_query=1)


def test_door_without_any_class() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(UserError, match="n_way=1 classes, got 0"):
        EpisodeSampler(nothing, nothing, n_way=1, n_shot=1, n_query=1)


def test_a_class_is_named_by_number_where_names_are_not_given() -> None:
    with pytest.raises(UserError, match="of class number 1"):
        sampler([9, 3], n_way=2, n_shot=2, n_query=2)


@pytest.mark.parametrize("n_tasks", [0, -1])
def test_no_plan_of_no_tasks(n_tasks: int) -> None:
    with pytest.raises(UserError, match="n_tasks"):
        sampler([4] * 3, n_way=2, n_query=1).plan(n_tasks, generator(0))
    with pytest.raises(UserError, match="n_tasks"):
        sampler([4] * 3, n_way_range=(1, 2), n_query=1).plan_varying(n_tasks, generator(0))


def test_a_varying_sampler_refuses_a_plan_of_one_shape() -> None:
    s = sampler([4] * 3, n_way_range=(1, 3), n_query=1)
    assert s.varying
    assert s.n_way == 3
    with pytest.raises(UserError, match="plan_varying"):
        s.plan(2, generator(0))
