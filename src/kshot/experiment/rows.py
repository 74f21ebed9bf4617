"""The rows of a memory: as many as its weights were trained with, and enough for what it reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kshot.core import Learner, UserError
from kshot.data.source import TaskSource
from kshot.engine.reading import Reader
from kshot.experiment.config import RunConfig
from kshot.nn.memory.cell import ROWS


def check_rows(learner: Learner, tensors: dict[str, Tensor], trained: RunConfig, what: str) -> None:
    """Refuse weights that were trained with another number of rows: their shapes may be the same.

    Args:
        learner: any.
        tensors: name -> weights of a checkpoint.
        trained: settings of the run that it is of, which older checkpoints say the number of rows by.
        what: holds them, in words.

    Raises:
        UserError: the numbers differ.
    """
    if not isinstance(learner, Reader) or learner.n_rows is None:
        return
    kept: Any = tensors.get(f"cell.{ROWS}", trained.options.get(ROWS, learner.n_rows))
    there = int(kept)
    if there != learner.n_rows:
        raise UserError(
            f"{what} is of another memory: expected {learner.n_rows} rows, got {there}; "
            f"leave out --n-slots or give --n-slots {there}, or train another"
        )


def memory_warning(learner: Learner, source: TaskSource, *, training: bool = False, instances: int = 0) -> str:
    """Say where a learner reads longer sequences than its memory has rows for.

    Args:
        learner: any.
        source: the tasks.
        training: they are trained on, so that support and queries are one sequence.
        instances: examples of each class in one sequence, where accuracy is measured along them; 0 where it is not.

    Returns:
        A sentence; "" where all fits, or there is no memory of rows.
    """
    if not isinstance(learner, Reader) or learner.n_rows is None:
        return ""
    a_step, rows = learner.cell.rows_a_step, learner.n_rows
    steps, what = _steps(source, training, instances, writes_always=a_step > 0)
    needed = steps * max(a_step, 1)
    if needed <= rows:
        return ""
    if not a_step:
        return (
            f"a sequence of {steps} {what} is longer than the memory of {rows} rows: the heads choose where they "
            f"write, but cannot keep each in a row of its own; for that, train with --n-slots {needed}"
        )
    each = f"{a_step} rows" if a_step > 1 else "a row"
    return (
        f"each of the {steps} {what} of a sequence is written to {each} of its own, and the memory has {rows}: "
        f"rows are overwritten, those of the oldest use first; to keep all, train with --n-slots {needed}"
    )


def _steps(source: TaskSource, training: bool, instances: int, writes_always: bool) -> tuple[int, str]:
    """Count what is read of a sequence.

    Returns:
        How many, and of what.
    """
    if source.spec.kind == "sequence":
        # While a sequence is answered there may be nothing to keep; who writes at every step writes then too.
        asked = source.n_query if writes_always or source.shows_while_asked else 0
        return source.n_shot + asked, "steps"
    ways = source.spec.n_outputs if source.spec.kind == "classification" else 1
    if instances:
        return instances * ways, "examples"
    if training:
        return (source.n_shot + source.n_query) * ways, "examples"
    # Each query is read from the state that the support left. Its own step writes before it reads.
    return source.n_shot * ways + writes_always, "examples"
