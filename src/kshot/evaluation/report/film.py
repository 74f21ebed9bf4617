"""A learner's memory over time as a moving GIF, to stand beside a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kshot.core import UserError
from kshot.core.files import write_atomically
from kshot.evaluation.report.machine import parts_of
from kshot.evaluation.report.panels import Shown, length, locations
from kshot.evaluation.report.pixels import ABOVE, BELOW, ink, picture, signed

PAPER, SOFT, TRACK = (255, 255, 255), (93, 96, 102), (227, 227, 223)
MARGIN, TITLE, STEP_MS, HOLD_MS = 14, 22, 140, 1500
WEIGHTS = ("write weightings", "read weightings")


def write_film(path: Path, shown: Shown) -> None:
    """Write the film of one sequence: its memory with the weightings of the heads beside it, step by step.

    Args:
        path: the GIF file.
        shown: a picture whose trace has a "memory" (L, N, M).

    Raises:
        UserError: there is no memory in the trace, or the file cannot be written.
    """
    frames = film(shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    import io

    file = io.BytesIO()
    times = [STEP_MS] * (len(frames) - 1) + [HOLD_MS]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)
    write_atomically(path, file.getvalue())


def film(shown: Shown) -> list[Any]:
    """Draw the frames of a film.

    Args:
        shown: a picture whose trace has a "memory" (L, N, M).

    Returns:
        PIL images of one size, one for each step.

    Raises:
        UserError: there is no memory in the trace.
    """
    memory = shown.trace.get("memory")
    if memory is None or memory.ndim != 3:
        raise UserError(f"expected a memory (L, N, M) in the trace, got {', '.join(shown.trace) or 'nothing'}")
    first, rows, _ = locations(shown.trace)
    rows = rows or memory.shape[1]
    painted = _painted(memory.roll(-first, 1)[:, :rows])
    bars = {n: shown.trace[n].roll(-first, -1)[..., :rows] for n in WEIGHTS if n in shown.trace}
    # Wide enough to be seen, small enough for a page.
    scale = max(3, min(12, 420 // rows))
    return [_frame(shown, painted[t], {n: b[t] for n, b in bars.items()}, t, scale) for t in range(len(memory))]


def _painted(memory: Tensor) -> Tensor:
    # One scale for the whole film: a number keeps its colour.
    steps, rows, width = memory.shape
    return signed(memory.reshape(steps * rows, width)).reshape(steps, rows, width, 4)


def _frame(shown: Shown, memory: Tensor, bars: dict[str, Tensor], step: int, scale: int) -> Any:
    from PIL import Image, ImageDraw  # imported here, as only reports need it

    rows, width = memory.shape[0] * scale, memory.shape[1] * scale
    heads = sum(len(b) for b in bars.values())
    thick = max(scale, 8)
    left = MARGIN + (thick + 4) * len(bars.get(WEIGHTS[0], ()))
    size = (max(2 * MARGIN + width + (thick + 4) * heads, 230), MARGIN + 2 * TITLE + rows + TITLE)
    frame = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(frame)
    doing = parts_of(shown)[step >= shown.n_read]
    draw.text((MARGIN, 8), f"step {step + 1} of {length(shown)}: {doing}", fill=SOFT)
    _progress(draw, shown, step, size[0])
    top = 2 * TITLE
    at = MARGIN
    for name in WEIGHTS:
        if name == WEIGHTS[1]:
            at = left + width + 4
        for head in bars.get(name, ()):
            colour = ABOVE if name == WEIGHTS[0] else BELOW
            strip = ink(head.sqrt()[:, None]).clone()
            strip[..., :3] = torch.tensor(colour, dtype=torch.uint8)
            _paste(frame, strip, (at, top), (thick, rows))
            at += thick + 4
    _paste(frame, memory, (left, top), (width, rows))
    draw.rectangle((left - 1, top - 1, left + width, top + rows), outline=TRACK)
    draw.text((MARGIN, top + rows + 6), "write", fill=ABOVE)
    draw.text((left + width + 4 - (24 if width > 60 else 0), top + rows + 6), "read", fill=BELOW)
    return frame


def _progress(draw: Any, shown: Shown, step: int, width: int) -> None:
    total, span = length(shown), width - 2 * MARGIN
    draw.rectangle((MARGIN, TITLE + 6, MARGIN + span, TITLE + 8), fill=TRACK)
    draw.rectangle((MARGIN, TITLE + 6, MARGIN + round(span * (step + 1) / total), TITLE + 8), fill=SOFT)
    split = MARGIN + round(span * shown.n_read / total)
    draw.rectangle((split - 1, TITLE + 3, split, TITLE + 11), fill=SOFT)


def _paste(frame: Any, pixels: Tensor, at: tuple[int, int], size: tuple[int, int]) -> None:
    from PIL import Image

    scaled = picture(pixels).resize(size, Image.Resampling.NEAREST)
    frame.paste(scaled, at, scaled)
