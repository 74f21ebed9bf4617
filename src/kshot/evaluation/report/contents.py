"""What stands in a memory: all its numbers, when the support was read and at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.evaluation.report.axes import plain, svg
from kshot.evaluation.report.machine import LEFT, TOP, parts_of
from kshot.evaluation.report.panels import Shown, locations
from kshot.evaluation.report.pixels import data_address, signed

SPACE, BOTTOM, TALLEST = 28.0, 22.0, 260.0


def contents(picture: Shown) -> str:
    """Draw the memory of a learner at two moments, by one scale.

    Args:
        picture: of a sequence, or of an episode that was read as one.

    Returns:
        An SVG element; "" where the learner shows no memory.
    """
    memory = picture.trace.get("memory")
    if memory is None or memory.ndim != 3:
        return ""
    first, shown, _ = locations(picture.trace)
    shown = shown or memory.shape[1]
    rows = memory.roll(-first, 1)[:, :shown]
    moments = {f"after the {parts_of(picture)[0]}": max(picture.n_read - 1, 0), "at the end": len(memory) - 1}
    if picture.n_read == 0 or len(set(moments.values())) == 1:
        moments = {"at the end": len(memory) - 1}
    seen = torch.stack([rows[t] for t in moments.values()])
    height = min(TALLEST, 9.0 * shown)
    wide = min(9.0 * memory.shape[2], 280.0)
    painted = signed(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
    parts = [_side(first, shown, memory.shape[1], height)]
    for i, (title, pixels) in enumerate(zip(moments, painted, strict=True)):
        parts.append(_one(title, pixels, LEFT + i * (wide + SPACE), wide, height))
    width = LEFT + len(moments) * (wide + SPACE)
    scale = plain(float(f"{float(seen.abs().max()):.2g}"))
    below = f"{memory.shape[2]} columns; full colour at \N{PLUS-MINUS SIGN}{scale}"
    parts.append(f'<text class="tick" x="{LEFT:g}" y="{TOP + height + 16:.1f}">{below}</text>')
    made = svg(max(width, 300), TOP + height + BOTTOM, "".join(parts), f"Memory {' and '.join(moments)}")
    return made.replace('class="chart"', f'class="chart machine" style="max-width:{max(width, 300):.0f}px"', 1)


def _side(first: int, shown: int, n: int, height: float) -> str:
    """Number the rows at the top and the bottom.

    Returns:
        Markup.
    """
    last, middle = (first + shown - 1) % n, TOP + height / 2
    return (
        f'<text class="tick" x="{LEFT - 10:g}" y="{TOP + 9:g}" text-anchor="end">row {first}</text>'
        f'<text class="tick" x="{LEFT - 10:g}" y="{TOP + height:.1f}" text-anchor="end">row {last}</text>'
        f'<text class="label" x="{LEFT - 10:g}" y="{middle + 4:.1f}" text-anchor="end">memory</text>'
    )


def _one(title: str, pixels: Tensor, left: float, width: float, height: float) -> str:
    box = f'x="{left:.2f}" y="{TOP:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return (
        f'<text class="tick" x="{left + width / 2:.1f}" y="14" text-anchor="middle">{title}</text>'
        f'<rect class="ground" {box}/><image {box} preserveAspectRatio="none" href="{data_address(pixels)}"/>'
        f'<rect class="box" {box}/>'
    )
