"""Nested containers of tensors: tensors, dicts, tuples, lists and named tuples of them.

A learner's state, an input with several parts and a loader's plan are trees. ``None``, numbers and strings are
allowed as leaves and are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

Tree: TypeAlias = Any  # Tensor | dict[str, Tree] | tuple[Tree, ...] | list[Tree] | None | int | float | str


def tree_map(f: Callable[..., Any], *trees: Tree) -> Tree:
    """Apply a function to every tensor of a tree (or to the matching tensors of several).

    Args:
        f: called with one tensor of each tree.
        *trees: trees of one structure; leaves that are no tensors are taken from the first.

    Returns:
        A tree of the same structure.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return f(*trees)
    if isinstance(first, dict):
        return {k: tree_map(f, *(t[k] for t in trees)) for k in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(tree_map(f, *ts) for ts in zip(*trees, strict=True)))
    if isinstance(first, tuple | list):
        return type(first)(tree_map(f, *ts) for ts in zip(*trees, strict=True))
    return first


def leaves(tree: Tree) -> list[Tensor]:
    """List the tensors of a tree, in order.

    Returns:
        The tensors.
    """
    found: list[Tensor] = []
    tree_map(found.append, tree)
    return found
