"""How well each class is told from the others, and which are mistaken for one another."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from kshot.estimator.expected import wilson
from kshot.estimator.heads import class_means, units
from kshot.estimator.report.figures import MatrixCell, matrix
from kshot.estimator.report.shots import look
from kshot.estimator.report.subject import Subject
from kshot.estimator.report.wording import count, share
from kshot.evaluation.report.axes import percent
from kshot.evaluation.report.figures import whisker, whisker_axis

View = dict[str, Any]
#: Rows of the table of classes that are drawn, and those that are listed when asked for.
DRAWN, LISTED = 20, 1000
#: Classes of the matrix, and pairs that are shown.
IN_MATRIX, PAIRS = 40, 12
_SCALE = (0.0, 1.0)


def table(subject: Subject) -> View:
    """Make the table of classes, the weakest first.

    Args:
        subject: of the report.

    Returns:
        Rows that are drawn, rows that are listed, and how many are left out.
    """
    judged, right = subject.judged.tolist(), subject.right.tolist()
    confused: dict[int, list[tuple[int, int]]] = {}
    for (true, answer), n in subject.mistakes.most_common():
        confused.setdefault(true, []).append((n, answer))

    def weakness(c: int) -> tuple[float, int, int]:
        return (right[c] / judged[c] if judged[c] else 2.0, -judged[c], c)

    order = sorted(range(subject.fit.n_classes), key=weakness)
    rows = [_row(subject, c, confused.get(c, []), drawn=i < DRAWN) for i, c in enumerate(order[: DRAWN + LISTED])]
    return {
        "known": any(judged),
        "axis": whisker_axis(_SCALE, percent),
        "drawn": rows[:DRAWN],
        "listed": rows[DRAWN:],
        "left_out": max(0, len(order) - len(rows)),
        "n": len(order),
    }


def _row(subject: Subject, c: int, confused: list[tuple[int, int]], *, drawn: bool) -> View:
    n, right = int(subject.judged[c]), int(subject.right[c])
    low, high = wilson(right / n, n) if n else (0.0, 1.0)
    return {
        "name": subject.classes[c],
        "shots": int(subject.counts[c]),
        "accuracy": share(right / n) if n else "",
        "score": f"{right} of {n}" if n else "",
        "whisker": whisker(right / n, low, high, _SCALE, 0) if n and drawn else "",
        "confused": [{"name": subject.classes[a], "times": times} for times, a in confused[:2]],
        "more": len(confused[2:]),
    }


def confusion(subject: Subject) -> View:
    """Picture which classes are mistaken for one another.

    Args:
        subject: of the report.

    Returns:
        The matrix and the most confused pairs; empty where no shot was mistaken.
    """
    if not subject.mistakes:
        return {}
    pairs: Counter[tuple[int, int]] = Counter()
    for (true, answer), n in subject.mistakes.items():
        pairs[min(true, answer), max(true, answer)] += n
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    chosen = _chosen(subject, ranked)
    of = "" if len(chosen) == subject.fit.n_classes else f"The {len(chosen)} classes that are mistaken most often. "
    cards = [
        {
            "first": subject.classes[a],
            "second": subject.classes[b],
            "times": count(n, "mix-up"),
            "of": f"among {count(int(subject.judged[a] + subject.judged[b]), 'shot')}",
            "looks": [_first(subject, a), _first(subject, b)],
        }
        for (a, b), n in ranked[:PAIRS]
    ]
    svg, width = _matrix(subject, chosen)
    return {"svg": svg, "width": width, "note": of, "pairs": cards, "left_out": max(0, len(ranked) - PAIRS)}


def _chosen(subject: Subject, ranked: list[tuple[tuple[int, int], int]]) -> list[int]:
    n_classes = subject.fit.n_classes
    found: dict[int, None] = dict.fromkeys(range(n_classes)) if n_classes <= IN_MATRIX else {}
    for pair, _ in ranked:
        if len(found.keys() | set(pair)) > IN_MATRIX:
            break
        found.update(dict.fromkeys(pair))
    return _seriated(subject, sorted(found))


def _seriated(subject: Subject, chosen: list[int]) -> list[int]:
    # A walk from class to nearest class puts those that look alike side by side.
    fit = subject.fit
    wanted = torch.zeros(fit.n_classes, dtype=torch.bool)
    wanted[chosen] = True
    keep = wanted[fit.y]
    place = torch.full((fit.n_classes,), -1)
    place[chosen] = torch.arange(len(chosen))
    means = class_means(units(fit.z[keep], fit.head.centre), place[fit.y[keep]], len(chosen))
    near = torch.nn.functional.normalize(means, dim=-1)
    near = near @ near.T
    walk = [int(near.sum(1).argmin())]
    left = torch.ones(len(chosen), dtype=torch.bool)
    left[walk] = False
    while bool(left.any()):
        walk.append(int(near[walk[-1]].masked_fill(~left, -2.0).argmax()))
        left[walk[-1]] = False
    return [chosen[i] for i in walk]


def _matrix(subject: Subject, chosen: list[int]) -> tuple[str, int]:
    place = {c: i for i, c in enumerate(chosen)}
    cells = []
    for c in chosen:
        n, right = int(subject.judged[c]), int(subject.right[c])
        if right:
            cells.append(_cell(subject, c, c, place, right, n))
    for (true, answer), times in subject.mistakes.items():
        if true in place and answer in place:
            cells.append(_cell(subject, true, answer, place, times, int(subject.judged[true])))
    return matrix(
        [subject.classes[c] for c in chosen],
        cells,
        description="Confusion matrix of the shots left out: rows are their classes, columns the answers",
    )


def _cell(subject: Subject, true: int, answer: int, place: dict[int, int], times: int, n: int) -> MatrixCell:
    told = "right" if true == answer else f"taken for {subject.classes[answer]}"
    return MatrixCell(place[true], place[answer], times / n, times, f"{subject.classes[true]}: {times} of {n} {told}")


def _first(subject: Subject, c: int) -> View:
    return look(subject, int((subject.fit.y == c).nonzero()[0]))
