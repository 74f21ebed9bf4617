"""Tables made from committed results: nothing in them is typed by hand, and what has no result is listed as such."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kshot.core import UserError
from kshot.core.files import write_atomically
from kshot.core.registry import unknown
from kshot.experiment.recipes.challenge import PUBLISHED, trained_on
from kshot.experiment.recipes.listing import listing, table_line, without_record
from kshot.experiment.recipes.omniglot import SETTINGS
from kshot.experiment.recipes.recipe import Recipe
from kshot.experiment.recipes.ways import is_grid, ways_table

Results = Mapping[str, dict[str, Any]]
Recipes = Mapping[str, Recipe]

#: Tasks behind a number, and queries of a class, unless a line says otherwise.
_TASKS, _QUERIES = 1000, 15
#: Pixels of an image, likewise.
_SIDE = 28
#: How the line of several validations of a training that answer together begins.
_BEST = "best"
_DISTORTED = "distorted images"
#: Trained on the classes of the validation, too, as most papers do.
_ALL = "all 1,200 characters"
#: What is a mark on the front page, and no line of its own.
_MARKS = {_DISTORTED: r"\*", _ALL: "†"}
#: Options that make one method another line.
_VARIANTS = {"first_order": "first order", "fce": "full context"}


class _Line(NamedTuple):
    """What belongs together in the table of Omniglot: one training, one method on it, one kind of inference."""

    recipe: str
    algorithm: str
    transductive: bool
    variants: tuple[str, ...]
    n_episodes: int
    n_query: int


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the results of recipes.

    Args:
        folder: of JSON files, as ``kshot reproduce --record`` writes them.

    Returns:
        Recipe -> result; files that are none of a recipe are left aside.

    Raises:
        UserError: there is no such folder, or a file is damaged.
    """
    if not folder.is_dir():
        raise UserError(
            f"expected a folder of results at {folder}; write some by: kshot reproduce NAME --record FOLDER"
        )
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} cannot be read as a result ({error}); make it again by kshot reproduce") from error
        if isinstance(result, dict) and "recipe" in result and "rows" in result:
            found[result["recipe"]] = result
    return found


def omniglot_table(results: Results, known: Recipes) -> str:
    """Make the table of all methods on Omniglot's split of Matching Networks.

    Args:
        results: recipe -> result.
        known: the recipes.

    Returns:
        Markdown: a line for each training, method and kind of inference; sources; recipes without a result.
    """
    asked, lines = _omniglot_lines(results, known)
    heads = [f"{w}-way {k}-shot" for w, k in SETTINGS]
    made = [table_line(["method", "inference", *heads, "seeds", "trained"]), table_line(["---"] * (4 + len(heads)))]
    made += [_omniglot_line(line, cells, results[line.recipe], known[line.recipe]) for line, cells in lines.items()]
    made += ["", "Accuracy in % with the 95% interval; in brackets what was published. " + _SAME]
    sources = sorted({row["source"] for cells in lines.values() for row in cells.values() if row["source"]})
    made += [f"Published: {'; '.join(sources)}."] if sources else []
    return "\n".join(made + without_record(asked, results)) + "\n"


def short_table(results: Results, known: Recipes, words: tuple[str, str, str, str]) -> str:
    """Make the table of those methods on Omniglot whose papers have numbers, each in its paper's way of testing.

    Args:
        results: recipe -> result.
        known: the recipes.
        words: for method, inference, inductive and transductive.

    Returns:
        Markdown, for the front page; a star behind what was trained on distorted images, a dagger behind what was
        trained on all characters, which as the papers' own setting goes before what was not.
    """
    method, inference, inductive, transductive = words
    heads = [f"{w}-way {k}-shot" for w, k in SETTINGS]
    made = [table_line([method, inference, *heads]), table_line(["---"] * (2 + len(heads)))]
    found: dict[tuple[str, str], dict[tuple[int, int], str]] = {}
    for line, cells in _omniglot_lines(results, known)[1].items():
        # The best of several validations is the way of its paper, and one line has room for both kinds of images.
        variants = [v for v in line.variants if v not in _MARKS and not v.startswith(_BEST)]
        name, mark = ", ".join([f"`{line.algorithm}`", *variants]), "".join(_MARKS.get(v, "") for v in line.variants)
        ours = {s: f"{_cell(row)}{mark}" for s, row in cells.items() if row["published"] is not None}
        if ours:
            own = found.setdefault((name, transductive if line.transductive else inductive), {})
            own.update(ours if _ALL in line.variants else ours | own)
    made += [table_line([*who, *(numbers.get(s, "") for s in SETTINGS)]) for who, numbers in found.items()]
    return "\n".join(made) + "\n"


