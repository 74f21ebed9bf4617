"""The face of every data set to the rest of the house: a distribution over tasks that plans first and gathers later.

A *plan* is a small tree of index and parameter tensors on the CPU, drawn from the caller's generator. It can be cut
along its task axis, so that several processes draw one plan and each gathers only its own share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Tree

if TYPE_CHECKING:
    from typing_extensions import Self


class TaskSource(ABC):
    """A distribution over tasks.

    Attributes:
        name: the data set's name, as in the catalogue.
        spec: what its tasks look like; ``n_outputs`` is the largest W where W varies.
        n_shot: support examples per class (or points of a regression task, or steps read of a sequence); the largest
            where it varies.
        n_query: query examples per class (or points, or steps asked).
        classes: names of the classes that tasks are made of, or None where there are none.
        varying: True where shapes differ from task to task; ``plan`` then returns a list of plans of one task each.
        shows_every_class: False where a support need not hold every class, as a batch of plain classification.
        n_fixed: number of tasks, where they were fixed once and for all; a test takes them in order, each one once.
        run_length: how many fixed tasks in a row share their classes, and so are no independent draws.
        taken_from: name of the data set whose classes these are; empty where they are its own.
        shows_while_asked: of sequences, True where the steps asked show something new to be remembered.
        device: where episodes are gathered.
    """

    name: str
    spec: Spec
    n_shot: int
    n_query: int
    classes: tuple[str, ...] | None = None
    varying: bool = False
    shows_every_class: bool = True
    n_fixed: int | None = None
    run_length: int = 1
    taken_from: str = ""
    shows_while_asked: bool = False
    device: torch.device = torch.device("cpu")

    @property
    def drawn_from(self) -> frozenset[str]:
        """What the classes are called in the data set that they were taken from, whatever was done to them since."""
        return frozenset(self.classes or ())

    @property
    def sha256(self) -> str:
        """Hash of the decoded examples; empty where tasks are made by a formula."""
        return ""

    @abstractmethod
    def plan(self, n_tasks: int, generator: torch.Generator) -> Tree:
        """Draw what decides T tasks, and nothing more.

        Args:
            n_tasks: T, at least 1.
            generator: a CPU generator; the only source of randomness.

        Returns:
            A tree of CPU tensors with leading axis T, or a list of T such trees with leading axis 1 if ``varying``.
        """

    @abstractmethod
    def episodes(self, plan: Tree) -> Episode:
        """Gather the episodes of a plan.

        Args:
            plan: what ``plan`` returned, one item of it if ``varying``, or a slice of it along the task axis.

        Returns:
            A batch of episodes with task axis on ``device``; inputs are float32, images within [0, 1].
        """

    def optimal(self, episodes: Episode) -> Tensor | None:
        """Answer as the best possible learner would, where that is known; an evaluation then scores it too.

        Args:
            episodes: T episodes of this source.

        Returns:
            Predictions (T, Q, W), or None where nobody knows.
        """
        return None

    def fixed(self, start: int, stop: int) -> Tree:
        """Return the plan of consecutive fixed tasks.

        Args:
            start: the first, 0..n_fixed-1.
            stop: one after the last.

        Returns:
            A tree as ``plan`` makes it.

        Raises:
            NotImplementedError: tasks are drawn at random, ``n_fixed`` is None.
        """
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Self:
        """Gather on another device from now on.

        Args:
            device: where to.

        Returns:
            This source itself, changed in place.
        """
        self.device = torch.device(device)
        return self
