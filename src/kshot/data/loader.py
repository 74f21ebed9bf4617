"""An endless stream of training episodes that can be stopped, stored, resumed and shared between processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from kshot.core import Episode, Tree, UserError, generator, tree_map
from kshot.core.checks import check_classes
from kshot.core.episode import n_tasks
from kshot.data.source import TaskSource


class EpisodeLoader(Iterator[Episode | list[Episode]]):
    """Iterates over batches of episodes.

    Every rank draws the same plan and gathers only tasks ``rank::world`` of it, so the tasks of an outer step do not
    depend on how many processes share them; nor does a stored state, which may be resumed with another ``world``.

    Args:
        source: what to draw from.
        n_tasks: T, tasks of one outer step over all ranks; a multiple of ``world``.
        seed: of the run.
        stream: name of the stream of that seed.
        rank: which share is gathered here.
        world: number of shares.

    Attributes:
        n_drawn: batches drawn so far.

    Raises:
        UserError: the tasks cannot be shared out evenly, or there is no such rank.
    """

    def __init__(
        self, source: TaskSource, n_tasks: int, *, seed: int, stream: str = "train", rank: int = 0, world: int = 1
    ) -> None:
        if not 0 <= rank < world:
            raise UserError(f"expected a rank of 0..{world - 1} for world={world}, got {rank}")
        # Uneven shares would weigh tasks differently once gradients are averaged over ranks.
        if n_tasks < 1 or n_tasks % world:
            near = max(1, round(n_tasks / world)) * world
            raise UserError(
                f"expected n_tasks as a multiple of the {world} processes, at least {world}, got {n_tasks}; "
                f"pass n_tasks={near} or change the number of devices"
            )
        self.source, self.n_tasks, self.rank, self.world = source, n_tasks, rank, world
        self.n_drawn = 0
        self._generator = generator(seed, stream)

    def __iter__(self) -> EpisodeLoader:
        return self

    def __next__(self) -> Episode | list[Episode]:
        """Draw the next outer step's tasks and gather this rank's share.

        Returns:
            A batch of T / world episodes; of a varying source a list of that many batches of one episode each.

        Raises:
            UserError: a label is out of range, or a class of a task has no support.
        """
        plan = self.next_plan()
        batches = [self.source.episodes(one) for one in (plan if isinstance(plan, list) else [plan])]
        if self.source.shows_every_class:
            self._check(batches)
        return batches if isinstance(plan, list) else batches[0]

    def _check(self, batches: list[Episode]) -> None:
        start = (self.n_drawn - 1) * self.n_tasks
        numbers = range(start + self.rank, start + self.n_tasks, self.world)
        for batch in batches:
            ways = batch.support.n_way or self.source.spec.n_outputs
            check_classes(batch, ways, numbers[: n_tasks(batch)])
            numbers = numbers[n_tasks(batch) :]

    def next_plan(self) -> Tree:
        """Draw the next outer step's tasks and return this rank's share of the plan, without gathering it.

        Returns:
            The plan of T / world tasks, as the source makes it.
        """
        plan = self.source.plan(self.n_tasks, self._generator)
        self.n_drawn += 1
        mine = slice(self.rank, None, self.world)
        if isinstance(plan, list):
            return plan[mine]
        return tree_map(lambda t: t[mine], plan) if self.world > 1 else plan

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return what is needed to go on from here.

        Returns:
            ``generator``, a uint8 tensor, and ``n_drawn``, an int.
        """
        return {"generator": self._generator.get_state(), "n_drawn": self.n_drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader of the same source stood: the episodes that follow are exactly the same.

        Args:
            state: from ``state_dict``.

        Raises:
            UserError: the state is not one of a loader.
        """
        try:
            here, n_drawn = state["generator"], int(state["n_drawn"])
            self._generator.set_state(here.cpu())
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"expected a loader state with 'generator' (a generator's state) and 'n_drawn', got {error!r}; "
                "the checkpoint is damaged or of another program, use the one before it"
            ) from error
        self.n_drawn = n_drawn
