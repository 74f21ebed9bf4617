"""Charts as inline SVG, drawn by hand: small, sharp at any size, and coloured by the page's own light or dark theme.

matplotlib would bake colours and fonts in. Colours are named by classes ``tone-0`` .. ``tone-9`` of the style sheet.
Every function returns markup that is safe to put into a page: texts are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from kshot.evaluation.report.axes import Format, Frame, Point, nice_ticks, opened, percent, plain


class Series(NamedTuple):
    """One line of a chart.

    Attributes:
        name: for tooltips.
        tone: number of its colour.
        points: (x, y) pairs by ascending x.
        band: (low, high) at each point, or empty.
        markers: mark each point, with its band as a whisker; without markers the band is a shaded area.
        style: "" or one of the classes "faint", "dashed", "heavy".
    """

    name: str
    tone: int
    points: Sequence[Point]
    band: Sequence[Point] = ()
    markers: bool = False
    style: str = ""


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    description: str,
    as_percent: bool = False,
    x_ticks: Sequence[float] | None = None,
    log_x: bool = False,
    goals: Sequence[tuple[str, float]] = (),
) -> str:
    """Draw lines with bands or whiskers. The vertical axis is logarithmic where positive values span much.

    Args:
        series: at least one, with at least one point each.
        x_label: what varies.
        y_label: what is measured.
        description: for those who do not see it.
        as_percent: write the vertical axis in percent.
        x_ticks: where ticks stand.
        log_x: logarithmic horizontal axis.
        goals: names and values to draw straight through the chart, such as the best that is possible.

    Returns:
        An SVG element.
    """
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [b for s in series for pair in s.band for b in pair]
    ys += [value for _, value in goals]
    log_y = not as_percent and min(ys) > 0 and max(ys) / min(ys) > 30
    low, high = (min(ys), max(ys)) if log_y else _padded(min(ys), max(ys), as_percent)
    frame = Frame((min(xs), max(xs)), (low, high), log_x=log_x, log_y=log_y)
    y_format = percent if as_percent else plain
    body = frame.axes(x_label, y_label, y_format=y_format, x_ticks=x_ticks)
    body += "".join(_line(frame, s, x_label, y_format) for s in series)
    body += "".join(_goal(frame, name, value) for name, value in goals)
    return frame.svg(body, description)


def _goal(frame: Frame, name: str, value: float) -> str:
    at, right = frame.py(value), frame.width - frame.right
    # Below the line, where a curve that falls towards it does not run; above, where the axis is close.
    below = at + 14 < frame.height - frame.bottom
    text = (
        f'<text class="tick" x="{right:g}" y="{at + (13 if below else -5):.1f}" text-anchor="end">{escape(name)}</text>'
    )
    return f'<path class="goal" d="M{frame.left:g} {at:.1f}H{right:g}"/>{text}'


def _line(frame: Frame, s: Series, x_label: str, y_format: Format) -> str:
    parts = []
    if s.band and not s.markers:
        xs = [x for x, _ in s.points]
        upper = [(x, high) for x, (_, high) in zip(xs, s.band, strict=True)]
        lower = [(x, low) for x, (low, _) in zip(xs, s.band, strict=True)]
        parts.append(f'<path class="band" d="{frame.path(upper + lower[::-1])}Z"/>')
    if len(s.points) > 1:
        parts.append(f'<path class="line {s.style}" d="{frame.path(s.points)}"/>')
    for i, (x, y) in enumerate(s.points if s.markers or len(s.points) == 1 else ()):
        tip = f"{s.name}: {y_format(y)} at {x:g} {x_label}"
        if s.band:
            low, high = s.band[i]
            parts.append(f'<path class="line" d="{frame.path([(x, low), (x, high)])}"/>')
            tip += f" ({y_format(low)} to {y_format(high)})"
        dot = f'<circle class="dot" cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}" r="3.6">'
        parts.append(f"{dot}<title>{escape(tip)}</title></circle>")
    return f'<g class="tone-{s.tone % 10}">{"".join(parts)}</g>'


def whisker(mean: float, low: float, high: float, scale: Point, tone: int, mark: float | None = None) -> str:
    """Draw one interval, to stand in a cell of a table with others on one scale.

    Args:
        mean: the middle.
        low: lower end of the interval.
        high: upper end.
        scale: range of the axis that the cells share.
        tone: number of its colour.
        mark: a value to mark by a line, such as 0 for differences.

    Returns:
        An SVG element; the numbers stand beside it in the table, so it is hidden from screen readers.
    """
    frame = _strip(scale, 26)
    line = "" if mark is None else f'<path class="base" d="M{frame.px(mark):.1f} 0V26"/>'
    ends = f'<path class="line" d="M{frame.px(low):.1f} 13H{frame.px(high):.1f}M{frame.px(low):.1f} 9v8'
    ends += f'M{frame.px(high):.1f} 9v8"/><circle class="dot" cx="{frame.px(mean):.1f}" cy="13" r="4"/>'
    grid = "".join(f'<path class="grid" d="M{frame.px(t):.1f} 0V26"/>' for t in nice_ticks(*frame.x, 3))
    body = f'{grid}{line}<g class="tone-{tone % 10}">{ends}</g>'
    return f'<svg class="strip" viewBox="0 0 240 26" aria-hidden="true">{body}</svg>'


def whisker_axis(scale: Point, form: Format) -> str:
    """Draw the axis that goes with ``whisker``.

    Args:
        scale: its range.
        form: writes its ticks.

    Returns:
        An SVG element.
    """
    frame = _strip(scale, 18)
    ticks = "".join(
        f'<text class="tick" x="{frame.px(t):.1f}" y="13" text-anchor="middle">{form(t)}</text>'
        for t in nice_ticks(*frame.x, 3)
    )
    return f'<svg class="strip" viewBox="0 0 240 18" aria-hidden="true">{ticks}</svg>'


def shared_scale(intervals: Sequence[Point], include: float | None = None) -> Point:
    """Find a range that holds all intervals with some air.

    Args:
        intervals: (low, high) each.
        include: a value that must be in it.

    Returns:
        The range.
    """
    ends = [v for pair in intervals for v in pair] + ([] if include is None else [include])
    low, high = opened((min(ends), max(ends)))
    air = 0.12 * (high - low)
    return low - air, high + air


class Cloud(NamedTuple):
    """Points of one class of a scatter.

    Attributes:
        name: for tooltips.
        tone: number of its colour.
        support: (x, y) of support examples, drawn as diamonds.
        query: (x, y) of queries, drawn as dots.
    """

    name: str
    tone: int
    support: Sequence[Point]
    query: Sequence[Point]


def scatter(clouds: Sequence[Cloud], *, x_label: str, y_label: str, description: str) -> str:
    """Draw classes of points, support as diamonds and queries as dots.

    Args:
        clouds: the classes.
        x_label: what the horizontal axis is.
        y_label: what the vertical axis is.
        description: for those who do not see it.

    Returns:
        An SVG element.
    """
    points = [p for c in clouds for p in (*c.support, *c.query)]
    ranges = [shared_scale([(min(v), max(v))]) for v in zip(*points, strict=True)]
    frame = Frame(ranges[0], ranges[1], height=330, bottom=24)
    frame.left = frame.right
    box = f'<rect class="box" x="14" y="26" width="{frame.width - 28:g}" height="{frame.height - 50:g}" rx="3"/>'
    parts = [box, f'<text class="label" x="14" y="14">{escape(y_label)} \N{UPWARDS ARROW}</text>']
    right = f'x="{frame.width - 14:g}" y="{frame.height - 6:g}" text-anchor="end"'
    parts.append(f'<text class="label" {right}>{escape(x_label)} \N{RIGHTWARDS ARROW}</text>')
    for c in clouds:
        title = f"<title>{escape(c.name)}</title>"
        dots = "".join(f'<circle cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}" r="3.4"/>' for x, y in c.query)
        at = [(frame.px(x), frame.py(y)) for x, y in c.support]
        diamonds = "".join(f"M{x:.1f} {y - 7.5:.1f}l7.5 7.5l-7.5 7.5l-7.5-7.5Z" for x, y in at)
        parts.append(f'<g class="tone-{c.tone % 10}">{title}<g class="cloud">{dots}</g>')
        parts.append(f'<path class="diamond" d="{diamonds}"/></g>')
    return frame.svg("".join(parts), description)


class Bin(NamedTuple):
    """A point of a reliability diagram: mean confidence, accuracy, and the share of all queries that it stands for."""

    confidence: float
    accuracy: float
    share: float


def reliability(bins: Sequence[Bin], *, tone: int, n_bins: int, description: str) -> str:
    """Draw accuracy against confidence, with how often each confidence occurs as bars below.

    Args:
        bins: those that hold queries.
        tone: number of the colour.
        n_bins: how many bins of equal width there are in 0..1.
        description: for those who do not see it.

    Returns:
        An SVG element.
    """
    strip = 44
    frame = Frame((0, 1), (0, 1), width=400, height=350, bottom=40 + strip)
    body = frame.axes("", "accuracy", x_format=percent, y_format=percent, x_ticks=())
    body += f'<path class="diagonal" d="{frame.path([(0, 0), (1, 1)])}"/>'
    foot = frame.height - 40
    tallest = max(b.share for b in bins)
    width = (frame.px(1) - frame.px(0)) / n_bins - 2
    marks = ""
    for b in bins:
        height = max(1.0, (strip - 8) * b.share / tallest)
        left = frame.px((math.ceil(b.confidence * n_bins - 1e-9) - 1) / n_bins) + 1
        marks += f'<rect class="bar" x="{left:.1f}" y="{foot - height:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    if len(bins) > 1:
        marks += f'<path class="line" d="{frame.path([(b.confidence, b.accuracy) for b in bins])}"/>'
    for b in bins:
        tip = f"confidence {percent(b.confidence)}, accuracy {percent(b.accuracy)}, {percent(b.share)} of the queries"
        radius = 2 + 3 * math.sqrt(b.share / tallest)
        at = f'cx="{frame.px(b.confidence):.1f}" cy="{frame.py(b.accuracy):.1f}"'
        dot = f'<circle class="dot" {at} r="{radius:.1f}">'
        marks += f"{dot}<title>{tip}</title></circle>"
    body += f'<path class="base" d="M{frame.left:g} {foot:g}H{frame.width - frame.right:g}"/>'
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        body += (
            f'<text class="tick" x="{frame.px(tick):.1f}" y="{foot + 16:g}" text-anchor="middle">{percent(tick)}</text>'
        )
    right = f'x="{frame.width - frame.right:g}" y="{frame.height - 6:g}" text-anchor="end"'
    body += f'<text class="label" {right}>confidence</text>'
    return frame.svg(f'{body}<g class="tone-{tone % 10}">{marks}</g>', description)


def regression(
    truth: Sequence[Point], support: Sequence[Point], lines: Sequence[Series], y_range: Point, description: str
) -> str:
    """Draw a regression task: what is true, what was seen, and what is predicted.

    Args:
        truth: query points by ascending x; joined by a line where there are many.
        support: the points seen.
        lines: predictions.
        y_range: of the vertical axis, shared by the tasks of a report.
        description: for those who do not see it.

    Returns:
        An SVG element.
    """
    xs = [x for s in lines for x, _ in s.points]
    frame = Frame((min(xs), max(xs)), y_range, width=440, height=250)
    body = frame.axes("x", "y")
    if len(truth) >= 30:
        body += f'<path class="truth" d="{frame.path(truth)}"/>'
    else:
        body += "".join(
            f'<circle class="truth" cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}" r="3.5"/>' for x, y in truth
        )
    for s in lines:
        inside = [(x, min(max(y, y_range[0]), y_range[1])) for x, y in s.points]
        body += _line(frame, s._replace(points=inside), "x", plain)
    seen = "".join(f"M{frame.px(x):.1f} {frame.py(y) - 6:.1f}l6 6l-6 6l-6-6Z" for x, y in support)
    return frame.svg(f'{body}<path class="seen" d="{seen}"/>', description)


def _strip(scale: Point, height: float) -> Frame:
    frame = Frame(scale, (0, 1), width=240, height=height)
    frame.left = frame.right = 16
    return frame


def _padded(low: float, high: float, as_percent: bool) -> Point:
    low, high = opened((low, high))
    air = 0.08 * (high - low)
    top = min(high + air, 1.0) if as_percent and high <= 1 else high + air
    return (max(low - air, 0.0) if low >= 0 else low - air), top
