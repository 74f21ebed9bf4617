"""Where a run of the outer loop is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """Where a run is: what a checkpoint holds besides tensors.

    Attributes:
        step: outer steps done.
        best: best validation so far (higher is better), or None.
        best_step: its step.
        bad: validations since.
        seconds: time spent training, resumed parts included.
        stopped: "" while running; "done", "early" or "interrupted".
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    bad: int = 0
    seconds: float = 0.0
    stopped: str = ""
