"""The report's pictures: sampled episodes, confused classes, embeddings.

Every function takes all runs and returns what there is; an empty result leaves its section out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kshot.evaluation.pictures import Answer, Embedding, EpisodePicture, ReadingPicture, SequencePicture
from kshot.evaluation.report.axes import percent
from kshot.evaluation.report.contents import contents
from kshot.evaluation.report.figures import Cloud, scatter
from kshot.evaluation.report.machine import machine
from kshot.evaluation.report.tiles import tile
from kshot.evaluation.report.wording import listing

if TYPE_CHECKING:
    from kshot.evaluation.report.inputs import RunReport

Runs = Sequence["RunReport"]
View = dict[str, Any]


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

    def answer(a: Answer) -> View:
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
        "part": f"Shown: {listing(parts)}." if parts else "",
        "rows": rows,
    }


def sequences(runs: Runs) -> list[View]:
    """Picture the sampled sequences.

    Args:
        runs: all runs.

    Returns:
        For each run with sequences: their panels.
    """
    return [
        {"name": run.name, "tone": i % 10, "pictures": [_sequence(p) for p in run.pictures.sequences]}
        for i, run in enumerate(runs)
        if run.pictures and run.pictures.sequences
    ]


def _sequence(p: SequencePicture) -> View:
    each = p.cost / p.target.numel()
    cost = f"{p.cost:,.0f}" if p.cost >= 100 else f"{p.cost:.3g}"
    caption = f"{cost} bits for {p.target.numel():,} asked ({each:.2g} each); {p.wrong:,} answered wrong."
    return {"title": p.title, "svg": machine(p), "memory": contents(p), "caption": caption, "traced": bool(p.trace)}


def readings(runs: Runs) -> list[View]:
    """Picture the episodes that were read step by step.

    Args:
        runs: all runs.

    Returns:
        For each run with such: their panels, and their memories where the learner shows one.
    """
    return [
        {"name": run.name, "tone": i % 10, "pictures": [_reading(p) for p in run.pictures.readings]}
        for i, run in enumerate(runs)
        if run.pictures and run.pictures.readings
    ]


def _reading(p: ReadingPicture) -> View:
    asked = p.right[p.n_read :]
    caption = f"{p.n_read} examples of the support, then {len(asked)} queries, of which {int(asked.sum())} are right."
    return {"title": p.title, "svg": machine(p), "memory": contents(p), "caption": caption, "told": set(p.trace)}


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
    found = [(run.name, run.pictures.embedding) for run in runs if run.pictures and run.pictures.embedding]
    return [_embedding(name, e) for name, e in found]


def _embedding(name: str, e: Embedding) -> View:
    support, query = slice(0, e.n_support), slice(e.n_support, None)
    clouds = [
        Cloud(c, w, *(e.points[part][e.labels[part] == w].tolist() for part in (support, query)))
        for w, c in enumerate(e.names)
    ]
    first, second = (percent(round(share, 2)) for share in e.explained)
    chart = scatter(
        clouds,
        x_label=f"component 1 ({first})",
        y_label=f"component 2 ({second})",
        description=f"Embedding of one episode of {name} in two principal components, one colour for each class",
    )
    images = [tile(x) for x in e.images] or [None] * len(clouds)
    classes = [{"name": c.name, "tone": c.tone, "tile": t} for c, t in zip(clouds, images, strict=True)]
    return {"name": name, "svg": chart, "classes": classes}
