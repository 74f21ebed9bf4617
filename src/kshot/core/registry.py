"""The list of methods: one decorator puts a learner into the command line, the docs and the contract tests."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from kshot.core.errors import UserError
from kshot.core.learner import Learner

FAMILIES = ("metric", "gradient", "memory", "solver", "finetune", "transductive")

L = TypeVar("L", bound=type[Learner])


class Method(NamedTuple):
    """One registered method.

    Attributes:
        name: what one types on the command line.
        family: one of ``FAMILIES``; the folder of ``kshot.algorithms`` that it lives in.
        paper: authors, title, venue, year and arXiv id.
        learner: the class.
    """

    name: str
    family: str
    paper: str
    learner: type[Learner]


_methods: dict[str, Method] = {}


def register(name: str, *, family: str, paper: str) -> Callable[[L], L]:
    """Register a learner class under a name.

    Args:
        name: lower case, unique.
        family: one of ``FAMILIES``.
        paper: the reference, as a sentence.

    Returns:
        A class decorator that returns the class unchanged.

    Raises:
        UserError: the name is taken or the family is unknown.
    """
    if family not in FAMILIES:
        raise UserError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")

    def add(cls: L) -> L:
        held = _methods.get(name)
        if held is not None and held.learner.__qualname__ != cls.__qualname__:
            raise UserError(f"the name {name!r} is taken by {held.learner.__qualname__}; choose another")
        _methods[name] = Method(name, family, paper, cls)
        return cls

    return add


def methods() -> dict[str, Method]:
    """Return every registered method, by name in alphabetical order.

    Returns:
        A new dict; import ``kshot.algorithms`` first, which registers all of ours.
    """
    return dict(sorted(_methods.items()))


def method(name: str) -> Method:
    """Look a method up.

    Args:
        name: its registered name.

    Returns:
        The method.

    Raises:
        UserError: no such name; the message lists the names and the nearest one.
    """
    if name in _methods:
        return _methods[name]
    raise UserError(unknown("algorithm", name, list(methods())))


def unknown(what: str, name: str, known: list[str]) -> str:
    """Phrase an unknown-name error, with the nearest known name.

    Args:
        what: what kind of thing was named.
        name: what came.
        known: what there is.

    Returns:
        The message.
    """
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {what} {name!r}{hint} Known: {', '.join(known)}"
