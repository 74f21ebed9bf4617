"""Geometry of ink on a grid, for many small pictures at once: distances and one-pixel-wide skeletons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kshot.core import UserError

# Pictures per pass, so that a pass stays within the processor's cache.
_CHUNK = 128


def distance(ink: Tensor, limit: int) -> Tensor:
    """Distance from each pixel to the nearest pixel of ink, exact up to a limit.

    Squared distances are a minimum over rows of a minimum over columns, so two passes of shifted minima do.
    Time is N H W ``limit``.

    Args:
        ink: bool (N, H, W).
        limit: in pixels, below H and W; larger distances are cut to it.

    Returns:
        float32 (N, H, W) of 0..limit.

    Example:
        >>> distance(torch.tensor([[[True, False, False], [False] * 3, [False] * 3]]), 2)[0, 0].tolist()
        [0.0, 1.0, 2.0]
    """
    return torch.cat([_distance(part, limit) for part in ink.split(_CHUNK)]) if len(ink) else ink.float()


def _distance(ink: Tensor, limit: int) -> Tensor:
    far = limit * limit
    square = torch.where(ink, 0, far).to(torch.int16)
    for axis in (1, 2):
        size, best = square.shape[axis], square.clone()
        for step in range(1, limit):
            shifted = square + step * step
            ahead, behind = best.narrow(axis, 0, size - step), best.narrow(axis, step, size - step)
            torch.minimum(ahead, shifted.narrow(axis, step, size - step), out=ahead)
            torch.minimum(behind, shifted.narrow(axis, 0, size - step), out=behind)
        square = best
    return square.clamp_(max=far).float().sqrt_()


def half_box(ink: Tensor) -> Tensor:
    """Measure the box around the middle of a picture that holds all its ink.

    Args:
        ink: bool (N, H, W).

    Returns:
        float32 (N, 2), half its width and half its height in pixels; 0 where there is no ink.
    """
    halves = []
    for axis, size in ((1, ink.shape[2]), (2, ink.shape[1])):
        outer_side = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2).abs() + 0.5
        halves.append((ink.any(axis) * outer_side).amax(1))
    return torch.stack(halves, 1)


def skeleton(ink: Tensor) -> Tensor:
    """Thin ink to lines of one pixel that keep its shape and its connections.

    Parallel thinning in two alternating half-steps: T. Y. Zhang and C. Y. Suen, "A fast parallel algorithm for
    thinning digital patterns", Communications of the ACM 27(3), 1984. A half-step removes edge pixels of the
    south-east, then of the north-west, unless that would shorten a line or break one. Unlike the paper's, it leaves a
    pixel of a square of 2 x 2. Ink of width w takes about w/2 steps. A row of pixels is one 64-bit word here, so that
    a logical operation decides for 64 pixels at once.

    Args:
        ink: bool (N, H, W) with W of at most 64; the outermost rows and columns are taken as empty.

    Returns:
        bool (N, H, W), a part of ``ink``.

    Raises:
        UserError: the pictures are too wide.
    """
    if ink.shape[2] > 64:
        raise UserError(f"expected pictures of at most 64 columns, got {ink.shape[2]}; shrink them first")
    return torch.cat([_skeleton(part) for part in ink.split(_CHUNK)]) if len(ink) else ink


def _skeleton(ink: Tensor) -> Tensor:
    columns = torch.arange(ink.shape[2])
    inner = ink.clone()
    inner[:, [0, -1]] = False
    inner[:, :, [0, -1]] = False
    rows = (inner.long() << columns).sum(2)
    while True:
        thinner = rows & ~_removable(rows, 0)
        thinner &= ~_removable(thinner, 4)
        if torch.equal(thinner, rows):
            return ((rows[:, :, None] >> columns) & 1).bool()
        rows = thinner


def _removable(rows: Tensor, corner: int) -> Tensor:
    """Find the pixels that a half-step may remove: edges whose removal leaves their neighbours connected.

    Args:
        rows: int64 (N, H), bit x of a word is the pixel in column x; border pixels are empty.
        corner: 0 for the first half-step, 4 for the second, which is the first turned half round.

    Returns:
        int64 (N, H); bits outside the ink mean nothing.
    """
    above, below = rows.roll(1, 1), rows.roll(-1, 1)
    ring = [above, above >> 1, rows >> 1, below >> 1, below, below << 1, rows << 1, above << 1]
    _, two_inked = _counted(ring)
    _, two_empty = _counted([~here for here in ring])
    one_rise, two_rises = _counted([after & ~here for here, after in zip(ring, ring[1:] + ring[:1], strict=True)])
    north, ne, east, se, south, sw, west, nw = ring[corner:] + ring[:corner]
    # The corner of a convex shape waits for the other half-step: without that a dot would vanish.
    convex = east & se & south & ~(north | ne | sw | west | nw)
    return two_inked & two_empty & one_rise & ~two_rises & ~(east & south & (north | west)) & ~convex


def _counted(words: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tell for each bit whether at least one, and at least two, of some words have it set.

    Returns:
        Two words.
    """
    once, twice = words[0], torch.zeros_like(words[0])
    for word in words[1:]:
        twice = twice | (once & word)
        once = once | word
    return once, twice
