"""Which episodes an evaluation sees: drawn in blocks of fixed size, so they depend on the source and the seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from kshot.core import Episode, Tree, UserError, generator, tree_map
from kshot.core.tree import leaves
from kshot.data.source import TaskSource

BLOCK = 64
#: Names of random streams: of the tasks of tests, and of those that choose the best weights.
TEST, VALIDATION = "evaluate", "validate"


class Drawn(NamedTuple):
    """Some consecutive episodes of an evaluation.

    Attributes:
        plan: what the source drew for them.
        episodes: a batch of them.
    """

    plan: Tree
    episodes: Episode


class Draw:
    """The first E episodes of a seed. The first 100 of 600 are the same as 100 asked for alone.

    Args:
        source: where tasks come from.
        n_episodes: E; of a source with a fixed number of tasks at most that.
        seed: of the stream.
        stream: its name; "evaluate" is that of tests.

    Attributes:
        fingerprint: hash of the plans drawn so far; complete once ``chunks`` has been read to its end.

    Raises:
        UserError: no episodes are asked for.
    """

    def __init__(self, source: TaskSource, n_episodes: int, seed: int, stream: str = TEST) -> None:
        if n_episodes < 1:
            raise UserError(f"expected n_episodes >= 1, got {n_episodes}; 600 is usual")
        most = n_episodes if source.n_fixed is None else min(n_episodes, source.n_fixed)
        self.source, self.n_episodes, self.seed = source, most, seed
        # Images have splits, which keep their tasks apart; what is made by a formula has streams alone.
        self.stream = TEST if source.sha256 else stream
        # Plans of images name support and queries; what is made by a formula is cut into both by these numbers alone.
        cut = "" if source.sha256 else f"/{source.n_shot}+{source.n_query}"
        self._hash = hashlib.sha256(f"{source.name}/{source.sha256}/{tuple(source.spec)}{cut}".encode())

    @property
    def fingerprint(self) -> str:
        """Hash of the plans drawn so far."""
        return self._hash.hexdigest()

    def skip(self) -> None:
        """Draw all plans and gather nothing, so that ``fingerprint`` is complete."""
        for _ in self._plans():
            pass

    def chunks(self, size: int) -> Iterator[Drawn]:
        """Gather the episodes in order.

        Args:
            size: at most so many at once; a source whose shapes vary gives them one by one.

        Yields:
            Consecutive episodes.

        Raises:
            UserError: size is below 1.
        """
        if size < 1:
            raise UserError(f"expected chunk >= 1 episodes, got {size}")
        for plan, length in self._plans():
            for start in range(0, length, size):
                stop = min(start + size, length)
                part = tree_map(lambda t, a=start, b=stop: t[a:b], plan)
                yield Drawn(part, self.source.episodes(part))

    def _plans(self) -> Iterator[tuple[Tree, int]]:
        stream = generator(self.seed, self.stream)
        for start in range(0, self.n_episodes, BLOCK):
            # A whole block is drawn even where the end of it is not needed: the stream must not depend on E.
            wanted = min(BLOCK, self.n_episodes - start)
            fixed = self.source.n_fixed is not None
            block: Any = self.source.fixed(start, start + wanted) if fixed else self.source.plan(BLOCK, stream)
            if self.source.varying:
                plans = [(plan, 1) for plan in block[:wanted]]
            else:
                plans = [(tree_map(lambda t, n=wanted: t[:n], block), wanted)]
            for plan, length in plans:
                self._remember(plan)
                yield plan, length

    def _remember(self, plan: Tree) -> None:
        # Tasks are the same in whatever order a learner is shown their support.
        told = {k: v for k, v in plan.items() if k != "support_order"} if isinstance(plan, dict) else plan
        for t in leaves(told):
            self._hash.update(f"{tuple(t.shape)}{t.dtype}".encode())
            self._hash.update(_bytes(t))


def fingerprint(source: TaskSource, n_episodes: int, seed: int) -> str:
    """Hash the episodes that an evaluation sees, without gathering them.

    Args:
        source: where tasks come from.
        n_episodes: E.
        seed: of the stream.

    Returns:
        What ``Draw.fingerprint`` is after all episodes were drawn.
    """
    draw = Draw(source, n_episodes, seed)
    draw.skip()
    return draw.fingerprint


def _bytes(t: Tensor) -> bytes:
    return t.detach().cpu().contiguous().numpy().tobytes()


def class_names(source: TaskSource, plan: Tree) -> list[tuple[str, ...]] | None:
    """Name the classes of each episode of a plan, in the order of their labels.

    Args:
        source: where the plan came from.
        plan: T plans; a dict with ``classes`` (T, W) if the tasks are made of named classes.

    Returns:
        T tuples of W names, or None where the source cannot tell.
    """
    if source.classes is None or not isinstance(plan, dict) or "classes" not in plan:
        return None
    return [tuple(source.classes[c] for c in row) for row in plan["classes"].tolist()]
