"""Accuracy at the first, second, ... time that a class is seen, along sequences in which all classes are mixed.

The measure of Santoro et al., Meta-Learning with Memory-Augmented Neural Networks, ICML 2016, section 4.2: every
example is answered from all those before it, with their labels. The first instance of a class can only be guessed; from
the second one on the learner shows how fast it binds what it saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from kshot.core import Episode, Learner, Split, UserError, generator
from kshot.core.episode import n_tasks
from kshot.data.source import TaskSource
from kshot.evaluation.draw import Draw
from kshot.evaluation.evaluate import CHUNK, Progress, check_fits, evaluating
from kshot.evaluation.scores import Curve, Scores
from kshot.evaluation.statistics import mean_ci95
from kshot.nn.norm import uses_support_statistics


@dataclass(frozen=True, eq=False)
class Instances:
    """What was found.

    Attributes:
        per_episode: float64 (E, n), of each sequence the share of classes that were right at their 1st, ..., nth time.
        seed: of the episodes.
        seconds: wall time.
        fingerprint: hash of the episodes' plans.
    """

    per_episode: Tensor
    seed: int
    seconds: float
    fingerprint: str

    @property
    def curve(self) -> Curve:
        """Accuracy along "instances", 1 to n."""
        found = tuple(mean_ci95(column) for column in self.per_episode.unbind(1))
        return Curve("instances", "accuracy", tuple(range(1, len(found) + 1)), found)

    def scores(self, instance: int) -> Scores:
        """Return the scores at one instance.

        Args:
            instance: 1 for the first time.

        Returns:
            The scores, one for each sequence.

        Raises:
            UserError: it was not measured.
        """
        n = self.per_episode.shape[1]
        if not 1 <= instance <= n:
            raise UserError(f"expected an instance between 1 and {n}, got {instance}; measure more of them")
        found = {"accuracy": self.per_episode[:, instance - 1]}
        return Scores("accuracy", found, None, self.seed, self.seconds, self.fingerprint)


def accuracy_by_instance(
    learner: Learner,
    source: TaskSource,
    *,
    n_episodes: int = 600,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Instances:
    """Score a learner along mixed sequences of all examples of each episode.

    A learner that offers ``follow(split)``, its answers to a sequence, reads each sequence once. Any other, and one
    whose normalisation takes its statistics from the support, adapts anew before every answer: to a task of the classes
    seen so far, where it does any number of them. With no example at all it guesses.

    Args:
        learner: of classification.
        source: tasks of K + Q examples of every class; that is how many instances are measured.
        n_episodes: E.
        seed: of the episodes and of the order in them.
        on_progress: called with (episodes done, E) after each chunk.

    Returns:
        Accuracy at every instance.

    Raises:
        UserError: the tasks have no classes, vary in shape, or do not fit the learner.
    """
    if source.spec.kind != "classification" or source.varying:
        raise UserError(
            f"expected classes with equal numbers of examples to count instances, got {source.spec.kind}"
            f"{' whose shapes vary' if source.varying else ''}; choose other data or fix the shapes"
        )
    check_fits(learner, source.spec)
    began, n, parts = time.perf_counter(), source.n_shot + source.n_query, []
    draw, order, done = Draw(source, n_episodes, seed), generator(seed, "instances"), 0
    with evaluating(learner):
        for _, episodes in draw.chunks(CHUNK):
            mixed = _mixed(episodes, order)
            parts.append(_by_instance(_right(learner, mixed), mixed.y.cpu(), n))
            done += n_tasks(episodes)
            if on_progress is not None:
                on_progress(done, n_episodes)
    return Instances(torch.cat(parts), seed, time.perf_counter() - began, draw.fingerprint)


def _mixed(episodes: Episode, order: torch.Generator) -> Split:
    """Return the examples of support and query (T, L, ...) in random order."""
    x = torch.cat([split.x for split in episodes], 1)
    y = torch.cat([split.y for split in episodes], 1)
    places = torch.rand(y.shape, dtype=torch.float64, generator=order).argsort(1).to(y.device)
    rows = torch.arange(len(y), device=y.device)[:, None]
    return Split(x[rows, places], y[rows, places], episodes.support.n_way)


def _right(learner: Learner, mixed: Split) -> Tensor:
    """Return how right each answer is, (T, L): 1 or 0, or between where nothing was known."""
    follow = getattr(learner, "follow", None)
    # One pass would normalise by statistics of the whole sequence, of what is still to come too.
    if callable(follow) and not uses_support_statistics(learner):
        of = cast("Callable[[Split], Tensor]", follow)
        answers = torch.func.vmap(lambda x, y: of(Split(x, y, mixed.n_way)))(mixed.x, mixed.y)
        return (answers.argmax(-1) == mixed.y).double().cpu()
    each = [[_answered(learner, mixed, t, at) for at in range(mixed.y.shape[1])] for t in range(len(mixed.y))]
    return torch.tensor(each, dtype=torch.float64)


def _answered(learner: Learner, mixed: Split, task: int, at: int) -> float:
    if not at:
        return 1 / mixed.ways()
    x, y, asked = mixed.x[task, :at], mixed.y[task, :at], mixed.y[task, at]
    # A task of the classes seen so far, where the learner does any number: classes without examples have no prototype,
    # and what mixes prototypes would spread that to all answers. Of one class there is but one answer.
    known, n_way = torch.arange(mixed.ways(), device=y.device), mixed.n_way
    if learner.any_way:
        known, y = y.unique(return_inverse=True)
        n_way = len(known)
        if n_way == 1:
            return float(known[0] == asked)
    logits = learner.predict(learner.adapt(Split(x, y, n_way)), mixed.x[task, at : at + 1])[0]
    return float(known[logits.nan_to_num(-torch.inf).argmax()] == asked)


def _by_instance(right: Tensor, y: Tensor, n: int) -> Tensor:
    """Average over classes.

    Returns:
        (T, n) of answers (T, L).
    """
    member = torch.nn.functional.one_hot(y)
    count = (member.cumsum(1) * member).sum(-1)  # which time it is that the class is seen
    return torch.stack([(right * (count == k)).sum(1) / (count == k).sum(1) for k in range(1, n + 1)], 1)
