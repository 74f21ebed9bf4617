"""Nearest neighbour and modified Hausdorff distance by plain loops, and drawings without ink."""

import pytest
import torch

from kshot.algorithms import Hausdorff, Nearest
from kshot.core import Spec, Split, UserError
from kshot.testing import synthetic_episode

SPEC = Spec("classification", (1, 9, 9), 3)


def test_nearest_neighbour() -> None:
    one = synthetic_episode(SPEC, n_shot=[1, 2, 3])
    learner = Nearest()
    got = learner.predict(learner.adapt(one.support), one.query.x)
    for q, x in enumerate(one.query.x):
        for c in range(3):
            distances = [((x - s) ** 2).sum() for s, y in zip(one.support.x, one.support.y, strict=True) if int(y) == c]
            torch.testing.assert_close(got[q, c], -min(distances), rtol=1e-9, atol=1e-9)


def ink(image: torch.Tensor, threshold: float) -> list[tuple[float, float]]:
    points = [(i, j) for i in range(9) for j in range(9) if float(image[0, i, j]) > threshold]
    centre = [sum(p[a] for p in points) / len(points) for a in (0, 1)]
    return [(i - centre[0], j - centre[1]) for i, j in points]


def directed(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> float:
    return sum(min(((i - k) ** 2 + (j - m) ** 2) ** 0.5 for k, m in b) for i, j in a) / len(a)


def test_modified_hausdorff_distance() -> None:
    one, threshold = synthetic_episode(SPEC, n_shot=2, n_query=4), 0.55
    got = Hausdorff(threshold=threshold)
    answers = got.predict(got.adapt(one.support), one.query.x)
    for q, x in enumerate(one.query.x):
        for c in range(3):
            distances = []
            for s, y in zip(one.support.x, one.support.y, strict=True):
                a, b = ink(x, threshold), ink(s, threshold)
                distances += [max(directed(a, b), directed(b, a))] if int(y) == c else []
            assert float(answers[q, c]) == pytest.approx(-min(distances), rel=1e-9)
    # The other order of the loop, where there are fewer queries than drawings in the support.
    alone = got.predict(got.adapt(one.support), one.query.x[:2])
    torch.testing.assert_close(alone, answers[:2])


def test_few_points_are_spread_over_all_of_the_ink() -> None:
    learner, image = Hausdorff(max_points=10), torch.ones(1, 1, 10, 10)
    points = learner.points(image)
    assert int(points.ink.sum()) == 10
    rows = points.at[0, :, 0][points.ink[0] == 1]
    assert sorted(rows.tolist()) == [r - 4.5 for r in range(10)]


def test_a_blank_drawing_is_far_from_all_ink_and_near_other_blanks() -> None:
    learner = Hausdorff()
    drawn = torch.zeros(1, 1, 9, 9)
    drawn[0, 0, 2, 2:6] = 1
    blank = torch.zeros(1, 1, 9, 9)
    state = learner.adapt(Split(torch.cat([drawn, blank]), torch.tensor([0, 1]), 2))
    assert learner.predict(state, blank).tolist() == [[-18.0, 0.0]]
    assert learner.predict(state, drawn).tolist() == [[0.0, -18.0]]


def test_what_has_no_ink_is_refused() -> None:
    with pytest.raises(UserError, match="compares drawings: expected images"):
        Hausdorff().adapt(Split(torch.rand(3, 5), torch.arange(3), 3))
    with pytest.raises(UserError, match="max_points >= 1 and a threshold of 0 to 1, got 0"):
        Hausdorff(max_points=0)
