"""One trained model at other numbers of classes and examples than it was trained at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kshot.experiment.recipes.listing import table_line, without_record
from kshot.experiment.recipes.metric import RECIPES as METRIC
from kshot.experiment.recipes.recipe import Recipe, Row

WAYS = (2, 5, 10, 20, 50)
SHOTS = (1, 2, 5, 10, 15)
#: With 15 examples of a class, 5 of its 20 are left.
_QUERIES, _TASKS = 5, 600
_TRAINED = next(recipe for recipe in METRIC if recipe.name == "protonet-omniglot")


def _row(n_way: int, n_shot: int) -> Row:
    test = {"n_way": n_way, "n_shot": n_shot, "n_query": _QUERIES, "n_episodes": _TASKS}
    return Row(f"{n_way}-way {n_shot}-shot", None, None, "", test)


WAYS_SHOTS = replace(
    _TRAINED,
    name="protonet-omniglot-ways",
    rows=tuple(_row(w, k) for w in WAYS for k in SHOTS),
    protocol="Inductive (running statistics). The network of `protonet-omniglot`, trained at 60-way 1-shot and at "
    f"nothing else. {_TASKS} tasks of each setting, {_QUERIES} queries a class.",
    stands_on=_TRAINED.name,
)
RECIPES = (WAYS_SHOTS,)


def is_grid(recipe: Recipe) -> bool:
    """Tell whether a recipe asks for all ways and shots.

    Args:
        recipe: any.

    Returns:
        True for one such as ``WAYS_SHOTS``.
    """
    asked = {(row.test.get("n_way"), row.test.get("n_shot")) for row in recipe.rows}
    return asked == {(w, k) for w in WAYS for k in SHOTS}


def ways_table(results: Mapping[str, dict[str, Any]], known: Mapping[str, Recipe]) -> str:
    """Make the table of ways and shots.

    Args:
        results: recipe -> result.
        known: the recipes.

    Returns:
        Markdown: for each such recipe a line for each number of classes, and the recipes without a result.
    """
    asked = [name for name, recipe in known.items() if is_grid(recipe)]
    made = []
    for name in asked:
        made += _grid(results[name]) if name in results else ()
    return "\n".join(made + without_record(asked, results)) + "\n"


def _grid(result: dict[str, Any]) -> list[str]:
    cells = {row["name"]: f"{100 * row['mean']:.2f} ± {100 * row['ci95_episodes']:.2f}" for row in result["rows"]}
    made = [table_line(["", *(f"{k}-shot" for k in SHOTS)]), table_line(["---"] * (1 + len(SHOTS)))]
    made += [table_line([f"{w}-way", *(cells[f"{w}-way {k}-shot"] for k in SHOTS)]) for w in WAYS]
    return [*made, "", f"`{result['recipe']}`. {result['protocol']} Accuracy in % with the 95% interval over tasks."]
