"""Numbers and settings as the report words them."""

from __future__ import annotations

import math
from typing import Any

from kshot.evaluation.record import Record
from kshot.evaluation.statistics import Estimate

_MINUS = "\N{MINUS SIGN}"


def is_share(metric: str) -> bool:
    """Tell whether a metric is written in percent.

    Args:
        metric: its name.

    Returns:
        True for accuracy.
    """
    return metric == "accuracy"


def metric_name(metric: str) -> str:
    """Spell a metric out.

    Args:
        metric: its name in records.

    Returns:
        Its name in words.
    """
    known = {
        "mse": "mean squared error",
        "bits": "bits per sequence",
        "wrong_bits": "wrong bits per sequence",
        "excess_bits": "bits per sequence above the best possible",
    }
    return known.get(metric, metric)


def number(estimate: Estimate, metric: str, *, signed: bool = False) -> tuple[str, str]:
    """Write a mean and its half interval with as many digits as the interval supports.

    Args:
        estimate: both.
        metric: shares are written in percent.
        signed: write a plus sign too.

    Returns:
        The two texts, without a unit.
    """
    factor = 100 if is_share(metric) else 1
    mean, half = factor * estimate.mean, factor * estimate.ci95
    # Two digits of the interval; an interval of zero says nothing about digits.
    digits = min(4, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 2
    text = f"{mean:+.{digits}f}" if signed else f"{mean:.{digits}f}"
    return text.replace("-", _MINUS), f"{half:.{digits}f}"


def p_value(p: float) -> str:
    """Write a p-value.

    Args:
        p: within 0..1.

    Returns:
        Such as "p = 0.03", "p < 0.001".
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def duration(seconds: float) -> str:
    """Write a time span.

    Args:
        seconds: at least 0.

    Returns:
        Such as "0.4 s", "3 min 5 s".
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def task(record: Record) -> str:
    """Name the tasks of a record.

    Args:
        record: the record.

    Returns:
        Such as "5-way 1-shot".
    """
    if record.metric == "bits":
        return f"sequences of up to {record.n_shot} step{'s' if record.n_shot > 1 else ''} read, {record.n_query} asked"
    shots = f"{record.n_shot}-shot"
    return f"{shots} regression" if record.n_way is None else f"{record.n_way}-way {shots}"


def task_and_queries(record: Record) -> str:
    """Name the tasks of a record, and how many queries each has.

    Args:
        record: the record.

    Returns:
        Such as "5-way 1-shot, 15 queries".
    """
    return task(record) if record.metric == "bits" else f"{task(record)}, {record.n_query} queries"


def listing(names: list[str]) -> str:
    """Join names.

    Args:
        names: at least one.

    Returns:
        Such as "A, B and C".
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def unique(values: list[Any]) -> list[Any]:
    """Drop repeats, in order.

    Args:
        values: any that can be compared.

    Returns:
        The first of each.
    """
    return [v for i, v in enumerate(values) if v not in values[:i]]
