"""Many drawings of one shape: a pen of random width follows its strokes, on paper that is turned, slanted and bent.

A shape is kept as two fields of distances: to the middle of its strokes, and to its edge (negative within). A drawing
looks a field up at bent coordinates and inks what lies within a width, so that lines stay sharp and of even width at
any size.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.data.strokes import distance, half_box

#: How many random numbers one drawing takes.
KNOBS = 64

# What the knobs turn. Bending moves _BEND x _BEND control points, in two directions.
_KIND, _WIDTH, _TURN, _SLANT, _STRETCH, _SIZE, _RIGHT, _DOWN, _AMOUNT = range(9)
_BEND, _FIRST_BEND = 5, 9

# Half widths of lines in pixels of a 28 x 28 drawing: a pen's are those of handwriting scanned to this size.
_PEN, _PRINT = (0.5, 1.1), (0.6, 1.7)
# How far printed lines may be worn or swollen, in the same pixels: more would close what is open.
_SWELL = 0.8
# Half of the longer side of a drawing's ink, in shares of the drawing.
_SIZES = (0.32, 0.42)
_MAX_TURN, _MAX_SLANT, _MAX_STRETCH = math.radians(16), 0.3, 0.3
# In shares of the grid; neighbouring control points are a quarter apart, so that the paper never folds.
_MAX_BEND = 0.06
# Ink keeps this far from the edge (in pixels of 28), but for what bending adds.
_MARGIN = 2.0
_CHUNK = 1024


class Shapes(NamedTuple):
    """N shapes as distances on a square grid of side G, in grid pixels, each in the middle of its grid.

    Attributes:
        spread: float32 (N, G, G), to the middle of the nearest stroke.
        depth: float32 (N, G, G), to the edge of the ink; negative within.
        half_width: float32 (N,), mean half width of the strokes.
        half_box: float32 (N, 2), half width and half height of the box that the ink fills.
    """

    spread: Tensor
    depth: Tensor
    half_width: Tensor
    half_box: Tensor


def shapes_of(images: Tensor, spread: Tensor, *, reach: int) -> Shapes:
    """Measure shapes.

    Args:
        images: uint8 (N, G, G), 128 and more is ink; none is empty.
        spread: float32 (N, G, G), distance to the skeletons of the same.
        reach: largest distance to tell, in grid pixels.

    Returns:
        The shapes.
    """
    ink = images >= 128
    inside = distance(~ink, reach)
    # The edge runs between the last pixel of ink and the first without.
    depth = torch.where(ink, 0.5 - inside, distance(ink, reach) - 0.5)
    bones = spread == 0
    half_width = (inside * bones).sum((1, 2)) / bones.sum((1, 2))
    return Shapes(spread, depth, half_width, half_box(ink))


def drawings(shapes: Shapes, knobs: Tensor, which: Tensor, *, side: int) -> Tensor:
    """Draw shapes under random strokes and distortions.

    About half of the drawings are made by a pen of even width; the others are printed, in a weight of their own.

    Args:
        shapes: the shapes.
        knobs: float32 (M, KNOBS), uniform in [0, 1): all the randomness of each drawing.
        which: int64 (M,), the shape of each drawing.
        side: height and width of a drawing in pixels.

    Returns:
        uint8 (M, side, side), 255 is ink.
    """
    parts = zip(knobs.split(_CHUNK), which.split(_CHUNK), strict=True)
    return torch.cat([_draw(shapes, some, shape, side) for some, shape in parts])


def _draw(shapes: Shapes, knobs: Tensor, which: Tensor, side: int) -> Tensor:
    back, scale = _placed(knobs, shapes.half_box[which], side)
    points = _points(knobs, back, side, shapes.spread.shape[-1])
    pen = knobs[:, _KIND] < 0.5
    field = torch.where(pen[:, None, None], shapes.spread[which], shapes.depth[which])
    far = F.grid_sample(field[:, None], points, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    unit = side / 28
    swell = (_between(knobs[:, _WIDTH], _PRINT) * unit - shapes.half_width[which] * scale).clamp(
        -_SWELL * unit, _SWELL * unit
    )
    width = torch.where(pen, _between(knobs[:, _WIDTH], _PEN) * unit, swell)
    # Half a pixel on either side of the edge is grey: that is what keeps edges smooth.
    ink = (width[:, None, None] + 0.5 - far * scale[:, None, None]).clamp_(0, 1)
    return ink.mul_(255).round_().to(torch.uint8)


def _placed(knobs: Tensor, half_box: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Choose how each shape lies on its drawing, such that all of it is there.

    Returns:
        (M, 2, 3) from pixels of the drawing, counted from its middle, to grid pixels from the middle of the shape;
        and (M,) pixels of the drawing per grid pixel.
    """
    turn, slant = _around(knobs[:, _TURN], _MAX_TURN), _around(knobs[:, _SLANT], _MAX_SLANT)
    stretch = (_around(knobs[:, _STRETCH], _MAX_STRETCH) / 2).exp()
    cos, sin = turn.cos(), turn.sin()
    # Slant and stretch, then turn: [[a, b], [c, d]], whose determinant is 1.
    a, b = cos * stretch, (cos * slant - sin) / stretch
    c, d = sin * stretch, (sin * slant + cos) / stretch
    half_x, half_y = half_box.unbind(1)
    box = torch.stack([a.abs() * half_x + b.abs() * half_y, c.abs() * half_x + d.abs() * half_y], 1)
    scale = _between(knobs[:, _SIZE], _SIZES) * side / box.amax(1)
    room = (side / 2 - _MARGIN * side / 28 - box * scale[:, None]).clamp(min=0, max=side / 10)
    right, down = (_around(knobs[:, [_RIGHT, _DOWN]], 1.0) * room).unbind(1)
    back = torch.stack([d, -b, b * down - d * right, -c, a, c * right - a * down], 1) / scale[:, None]
    return back.view(-1, 2, 3), scale


def _points(knobs: Tensor, back: Tensor, side: int, grid: int) -> Tensor:
    """Find where each pixel of each drawing looks, on bent paper.

    Returns:
        (M, side, side, 2), x first, such that -1 and 1 are the edges of the grid.
    """
    control = _around(knobs[:, _FIRST_BEND : _FIRST_BEND + 2 * _BEND**2], 2 * _MAX_BEND) * knobs[:, [_AMOUNT]].sqrt()
    weights = torch.cat([back * (2 / grid), control.view(-1, 2, _BEND**2)], 2)
    # In double precision, since single is what PyTorch's global switches may round further.
    return (weights.double() @ _basis(side)).float().view(-1, 2, side, side).permute(0, 2, 3, 1)


@lru_cache(maxsize=4)
def _basis(side: int) -> Tensor:
    """Tabulate what a pixel's place is a weighted sum of: x, y, 1, and each control point's bicubic bump.

    Returns:
        float64 (3 + _BEND**2, side * side).
    """
    line = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    bumps = torch.eye(_BEND**2, dtype=torch.float64).view(-1, 1, _BEND, _BEND)
    bumps = F.interpolate(bumps, (side, side), mode="bicubic", align_corners=True)
    return torch.cat([torch.stack([x, y, torch.ones_like(x)]), bumps[:, 0]]).flatten(1)


def _between(knob: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * knob


def _around(knob: Tensor, most: float) -> Tensor:
    return (2 * knob - 1) * most