def _omniglot_lines(
    results: Results, known: Recipes
) -> tuple[list[str], dict[_Line, dict[tuple[int, int], dict[str, Any]]]]:
    asked = [name for name, recipe in known.items() if _belongs(recipe)]
    lines: dict[_Line, dict[tuple[int, int], dict[str, Any]]] = {}
    for name in asked:
        for row in results.get(name, {}).get("rows", ()):
            _place(lines, name, row)
    return asked, lines


_SAME = (
    f"Every number is over the same {_TASKS:,} tasks of its setting, {_QUERIES} queries a class, unless the line says "
    "otherwise; the interval is one over tasks, or over seeds where that is larger. Papers differ from this in "
    "queries, tasks and length of training: the record of each recipe says how."
)


def _belongs(recipe: Recipe) -> bool:
    if recipe.config.data != "omniglot" or "scheme" in recipe.config.data_options or is_grid(recipe):
        return False
    return not all("instance" in row.test for row in recipe.rows)


def _place(lines: dict[_Line, dict[tuple[int, int], dict[str, Any]]], recipe: str, row: dict[str, Any]) -> None:
    first = row["records"][0]
    # A milestone of the training is no test, and what was read one instance after the other is another one.
    setting = (first.get("n_way"), first.get("n_shot"))
    if "instances" in first or setting not in SETTINGS or first["data"] != "omniglot":
        return
    variants = [text for name, text in _VARIANTS.items() if first.get("options", {}).get(name)]
    data = first.get("data_options", {})
    side = data.get("image_size", _SIDE)
    variants += [f"{side} × {side}"] if side != _SIDE else []
    variants += [_DISTORTED] if data.get("augment", "none") != "none" else []
    variants += [_ALL] if data.get("trainval") else []
    together = len(first.get("steps_together", ()))
    variants += [f"{_BEST} {together} of validation together"] if together else []
    who = (recipe, first["algorithm"], first["transductive"], tuple(variants))
    line = _Line(*who, first["n_episodes"], first["n_query"])
    lines.setdefault(line, {})[setting] = row


def _omniglot_line(
    line: _Line, cells: dict[tuple[int, int], dict[str, Any]], result: dict[str, Any], recipe: Recipe
) -> str:
    name = f"[`{line.algorithm}`](methods/{line.algorithm}.md)"
    remarks = list(line.variants)
    remarks += [f"{line.n_episodes} tasks"] if line.n_episodes != _TASKS else []
    remarks += [f"queries: {line.n_query} a class"] if line.n_query != _QUERIES else []
    inference = "**transductive**" if line.transductive else "inductive"
    numbers = [_cell(cells[s]) if s in cells else "" for s in SETTINGS]
    trained = f"as `{recipe.config.algorithm}`" if recipe.stands_on else _minutes(result)
    seeds = str(len(result["seeds"])) if result["seeds"] else ""
    return table_line([", ".join([name, *remarks]), inference, *numbers, seeds, trained])


def _cell(row: dict[str, Any]) -> str:
    known = "" if row["published"] is None else f" ({100 * row['published']:.1f})"
    return f"{100 * row['mean']:.2f} ± {_wide(row):.2f}{known}"


def _wide(row: dict[str, Any]) -> float:
    return 100 * max(row["ci95_episodes"], row["ci95_seeds"] or 0.0)


