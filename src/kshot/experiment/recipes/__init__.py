"""Published results as recipes: how to train, what to test, which number the paper prints, and how sure of it we are.

A recipe is run by ``kshot reproduce NAME``; its result is a JSON file, committed under ``benchmarks/quality``.
"""

from __future__ import annotations

from kshot.core import UserError
from kshot.core.registry import unknown
from kshot.experiment.recipes import challenge, gradient, memory, metric, omniglot, turing, ways
from kshot.experiment.recipes.measure import Milestone
from kshot.experiment.recipes.recipe import Recipe, Row, verdict
from kshot.experiment.recipes.running import SCHEMA, reproduce, write_result

__all__ = ["SCHEMA", "Milestone", "Recipe", "Row", "recipe", "recipes", "reproduce", "verdict", "write_result"]


def recipes() -> dict[str, Recipe]:
    """Return every recipe by name.

    Returns:
        A new dict.
    """
    families = (metric, gradient, memory, turing, omniglot, challenge, ways)
    return {r.name: r for family in families for r in family.RECIPES}


def recipe(name: str) -> Recipe:
    """Look a recipe up.

    Args:
        name: its name.

    Returns:
        The recipe.

    Raises:
        UserError: no such name.
    """
    known = recipes()
    if name not in known:
        raise UserError(unknown("recipe", name, list(known)))
    return known[name]
