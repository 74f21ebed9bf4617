"""Charts of the report of a model of numbers: answers against the truth, and by how much they miss it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from kshot.evaluation.report.axes import Frame, Point, plain
from kshot.evaluation.report.figures import shared_scale

#: Intervals far beyond all answers would press these together; they end so many spans away.
_BEYOND = 0.35


class Answered(NamedTuple):
    """A shot that was left out.

    Attributes:
        truth: its target.
        answer: of a model of the others.
        low: lower end of its interval; infinite where none can be given.
        high: upper end.
        name: what to call it.
    """

    truth: float
    answer: float
    low: float
    high: float
    name: str


def against_truth(shots: Sequence[Answered]) -> str:
    """Draw answers against targets, with their intervals.

    Args:
        shots: at least one.

    Returns:
        An SVG element.
    """
    scale = shared_scale([(min(s.truth, s.answer), max(s.truth, s.answer)) for s in shots])
    span = scale[1] - scale[0]
    ends = (scale[0] - _BEYOND * span, scale[1] + _BEYOND * span)
    reach = [_cut(s, ends) for s in shots if math.isfinite(s.low)]
    heights = shared_scale([scale, *reach])
    frame = Frame(scale, heights, width=440, height=400)
    frame.left = 56
    body = frame.axes("true", "predicted when left out")
    body += f'<path class="diagonal" d="{frame.path([(scale[0], scale[0]), (scale[1], scale[1])])}"/>'
    for s in shots:
        if math.isfinite(s.low):
            low, high = _cut(s, ends)
            kind = "hold" if s.low <= s.truth <= s.high else "hold outside"
            body += f'<path class="{kind}" d="{frame.path([(s.truth, low), (s.truth, high)])}"/>'
    body += "".join(_point(frame, s, s.truth, s.answer) for s in shots)
    return frame.svg(f'<g class="tone-0">{body}</g>', "Predictions of shots left out against their true numbers")


def misses(shots: Sequence[Answered]) -> str:
    """Draw by how much each answer misses the target.

    Args:
        shots: at least one.

    Returns:
        An SVG element.
    """
    off = [s.answer - s.truth for s in shots]
    answers = shared_scale([(min(s.answer for s in shots), max(s.answer for s in shots))])
    frame = Frame(answers, shared_scale([(min(off), max(off))], include=0.0), width=440, height=400)
    frame.left = 56
    body = frame.axes("predicted when left out", "predicted less true")
    body += f'<path class="diagonal" d="{frame.path([(answers[0], 0.0), (answers[1], 0.0)])}"/>'
    body += "".join(_point(frame, s, s.answer, miss) for s, miss in zip(shots, off, strict=True))
    return frame.svg(f'<g class="tone-1">{body}</g>', "By how much predictions of shots left out miss")


def _point(frame: Frame, s: Answered, x: float, y: float) -> str:
    tip = f"{s.name}: {plain(s.answer)}, is {plain(s.truth)}"
    at = f'cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}"'
    return f'<circle class="dot" {at} r="3.2"><title>{escape(tip)}</title></circle>'


def _cut(s: Answered, ends: Point) -> Point:
    low, high = ends
    return min(max(s.low, low), high), max(min(s.high, high), low)
