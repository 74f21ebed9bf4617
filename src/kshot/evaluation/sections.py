"""What each section of the report shows, worked out from the runs: texts, charts and tiles for the template to place.

Every function takes all runs and returns what there is; an empty result leaves its section out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kshot.evaluation import wording
from kshot.evaluation.figures import (
    Bin,
    Cloud,
    Series,
    line_chart,
    percent,
    plain,
    regression,
    reliability,
    scatter,
    shared_scale,
    whisker,
    whisker_axis,
)
from kshot.evaluation.history import Points
from kshot.evaluation.metrics import reliability_table
from kshot.evaluation.pictures import EpisodePicture, TaskPicture
from kshot.evaluation.record import Record
from kshot.evaluation.scores import Curve, compare, higher_is_better
from kshot.evaluation.statistics import Estimate
from kshot.evaluation.tiles import tile

if TYPE_CHECKING:
    from kshot.evaluation.report import RunReport

Runs = Sequence["RunReport"]
View = dict[str, Any]
MAX_POINTS, MAX_PAIRS = 160, 10


def title(runs: Runs) -> str:
    """Make the heading.

    Args:
        runs: all runs.

    Returns:
        Such as "ProtoNet and MAML on omniglot".
    """
    names = wording.listing([run.name for run in runs]) if len(runs) <= 4 else f"{len(runs)} learners"
    data = wording.unique([r.data for r in _records(runs)])
    return f"{names} on {wording.listing(data)}" if data else names


def introduction(runs: Runs) -> str:
    """Say in a sentence or two what was measured; only what holds for every run.

    Args:
        runs: all runs.

    Returns:
        The text, empty where nothing is known.
    """
    records = _records(runs)
    tasks = wording.unique([wording.task(r) for r in records])
    counts = wording.unique([(r.n_episodes, r.split, r.seed) for r in records])
    if len(tasks) != 1 or len(counts) != 1:
        return "Each row of the table names its own tasks." if records else ""
    (n_episodes, split, seed), first = counts[0], records[0]
    text = f"{tasks[0].capitalize()} tasks: {n_episodes:,} episodes of {split}, drawn with seed {seed}."
    if first.n_way is not None:
        text += f" A learner sees {first.n_shot} example{'s' if first.n_shot > 1 else ''} of each of {first.n_way} new"
        text += (
            f" classes and sorts {first.n_way * first.n_query} queries into them; chance is {percent(1 / first.n_way)}."
        )
    return text


def legend(runs: Runs) -> list[View]:
    """List the colours of the runs.

    Args:
        runs: all runs.

    Returns:
        Name and tone of each.
    """
    return [{"name": run.name, "tone": i % 10} for i, run in enumerate(runs)]


def headlines(runs: Runs) -> list[View]:
    """Choose the big numbers.

    Args:
        runs: all runs.

    Returns:
        One for each run with a number, none where there are more than four.
    """
    known = [_headline(i, run) for i, run in enumerate(runs) if run.estimate is not None]
    return known if len(known) <= 4 else []


def _headline(tone: int, run: RunReport) -> View:
    estimate, metric = run.estimate or Estimate(0, 0, 0), run.metric or ""
    mean, half = wording.number(estimate, metric)
    kind = "" if run.record is None else ("transductive" if run.record.transductive else "inductive")
    what = ", ".join(w for w in (wording.metric_name(metric), kind) if w)
    unit = "%" if wording.is_share(metric) else ""
    return {"name": run.name, "tone": tone % 10, "mean": mean, "half": half, "unit": unit, "what": what}


def result_tables(runs: Runs) -> list[View]:
    """Make one table for each metric, its intervals drawn on one axis.

    Args:
        runs: all runs.

    Returns:
        Tables of rows.
    """
    tables = []
    tasks = wording.unique([(wording.task(r), r.data) for r in _records(runs)])
    for metric in wording.unique([run.metric for run in runs if run.metric is not None]):
        mine = [(i, run, run.estimate) for i, run in enumerate(runs) if run.metric == metric and run.estimate]
        scale = shared_scale([(e.low, e.high) for _, _, e in mine])
        rows = [_row(i, run, e, metric, scale) for i, run, e in mine]
        tables.append(
            {
                "metric": wording.metric_name(metric),
                "unit": "%" if wording.is_share(metric) else "",
                "axis": whisker_axis(scale, percent if wording.is_share(metric) else plain),
                "rows": rows,
                "tasks": len(tasks) > 1,
                "columns": {key: any(row[key] for row in rows) for key in ("normalisation", "inference", "nll", "ece")},
                "transductive": any(row["inference"] == "transductive" for row in rows),
            }
        )
    return tables


def _row(tone: int, run: RunReport, estimate: Estimate, metric: str, scale: tuple[float, float]) -> View:
    mean, half = wording.number(estimate, metric)
    record, scores = run.record, run.known_scores
    extra = {} if record is None else record.extra
    nll, ece = extra.get("nll"), extra.get("ece")
    if scores is not None and "nll" in scores.per_episode:
        nll = float(scores.per_episode["nll"].mean())
    if ece is None and scores is not None:
        ece = scores.ece
    inference = "" if record is None else ("transductive" if record.transductive else "inductive")
    return {
        "name": run.name,
        "tone": tone % 10,
        "mean": mean,
        "half": half,
        "whisker": whisker(estimate.mean, estimate.low, estimate.high, scale, tone),
        "task": "" if record is None else f"{record.data}, {wording.task(record)}",
        "normalisation": "" if record is None else record.normalisation,
        "inference": inference,
        "nll": "" if nll is None else f"{nll:.3f}",
        "ece": "" if ece is None else percent(round(ece, 4)),
    }


def pairs(runs: Runs) -> View:
    """Compare runs that saw identical episodes.

    Args:
        runs: all runs.

    Returns:
        Rows and their axis for each metric; empty where no two runs can be compared.
    """
    known = [(run, s) for run in runs if (s := run.known_scores) is not None and s.fingerprint]
    found = []
    for (a, first), (b, second) in itertools.combinations(known, 2):
        if first.fingerprint == second.fingerprint and first.metric == second.metric and first.n_episodes > 1:
            found.append((a, b, first.metric, compare(first, second)))
    found = [f for f in found if f[2] == found[0][2]][:MAX_PAIRS]
    if not found:
        return {}
    metric = found[0][2]
    scale = shared_scale([(c.difference.low, c.difference.high) for *_, c in found], include=0.0)
    rows = [_pair_row(a, b, metric, c, scale) for a, b, _, c in found]
    points = wording.is_share(metric)
    axis = whisker_axis(scale, (lambda v: plain(100 * v)) if points else plain)
    return {"rows": rows, "axis": axis, "unit": "points" if points else wording.metric_name(metric)}


def _pair_row(a: RunReport, b: RunReport, metric: str, c: Any, scale: tuple[float, float]) -> View:
    mean, half = wording.number(c.difference, metric, signed=True)
    ahead = (c.difference.mean > 0) == higher_is_better(metric)
    clear = c.p_value < 0.05 and (c.difference.low > 0 or c.difference.high < 0)
    wins = (c.first_better, c.second_better) if higher_is_better(metric) else (c.second_better, c.first_better)
    return {
        "first": a.name,
        "second": b.name,
        "mean": mean,
        "half": half,
        "whisker": whisker(c.difference.mean, c.difference.low, c.difference.high, scale, 9, mark=0.0),
        "p": wording.p_value(c.p_value),
        "verdict": f"{(a if ahead else b).name} is better" if clear else "no clear difference",
        "wins": wins,
        "ties": c.difference.n - sum(wins),
    }


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
    for metric in wording.unique([run.metric for run in runs]):
        scores = [
            Series(run.name, i, points, markers=len(points) <= 40)
            for i, run in enumerate(runs)
            if run.metric == metric and run.history and (points := _scores_shown(run.history.validation, metric))
        ]
        if scores:
            name = wording.metric_name(metric) if metric else "score"
            share = (
                metric is not None
                and wording.is_share(metric)
                and all(0 <= y <= 1 for s in scores for _, y in s.points)
            )
            text = f"Validation {name} by outer step"
            chart = line_chart(
                scores, x_label="outer step", y_label=f"validation {name}", description=text, as_percent=share
            )
            charts.append({"svg": chart, "caption": f"{text}, on classes held out for choosing the checkpoint."})
    return charts


def _scores_shown(points: Points, metric: str | None) -> Points:
    # The trainer keeps "higher is better" scores: errors come with their sign turned.
    if metric == "mse" and points and all(y <= 0 for _, y in points):
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
    """Draw scores against shots and against inner steps.

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
    return charts


