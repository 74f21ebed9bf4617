"""What reading a person's data gives, and how what is wrong with it is told."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from kshot.core import OnProgress, UserError

#: How many of a kind a message names.
MOST_NAMED = 5


class Skipped(NamedTuple):
    """An example that was left out, or must be.

    Attributes:
        name: its path, row or line.
        why: what is wrong with it.
    """

    name: str
    why: str


@dataclass(frozen=True)
class Source:
    """A person's data, read whole.

    Attributes:
        kind: "image", "text", "molecule" or "table".
        examples: N paths of pictures, texts, SMILES, or tuples of floats (NaN where one is missing).
        labels: N class names, or None where none were asked for.
        names: N paths, or numbers of rows ("row 2" is the first below a header) or lines.
        columns: what the examples were read from: the name of the text column, or of each numeric one; empty for
            pictures and plain text.
        label_column: name of the column of labels, or "".
        notes: what a person should know: encodings, columns left out, the same example under two labels.
        skipped: examples left out by ``skip_bad``.
    """

    kind: str
    examples: list[Any]
    labels: list[str] | None
    names: list[str]
    columns: tuple[str, ...] = ()
    label_column: str = ""
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.examples)


def listed(items: Sequence[str], most: int = MOST_NAMED) -> str:
    """Name some of many.

    Args:
        items: texts.
        most: how many are named.

    Returns:
        They, with commas, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def left_out(bad: Sequence[Skipped], where: str, *, skip_bad: bool) -> list[Skipped]:
    """Leave bad examples out, or refuse.

    Args:
        bad: what is wrong.
        where: the file or folder.
        skip_bad: True to leave them out.

    Returns:
        The list.

    Raises:
        UserError: there are some and they may not be left out; the first few are named.
    """
    if bad and not skip_bad:
        names: dict[str, list[str]] = {}
        for name, why in bad:
            names.setdefault(why, []).append(name)
        found = [f"{why} ({listed(under, 10)})" for why, under in names.items()]
        more = f"; and {len(found) - MOST_NAMED} more kinds" if len(found) > MOST_NAMED else ""
        raise UserError(
            f"expected {where} to be good throughout, got {len(bad)} bad {'example' if len(bad) == 1 else 'examples'}: "
            f"{'; '.join(found[:MOST_NAMED])}{more}; correct them, or leave them out with --skip-bad (skip_bad=True)"
        )
    return list(bad)


def check_classes(labels: Sequence[str], where: str, skipped: Sequence[Skipped]) -> None:
    """Make sure that there is something to tell apart.

    Args:
        labels: class names.
        where: the file or folder.
        skipped: what was left out.

    Raises:
        UserError: fewer than two classes.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        got = f"one class only ({classes[0]})" if classes else "none"
        out = f" after {len(skipped)} bad examples were left out" if skipped else ""
        raise UserError(f"expected at least two classes in {where}, got {got}{out}; add examples of another class")


def conflicts(keys: Sequence[Hashable], labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """Find the same example under two labels.

    Args:
        keys: content of each example.
        labels: class of each.
        names: path or row of each.

    Returns:
        One text for each content that has several labels, naming the first example under each of them.
    """
    first: dict[Hashable, dict[str, str]] = {}
    for key, label, name in zip(keys, labels, names, strict=True):
        first.setdefault(key, {}).setdefault(label, name)
    clashing = [under for under in first.values() if len(under) > 1]
    return [" and ".join(f"{name} ({label})" for label, name in under.items()) for under in clashing]


def tell_conflicts(found: Sequence[str], where: str, *, strict: bool) -> list[str]:
    """Say which examples have two labels.

    Args:
        found: from ``conflicts``.
        where: the file or folder.
        strict: True to refuse them.

    Returns:
        A note for each of the first, and one for how many more; empty if there are none.

    Raises:
        UserError: there are some and ``strict`` is set.
    """
    if found and strict:
        raise UserError(
            f"expected each example of {where} under one label, got the same one twice: {'; '.join(found[:MOST_NAMED])}"
            f"{f'; and {len(found) - MOST_NAMED} more' if len(found) > MOST_NAMED else ''}; keep one of each"
        )
    notes = [f"the same example under two labels: {pair}" for pair in found[:MOST_NAMED]]
    return notes + ([f"and {len(found) - MOST_NAMED} more under two labels"] if len(found) > MOST_NAMED else [])


def unreadable(source: Source, on_progress: OnProgress | None = None) -> dict[int, str]:
    """Try every picture or molecule; texts and rows of numbers were read already.

    Args:
        source: what was read.
        on_progress: told while pictures are decoded.

    Returns:
        Place of a bad example -> why it cannot be read.
    """
    if source.kind == "image":
        from kshot.apps.vision.load import unreadable as unreadable_images

        return unreadable_images(source.examples, on_progress=on_progress)
    if source.kind == "molecule":
        from kshot.apps.molecules.encoder import unreadable as unreadable_molecules

        return unreadable_molecules(source.examples)
    return {}


def without(source: Source, bad: dict[int, str]) -> Source:
    """Leave examples out.

    Args:
        source: what was read.
        bad: place -> why.

    Returns:
        The rest, with the bad ones added to ``skipped``.
    """
    good = [i for i in range(len(source)) if i not in bad]
    return replace(
        source,
        examples=[source.examples[i] for i in good],
        labels=None if source.labels is None else [source.labels[i] for i in good],
        names=[source.names[i] for i in good],
        skipped=[*source.skipped, *(Skipped(source.names[i], why) for i, why in sorted(bad.items()))],
    )
