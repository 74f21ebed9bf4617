"""Errors that a person can act on: what was expected, what came, what to do."""

from __future__ import annotations


class UserError(ValueError):
    """The caller's mistake, not ours.

    The command line shows the message without a traceback and exits with status 2; a server answers HTTP 400.
    The message says three things: what was expected, what came, and what to do about it.
    """


class NotFiniteError(UserError):
    """A learner answered with NaN or infinity."""


class DivergedError(ArithmeticError):
    """Training produced a loss or a gradient that is not finite.

    Attributes:
        step: the outer step (1-based) at which it was seen.
        what: the name of the tensor that was not finite.
    """

    def __init__(self, step: int, what: str, advice: str) -> None:
        super().__init__(f"{what} is not finite at step {step}; {advice}")
        self.step = step
        self.what = what
