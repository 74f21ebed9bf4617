"""The ground of the charts: scales, ticks, grid and labels as SVG text. Everything put into it is escaped here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Point = tuple[float, float]
Format = Callable[[float], str]


def percent(value: float) -> str:
    """Write a share as a percentage.

    Args:
        value: of 0..1.

    Returns:
        Such as "97.5%".
    """
    return f"{100 * value:.4g}%"


def plain(value: float) -> str:
    """Write a number shortly.

    Args:
        value: any.

    Returns:
        Such as "0.25", "12k".
    """
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Choose round numbers within a range.

    Args:
        low: its lower end.
        high: its upper end, above ``low``.
        about: how many are wanted.

    Returns:
        Multiples of 1, 2, 2.5 or 5 times a power of ten.
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= rough * 0.999), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


class Frame:
    """The plot area of a chart, with its scales.

    Args:
        x: range of the horizontal axis.
        y: range of the vertical axis.
        width: of the whole chart, in its own units (pixels on a wide screen).
        height: of the whole chart.
        log_x: logarithmic horizontal axis.
        log_y: logarithmic vertical axis.
        bottom: space below the plot area.
    """

    left, right, top = 44.0, 14.0, 26.0

    def __init__(
        self,
        x: Point,
        y: Point,
        *,
        width: float = 440,
        height: float = 270,
        log_x: bool = False,
        log_y: bool = False,
        bottom: float = 40,
    ) -> None:
        self.x, self.y, self.width, self.height, self.bottom = opened(x), opened(y), width, height, bottom
        self.log_x, self.log_y = log_x, log_y

    def px(self, x: float) -> float:
        """Horizontal place of a value.

        Args:
            x: the value.

        Returns:
            Its place in the chart.
        """
        return self.left + _share(x, self.x, self.log_x) * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        """Vertical place of a value.

        Args:
            y: the value.

        Returns:
            Its place in the chart.
        """
        return self.height - self.bottom - _share(y, self.y, self.log_y) * (self.height - self.top - self.bottom)

    def path(self, points: Sequence[Point]) -> str:
        """Join points by lines.

        Args:
            points: (x, y) values.

        Returns:
            The ``d`` of an SVG path.
        """
        return "M" + "L".join(f"{self.px(x):.1f} {self.py(y):.1f}" for x, y in points)

    def axes(
        self,
        x_label: str,
        y_label: str,
        *,
        x_format: Format = plain,
        y_format: Format = plain,
        x_ticks: Sequence[float] | None = None,
    ) -> str:
        """Draw grid lines, ticks and labels.

        Args:
            x_label: what the horizontal axis is.
            y_label: what the vertical axis is.
            x_format: writes its ticks.
            y_format: writes its ticks.
            x_ticks: where they stand; round numbers if None.

        Returns:
            Markup.
        """
        x_ticks = nice_ticks(*self.x) if x_ticks is None else x_ticks
        y_ticks = _decades(*self.y) if self.log_y else nice_ticks(*self.y)
        x0, x1, base = self.left, self.width - self.right, self.height - self.bottom
        parts = [f'<path class="base" d="M{x0:g} {base:g}H{x1:g}"/>']
        for tick in y_ticks:
            at = self.py(tick)
            parts.append(f'<path class="grid" d="M{x0:g} {at:.1f}H{x1:g}"/>')
            parts.append(
                f'<text class="tick" x="{x0 - 7:g}" y="{at + 3.5:.1f}" text-anchor="end">{y_format(tick)}</text>'
            )
        for tick in x_ticks:
            at = self.px(tick)
            parts.append(f'<path class="base" d="M{at:.1f} {base:g}v4"/>')
            parts.append(
                f'<text class="tick" x="{at:.1f}" y="{base + 16:g}" text-anchor="middle">{x_format(tick)}</text>'
            )
        parts.append(f'<text class="label" x="{x1:g}" y="{base + 32:g}" text-anchor="end">{escape(x_label)}</text>')
        parts.append(f'<text class="label" x="0" y="11">{escape(y_label)}</text>')
        return "".join(parts)

    def svg(self, body: str, description: str) -> str:
        """Close the chart.

        Args:
            body: what is in it.
            description: for those who do not see it.

        Returns:
            An SVG element.
        """
        return svg(self.width, self.height, body, description)


def svg(width: float, height: float, body: str, description: str) -> str:
    """Make an SVG element that scales with the page.

    Args:
        width: in its own units.
        height: in its own units.
        body: what is in it.
        description: for those who do not see it.

    Returns:
        Markup.
    """
    label = escape(description, quote=True)
    return f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{body}</svg>'


def opened(ends: Point) -> Point:
    """Give an empty range some width, which keeps the scales finite.

    Args:
        ends: of the range.

    Returns:
        The same, or a range around it.
    """
    low, high = ends
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    half = 0.5 * abs(low) or 0.5
    return low - half, high + half


def _share(value: float, ends: Point, log: bool) -> float:
    low, high = ends
    if log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    many = math.log10(high / low) > 3
    return [t for p in powers for m in ((1,) if many else (1, 2, 5)) if low <= (t := m * 10.0**p) <= high]
