"""The report's numbers and words: heading, headline figures, tables of results and of differences, how to repeat.

Every function takes all runs and returns what there is; an empty result leaves its section out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kshot.evaluation.record import Record
from kshot.evaluation.report import wording
from kshot.evaluation.report.axes import percent, plain
from kshot.evaluation.report.figures import shared_scale, whisker, whisker_axis
from kshot.evaluation.scores import compare, higher_is_better
from kshot.evaluation.statistics import Comparison, Estimate

if TYPE_CHECKING:
    from kshot.evaluation.report.inputs import RunReport

Runs = Sequence["RunReport"]
View = dict[str, Any]
MAX_PAIRS = 10


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
    what = tasks[0].capitalize() + ("" if first.metric == "bits" else " tasks")
    text = f"{what}: {n_episodes:,} episodes of {split}, drawn with seed {seed}."
    if first.metric == "bits":
        text += " The score is the cost of a sequence: the cross-entropy of every bit asked, in bits, summed."
        best = wording.unique([r.extra.get("optimal_bits") for r in records])
        text += f" The best possible answers cost {best[0]:.4g}." if len(best) == 1 and best[0] is not None else ""
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


def _pair_row(a: RunReport, b: RunReport, metric: str, c: Comparison, scale: tuple[float, float]) -> View:
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


def repeats(runs: Runs) -> list[View]:
    """Say how each run is repeated.

    Args:
        runs: all runs.

    Returns:
        For each run with a record or a command: the command and the facts.
    """
    found = []
    for i, run in enumerate(runs):
        facts = [] if run.record is None else _facts(run.record)
        command = run.command or ("" if run.record is None else str(run.record.extra.get("command", "")))
        if facts or command:
            found.append({"name": run.name, "tone": i % 10, "command": command, "facts": facts})
    return found


def _facts(r: Record) -> list[tuple[str, str]]:
    e = r.environment
    software = ", ".join(f"{key} {e[key]}" for key in ("kshot", "python", "torch") if e.get(key))
    machine = ", ".join(str(e[key]) for key in ("cpu", "platform", "device") if e.get(key))
    machine += f", {e['threads']} thread{'s' if e['threads'] != 1 else ''}" if e.get("threads") else ""
    facts = [
        ("Data", f"{r.data}, {r.split}"),
        ("Tasks", f"{wording.task_and_queries(r)}, {r.n_episodes:,} episodes, seed {r.seed}"),
        ("Code", r.commit),
        ("Software", software),
        ("Machine", machine),
        ("Evaluation took", wording.duration(r.seconds)),
        ("Data hash", r.data_sha256),
    ]
    return [(name, text) for name, text in facts if text]


def _records(runs: Runs) -> list[Record]:
    return [run.record for run in runs if run.record is not None]
