"""Draws episodes as indices: which classes, which of their examples, support and query apart. No pixels here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kshot.core import UserError


class EpisodeSampler:
    """Draws W classes and K + Q examples of each, uniformly and without replacement, for many tasks at once.

    A class takes part with equal chance whatever its number of examples. With ``within_group`` that share of the tasks
    draws a group first, uniformly among those with enough classes, and all its classes from there.

    With ``n_way_range`` or ``n_shot_range`` tasks *vary*, Meta-Dataset style: W is uniform between the ends (no more
    than the chosen group holds) and every class has its own K, uniform between the ends (no more than leaves it Q
    queries). Both ends are included.

    Args:
        labels: int64 (N,) class of each example, 0..C-1.
        groups: int64 (C,) group of each class.
        n_way: W; replaced by ``n_way_range``.
        n_shot: K, support examples per class; replaced by ``n_shot_range``.
        n_query: Q, query examples per class.
        within_group: share of tasks, 0 to 1, whose classes all come from one group.
        n_way_range: smallest and largest W.
        n_shot_range: smallest and largest K.
        class_names: names of the C classes, for messages.

    Attributes:
        n_way: W, the largest where it varies.
        n_shot: K, the largest where it varies.
        n_query: Q.
        varying: True if a range was given.

    Raises:
        UserError: a number is out of range, or the classes cannot fill an episode; the message names the class.
    """

    def __init__(
        self,
        labels: Tensor,
        groups: Tensor,
        *,
        n_way: int = 5,
        n_shot: int = 1,
        n_query: int = 15,
        within_group: float = 0.0,
        n_way_range: tuple[int, int] | None = None,
        n_shot_range: tuple[int, int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.varying = n_way_range is not None or n_shot_range is not None
        self._least_way, self.n_way = _ends("n_way", n_way, n_way_range)
        self._least_shot, self.n_shot = _ends("n_shot", n_shot, n_shot_range)
        self.n_query = _count("n_query", n_query)
        if not 0 <= within_group <= 1:
            raise UserError(f"expected within_group as a share between 0 and 1, got {within_group}")
        self.within_group = float(within_group)
        if labels.numel() and int(labels.max()) >= groups.numel():
            raise UserError(
                f"expected labels 0..{groups.numel() - 1}, as groups names {groups.numel()} classes, got "
                f"{int(labels.max())}; give one group for each class"
            )
        self._groups = groups
        # Examples in class order, with each class's start: no table padded to the largest class.
        self._counts = torch.bincount(labels, minlength=groups.numel())
        self._order = labels.argsort(stable=True)
        self._starts = self._counts.cumsum(0) - self._counts
        self._check_classes(class_names)
        self._largest = int(self._counts.max())
        self._group_sizes = torch.bincount(groups)
        self._fitting = (self._group_sizes >= self._least_way).nonzero().squeeze(1)
        if self.within_group > 0 and not self._fitting.numel():
            raise UserError(
                f"expected a group of at least {self._least_way} classes for within_group={within_group}, the largest "
                f"has {int(self._group_sizes.max())}; lower n_way or pass within_group=0"
            )

    def _check_classes(self, names: Sequence[str] | None) -> None:
        n_classes = self._counts.numel()
        if n_classes < self.n_way:
            raise UserError(
                f"expected at least n_way={self.n_way} classes, got {n_classes}; "
                f"pass n_way={n_classes} or less, or add classes"
            )
        need = self._least_shot + self.n_query
        fewest = int(self._counts.argmin())
        if int(self._counts[fewest]) < need:
            name = f"{names[fewest]!r}" if names else f"number {fewest}"
            raise UserError(
                f"expected at least n_shot + n_query = {self._least_shot} + {self.n_query} = {need} examples of each "
                f"class, got {int(self._counts[fewest])} of class {name}; lower n_query or n_shot, or leave it out"
            )

    def plan(self, n_tasks: int, generator: torch.Generator) -> Tensor:
        """Draw tasks of one shape.

        Time and memory grow with T * C (random keys of all classes) and T * W * (examples of the largest class).

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            int64 (T, W, K + Q) example indices; in each class the first K are the support.

        Raises:
            UserError: T is below 1, or the sampler varies (see ``plan_varying``).
        """
        if self.varying:
            raise UserError("this sampler varies n_way or n_shot, expected a call of plan_varying")
        _count("n_tasks", n_tasks)
        group = self._draw_groups(n_tasks, generator)
        classes = self._draw_classes(group, generator)
        return self._draw_examples(classes, self.n_shot + self.n_query, generator)

    def plan_varying(self, n_tasks: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """Draw tasks that differ in shape.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            For each task int64 (W,), the K of each of its classes, and int64 (sum of K + W * Q,), example indices:
            class by class the support, then class by class the query.

        Raises:
            UserError: T is below 1.
        """
        _count("n_tasks", n_tasks)
        group = self._draw_groups(n_tasks, generator)
        room = torch.where(group >= 0, self._group_sizes[group], self._counts.numel()).clamp(max=self.n_way)
        ways = _uniform(self._least_way, room, generator)
        classes = self._draw_classes(group, generator)
        most = (self._counts[classes] - self.n_query).clamp(max=self.n_shot)
        shots = _uniform(self._least_shot, most, generator)
        n_drawn = min(self.n_shot + self.n_query, self._largest)
        picks = self._draw_examples(classes, n_drawn, generator)
        place = torch.arange(n_drawn)
        in_task = (torch.arange(self.n_way) < ways[:, None])[..., None]
        support = (place < shots[..., None]) & in_task
        query = (place >= shots[..., None]) & (place < shots[..., None] + self.n_query) & in_task
        return [
            (shots[task, :way], torch.cat([picks[task][support[task]], picks[task][query[task]]]))
            for task, way in enumerate(ways.tolist())
        ]

    def _draw_groups(self, n_tasks: int, generator: torch.Generator) -> Tensor:
        """Return (T,) the group that a task is confined to, -1 for none."""
        free = torch.full((n_tasks,), -1)
        if self.within_group == 0:
            return free
        confined = torch.rand(n_tasks, dtype=torch.float64, generator=generator) < self.within_group
        chosen = self._fitting[torch.randint(self._fitting.numel(), (n_tasks,), generator=generator)]
        return torch.where(confined, chosen, free)

    def _draw_classes(self, group: Tensor, generator: torch.Generator) -> Tensor:
        """Return (T, W) distinct classes in random order, those outside a task's group last."""
        # The W largest of independent uniform keys, in their order, are a uniform draw without replacement. float64:
        # among thousands of float32 keys ties are common.
        keys = torch.rand(group.numel(), self._counts.numel(), dtype=torch.float64, generator=generator)
        if self.within_group > 0:
            outside = (group[:, None] >= 0) & (self._groups != group[:, None])
            keys.masked_fill_(outside, -1)
        return keys.topk(self.n_way).indices

    def _draw_examples(self, classes: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Return (T, W, n) distinct examples of each class; of a class with fewer than n, the last ones are no draw."""
        counts = self._counts[classes][..., None]
        keys = torch.rand(*classes.shape, self._largest, dtype=torch.float64, generator=generator)
        keys.masked_fill_(torch.arange(self._largest) >= counts, -1)
        place = keys.topk(n).indices.clamp(max=counts - 1)
        return self._order[self._starts[classes][..., None] + place]


def _count(what: str, n: int) -> int:
    if not isinstance(n, int) or n < 1:
        raise UserError(f"expected {what} as a whole number of at least 1, got {n!r}; choose another")
    return n


def _ends(what: str, fixed: int, both: tuple[int, int] | None) -> tuple[int, int]:
    if both is None:
        return _count(what, fixed), fixed
    if len(both) != 2 or not all(isinstance(end, int) for end in both) or not 1 <= both[0] <= both[1]:
        raise UserError(
            f"expected {what}_range as two whole numbers, 1 <= smallest <= largest, got {tuple(both)}; choose others"
        )
    return both[0], both[1]


def _uniform(low: int, high: Tensor, generator: torch.Generator) -> Tensor:
    """Return whole numbers drawn uniformly from low..high (included), one for each entry of ``high``."""
    u = torch.rand(high.shape, dtype=torch.float64, generator=generator)
    return low + (u * (high - low + 1)).long()
