"""Drawings of a shape: pens, print, and where the ink may be."""

import pytest
import torch
from torch import Tensor

from kshot.core import generator
from kshot.data.distort import KNOBS, Shapes, drawings, shapes_of
from kshot.data.strokes import distance, skeleton


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    """A cross, a ring, and two dots far apart."""
    images = torch.zeros(3, 64, 64, dtype=torch.uint8)
    images[0, 29:35, 8:56] = images[0, 8:56, 29:35] = 255
    middle = (torch.arange(64) - 31.5) ** 2
    radius = (middle[:, None] + middle).sqrt()
    images[1, (radius > 18) & (radius < 24)] = 255
    images[2, 29:35, 8:14] = images[2, 29:35, 50:56] = 255
    return shapes_of(images, distance(skeleton(images >= 128), 12), reach=12)


def knobs(n: int, *stream: str | int) -> Tensor:
    return torch.rand(n, KNOBS, generator=generator(0, "knobs", *stream))


def test_a_shape_is_measured(shapes: Shapes) -> None:
    assert shapes.half_box.tolist() == [[24, 24], [24, 24], [24, 3]]
    # Lines of six pixels: the middle is two or three pixels from the first pixel outside.
    assert bool(((shapes.half_width > 2) & (shapes.half_width < 4)).all())
    assert bool((shapes.depth[0, 29:35, 20] < 0).all())
    assert shapes.depth[0, 28, 20] == shapes.depth[0, 35, 20] == 0.5


def test_no_ink_is_lost_at_the_edge(shapes: Shapes) -> None:
    drawn = drawings(shapes, knobs(300, "edge"), torch.arange(300) % 2, side=28)
    edge = drawn.clone()
    edge[:, 1:-1, 1:-1] = 0
    # Bending may push a tip out now and then.
    assert float((edge > 128).flatten(1).any(1).float().mean()) < 0.02
    assert int((drawn > 200).flatten(1).sum(1).min()) >= 10


def test_a_drawing_depends_on_its_own_knobs_alone(shapes: Shapes) -> None:
    some, which = knobs(1500, "alone"), torch.arange(1500) % 3
    drawn = drawings(shapes, some, which, side=28)
    assert torch.equal(drawings(shapes, some[1300:], which[1300:], side=28), drawn[1300:])
    assert len(drawn.flatten(1).unique(dim=0)) == 1500


@pytest.mark.parametrize("kind", [0.2, 0.8])
def test_the_width_knob_makes_lines_wider(shapes: Shapes, kind: float) -> None:
    some = torch.full((5, KNOBS), 0.5)
    some[:, 0], some[:, 1] = kind, torch.linspace(0, 0.999, 5)
    ink = drawings(shapes, some, torch.zeros(5, dtype=torch.int64), side=28).long().sum((1, 2))
    assert bool((ink.diff() > 0).all())


def test_knobs_in_the_middle_draw_the_shape_upright(shapes: Shapes) -> None:
    drawn = drawings(shapes, torch.full((1, KNOBS), 0.5), torch.tensor([0]), side=28)[0]
    assert torch.equal(drawn, drawn.flip(0))
    assert torch.equal(drawn, drawn.flip(1))


def test_twice_the_side_is_the_same_drawing_enlarged(shapes: Shapes) -> None:
    some, which = knobs(30, "side"), torch.arange(30) % 2
    small = drawings(shapes, some, which, side=28).float()
    large = torch.nn.functional.avg_pool2d(drawings(shapes, some, which, side=56).float(), 2)
    # Grey edges are half as wide in the large one, so single pixels differ; the whole does not.
    assert float((small - large).abs().mean()) < 8