def _score_chart(known: list[tuple[int, str, Curve]], metric: str) -> View:
    along, share = known[0][2].along, wording.is_share(metric)
    xs = sorted({x for *_, curve in known for x in curve.x})
    spread = along == "shots" and xs[0] > 0 and xs[-1] / xs[0] >= 8
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
    text = f"{name.capitalize()} against {along}"
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
            {"svg": _task_chart(t, i, y_range, n), "caption": f"Squared error {plain(t.mse)}"}
            for n, t in enumerate(tasks)
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


def _points(rows: Any) -> list[tuple[float, float]]:
    return [(x, y) for x, y in rows.tolist()]


def episodes(runs: Runs) -> list[View]:
    """Picture the sampled episodes.

    Args:
        runs: all runs.

    Returns:
        For each run with pictures: its episodes as rows of tiles.
    """
    return [
        {"name": run.name, "tone": i % 10, "pictures": [_episode(p) for p in run.pictures.episodes]}
        for i, run in enumerate(runs)
        if run.pictures and run.pictures.episodes
    ]


def _episode(picture: EpisodePicture) -> View:
    supports = [tile(row.support[0]) if row.support else None for row in picture.rows]
    names = [row.name for row in picture.rows]

    def answer(a: Any) -> View:
        inside = a.predicted < len(names)
        taken = names[a.predicted] if inside else f"class {a.predicted + 1}"
        sure = percent(round(a.confidence, 2))
        told = f"right, {sure} sure" if a.right else f"taken for {taken}, {sure} sure"
        instead = None if a.right or not inside else supports[a.predicted]
        return {
            "tile": tile(a.image),
            "right": a.right,
            "taken": instead,
            "sure": sure,
            "confidence": a.confidence,
            "told": told,
        }

    rows = [
        {"name": row.name, "support": [tile(s) for s in row.support], "answers": [answer(a) for a in row.answers]}
        for row in picture.rows
    ]
    each = picture.n_queries // picture.n_way
    parts = [f"{len(rows)} of {picture.n_way} classes"] if len(rows) < picture.n_way else []
    parts += [f"{picture.shown} of {each} queries of each class"] if picture.shown < each else []
    return {
        "title": picture.title,
        "accuracy": percent(round(picture.accuracy, 4)),
        "n_queries": picture.n_queries,
        "part": f"Shown: {wording.listing(parts)}." if parts else "",
        "rows": rows,
    }


