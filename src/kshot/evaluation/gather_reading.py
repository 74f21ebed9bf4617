"""Collects how a learner reads an episode of classes as a sequence: its answers, and what it does meanwhile."""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core import Episode, Learner, Split, generator, tree_map
from kshot.evaluation.gather_sequence import traced, tracer
from kshot.evaluation.pictures import ReadingPicture, to_picture

#: About as many steps as a picture has room for, with an image for each.
STEPS = 32


def reading_picture(learner: Learner, episode: Episode, *, seed: int = 0) -> ReadingPicture | None:
    """Picture how a learner reads an episode: its support, and then some queries with their labels, as in training.

    Args:
        learner: what is pictured; a ``trace(episode)`` method that also gives "answers" (L, W) tells what it does.
        episode: one episode of classes, on the device of the learner.
        seed: of the order in which support and queries are read, each among themselves.

    Returns:
        The picture; None where the learner does not tell.
    """
    follow = tracer(learner)
    if follow is None:
        return None
    shown = _mixed(episode, seed)
    labels = torch.cat([part.y for part in shown])
    told = traced(learner, follow, shown)
    answers = told.pop("answers", None)
    if answers is None:
        return None
    images = torch.cat([part.x for part in shown]) if isinstance(shown.support.x, Tensor) else None
    if images is not None and not (images.ndim == 4 and images.shape[1] in (1, 3)):
        images = None
    return ReadingPicture(
        "The first episode",
        None if images is None else to_picture(images),
        labels.cpu(),
        len(shown.support.y),
        answers.softmax(-1),
        told,
    )


def _mixed(episode: Episode, seed: int) -> Episode:
    """Put the support and a few queries of each class into random order: learners read classes mixed.

    Returns:
        The episode.
    """
    stream, (support, query) = generator(seed, "reading"), episode
    n_way = support.ways()
    each = max(1, (STEPS - len(support.y)) // n_way)
    few = torch.cat([(query.y == label).nonzero().flatten()[:each] for label in range(n_way)])
    orders = (torch.arange(len(support.y)), few.cpu())
    mixed = [order[torch.randperm(len(order), generator=stream)] for order in orders]
    return Episode(*(_taken(part, order.to(part.y.device)) for part, order in zip(episode, mixed, strict=True)))


def _taken(split: Split, order: Tensor) -> Split:
    return split._replace(x=tree_map(lambda t: t[order], split.x), y=split.y[order])
