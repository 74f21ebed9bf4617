"""The panels of a sequence as one PNG picture, to stand beside a report."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from torch import Tensor

from kshot.core.files import write_atomically
from kshot.evaluation.report.film import PAPER, SOFT, TRACK
from kshot.evaluation.report.machine import AXIS, GAP, LEFT, RIGHT, TOP, parts_of, step_width, ticks, written
from kshot.evaluation.report.panels import Panel, Shown, length, panels
from kshot.evaluation.report.pixels import picture as as_image

#: Pixels to a unit of the report.
SCALE = 2
LABEL, GROUND, WRONG = (28, 29, 31), (247, 247, 245), (200, 50, 47)


def write_still(path: Path, shown: Shown) -> None:
    """Write the panels of one sequence.

    Args:
        path: the PNG file.
        shown: of a sequence, or of an episode that was read as one.

    Raises:
        UserError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    still(shown).save(file, "PNG", optimize=True)
    write_atomically(path, file.getvalue())


def still(shown: Shown) -> Any:
    """Draw the panels of one sequence, as ``machine`` does, on light paper.

    Args:
        shown: of a sequence, or of an episode that was read as one.

    Returns:
        A PIL image.
    """
    from PIL import Image, ImageDraw  # imported here, as only reports need it

    cell, n_steps = step_width(shown), length(shown)
    parts = panels(shown, cell)
    bottom = TOP + sum(part.height + GAP for part in parts) - GAP
    size = (max(LEFT + RIGHT + cell * n_steps, 300), bottom + AXIS)
    image = Image.new("RGB", (round(SCALE * size[0]), round(SCALE * size[1])), PAPER)
    pen = _Pen(image, ImageDraw.Draw(image))
    top = TOP
    for part in parts:
        pen.panel(part, top, cell)
        top += part.height + GAP
    split = LEFT + cell * shown.n_read
    ends = (LEFT, split, LEFT + cell * n_steps)
    for name, a, b in zip(parts_of(shown), ends[:-1], ends[1:], strict=True):
        if b - a >= 30:
            pen.text(name, (a + b) / 2, 8, "mm")
    pen.dashes(split, 4, bottom)
    pen.text("step", LEFT - 10, bottom + 13, "rm")
    for step in ticks(n_steps):
        pen.text(str(step), LEFT + cell * (step - 0.5), bottom + 13, "mm")
    return image


class _Pen:
    """Draws in the units of the report."""

    def __init__(self, image: Any, draw: Any) -> None:
        from PIL import ImageFont

        self.image, self.draw = image, draw
        self.small, self.large = (ImageFont.load_default(size=SCALE * n) for n in (10.5, 12))

    def text(self, text: str, x: float, y: float, anchor: str, *, label: bool = False) -> None:
        """Write a line."""
        font, colour = (self.large, LABEL) if label else (self.small, SOFT)
        self.draw.text((SCALE * x, SCALE * y), text, fill=colour, font=font, anchor=anchor)

    def dashes(self, x: float, top: float, bottom: float) -> None:
        """Draw a line of dashes from top to bottom."""
        for y in range(round(SCALE * top), round(SCALE * bottom), 6 * SCALE):
            self.draw.line((SCALE * x, y, SCALE * x, y + 3 * SCALE), fill=SOFT, width=SCALE)

    def panel(self, panel: Panel, top: float, cell: float) -> None:
        """Draw a panel with its name."""
        left, right = (round(SCALE * (LEFT + cell * n)) for n in (panel.first, panel.first + panel.n_steps))
        box = (left, round(SCALE * top), right, round(SCALE * (top + panel.height)))
        self.draw.rectangle(box, fill=GROUND)
        self._paste(panel.pixels, box, smooth=panel.per_step > 1)
        self.draw.rectangle(box, outline=TRACK)
        for row, column in panel.missed.tolist():
            x, y = LEFT + cell * (panel.first + column), top + panel.row * row
            wrong = (x, y, x + cell, y + panel.row)
            self.draw.rectangle(tuple(round(SCALE * v) for v in wrong), outline=WRONG, width=SCALE if cell >= 6 else 1)
        lines = written(panel)
        for i, line in enumerate(lines):
            y = top + panel.height / 2 + 13 * (i - (len(lines) - 1) / 2)
            self.text(line, LEFT - 10, y, "rm", label=i == 0)

    def _paste(self, pixels: Tensor, box: tuple[int, int, int, int], *, smooth: bool) -> None:
        from PIL import Image

        how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        scaled = as_image(pixels).resize((max(1, box[2] - box[0]), max(1, box[3] - box[1])), how)
        self.image.paste(scaled, box[:2], scaled)
