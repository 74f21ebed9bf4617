"""The plainest of the tables: recipe by recipe, row by row, for tasks that have no table of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kshot.experiment.recipes.recipe import Recipe

_HEAD = ("recipe", "what", "measured", "published", "asked", "seeds", "trained")
#: How the number over seeds is named where it is not a mean.
_OVER = {"median": "median", "largest": "slowest"}


def listing(results: Mapping[str, dict[str, Any]], known: Mapping[str, Recipe], data: Collection[str]) -> str:
    """List every row of the recipes on some data.

    Args:
        results: recipe -> result.
        known: the recipes.
        data: names of data sets.

    Returns:
        Markdown: a line for each row, and the recipes without a result.
    """
    asked = [name for name, recipe in known.items() if recipe.config.data in data]
    made = [table_line(_HEAD), table_line(["---"] * len(_HEAD))]
    for name in asked:
        made += _lines(results[name]) if name in results else ()
    return "\n".join(made + without_record(asked, results)) + "\n"


def without_record(asked: Sequence[str], results: Mapping[str, Any]) -> list[str]:
    """Name what a table lacks.

    Args:
        asked: recipes.
        results: recipe -> result.

    Returns:
        Lines; none if nothing is missing.
    """
    missing = [f"`{name}`" for name in asked if name not in results]
    return ["", f"Without a record yet: {', '.join(missing)}."] if missing else []


def table_line(cells: Iterable[str]) -> str:
    """Write a line of a table.

    Args:
        cells: its texts.

    Returns:
        Markdown.
    """
    return "| " + " | ".join(cells) + " |"


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    seconds = result["train_seconds"]
    once = [f"`{result['recipe']}`", str(len(result["seeds"])), _time(sum(seconds) / len(seconds))]
    for row in result["rows"]:
        name, seeds, trained = once
        yield table_line([name, row["name"], _measured(row), _told(row["published"]), _asked(row), seeds, trained])
        once = ["", "", ""]


def _measured(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "not reached"
    if row["metric"] in ("sequences", "seconds"):
        return f"{row['mean']:,.0f}"
    mean, wide = row["mean"], max(row["ci95_episodes"], row["ci95_seeds"] or 0.0)
    over = f", {_OVER[row['over_seeds']]}" if row["over_seeds"] in _OVER else ""
    return f"{_digits(mean)} ± {_digits(wide)}{over}"


def _digits(number: float) -> str:
    # Three digits that count, whether it is a thousandth of a bit or thousands of them.
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _told(number: float | None) -> str:
    return "" if number is None else f"{number:g}"


def _asked(row: Mapping[str, Any]) -> str:
    least = row["least"]
    if least is None:
        return ""
    return (f"{least:g}" if least < 1000 else f"{least:,.0f}") + (" ✓" if row["passed"] else " ✗")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
