"""Charts of the report that ``kshot.evaluation.report.figures`` has not: matrix, histogram, strips of dots, map.

Inline SVG in the colours of the page, as there. Texts are escaped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from kshot.evaluation.report.axes import Frame, Point, nice_ticks, opened, plain, svg
from kshot.evaluation.report.figures import shared_scale

_LABEL = 22


class MatrixCell(NamedTuple):
    """One cell of a confusion matrix that is not empty.

    Attributes:
        row: of it.
        column: of it; the diagonal is what is right.
        share: of the row, 0..1.
        times: the number behind it.
        tip: what the pointer is told.
    """

    row: int
    column: int
    share: float
    times: int
    tip: str


def matrix(names: Sequence[str], cells: Sequence[MatrixCell], *, description: str) -> tuple[str, int]:
    """Draw a confusion matrix, names beside the rows and numbers above the columns.

    Args:
        names: of the classes.
        cells: those that are not empty.
        description: for those who do not see it.

    Returns:
        An SVG element, and the width in pixels at which its texts have the size of the page's.
    """
    n = len(names)
    side = min(34.0, 620 / n)
    left, top = 14 + 6.6 * min(_LABEL, max(len(name) for name in names)) + 22, 22.0
    size = side * n
    parts = [f'<rect class="box" x="{left:g}" y="{top:g}" width="{size:g}" height="{size:g}" rx="2"/>']
    lines = "".join(
        f"M{left:g} {top + i * side:.1f}h{size:g}M{left + i * side:.1f} {top:g}v{size:g}" for i in range(1, n)
    )
    parts.append(f'<path class="grid" d="{lines}"/>')
    for i, name in enumerate(names):
        middle = (i + 0.5) * side
        short = name if len(name) <= _LABEL else name[: _LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
        at = f'x="{left - 26:.1f}" y="{top + middle + 4:.1f}" text-anchor="end"'
        parts.append(f'<text class="tick" {at}>{escape(short)}<title>{escape(name)}</title></text>')
        at = f'x="{left - 6:.1f}" y="{top + middle + 4:.1f}" text-anchor="end"'
        parts.append(f'<text class="tick faint" {at}>{i + 1}</text>')
        at = f'x="{left + middle:.1f}" y="{top - 7:g}" text-anchor="middle"'
        parts.append(f'<text class="tick faint" {at}>{i + 1}<title>{escape(name)}</title></text>')
    parts.extend(_matrix_cell(cell, left, top, side) for cell in cells)
    return svg(left + size + 2, top + size + 2, "".join(parts), description), round(1.1 * (left + size))


def _matrix_cell(cell: MatrixCell, left: float, top: float, side: float) -> str:
    x, y = left + cell.column * side + 1, top + cell.row * side + 1
    kind = "hit" if cell.row == cell.column else "miss"
    shade = 0.12 + 0.88 * cell.share if kind == "hit" else 0.25 + 0.75 * cell.share
    box = f'x="{x:.1f}" y="{y:.1f}" width="{side - 2:.1f}" height="{side - 2:.1f}" rx="2"'
    text = ""
    if side >= 15 and len(str(cell.times)) * 7 < side:
        dark = " on" if shade > 0.55 else ""
        at = f'x="{x + side / 2 - 1:.1f}" y="{y + side / 2 + 3:.1f}" text-anchor="middle"'
        text = f'<text class="cell{dark}" {at}>{cell.times}</text>'
    rect = f'<rect class="{kind}" fill-opacity="{shade:.2f}" {box}/>'
    return f"<g><title>{escape(cell.tip)}</title>{rect}{text}</g>"


class HeadDot(NamedTuple):
    """A head of one strength: its loss, its strength as a text, and whether it is the one that was chosen."""

    loss: float
    strength: str
    chosen: bool


def strips(rows: Mapping[str, Sequence[HeadDot]], description: str) -> str:
    """Draw rows of dots on one scale.

    Args:
        rows: name -> dots.
        description: for those who do not see it.

    Returns:
        An SVG element.
    """
    losses = [d.loss for dots in rows.values() for d in dots]
    # A head that fails badly would press all others together.
    low, worst = min(losses), sorted(losses)[len(losses) // 2] * 3
    scale = shared_scale([(low, min(max(losses), max(worst, low + 1e-9)))])
    frame = Frame((max(scale[0], 0.0), scale[1]), (0, 1), width=440, height=46 + 34 * len(rows))
    frame.left = 92
    base = frame.height - 36
    grid = "".join(f'<path class="grid" d="M{frame.px(t):.1f} 4V{base:g}"/>' for t in nice_ticks(*frame.x, 4))
    ticks = "".join(
        f'<text class="tick" x="{frame.px(t):.1f}" y="{base + 16:g}" text-anchor="middle">{plain(t)}</text>'
        for t in nice_ticks(*frame.x, 4)
    )
    end = frame.width - frame.right
    body = f'{grid}<path class="base" d="M{frame.left:g} {base:g}H{end:g}"/>{ticks}'
    body += f'<text class="label" x="{end:g}" y="{base + 32:g}" text-anchor="end">log loss, calibrated</text>'
    for i, (name, dots) in enumerate(rows.items()):
        y = 21 + 34 * i
        body += f'<text class="label" x="{frame.left - 16:g}" y="{y + 4:g}" text-anchor="end">{escape(name)}</text>'
        inside = sorted((d for d in dots), key=lambda d: d.chosen)
        body += "".join(_head_dot(d, frame, y, name) for d in inside)
    return frame.svg(body, description)


def _head_dot(dot: HeadDot, frame: Frame, y: float, name: str) -> str:
    x = frame.px(min(dot.loss, frame.x[1]))
    tip = f"<title>{escape(f'{name} {dot.strength}: {dot.loss:.4f}')}</title>"
    mark = (
        f'<circle class="{"dot" if dot.chosen else "other"}" cx="{x:.1f}" cy="{y:g}" r="{6.5 if dot.chosen else 4.5}">'
    )
    return f'<g class="tone-{0 if dot.chosen else 9}">{mark}{tip}</circle></g>'


def histogram(
    series: Sequence[tuple[str, Sequence[float], int]],
    *,
    mark: float | None,
    mark_label: str,
    x_label: str,
    description: str,
    n_bins: int = 30,
) -> str:
    """Draw how often values occur, as shares of each series.

    Args:
        series: (name, values, tone), at least one value each.
        mark: where to draw a line, or None.
        mark_label: stands beside it.
        x_label: what the values are.
        description: for those who do not see it.
        n_bins: bins of equal width.

    Returns:
        An SVG element.
    """
    ends = [v for _, values, _ in series for v in (min(values), max(values))]
    low, high = opened((min(ends), max(ends)))
    width = (high - low) / n_bins
    counted = [[0] * n_bins for _ in series]
    for bins, (_, values, _) in zip(counted, series, strict=True):
        for v in values:
            bins[min(int((v - low) / width), n_bins - 1)] += 1
    shares = [[c / len(values) for c in bins] for bins, (_, values, _) in zip(counted, series, strict=True)]
    frame = Frame((low, high), (0, max(map(max, shares))), width=440, height=250)
    frame.left = frame.right
    base = frame.height - frame.bottom
    body = f'<path class="base" d="M{frame.left:g} {base:g}H{frame.width - frame.right:g}"/>'
    step = frame.px(low + width) - frame.px(low)
    for bins, mine, (name, _, tone) in zip(counted, shares, series, strict=True):
        bars = "".join(
            f'<rect class="bar" x="{frame.px(low + b * width) + 0.5:.1f}" y="{frame.py(s):.1f}" width="{step - 1:.1f}" '
            f'height="{base - frame.py(s):.1f}"><title>{escape(f"{count:,} {name}")}</title></rect>'
            for b, (count, s) in enumerate(zip(bins, mine, strict=True))
            if count
        )
        body += f'<g class="tone-{tone}">{bars}</g>'
    if mark is not None and low <= mark <= high:
        x = frame.px(mark)
        anchor = "end" if x > frame.width / 2 else "start"
        at = f'x="{x + (-6 if anchor == "end" else 6):.1f}" y="14" text-anchor="{anchor}"'
        body += f'<path class="limit" d="M{x:.1f} 4V{base:g}"/><text class="label" {at}>{escape(mark_label)}</text>'
    at = f'x="{frame.width - frame.right:g}" y="{base + 20:g}" text-anchor="end"'
    return frame.svg(f'{body}<text class="label" {at}>{escape(x_label)}</text>', description)


class MapPoint(NamedTuple):
    """A shot on the map.

    Attributes:
        x: its place.
        y: its place.
        label: number of its class.
        tip: what the pointer is told.
        src: the address of a picture to draw, or "".
    """

    x: float
    y: float
    label: int
    tip: str
    src: str


def embedding(
    points: Sequence[MapPoint],
    labels: Sequence[tuple[str, Point]],
    new: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    description: str,
) -> str:
    """Draw the embedding map.

    Args:
        points: the shots, at least one.
        labels: (class, place) to write above the place where there is room, the first ones first.
        new: places of new examples, drawn as rings.
        x_label: what the horizontal axis is.
        y_label: what the vertical axis is.
        description: for those who do not see it.

    Returns:
        An SVG element.
    """
    xs, ys = zip(*[(p.x, p.y) for p in points], *new, strict=True)
    pictured = any(p.src for p in points)
    frame = Frame(
        shared_scale([(min(xs), max(xs))]), shared_scale([(min(ys), max(ys))]), width=900, height=540, bottom=24
    )
    frame.left = frame.right
    box = f'x="14" y="26" width="{frame.width - 28:g}" height="{frame.height - 50:g}" rx="4"'
    body = f'<rect class="box" {box}/><text class="label" x="14" y="14">{escape(y_label)} \N{UPWARDS ARROW}</text>'
    at = f'x="{frame.width - 14:g}" y="{frame.height - 6:g}" text-anchor="end"'
    body += f'<text class="label" {at}>{escape(x_label)} \N{RIGHTWARDS ARROW}</text>'
    draw = _map_picture if pictured else _map_dot
    body += "".join(draw(p, frame.px(p.x), frame.py(p.y)) for p in points)
    body += "".join(f'<circle class="ring" cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}" r="4.5"/>' for x, y in new)
    return frame.svg(body + _map_labels(labels, frame, 20 if pictured else 9), description)


def _map_dot(p: MapPoint, x: float, y: float) -> str:
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2"><title>{escape(p.tip)}</title></circle>'
    return f'<g class="cloud tone-{p.label % 10}">{dot}</g>'


def _map_picture(p: MapPoint, x: float, y: float) -> str:
    side = 30
    box = f'x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side}" height="{side}"'
    image = f'<image {box} preserveAspectRatio="xMidYMid slice" href="{escape(p.src)}"/>'
    frame = f'<rect class="edge" {box} rx="2"><title>{escape(p.tip)}</title></rect>'
    return f'<g class="tone-{p.label % 10}">{image}{frame}</g>'


def _map_labels(labels: Sequence[tuple[str, Point]], frame: Frame, above: float) -> str:
    taken: list[tuple[float, float, float]] = []
    parts = []
    for i, (name, (x, y)) in enumerate(labels):
        short = name if len(name) <= _LABEL else name[: _LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
        half = 3.4 * len(short) + 3
        px, py = min(max(frame.px(x), 14 + half), frame.width - 14 - half), frame.py(y) - above
        if any(abs(px - qx) < half + h and abs(py - qy) < 15 for qx, qy, h in taken):
            continue
        taken.append((px, py, half))
        at = f'x="{px:.1f}" y="{py:.1f}" text-anchor="middle"'
        parts.append(f'<text class="place tone-{i % 10}" {at}>{escape(short)}</text>')
    return "".join(parts)