def _minutes(result: dict[str, Any]) -> str:
    seconds = result["train_seconds"]
    return f"{sum(seconds) / len(seconds) / 60:.0f} min" if seconds else "nothing"


def challenge_table(results: Results, known: Recipes) -> str:
    """Make the table of the original challenge, with what others reached.

    Args:
        results: recipe -> result.
        known: the recipes.

    Returns:
        Markdown: published lines, ours, and recipes without a result.
    """
    asked = [name for name, recipe in known.items() if any(_is_challenge(row.test) for row in recipe.rows)]
    made = [table_line(["who", "trained on", "error, %", "seeds", "trained"]), table_line(["---"] * 5)]
    made += [table_line([who, on, f"{error:.1f}", "", ""]) for who, on, error in PUBLISHED]
    for name in asked:
        rows = results.get(name, {}).get("rows", ())
        ours = [row for row in rows if row["records"][0]["data"] == "omniglot_challenge"]
        # Of one training, what the seeds answer together would be its own answers once more.
        ours = [row for row in ours if "together" not in row["name"] or len(results[name]["seeds"]) > 1]
        made += [_challenge_line(known[name], row, results[name]) for row in ours]
    made += [
        "",
        "Error in % with the 95% interval over the ten alphabets, or over seeds where that is larger. " + _MEMORY,
    ]
    return "\n".join(made + without_record(asked, results)) + "\n"


_MEMORY = "Lines without an interval are published ones (Lake et al. 2019, arXiv:1902.03477, Table 1), from memory."


def _is_challenge(test: Mapping[str, Any]) -> bool:
    return test.get("data") == "omniglot_challenge"


def _challenge_line(recipe: Recipe, row: dict[str, Any], result: dict[str, Any]) -> str:
    what = row["name"].removeprefix("challenge").lstrip(", ")
    who = f"`{recipe.name}`" + (f", {what}" if what else "")
    error = f"{100 * (1 - row['mean']):.2f} ± {_wide(row):.2f}"
    return table_line([who, trained_on(recipe.config), error, str(len(result["seeds"])), _minutes(result)])


TABLES: dict[str, Callable[[Results, Recipes], str]] = {
    "omniglot": omniglot_table,
    "challenge": challenge_table,
    "ways": ways_table,
    "front": partial(short_table, words=("method", "inference", "inductive", "transductive")),
    "front-zh": partial(short_table, words=("方法", "推断方式", "归纳式", "直推式")),
    "sinusoid": partial(listing, data=("sinusoid",)),
    "sequences": partial(listing, data=("copy", "repeat_copy", "associative_recall", "ngrams", "priority_sort")),
}


def table(name: str, folder: Path, known: Recipes) -> str:
    """Make one of the tables.

    Args:
        name: of ``TABLES``.
        folder: of the results.
        known: the recipes.

    Returns:
        Markdown.

    Raises:
        UserError: there is no such table.
    """
    if name not in TABLES:
        raise UserError(unknown("table", name, list(TABLES)))
    return TABLES[name](read_results(folder), known)


def between_marks(page: str, name: str, text: str) -> str:
    """Put a table in the place that a page keeps for it.

    Args:
        page: Markdown with the lines ``<!-- table NAME -->`` and ``<!-- /table NAME -->``.
        name: of the table.
        text: the table.

    Returns:
        The page.

    Raises:
        UserError: the page has no such place.
    """
    first, last = f"<!-- table {name} -->\n", f"<!-- /table {name} -->"
    before, opened, rest = page.partition(first)
    _, closed, after = rest.partition(last)
    if not opened or not closed:
        raise UserError(f"expected the lines {first.strip()} and {last} in the page; add them where the table shall be")
    return f"{before}{first}{text}{last}{after}"


def write_page(path: Path, name: str, text: str) -> None:
    """Put a table into a file.

    Args:
        path: the page.
        name: of the table.
        text: the table.

    Raises:
        UserError: the page is not there or has no place for the table.
    """
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; name a page with a place for the table") from error
    write_atomically(path, between_marks(page, name, text).encode())
