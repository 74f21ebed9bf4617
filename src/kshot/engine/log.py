"""Training metrics, written as they come: a CSV file in the run folder and, if asked for, TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kshot.core import UserError
from kshot.core.files import write_atomically

COLUMNS = ("step", "loss", "grad_norm", "outer_lr", "val", "seconds")


class Log(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers of a step.

        Args:
            step: outer steps done.
            values: name -> number.
        """

    def rewind(self, step: int) -> None:
        """Forget what was written after a step, for a run that goes on from there.

        Args:
            step: outer steps done at the checkpoint.
        """


class CsvLog:
    """``metrics.csv``: one row for each logged step, with the columns ``COLUMNS``; empty where there is no number.

    Args:
        path: the file; made with its header at the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a row.

        Args:
            step: outer steps done.
            values: column -> number; other names are left out.

        Raises:
            UserError: the file cannot be written.
        """
        row = [str(step), *("" if c not in values else repr(float(values[c])) for c in COLUMNS[1:])]
        try:
            new = not self.path.exists()
            with self.path.open("a", newline="") as f:
                csv.writer(f, lineterminator="\n").writerows([COLUMNS, row] if new else [row])
        except OSError as error:
            raise UserError(
                f"could not write {self.path}: {error.strerror or error}; free some space, then go on with --resume"
            ) from error

    def rewind(self, step: int) -> None:
        """Drop rows after a step, and a last row that a crash cut short.

        Args:
            step: outer steps done at the checkpoint.
        """
        if not self.path.exists():
            return
        kept = [",".join(COLUMNS)]
        for line in self.path.read_text().splitlines()[1:]:
            cells = line.split(",")
            if len(cells) == len(COLUMNS) and cells[0].isdigit() and int(cells[0]) <= step:
                kept.append(line)
        write_atomically(self.path, ("\n".join(kept) + "\n").encode())


class TensorBoardLog:
    """TensorBoard event files.

    Args:
        folder: where they go.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "expected the package tensorboard; install it with: pip install 'kshot[tensorboard]'"
            ) from error
        self._open: Callable[[int | None], SummaryWriter] = lambda after: SummaryWriter(str(folder), purge_step=after)
        self._writer = self._open(None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers of a step as scalars.

        Args:
            step: outer steps done.
            values: name -> number.
        """
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Have TensorBoard drop what was written after a step.

        Args:
            step: outer steps done at the checkpoint.
        """
        self._writer.close()
        self._writer = self._open(step + 1)
