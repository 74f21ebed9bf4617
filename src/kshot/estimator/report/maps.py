"""The embedding map: shots in the plane in which they differ most."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kshot.estimator.heads import class_means, units
from kshot.estimator.report.figures import MapPoint, embedding
from kshot.estimator.report.shots import appearance
from kshot.estimator.report.subject import Subject
from kshot.evaluation.report.axes import percent

View = dict[str, Any]
#: Points that are drawn at most, of shots and of new examples; beyond them a part of each class.
POINTS = 2000
NEW_POINTS = 500
#: Up to so many shots, pictures stand in the map themselves; up to so many classes, a legend tells the colours.
PICTURES = 150
LEGEND = 10


class Plane:
    """Two principal components.

    Args:
        u: (N, D) to find them from.
    """

    def __init__(self, u: Tensor) -> None:
        self.mean = u.mean(0)
        centred = (u - self.mean).double()
        n, d = centred.shape
        side = centred @ centred.T if n < d else centred.T @ centred
        values, vectors = torch.linalg.eigh(side)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)[:, :2]
        axes = (centred.T @ vectors if n < d else vectors).T
        axes = torch.nn.functional.normalize(axes, dim=-1)
        # One sign of two: the largest entry points up, so that the same model gives the same map.
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        self.axes = torch.cat([axes, axes.new_zeros(2 - len(axes), d)])
        total = float(values.sum()) or 1.0
        shares = [float(v) / total for v in values[:2]]
        self.explained = (*shares, 0.0, 0.0)[:2]

    def place(self, u: Tensor) -> list[tuple[float, float]]:
        """Put vectors into the plane.

        Args:
            u: (N, D).

        Returns:
            N points.
        """
        return [(x, y) for x, y in ((u - self.mean).double() @ self.axes.T).tolist()]


def embedding_map(subject: Subject) -> View:
    """Draw the map.

    Args:
        subject: of the report.

    Returns:
        The chart, its legend and how much of the spread it shows.
    """
    fit = subject.fit
    u = units(fit.z, fit.head.centre)
    plane = Plane(u)
    shown = _part(fit.y, POINTS)
    pictured = len(shown) <= PICTURES and all(isinstance(subject.looks[i], bytes) for i in shown.tolist())
    points = [
        MapPoint(
            x,
            y,
            int(fit.y[i]),
            f"{subject.classes[int(fit.y[i])]}: {_tip(subject, i)}",
            appearance(subject.looks[i], "")["src"] if pictured else "",
        )
        for i, (x, y) in zip(shown.tolist(), plane.place(u[shown]), strict=True)
    ]
    new = [] if subject.new is None else plane.place(units(subject.new.z[:NEW_POINTS], fit.head.centre))
    first, second = (percent(round(s, 3)) for s in plane.explained)
    few = fit.n_classes <= LEGEND
    middles = plane.place(u[_middles(u, fit.y, fit.n_classes)])
    chart = embedding(
        points,
        [] if few else list(zip(subject.classes, middles, strict=True)),
        new,
        x_label=f"component 1 ({first})",
        y_label=f"component 2 ({second})",
        description="Embeddings of the shots in two principal components, one colour for each class",
    )
    return {
        "svg": chart,
        "legend": [{"name": c, "tone": i} for i, c in enumerate(subject.classes)] if few else [],
        "explained": percent(round(sum(plane.explained), 2)),
        "shown": "" if len(shown) == len(fit.y) else f"{len(shown):,} of {len(fit.y):,} shots are drawn. ",
        "new": bool(new),
        "pictured": pictured,
    }


def _tip(subject: Subject, i: int) -> str:
    seen = appearance(subject.looks[i], subject.names[i])
    return seen["text"] or seen["name"]


def _middles(u: Tensor, y: Tensor, n_classes: int) -> Tensor:
    # The shot of each class that is nearest to its mean.
    distance = (u - class_means(u, y, n_classes)[y]).square().sum(1)
    order = distance.argsort()
    order = order[y[order].argsort(stable=True)]
    counts = torch.bincount(y, minlength=n_classes)
    return order[counts.cumsum(0) - counts]


def _part(y: Tensor, most: int) -> Tensor:
    # The first shots of every class, as many rounds as there is room for.
    if len(y) <= most:
        return torch.arange(len(y))
    order = y.argsort(stable=True)
    counts = torch.bincount(y)
    turn = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[order]]
    return order[turn.argsort(stable=True)][:most].sort().values
