"""The report's line charts: training, scores against shots and inner steps, regression tasks, calibration.

Every function takes all runs and returns what there is; an empty result leaves its section out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kshot.evaluation.history import Points
from kshot.evaluation.metrics import reliability_table
from kshot.evaluation.pictures import TaskPicture
from kshot.evaluation.report import wording
from kshot.evaluation.report.axes import percent, plain
from kshot.evaluation.report.figures import Bin, Series, line_chart, regression, reliability, shared_scale
from kshot.evaluation.scores import Curve, higher_is_better

if TYPE_CHECKING:
    from kshot.evaluation.report.inputs import RunReport

Runs = Sequence["RunReport"]
View = dict[str, Any]
MAX_POINTS = 160


def training(runs: Runs) -> list[View]:
    """Draw the training curves.

    Args:
        runs: all runs.

    Returns:
        A chart of losses and one of validation scores, of those that there are.
    """
    losses = [
        _smoothed(run.name, i, run.history.loss) for i, run in enumerate(runs) if run.history and run.history.loss
    ]
    charts = []
    if losses:
        chart = line_chart(losses, x_label="outer step", y_label="loss", description="Training loss by outer step")
        caption = "Outer loss while training: mean and middle four fifths of neighbouring steps."
        charts.append({"svg": chart, "caption": caption})
    metrics = [_metric(run) for run in runs]
    for metric in wording.unique(metrics):
        scores = [
            Series(run.name, i, points, markers=len(points) <= 40)
            for i, run in enumerate(runs)
            if metrics[i] == metric and run.history and (points := _scores_shown(run.history.validation, metric))
        ]
        if scores:
            charts.append(_validation_chart(scores, metric, _goals(runs, metric)))
    return charts


def _validation_chart(scores: list[Series], metric: str | None, goals: list[tuple[str, float]]) -> View:
    name = wording.metric_name(metric) if metric else "score"
    known = metric is not None and wording.is_share(metric)
    share = known and all(0 <= y <= 1 for s in scores for _, y in s.points)
    text = f"Validation {name} by outer step"
    chart = line_chart(
        scores, x_label="outer step", y_label=f"validation {name}", description=text, as_percent=share, goals=goals
    )
    caption = f"{text}, on tasks held out for choosing the checkpoint."
    if goals:
        caption += " Dashed: what the best possible answers to the same sequences cost."
    return {"svg": chart, "caption": caption}


def _goals(runs: Runs, metric: str | None) -> list[tuple[str, float]]:
    known = [(run, run.best_validation) for run in runs if run.best_validation is not None and _metric(run) == metric]
    values = wording.unique([plain(value) for _, value in known])
    if len(values) == 1:
        return [(f"the best possible: {values[0]}", known[0][1])]
    return [(f"the best possible for {run.name}: {plain(value)}", value) for run, value in known]


def _metric(run: RunReport) -> str | None:
    # A run that was not tested has no headline, but what was measured for its curves tells.
    return run.metric or (run.by_shots.metric if run.by_shots else None)


def _scores_shown(points: Points, metric: str | None) -> Points:
    # The trainer keeps "higher is better" scores: errors come with their sign turned.
    if metric and not higher_is_better(metric) and points and all(y <= 0 for _, y in points):
        return [(x, -y) for x, y in points]
    return points


def _smoothed(name: str, tone: int, points: Points) -> Series:
    if len(points) <= MAX_POINTS:
        return Series(name, tone, points)
    size = -(-len(points) // MAX_POINTS)
    means, band = [], []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ys = sorted(y for _, y in part)
        means.append((sum(x for x, _ in part) / len(part), sum(ys) / len(ys)))
        edge = len(ys) // 10
        band.append((ys[edge], ys[-1 - edge]))
    return Series(name, tone, means, band)


def score_curves(runs: Runs) -> list[View]:
    """Draw scores against shots, against inner steps, and against ways.

    Args:
        runs: all runs.

    Returns:
        A chart for each, with its numbers as a table.
    """
    charts = []
    for kind in ("by_shots", "by_step"):
        known = [(i, run.name, curve) for i, run in enumerate(runs) if (curve := getattr(run, kind)) is not None]
        for metric in wording.unique([curve.metric for *_, curve in known]):
            charts.append(_score_chart([k for k in known if k[2].metric == metric], metric))
    for shots in sorted({shots for run in runs for shots in run.by_way}):
        known = [(i, run.name, run.by_way[shots]) for i, run in enumerate(runs) if shots in run.by_way]
        charts.append(_score_chart(known, known[0][2].metric, f", {shots}-shot"))
    return charts


def _score_chart(known: list[tuple[int, str, Curve]], metric: str, of_what: str = "") -> View:
    along, share = known[0][2].along, wording.is_share(metric)
    xs = sorted({x for *_, curve in known for x in curve.x})
    spread = along in ("shots", "ways") and xs[0] > 0 and xs[-1] / xs[0] >= 8
    series = [
        Series(
            name,
            tone,
            [(float(x), e.mean) for x, e in zip(curve.x, curve.estimates, strict=True)],
            [(e.low, e.high) for e in curve.estimates],
            markers=True,
        )
        for tone, name, curve in known
    ]
    name = wording.metric_name(metric)
    text = f"{name.capitalize()} against {along}{of_what}"
    chart = line_chart(
        series,
        x_label="shots per class" if along == "shots" and share else along,
        y_label=name,
        description=text,
        as_percent=share,
        x_ticks=xs if len(xs) <= 12 else None,
        log_x=spread,
    )
    rows = [{"name": n, "cells": _cells(curve, xs, metric)} for _, n, curve in known]
    return {"svg": chart, "caption": f"{text}, with 95% intervals.", "head": xs, "along": along, "rows": rows}


def _cells(curve: Curve, xs: list[int], metric: str) -> list[str]:
    known = dict(zip(curve.x, curve.estimates, strict=True))
    return [" ± ".join(wording.number(known[x], metric)) if x in known else "" for x in xs]


def regression_tasks(runs: Runs) -> list[View]:
    """Draw the sampled regression tasks.

    Args:
        runs: all runs.

    Returns:
        For each run with tasks: its charts and the labels of its lines.
    """
    found = []
    for i, run in enumerate(runs):
        tasks = run.pictures.tasks if run.pictures else []
        if not tasks:
            continue
        values = [float(v) for t in tasks for v in (*t.support[:, 1], *t.truth[:, 1])]
        y_range = shared_scale([(min(values), max(values))])
        labels = list(tasks[0].predictions)
        styles = _line_styles(len(labels))
        charts = [
            {"svg": _task_chart(t, i, y_range, n), "caption": f"Squared error {t.mse:.3g}"} for n, t in enumerate(tasks)
        ]
        lines = [{"label": label, "style": style} for label, style in zip(labels, styles, strict=True)]
        found.append({"name": run.name, "tone": i % 10, "charts": charts, "lines": lines})
    return found


def _line_styles(count: int) -> list[str]:
    return {1: ["heavy"], 2: ["dashed", "heavy"]}.get(count, ["dashed", *["faint"] * (count - 2), "heavy"])


def _task_chart(picture: TaskPicture, tone: int, y_range: tuple[float, float], number: int) -> str:
    styles = _line_styles(len(picture.predictions))
    grid = picture.grid.tolist()
    lines = [
        Series(label, tone, list(zip(grid, ys.tolist(), strict=True)), style=style)
        for (label, ys), style in zip(picture.predictions.items(), styles, strict=True)
    ]
    description = f"Task {number + 1}: truth, support points and predictions, squared error {plain(picture.mse)}"
    return regression(_points(picture.truth), _points(picture.support), lines, y_range, description)


def calibration(runs: Runs) -> list[View]:
    """Draw the reliability diagrams.

    Args:
        runs: all runs.

    Returns:
        For each run whose confidences are known: its chart.
    """
    found = []
    for i, run in enumerate(runs):
        scores = run.known_scores
        if scores is None or scores.bins is None:
            continue
        table = reliability_table(scores.bins)
        total = sum(row.n_queries for row in table)
        bins = [
            Bin(row.confidence, row.accuracy, row.n_queries / total)
            for row in table
            if row.confidence is not None and row.accuracy is not None
        ]
        text = f"Accuracy against confidence of {run.name} over {total:,} queries"
        chart = reliability(bins, tone=i, n_bins=len(table), description=text)
        found.append({"name": run.name, "tone": i % 10, "svg": chart, "ece": percent(round(scores.ece or 0.0, 4))})
    return found


def _points(rows: Any) -> list[tuple[float, float]]:
    return [(x, y) for x, y in rows.tolist()]
