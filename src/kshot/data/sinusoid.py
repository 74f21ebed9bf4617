"""Sinusoid regression: the toy problem of Finn, Abbeel and Levine, MAML, ICML 2017, arXiv:1703.03400, section 5.1.

A task is y = A sin(x - phase) with amplitude A uniform in [0.1, 5], phase uniform in [0, pi] and x uniform in [-5, 5],
the form of the authors' own code. K points are the support, further points the query. All splits are streams of this
one distribution: tasks never repeat, so meta_test tasks are new.
"""

from __future__ import annotations

import math

import torch

from kshot.core import Episode, Spec, Split, Tree, UserError
from kshot.data.source import TaskSource

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, math.pi)
X = (-5.0, 5.0)


class Sinusoid(TaskSource):
    """Regression tasks of one input and one output.

    A plan is a dict of ``amplitude`` (T,), ``phase`` (T,) and ``x`` (T, K + Q).

    Args:
        n_shot: K, support points.
        n_query: Q, query points.

    Raises:
        UserError: a number is below 1.

    Example:
        >>> from kshot.core import generator
        >>> source = Sinusoid(n_shot=5)
        >>> source.episodes(source.plan(4, generator(0))).support.x.shape
        torch.Size([4, 5, 1])
    """

    name = "sinusoid"
    spec = Spec("regression", (1,), 1)

    def __init__(self, *, n_shot: int = 10, n_query: int = 10) -> None:
        for what, n in (("n_shot", n_shot), ("n_query", n_query)):
            if n < 1:
                raise UserError(f"expected {what} of at least 1 point, got {n}; choose another")
        self.n_shot, self.n_query = n_shot, n_query

    def plan(self, n_tasks: int, generator: torch.Generator) -> Tree:
        """Draw amplitudes, phases and places.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            The plan.

        Raises:
            UserError: T is below 1.
        """
        if n_tasks < 1:
            raise UserError(f"expected n_tasks of at least 1, got {n_tasks}; choose another")

        def uniform(ends: tuple[float, float], *shape: int) -> torch.Tensor:
            low, high = ends
            return low + (high - low) * torch.rand(*shape, generator=generator)

        return {
            "amplitude": uniform(AMPLITUDE, n_tasks),
            "phase": uniform(PHASE, n_tasks),
            "x": uniform(X, n_tasks, self.n_shot + self.n_query),
        }

    def episodes(self, plan: Tree) -> Episode:
        """Compute the points of a plan.

        Args:
            plan: from ``plan``, or a slice of it along the task axis.

        Returns:
            Episodes on ``device``: ``support.x`` and ``support.y`` (T, K, 1) float32, ``query`` (T, Q, 1).
        """
        x = plan["x"]
        y = plan["amplitude"][:, None] * torch.sin(x - plan["phase"][:, None])
        x, y = (t[..., None].to(self.device) for t in (x, y))
        k = self.n_shot
        return Episode(Split(x[:, :k], y[:, :k]), Split(x[:, k:], y[:, k:]))
