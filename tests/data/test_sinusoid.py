"""Sinusoid tasks: the published distribution, fresh points in support and query."""

import math

import pytest
import torch
from torch import Tensor

from kshot.core import Spec, UserError, generator
from kshot.core.checks import check_episode
from kshot.core.episode import unbind
from kshot.data.sinusoid import Sinusoid


def assert_uniform_between(values: Tensor, low: float, high: float) -> None:
    """Compare with U[low, high] by the largest gap of distribution functions; seeds are fixed."""
    assert float(values.min()) >= low
    assert float(values.max()) <= high
    ranks = (values.flatten().double().sort().values - low) / (high - low)
    n = ranks.numel()
    gap = float((ranks - (torch.arange(n) + 0.5) / n).abs().max())
    assert gap < 2 / math.sqrt(n), "Kolmogorov's statistic passes 2 / sqrt(n) 1 time in 1,500"


def test_shapes_and_spec() -> None:
    source = Sinusoid(n_shot=5, n_query=100)
    episodes = source.episodes(source.plan(3, generator(0)))
    assert source.spec == Spec("regression", (1,), 1)
    assert (source.name, source.sha256, source.classes, source.varying) == ("sinusoid", "", None, False)
    assert episodes.support.x.shape == episodes.support.y.shape == (3, 5, 1)
    assert episodes.query.x.shape == episodes.query.y.shape == (3, 100, 1)
    assert episodes.support.n_way is None
    assert episodes.query.x.dtype == torch.float32
    for episode in unbind(episodes):
        check_episode(episode, source.spec)


def test_points_lie_on_the_planned_curve() -> None:
    source = Sinusoid(n_shot=4, n_query=6)
    plan = source.plan(7, generator(1))
    for task, episode in enumerate(unbind(source.episodes(plan))):
        amplitude, phase = float(plan["amplitude"][task]), float(plan["phase"][task])
        for x, y in zip(
            torch.cat([episode.support.x, episode.query.x]),
            torch.cat([episode.support.y, episode.query.y]),
            strict=True,
        ):
            # float32: five digits of a value of at most 5.
            assert math.isclose(float(y), amplitude * math.sin(float(x) - phase), abs_tol=5e-6)


def test_amplitude_phase_and_places_are_uniform_in_the_published_ranges() -> None:
    plan = Sinusoid(n_shot=1, n_query=1).plan(4000, generator(2))
    assert_uniform_between(plan["amplitude"], 0.1, 5.0)
    assert_uniform_between(plan["phase"], 0.0, math.pi)
    assert_uniform_between(plan["x"][:, 0], -5.0, 5.0)
    assert_uniform_between(plan["x"][:, 1], -5.0, 5.0)
    together = torch.stack([plan["amplitude"], plan["phase"], plan["x"][:, 0], plan["x"][:, 1]])
    correlation = torch.corrcoef(together) - torch.eye(4)
    assert float(correlation.abs().max()) < 4 / math.sqrt(4000), "draws are independent"


def test_query_points_are_other_points_than_the_support() -> None:
    source = Sinusoid(n_shot=10, n_query=10)
    episodes = source.episodes(source.plan(20, generator(3)))
    assert not (episodes.support.x == episodes.query.x.transpose(1, 2)).any()


def test_same_generator_same_tasks() -> None:
    source = Sinusoid()
    first, again, other = (source.plan(3, generator(seed)) for seed in (4, 4, 5))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("sizes", [{"n_shot": 0}, {"n_query": 0}, {"n_query": -3}])
def test_door_refuses_no_points(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(sizes))} of at least 1 point"):
        Sinusoid(**sizes)


def test_door_refuses_no_tasks() -> None:
    with pytest.raises(UserError, match="n_tasks of at least 1, got 0"):
        Sinusoid().plan(0, generator(0))