def confusions(runs: Runs) -> list[View]:
    """Picture the most confused classes.

    Args:
        runs: all runs.

    Returns:
        For each run with confusions: cards.
    """
    found = []
    for i, run in enumerate(runs):
        if not run.pictures or not run.pictures.confusions:
            continue
        cards = [
            {
                "right": c.right,
                "taken_for": c.taken_for,
                "times": c.times,
                "queries": c.queries,
                "image": tile(c.image),
                "right_image": tile(c.right_image),
                "taken_image": tile(c.taken_image),
            }
            for c in run.pictures.confusions
        ]
        found.append({"name": run.name, "tone": i % 10, "n": run.pictures.n_confusion_episodes, "cards": cards})
    return found


def embeddings(runs: Runs) -> list[View]:
    """Draw the scatters.

    Args:
        runs: all runs.

    Returns:
        For each run with an embedding: its chart and the classes of its colours.
    """
    found = []
    for run in runs:
        e = run.pictures.embedding if run.pictures else None
        if e is None:
            continue
        points, labels = _points(e.points), e.labels.tolist()
        clouds = []
        for w, name in enumerate(e.names):
            mine = [(n, p) for n, (p, label) in enumerate(zip(points, labels, strict=True)) if label == w]
            clouds.append(
                Cloud(name, w, [p for n, p in mine if n < e.n_support], [p for n, p in mine if n >= e.n_support])
            )
        shares = [percent(round(s, 2)) for s in e.explained]
        description = f"Embedding of one episode of {run.name} in two principal components, one colour for each class"
        chart = scatter(
            clouds, x_label=f"component 1 ({shares[0]})", y_label=f"component 2 ({shares[1]})", description=description
        )
        images = [tile(x) for x in e.images] or [None] * len(clouds)
        classes = [{"name": c.name, "tone": c.tone, "tile": t} for c, t in zip(clouds, images, strict=True)]
        found.append({"name": run.name, "svg": chart, "classes": classes})
    return found


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


def repeats(runs: Runs) -> list[View]:
    """Say how each run is repeated.

    Args:
        runs: all runs.

    Returns:
        For each run with a record or a command: the command and the facts.
    """
    found = []
    for run in runs:
        facts = [] if run.record is None else _facts(run.record)
        command = run.command or ("" if run.record is None else str(run.record.extra.get("command", "")))
        if facts or command:
            found.append({"name": run.name, "command": command, "facts": facts})
    return found


def _facts(r: Record) -> list[tuple[str, str]]:
    e = r.environment
    software = ", ".join(f"{key} {e[key]}" for key in ("kshot", "python", "torch") if e.get(key))
    machine = ", ".join(str(e[key]) for key in ("cpu", "platform", "device") if e.get(key))
    machine += f", {e['threads']} threads" if e.get("threads") else ""
    facts = [
        ("Data", f"{r.data}, {r.split}"),
        ("Tasks", f"{wording.task(r)}, {r.n_query} queries, {r.n_episodes:,} episodes, seed {r.seed}"),
        ("Code", r.commit),
        ("Software", software),
        ("Machine", machine),
        ("Evaluation took", wording.duration(r.seconds)),
        ("Data hash", r.data_sha256),
    ]
    return [(name, text) for name, text in facts if text]


def _records(runs: Runs) -> list[Record]:
    return [run.record for run in runs if run.record is not None]
