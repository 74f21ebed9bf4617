"""``kshot list``: the algorithms, data sets and recipes that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from rich.table import Table
from tyro.conf import Positional, arg

import kshot.algorithms  # noqa: F401  (registers the methods)
from kshot.cli.flags import parse
from kshot.cli.tables import show, table
from kshot.core import UserError, methods
from kshot.core.learner import options_of
from kshot.core.registry import unknown
from kshot.data.catalog import datasets
from kshot.experiment.recipes import recipes

_ABOUT = """\
List what there is, with the names that other commands take.

examples:
  kshot list
  kshot list algorithms"""


@dataclass(frozen=True)
class List:
    """Settings of ``kshot list``.

    Attributes:
        what: algorithms, datasets or recipes.
    """

    what: Positional[Annotated[str, arg(metavar="WHAT", help_behavior_hint="(default: all of them)")]] = ""


def run(args: Sequence[str]) -> int:
    """Print the tables.

    Args:
        args: the command line after ``kshot list``.

    Returns:
        The exit status.

    Raises:
        UserError: there is no such list.
    """
    asked = parse(List, args, prog="kshot list", about=_ABOUT).what
    if asked and asked not in TABLES:
        raise UserError(unknown("list", asked, list(TABLES)))
    for i, name in enumerate([asked] if asked else TABLES):
        if i:
            print()
        show(TABLES[name]())
    return 0


def _flags(names: Sequence[str]) -> str:
    return " ".join(f"--{name.replace('_', '-')}" for name in names)


def _algorithms() -> Table:
    made = table("algorithm", "family", "tasks", "options", "paper", unbroken=("algorithm", "family"))
    for m in methods().values():
        made.add_row(m.name, m.family, ", ".join(m.learner.kinds), _flags(list(options_of(m.learner))), m.paper)
    return made


def _datasets() -> Table:
    made = table("data set", "tasks", "what", "options", "licence", unbroken=("data set", "tasks"))
    for d in datasets().values():
        made.add_row(d.name, d.kind, d.summary, _flags(list(d.options)), d.licence)
    return made


def _recipes() -> Table:
    made = table("recipe", "paper", "algorithm", "data", "rows", unbroken=("recipe",))
    for r in recipes().values():
        made.add_row(r.name, r.paper, r.config.algorithm, r.config.data, "; ".join(row.name for row in r.rows))
    return made


TABLES = {"algorithms": _algorithms, "datasets": _datasets, "recipes": _recipes}
