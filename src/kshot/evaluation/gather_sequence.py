"""Collects what a report pictures of a learner on sequences: what it reads, is asked, answers, and does meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from kshot.core import Episode, Learner, UserError
from kshot.core.episode import unbind
from kshot.data.source import TaskSource
from kshot.evaluation.draw import Draw
from kshot.evaluation.evaluate import check_fits, evaluating
from kshot.evaluation.metrics import bits, wrong_bits
from kshot.evaluation.pictures import SequencePicture

Trace = Callable[[Episode], dict[str, Tensor]]


def sequence_picture(
    learner: Learner, source: TaskSource, title: str = "", *, seed: int = 0, telling: bool = True
) -> SequencePicture:
    """Picture a learner on the first sequence that an evaluation of this seed sees.

    Args:
        learner: what is pictured; a ``trace(episode)`` method gives what it does step by step.
        source: the tasks, of kind "sequence".
        title: which sequence it is; "The first sequence" if empty.
        seed: as given to ``evaluate``.
        telling: also follow the learner step by step, where it offers that.

    Returns:
        The picture.

    Raises:
        UserError: the learner does not fit the tasks, or what it traced does not go along the steps.
    """
    check_fits(learner, source.spec)
    source.to(next((t.device for t in learner.parameters()), torch.device("cpu")))
    _, batch = next(Draw(source, 1, seed).chunks(1))
    episode = next(unbind(batch))
    with evaluating(learner):
        logits = learner.predict(learner.adapt(episode.support), episode.query.x)
        follow = tracer(learner) if telling else None
        told = {} if follow is None else traced(learner, follow, episode)
    told.pop("answers", None)
    support, query = episode
    return SequencePicture(
        title or "The first sequence",
        torch.cat([support.x, query.x]).flatten(1).float().cpu(),
        len(support.y),
        query.y.cpu(),
        logits.sigmoid().float().cpu(),
        float(bits(logits.double(), query.y)),
        int(wrong_bits(logits.double(), query.y)),
        told,
    )


def traced(learner: Learner, follow: Trace, episode: Episode) -> dict[str, Tensor]:
    """Take what a learner tells of an episode.

    Args:
        learner: that tells.
        follow: its method.
        episode: one episode.

    Returns:
        Name -> float (L, ...), on the CPU.

    Raises:
        UserError: it does not go along the steps.
    """
    n_steps, told = sum(len(part.y) for part in episode), follow(episode)
    for name, t in told.items():
        if len(t) != n_steps:
            raise UserError(
                f"{type(learner).__name__}.trace gave {len(t)} steps of {name!r}, expected {n_steps}: "
                "one for each step read or asked"
            )
    return {name: t.detach().float().cpu() for name, t in told.items()}


def tracer(learner: Learner) -> Trace | None:
    """Find how a learner tells what it does along a sequence.

    Args:
        learner: one with a ``trace(episode)`` method.

    Returns:
        A function of an episode that gives name -> tensor (L, ...), or None.
    """
    trace = getattr(learner, "trace", None)
    return cast("Trace", trace) if callable(trace) else None
