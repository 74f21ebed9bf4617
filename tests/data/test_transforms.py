"""Augmentation: known movements of pixels, drawn amounts within their ranges, randomness in the plan."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kshot.core import UserError, generator
from kshot.data.transforms import RandomAffine

# Interpolation in float32 at exact pixel centres: a few roundings of numbers near 1.
EXACT = 1e-5


def pictures(n_tasks: int = 2, n_examples: int = 3, shape: tuple[int, int, int] = (1, 6, 6)) -> Tensor:
    return torch.rand(n_tasks, n_examples, *shape, generator=generator(0, "pictures"))


def matrix(rows: list[list[float]], x: Tensor) -> Tensor:
    return torch.tensor(rows).expand(*x.shape[:2], 2, 3)


def test_nothing_asked_nothing_changed() -> None:
    x = pictures()
    transform = RandomAffine()
    assert torch.allclose(transform.apply(x, transform.plan(2, 3, generator(1))), x, atol=EXACT)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_quarter_turn_is_rot90(channels: int) -> None:
    x = pictures(shape=(channels, 6, 6))
    out = RandomAffine().apply(x, matrix([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], x))
    assert torch.allclose(out, torch.rot90(x, 1, (-2, -1)), atol=EXACT)


def test_a_shift_by_whole_pixels_moves_them_and_fills() -> None:
    x = pictures()
    out = RandomAffine(fill=0.25).apply(x, matrix([[1.0, 0.0, 2 * 2 / 6], [0.0, 1.0, 0.0]], x))
    assert torch.allclose(out[..., :4], x[..., 2:], atol=EXACT)
    assert torch.allclose(out[..., 4:], torch.tensor(0.25), atol=EXACT)


def test_scale_enlarges_about_the_centre() -> None:
    transform = RandomAffine(scale=(2.0, 2.0))
    x = torch.zeros(1, 1, 1, 8, 8)
    x[..., 3:5, 3:5] = 1
    out = transform.apply(x, transform.plan(1, 1, generator(2)))
    assert math.isclose(float(out.sum()), 4 * float(x.sum()), rel_tol=1e-4)
    assert torch.allclose(out, out.flip(-1), atol=EXACT)


def test_an_oblong_picture_turns_without_shear() -> None:
    x = torch.zeros(1, 1, 1, 5, 11)
    x[..., 2, 5:8] = torch.tensor([1.0, 0.8, 0.6])
    out = RandomAffine().apply(x, matrix([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], x))
    expected = torch.zeros(5, 11)
    expected[[2, 1, 0], 5] = torch.tensor([1.0, 0.8, 0.6])
    assert torch.allclose(out[0, 0, 0], expected, atol=EXACT)


def test_amounts_lie_in_their_ranges_and_reach_near_their_ends() -> None:
    turned = RandomAffine(rotation=20).plan(50, 40, generator(3))
    angle = torch.rad2deg(torch.atan2(turned[..., 1, 0], turned[..., 0, 0]))
    assert float(angle.abs().max()) <= 20.001
    assert float(angle.min()) < -19
    assert float(angle.max()) > 19
    shifted = RandomAffine(shift=0.1).plan(50, 40, generator(3))[..., 2] / 2
    assert 0.09 < float(shifted.abs().max()) <= 0.1
    assert float((shifted[..., 0] * shifted[..., 1]).mean().abs()) < 3e-4, "the two axes are drawn apart"
    size = 1 / torch.linalg.det(RandomAffine(scale=(0.5, 2)).plan(50, 40, generator(3))[..., :2].double()).sqrt()
    assert 0.499 < float(size.min()) < 0.55
    assert 1.8 < float(size.max()) < 2.001
    sheared = RandomAffine(shear=30).plan(50, 40, generator(3))[..., 0, 1]
    assert 0.5 < float(sheared.abs().max()) <= math.tan(math.radians(30)) + 1e-6


def test_images_of_a_batch_change_apart() -> None:
    params = RandomAffine(rotation=20).plan(3, 4, generator(4)).flatten(0, 1).flatten(1)
    assert params.unique(dim=0).shape[0] == 12


def test_only_the_given_generator_decides_and_one_option_changes_no_other_draw() -> None:
    transform = RandomAffine(rotation=20, shift=0.1)
    before = torch.get_rng_state()
    first = transform.plan(2, 3, generator(5))
    assert torch.equal(first, transform.plan(2, 3, generator(5)))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[..., 2], RandomAffine(shift=0.1).plan(2, 3, generator(5))[..., 2])


@settings(max_examples=30, deadline=None)
@given(
    rotation=st.floats(0, 180),
    shift=st.floats(0, 1),
    scale=st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)).map(sorted),
    shear=st.floats(0, 80),
    fill=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_values_stay_in_the_unit_range(
    rotation: float, shift: float, scale: list[float], shear: float, fill: float, seed: int
) -> None:
    transform = RandomAffine(rotation=rotation, shift=shift, scale=(scale[0], scale[1]), shear=shear, fill=fill)
    x = pictures(shape=(1, 5, 7))
    out = transform.apply(x, transform.plan(2, 3, generator(seed)))
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": -1}, "rotation between 0 and 180, got -1"),
        ({"shift": 1.5}, "shift between 0 and 1"),
        ({"shear": 90}, "shear between 0 and 89"),
        ({"fill": 2}, "fill"),
        ({"rotation": math.nan}, "rotation"),
        ({"scale": (0, 1)}, "scale"),
        ({"scale": (2, 1)}, "scale"),
        ({"scale": (1, math.inf)}, "scale"),
    ],
)
def test_door_says_the_range(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RandomAffine(**options)
