"""How time and memory of an outer gradient grow with the number of tasks and of inner steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from kshot.bench.plain import gap
from kshot.bench.result import Line, Result
from kshot.bench.sinusoid import batch, networks
from kshot.bench.timing import take_turns
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.memory_plan import in_words, measured, predict
from kshot.evaluation.report.figures import Series, line_chart

TASKS, STEPS = tuple(2**i for i in range(10)), (1, 2, 3, 4, 6, 9, 12, 16, 20)
#: Tasks while steps grow, and steps while tasks grow.
FIXED_TASKS, FIXED_STEPS = 25, 5
_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #333 } .label, .tick { fill: #666 } .name { font-weight: 600 }
.base { stroke: #999; fill: none } .grid { stroke: #8883; fill: none } .line { fill: none; stroke-width: 2 }
.tone-0 .line { stroke: #0b6e99 } .tone-0 .dot { fill: #0b6e99 } .tone-1 .line { stroke: #c2571a }
.tone-1 .dot { fill: #c2571a } .dashed { stroke-dasharray: 5 4 } .faint { stroke-opacity: .5; stroke-dasharray: 2 3 }
.tone-2 .line { stroke: #888 } @media (prefers-color-scheme: dark) { text { fill: #ddd } .label, .tick { fill: #aaa } }
"""


def growth(
    rounds: int, tasks: Sequence[int] = TASKS, steps: Sequence[int] = STEPS, per: int = 3, width: int = 40
) -> Result:
    """Time second-order MAML on sinusoids by vmap, and count the bytes of its tensors, while tasks or steps grow.

    Args:
        rounds: measured rounds.
        tasks: numbers of tasks, at ``FIXED_STEPS`` inner steps.
        steps: numbers of inner steps, at ``FIXED_TASKS`` tasks.
        per: outer gradients in a row that are timed together.
        width: units of each of the two layers.

    Returns:
        Seconds of an outer gradient for each size, peaks of memory in ``extra``.
    """
    sizes = [("tasks", n, n, FIXED_STEPS) for n in tasks] + [("steps", k, FIXED_TASKS, k) for k in steps]
    ways = [(*size, recompute) for size in sizes for recompute in (False, True)]
    timed, points = {}, []
    for what, n, t, k, recompute in ways:
        name = f"{t} tasks, {k} inner steps" + ", recomputed" * recompute + f" ({what} grow)"
        step = _step(t, k, recompute, width)
        with measured() as peak:
            step()
        point = {"grows": what, "n": n, "recompute": recompute, "bytes": peak(), "name": name}
        points.append({**point, "predicted": _predicted(t, k, recompute, width)})
        timed[name] = _several(step, per)
    timings = take_turns(timed, rounds)
    for point in points:
        point["seconds"] = timings[point["name"]].median / per
    lines = [
        Line(
            p["name"],
            p["seconds"],
            (timings[p["name"]].spread[0] / per, timings[p["name"]].spread[1] / per),
            None,
            f"peak {in_words(p['bytes'])}, predicted {in_words(p['predicted'])}",
        )
        for p in points
    ]
    what = f"MAML, second order, sinusoids, MLP {width}-{width}, vmap: one outer gradient"
    agreement = f"gradients with steps recomputed and without, relative: {_agreement(width):.1e}"
    return Result("growth", what, tuple(lines), agreement, extra={"points": points, "powers": powers(points)})


def _step(t: int, k: int, recompute: bool, width: int) -> Callable[[], object]:
    episodes, step = batch(t), OuterStep(networks(k, width)[0], Batching("vmap", recompute=recompute))
    return lambda: step(episodes)


def _predicted(t: int, k: int, recompute: bool, width: int) -> int:
    return predict(networks(k, width)[0], batch(t), Batching("vmap", recompute=recompute)).of(t)


def _several(step: Callable[[], object], per: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(per):
            step()

    return run


def _agreement(width: int) -> float:
    episodes, learner = batch(4), networks(FIXED_STEPS, width)[0]
    return gap(*(OuterStep(learner, Batching("vmap", recompute=r))(episodes).grads for r in (True, False)))


def powers(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Find by which power seconds and bytes grow, from the middle of the sizes to the end.

    Args:
        points: of ``growth``.

    Returns:
        Such as "bytes by steps, recomputed" -> 0.5 where four times the steps take twice the memory.
    """
    found = {}
    for grows in ("tasks", "steps"):
        for recompute in (False, True):
            some = [p for p in points if p["grows"] == grows and p["recompute"] is recompute]
            if len(some) < 2:
                continue
            a, b = some[len(some) // 2 - (len(some) == 2)], some[-1]
            for value in ("seconds", "bytes"):
                name = f"{value} by {grows}" + ", recomputed" * recompute
                found[name] = math.log(b[value] / a[value]) / math.log(b["n"] / a["n"])
    return found


def picture(result: Result) -> str:
    """Draw time and memory against tasks and steps.

    Args:
        result: of ``growth``.

    Returns:
        A whole SVG file of four charts.
    """
    charts = [
        _chart(result.extra["points"], grows, value, unit, factor)
        for value, unit, factor in (("seconds", "time [ms]", 1e3), ("bytes", "memory, peak [MiB]", 2**-20))
        for grows in ("tasks", "steps")
    ]
    placed = [
        chart.replace("<svg ", f'<svg x="{460 * (i % 2)}" y="{60 + 290 * (i // 2)}" width="440" height="270" ', 1)
        for i, chart in enumerate(charts)
    ]
    names = (
        ("tone-0", "", "kept for the way back"),
        ("tone-1", "dashed", "steps recomputed"),
        ("tone-2", "faint", "linear"),
    )
    key = "".join(
        f'<g class="{tone}"><path class="line {style}" d="M{20 + 190 * i} 44h26"/></g><text x="{52 + 190 * i}" y="48">'
        f"{text}</text>"
        for i, (tone, style, text) in enumerate(names)
    )
    head = f'<text class="name" x="20" y="22">{escape(result.what)}</text>'
    view = 'xmlns="http://www.w3.org/2000/svg" viewBox="-10 0 930 640" role="img"'
    return f"<svg {view}><style>{_STYLE}</style>{head}{key}{''.join(placed)}</svg>\n"


def _chart(points: Sequence[dict[str, Any]], grows: str, value: str, unit: str, factor: float) -> str:
    series, ticks = [], sorted({p["n"] for p in points if p["grows"] == grows})
    for recompute in (False, True):
        some = [(p["n"], factor * p[value]) for p in points if p["grows"] == grows and p["recompute"] is recompute]
        name = "steps recomputed" if recompute else "kept for the way back"
        series.append(Series(name, int(recompute), some, style="dashed" if recompute else ""))
    last = series[0].points[-1]
    series.append(
        Series(
            "linear",
            2,
            [(n, last[1] * n / last[0]) for n in ticks if grows == "tasks" or 8 * n >= last[0]],
            style="faint",
        )
    )
    fixed = f"at {FIXED_STEPS} inner steps" if grows == "tasks" else f"at {FIXED_TASKS} tasks"
    return line_chart(
        series,
        x_label=f"{'tasks' if grows == 'tasks' else 'inner steps'}, {fixed}",
        y_label=unit,
        description=f"{unit} against {grows}",
        x_ticks=ticks,
        log_x=grows == "tasks",
    )
