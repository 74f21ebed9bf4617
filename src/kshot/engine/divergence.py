"""Find what went to infinity first along a sequence: which quantity of a recurrent cell, and at which step.

A slow second look, taken when training has failed: every quantity that a cell names is kept, with its gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.nn.memory.cell import Cell


class Seen(NamedTuple):
    """A quantity of one step.

    Attributes:
        step: of the sequence, from 1 on.
        name: in words.
        value: without or with a task axis in front.
    """

    step: int
    name: str
    value: Tensor


class Watch:
    """A scan that keeps what it computes; in the place of ``Cell.scan`` within a loss.

    Args:
        cell: what is watched.
    """

    def __init__(self, cell: Cell[Any]) -> None:
        self.cell = cell
        self.seen: list[Seen] = []
        self.batched = False

    def __call__(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read a sequence.

        Args:
            x: (L, ..., I).
            state: before.

        Returns:
            What ``Cell.scan`` returns.
        """
        self.batched = x.ndim > 2
        outputs = []
        for row in x:
            out, state, named = self.cell.step(row, state)
            n = len(outputs) + 1
            self.seen += [Seen(n, name, t) for name, t in {"input": row, **named}.items()]
            outputs.append(out)
        return torch.stack(outputs) if outputs else x.new_zeros(*x.shape[:-1], self.cell.n_features), state

    def first(self, losses: Tensor) -> str | None:
        """Find what was not finite first: on the way forward, or else on the way back.

        Args:
            losses: what the loss that called this scan returned.

        Returns:
            Such as "the key strength at step 7 of the sequence"; None where everything is finite.
        """
        for seen in self.seen:
            if not _finite(seen.value):
                return self._said(seen, seen.value)
        if not _finite(losses):
            return "the answers: all that the cell computed is finite"
        on_the_way = [seen for seen in self.seen if seen.value.requires_grad]
        grads = torch.autograd.grad(losses.mean(), [s.value for s in on_the_way], allow_unused=True)
        for seen, grad in reversed(list(zip(on_the_way, grads, strict=True))):
            if grad is not None and not _finite(grad):
                return self._said(seen, grad, "gradient of the ")
        return None

    def _said(self, seen: Seen, bad: Tensor, what: str = "") -> str:
        where = ""
        if self.batched and len(bad) > 1:
            task = int((~torch.isfinite(bad)).flatten(1).any(1).nonzero()[0]) + 1
            where = f", task {task} of {len(bad)}"
        return f"the {what}{seen.name} at step {seen.step} of the sequence{where}"


def _finite(t: Tensor) -> bool:
    return bool(torch.isfinite(t).all())
