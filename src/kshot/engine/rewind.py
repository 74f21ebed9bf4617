"""The way back from a training that has fallen apart: to the best weights of its validation, and on at a lower rate.

A recurrent memory can train well for thousands of steps and then, within one, lose all that it has learned: its
gradient grows a million times over, and what bounds its size does not mend its direction. The weights of the best
validation are still there.

A validation falls where it is below the best by more than half of what was gained since the first, and by more than
four times the largest of the last moves from one validation to the next: else noise on a plateau would be a fall. The
first is of the weights that training starts from.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

#: Times that a training may go back; a rate that is halved as often is a thousandth.
MOST = 10
#: Share of the gain that has to be lost.
LOST = 0.5
#: How many times the largest move it has to be below the best, of how many moves, and after how many at least.
MOVES, HELD, FEWEST = 4.0, 16, 3


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
        # Of the validations that were no falls: the first, the newest, the last moves from one to the next, and the
        # smallest ever, since shares of few queries move by whole steps, and often not at all.
        self._first = self._newest = self._least = 0.0
        self._moves: list[float] = []
        self._any = False

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
        drop, gain, usual = best - value, best - self._first, max(*self._moves, self._least, 0.0)
        # What starts from trained weights may lose them before it has gained anything.
        if len(self._moves) >= FEWEST and drop > max(LOST * gain, MOVES * usual) and (gain or usual):
            return True
        if self._any:
            move = abs(value - self._newest)
            self._moves = [*self._moves, move][-HELD:]
            self._least = min(filter(None, (self._least, move)), default=0.0)
        else:
            self._first, self._any = value, True
        self._newest = value
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a continuation needs.

        Returns:
            Numbers and tensors.
        """
        held = {"first": self._first, "newest": self._newest, "least": self._least, "any": self._any}
        return {**held, "moves": self._moves, "times": self.times, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken.

        Args:
            state: what it returned.
        """
        self._first, self._newest, self._least = state["first"], state["newest"], state["least"]
        self._any, self._moves = state["any"], list(state["moves"])
        self.times, self.weights = state["times"], state["weights"]
