"""Tables on standard output: coloured on a terminal, as wide as they are elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

#: Width of a line where there is no terminal: wide enough for every table, so that a search finds whole cells.
_WIDE = 200


def table(*columns: str, unbroken: Sequence[str] = ()) -> Table:
    """Make an empty table.

    Args:
        *columns: headings; a table without any has no heading line.
        unbroken: headings of the columns whose cells stay in one line.

    Returns:
        The table.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(columns))
    for name in columns:
        made.add_column(name, no_wrap=name in unbroken)
    return made


def show(made: Table) -> None:
    """Print a table to standard output.

    Args:
        made: the table.
    """
    live = sys.stdout.isatty()
    console = Console(highlight=False, width=shutil.get_terminal_size().columns if live else _WIDE)
    # Not printed by rich itself, which would end the program where the reader goes away.
    with console.capture() as text:
        console.print(made)
    for line in text.get().splitlines():
        print(line.rstrip())
