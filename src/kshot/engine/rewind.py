"""The way back from a training that has fallen apart: to the best weights of its validation, and on at a lower rate.

A recurrent memory can train well for thousands of steps and then, within one, lose all that it has learned: its
gradient grows a million times over, and what bounds its size does not mend its direction. The weights of the best
validation are still there.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

#: Times that a training may go back; a rate that is halved as often is a thousandth.
MOST = 10
#: Share of the gain since the first validation whose loss is no noise.
LOST = 0.5


class Rewind:
    """Knows the best weights, and when to go back to them.

    Args:
        factor: on the rate, each time; 0 for never going back.

    Attributes:
        weights: of the best validation, name -> tensor; empty before one.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.weights: dict[str, Tensor] = {}

    def keep(self, learner: nn.Module) -> None:
        """Keep a learner's weights as the best so far.

        Args:
            learner: the learner.
        """
        if self.factor:
            self.weights = {k: v.detach().clone() for k, v in learner.state_dict().items()}

    def rate(self, times: int) -> float:
        """Give the factor on the rate.

        Args:
            times: that the training went back.

        Returns:
            1 if it never did.
        """
        return self.factor**times if self.factor else 1.0

    def may(self, times: int) -> bool:
        """Tell whether there is a way back.

        Args:
            times: that the training went back before.

        Returns:
            True if it is wanted, there are weights to go back to, and it was not done too often.
        """
        return bool(self.factor and self.weights) and times < MOST

    def lost(self, value: float, first: float | None, best: float | None) -> bool:
        """Tell whether a validation has lost more than half of what was gained since the first.

        Args:
            value: of this validation; higher is better, minus infinity where an answer was not finite.
            first: of the first.
            best: of the best.

        Returns:
            True if so; never before there was a gain.
        """
        if not self.factor or first is None or best is None or not best > first:
            return False
        return value == -math.inf or best - value > LOST * (best - first)


def told(step: int, what: str, best_step: int, rate: float) -> str:
    """Say that a training goes back.

    Args:
        step: outer steps done.
        what: happened.
        best_step: that the weights are of.
        rate: from now on, as a share of the planned one.

    Returns:
        A sentence.
    """
    return f"{what} at step {step:,}: on from the weights of step {best_step:,}, at {rate:.3g} of the planned rate"
