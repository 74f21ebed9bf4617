"""Distances and skeletons, against slow ones written from the definitions."""

import pytest
import torch
from torch import Tensor

from kshot.core import UserError, generator
from kshot.data.strokes import distance, skeleton


def blots(n: int, side: int, stream: str) -> Tensor:
    """Random smooth shapes of various thickness, bool (n, side, side)."""
    noise = torch.rand(n, 1, side, side, generator=generator(0, "blots", stream))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)[:, 0] > 0.5


def test_distance_is_that_to_the_nearest_pixel_of_ink_up_to_the_limit() -> None:
    # 130 pictures, so that they do not fit one pass.
    ink = torch.rand(130, 12, 17, generator=generator(0, "ink")) < 0.03
    places = torch.cartesian_prod(torch.arange(12), torch.arange(17)).double()
    for one, found in zip(ink, distance(ink, 6), strict=True):
        between = torch.cdist(places, places[one.flatten()])
        nearest = between.amin(1) if between.shape[1] else torch.full((len(places),), 99.0)
        # float32 against float64 square roots of the same whole numbers
        assert torch.allclose(found.flatten().double(), nearest.clamp(max=6), atol=1e-6)


def test_distance_of_no_pictures() -> None:
    assert distance(torch.zeros(0, 4, 4, dtype=torch.bool), 3).shape == (0, 4, 4)


def thinned_pixel_by_pixel(ink: Tensor) -> Tensor:
    grid = {(y, x) for y, x in ink.nonzero().tolist() if 0 < y < ink.shape[0] - 1 and 0 < x < ink.shape[1] - 1}
    clockwise = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    changed = True
    while changed:
        changed = False
        for turned in (False, True):
            gone = set()
            for y, x in grid:
                ring = [(y + dy, x + dx) in grid for dy, dx in clockwise]
                if turned:
                    ring = ring[4:] + ring[:4]
                north, _, east, southeast, south, _, west, _ = ring
                rises = sum(not ring[i] and ring[(i + 1) % 8] for i in range(8))
                convex = east and southeast and south and sum(ring) == 3
                if 2 <= sum(ring) <= 6 and rises == 1 and not (east and south and (north or west)) and not convex:
                    gone.add((y, x))
            grid -= gone
            changed |= bool(gone)
    bones = torch.zeros_like(ink)
    for y, x in grid:
        bones[y, x] = True
    return bones


@pytest.mark.parametrize("side", [20, 64])
def test_skeleton_is_that_of_pixel_by_pixel_thinning(side: int) -> None:
    ink = blots(3, side, "skeleton")
    assert torch.equal(skeleton(ink), torch.stack([thinned_pixel_by_pixel(one) for one in ink]))


def test_a_thick_bar_becomes_a_line_of_one_pixel() -> None:
    ink = torch.zeros(1, 20, 40, dtype=torch.bool)
    ink[0, 7:12, 4:36] = True
    bones = skeleton(ink)[0]
    assert bones.any(0).sum() >= 26
    assert bool((bones.sum(0) <= 1).all())


def test_every_separate_piece_of_ink_leaves_something() -> None:
    ink = torch.zeros(6, 16, 16, dtype=torch.bool)
    for size in range(1, 7):
        ink[size - 1, 5 : 5 + size, 5 : 5 + size] = True
    assert bool(skeleton(ink).any(2).any(1).all())


def test_too_wide_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="at most 64 columns, got 65"):
        skeleton(torch.zeros(1, 8, 65, dtype=torch.bool))
