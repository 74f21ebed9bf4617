"""A learner on a sequence, as panels one below the other: time runs to the right in all of them.

What is read and asked, what is answered, and for learners that tell (``trace``) what they write, where they write it,
what they read back and from where: the figures 6, 9 and 12 of Neural Turing Machines (arXiv:1410.5401).
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.evaluation.pictures import SequencePicture
from kshot.evaluation.report.axes import svg
from kshot.evaluation.report.pixels import data_address, ink, signed

LEFT, RIGHT, TOP, GAP, WIDEST = 118.0, 8.0, 24.0, 9.0, 800.0
MAX_HEADS = 4
#: A location counts where a head ever puts so much of its weight on it.
TOUCHED = 0.05


class Panel(NamedTuple):
    """One matrix along time.

    Attributes:
        name: what it is.
        remark: in small letters below the name.
        pixels: uint8 (rows, steps, 4).
        first: the step that its first column stands at.
        row: height of a row.
        missed: (row, column) of what is wrong.
    """

    name: str
    remark: str
    pixels: Tensor
    first: int
    row: float
    missed: Tensor


def machine(picture: SequencePicture, *, details: bool = True) -> str:
    """Draw a sequence.

    Args:
        picture: the sequence.
        details: with what the learner did, where it told.

    Returns:
        An SVG element.
    """
    n_steps = len(picture.inputs)
    cell = min(14.0, (WIDEST - LEFT - RIGHT) / n_steps)
    panels = [*_asked(picture, cell), *(_traced(picture) if details else ())]
    width, at, parts = LEFT + RIGHT + cell * n_steps, TOP, []
    for panel in panels:
        parts.append(_drawn(panel, at, cell))
        at += _height(panel) + GAP
    split = LEFT + cell * picture.n_read
    ends = (LEFT, split, LEFT + cell * n_steps)
    heads = "".join(
        f'<text class="tick" x="{(a + b) / 2:.1f}" y="12" text-anchor="middle">{name}</text>'
        for name, a, b in zip(("read", "asked"), ends[:-1], ends[1:], strict=True)
        if b - a >= 30
    )
    rule = f'<path class="split" d="M{split:.1f} 4V{at - GAP:.1f}"/>'
    description = (
        f"{picture.title}: {picture.n_read} steps read, {len(picture.target)} asked, "
        f"{picture.cost:.3g} bits, {picture.wrong} of {picture.target.numel()} bits wrong"
    )
    made = svg(max(width, 300), at - GAP + 4, heads + "".join(parts) + rule, description)
    return made.replace('class="chart"', f'class="chart machine" style="max-width:{max(width, 300):.0f}px"', 1)


def _asked(picture: SequencePicture, cell: float) -> Iterator[Panel]:
    none, row = torch.empty(0, 2), min(cell, 8.0)
    inputs = picture.inputs.T
    yield Panel("input", "", _painted(inputs), 0, _row(inputs, row), none)
    target, output = picture.target.T, picture.output.T
    yield Panel("target", "", ink(target.float()), picture.n_read, _row(target, row), none)
    wrong = (target != (output > 0.5)).nonzero()
    remark = f"{picture.wrong} of {target.numel()} wrong"
    yield Panel("output", remark, ink(output), picture.n_read, _row(target, row), wrong)


def _painted(rows: Tensor) -> Tensor:
    within = bool((rows >= 0).all()) and bool((rows <= 1).all())
    return ink(rows) if within else signed(rows)


def _row(matrix: Tensor, usual: float) -> float:
    # One channel alone would be a hair.
    return max(usual, 12.0 / len(matrix), 2.0)


def _traced(picture: SequencePicture) -> Iterator[Panel]:
    trace = picture.trace
    first, shown, remark = locations(trace)
    order = ("add", "erase", "write weightings", "read weightings", "read")
    names = [n for n in order if n in trace] + [n for n in trace if n not in order and n != "memory"]
    for name in names:
        tensor = trace[name]
        if tensor.ndim != 3 or not tensor.shape[-1]:
            continue
        for head in range(min(tensor.shape[1], MAX_HEADS)):
            rows = tensor[:, head].T
            weighting = name.endswith("weightings")
            if weighting:
                rows = rows.roll(-first, 0)[:shown]
            which = f"head {head + 1} of {tensor.shape[1]}" if tensor.shape[1] > 1 else ""
            told = ", ".join(t for t in (which, remark if weighting else "") if t)
            # A root makes a spread of small weights visible beside a sharp one.
            pixels = ink(rows.clamp_min(0).sqrt()) if weighting else _painted(rows)
            height = min(150.0, max(48.0, 5.0 * len(rows))) if weighting else min(72.0, 4.0 * len(rows))
            label = {"add": "added", "erase": "erased", "read": "read back"}.get(name, name.removesuffix("s"))
            yield Panel(label, told, pixels, 0, height / len(rows), torch.empty(0, 2))


def locations(trace: dict[str, Tensor]) -> tuple[int, int, str]:
    """Find the shortest arc of the memory, which is a ring, that holds every location a head has put weight on.

    Args:
        trace: of a sequence.

    Returns:
        The first location, how many to show, and a remark where those are not all.
    """
    weightings = [t.flatten(0, 1) for name, t in trace.items() if name.endswith("weightings") and t.ndim == 3]
    if not weightings:
        return 0, 0, ""
    touched = (torch.cat(weightings) > TOUCHED).any(0)
    n, marked = len(touched), touched.nonzero().flatten().tolist()
    if not marked:
        return 0, n, ""
    gaps = [(b - a, b) for a, b in zip(marked, [*marked[1:], marked[0] + n], strict=True)]
    widest, begin = max(gaps)
    shown = min(n, n - widest + 1 + 4)
    if shown >= 0.75 * n or n < 24:
        return 0, n, ""
    first = (begin - 2) % n
    return first, shown, f"locations {first} to {(first + shown - 1) % n} of {n}"


def _height(panel: Panel) -> float:
    return panel.row * panel.pixels.shape[0]


def _drawn(panel: Panel, top: float, cell: float) -> str:
    columns = panel.pixels.shape[1]
    left, width, height = LEFT + cell * panel.first, cell * columns, _height(panel)
    box = f'x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}"'
    image = f'<image {box} preserveAspectRatio="none" href="{data_address(panel.pixels)}"/>'
    marks = "".join(
        f"M{left + cell * column:.2f} {top + panel.row * row:.2f}h{cell:.2f}v{panel.row:.2f}h{-cell:.2f}Z"
        for row, column in panel.missed.tolist()
    )
    missed = f'<path class="{"miss" if cell >= 6 else "miss fine"}" d="{marks}"/>' if marks else ""
    middle = top + height / 2
    lines = [panel.name, *_broken(panel.remark)] if height >= 30 else [panel.name]
    text = "".join(
        f'<text class="{"label" if i == 0 else "tick"}" x="{LEFT - 10:g}" text-anchor="end" '
        f'y="{middle + 4 + 13 * (i - (len(lines) - 1) / 2):.1f}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return f'{text}<rect class="ground" {box}/>{image}{missed}<rect class="box" {box}/>'


def _broken(remark: str) -> list[str]:
    """Break a remark into lines that fit beside a panel.

    Returns:
        The lines.
    """
    lines: list[str] = []
    for word in remark.split():
        if lines and len(lines[-1]) + len(word) < 18:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
