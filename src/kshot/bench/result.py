"""What a case of ``kshot bench`` measured."""

from __future__ import annotations

import dataclasses
from typing import Any

from kshot.bench.timing import Timing, ratio


@dataclasses.dataclass(frozen=True)
class Line:
    """One contender of a case.

    Attributes:
        name: who.
        seconds: median of a step.
        spread: fastest and slowest.
        ratio: kshot is so many times faster: median, least and greatest over the rounds; None for kshot itself.
        note: what one must know.
    """

    name: str
    seconds: float
    spread: tuple[float, float]
    ratio: tuple[float, float, float] | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a case measured.

    Attributes:
        case: its name.
        what: one sentence on what a step is.
        lines: the contenders, kshot first.
        agreement: how the results were compared, and how far apart they were.
        least: ratio asked against the contender named in ``against``; None where none is asked.
        against: the contender that ``least`` is about.
        per_minute: steps a minute that are asked of kshot; None where none are.
        extra: more numbers, such as the share of the peak.
    """

    case: str
    what: str
    lines: tuple[Line, ...]
    agreement: str
    least: float | None = None
    against: str = ""
    per_minute: float | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Whether what is asked was reached; None where nothing is asked or the contender is not there."""
        if self.per_minute is not None:
            return 60 / self.lines[0].seconds >= self.per_minute
        found = [line.ratio for line in self.lines if line.name == self.against and line.ratio]
        return None if self.least is None or not found else found[0][0] >= self.least


def lines_of(timings: dict[str, Timing], ours: str, per: int, notes: dict[str, str]) -> tuple[Line, ...]:
    """Turn timings into lines.

    Args:
        timings: name -> timing.
        ours: name of the one that the others are compared with.
        per: steps that were timed together.
        notes: name -> what one must know.

    Returns:
        A line for each.
    """
    first = timings[ours]
    return tuple(
        Line(
            name,
            t.median / per,
            (t.spread[0] / per, t.spread[1] / per),
            None if name == ours else ratio(t, first),
            notes.get(name, ""),
        )
        for name, t in timings.items()
    )
