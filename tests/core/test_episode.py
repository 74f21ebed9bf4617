"""Splits and episodes: taking batches apart and putting them together."""

import pytest
import torch
from hypothesis import given

from kshot.core import Episode, Split, UserError
from kshot.core.episode import n_tasks, select, stack, to, unbind
from kshot.core.tree import leaves
from kshot.testing import synthetic_episode
from kshot.testing.strategies import batches
from kshot.testing.synthetic import SPECS


def episode(n_way: int | None = 2, x: float = 0.0) -> Episode:
    split = Split(torch.full((2, 3), x), torch.tensor([0, 1]), n_way)
    return Episode(split, split)


def test_ways_is_given_or_counted() -> None:
    assert episode(7).support.ways() == 7
    assert episode(None).support.ways() == 2
    with pytest.raises(UserError, match="regression"):
        synthetic_episode(SPECS["regression"]).support.ways()


@given(batches())
def test_stack_undoes_unbind(batch: Episode) -> None:
    single = list(unbind(batch))
    assert len(single) == n_tasks(batch)
    again = stack(single)
    assert [s.n_way for s in again] == [s.n_way for s in batch]
    assert all(torch.equal(a, b) for a, b in zip(leaves(tuple(again)), leaves(tuple(batch)), strict=True))


def test_select_by_slice_keeps_the_task_axis() -> None:
    batch = stack([episode(x=float(i)) for i in range(3)])
    assert select(batch, slice(1, 3)).support.x[:, 0, 0].tolist() == [1, 2]
    assert select(batch, 2).query.x.shape == (2, 3)
    assert select(batch, 2).query.x.data_ptr() == batch.query.x[2].data_ptr()


def test_nested_inputs_are_stacked() -> None:
    parts = [
        Episode(*[Split({"a": torch.ones(2, i), "b": torch.ones(2)}, torch.arange(2), 2) for i in (1, 3)])
        for _ in range(4)
    ]
    batch = stack(parts)
    assert batch.support.x["a"].shape == (4, 2, 1)
    assert batch.query.x["a"].shape == (4, 2, 3)
    assert select(batch, 0).support.x["b"].shape == (2,)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(UserError, match="at least one episode"):
        stack([])
    small = Episode(episode().support, Split(torch.zeros(1, 3), torch.tensor([0]), 2))
    with pytest.raises(UserError, match=r"equal shapes.*2 kinds.*lists"):
        stack([episode(), small])
    with pytest.raises(UserError, match="n_way"):
        stack([episode(2), episode(3)])


def test_to_changes_floats_only() -> None:
    moved = to(episode(), "cpu", torch.float64)
    assert moved.support.x.dtype == torch.float64
    assert moved.support.y.dtype == torch.int64
    assert moved.support.n_way == 2
    assert to(episode(), "cpu").support.x.dtype == torch.float32
