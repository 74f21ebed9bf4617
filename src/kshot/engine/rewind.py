"""The way back from a training that has fallen apart: to the best weights of its validation, and on at a lower rate.

A recurrent memory can train well for thousands of steps and then, within one, lose all that it has learned: its
gradient grows a million times over, and what bounds its size does not mend its direction. The weights of the best
validation are still there.

A validation falls where it is below the best by more than half of what was gained since the first, and by more than
ten times what validations usually move by: else noise on a plateau would be a fall.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

#: Times that a training may go back; a rate that is halved as often is a thousandth.
MOST = 10
#: Share of the gain that has to be lost.
LOST = 0.5
#: How many usual moves it has to be below the best.
USUAL = 10.0
#: Validations before there is something usual.
FEWEST = 4
#: Share of the newest move in what is usual, and how many times what is usual a move counts at most.
NEWEST, MOST_USUAL = 0.2, 4.0


class Rewind:
    """Follows the validations of a training, keeps its best weights, and says when to go back to them.

    Args:
        factor: on the rate, each time; 0 for never going back.

    Attributes:
        times: that the training went back.
        weights: of the best validation, name -> tensor; empty before one.
    """

    def __init__(self, factor: float) -> None:
        self.factor, self.times = factor, 0
        self.weights: dict[str, Tensor] = {}
        # Of the validations that were no falls: the first, the newest, by how much they usually move, their number.
        self._first = self._newest = self._moves = 0.0
        self._n = 0

    def keep(self, learner: nn.Module) -> None:
        """Keep a learner's weights as the best so far.

        Args:
            learner: the learner.
        """
        if self.factor:
            self.weights = {k: v.detach().clone() for k, v in learner.state_dict().items()}

    @property
    def rate(self) -> float:
        """The factor on the rate by now; 1 before a training went back."""
        return self.factor**self.times if self.times else 1.0

    @property
    def possible(self) -> bool:
        """True if it is wanted, there are weights to go back to, and it was not done too often."""
        return bool(self.factor and self.weights) and self.times < MOST

    def falls(self, value: float, best: float | None) -> bool:
        """Take in a validation, and tell whether it is a fall.

        Args:
            value: higher is better, minus infinity where an answer was not finite.
            best: so far, this one included.

        Returns:
            True if so.
        """
        if value == -math.inf or best is None:
            return best is not None
        drop = best - value
        fall = self._n >= FEWEST and drop > LOST * (best - self._first) and drop > USUAL * self._moves
        if not self._n:
            self._first = value
        elif self._n <= FEWEST and not fall:
            self._moves += (abs(value - self._newest) - self._moves) / self._n
        else:
            # A fall counts too, but not in full: where falls are frequent they are no falls.
            move = min(abs(value - self._newest), MOST_USUAL * self._moves)
            self._moves = (1 - NEWEST) * self._moves + NEWEST * move
        if not fall:
            self._newest, self._n = value, self._n + 1
        return fall

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a continuation needs.

        Returns:
            Numbers and tensors.
        """
        numbers = {"first": self._first, "newest": self._newest, "moves": self._moves}
        return {**numbers, "n": self._n, "times": self.times, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken.

        Args:
            state: what it returned.
        """
        self._first, self._newest, self._moves = state["first"], state["newest"], state["moves"]
        self._n, self.times, self.weights = state["n"], state["times"], state["weights"]
