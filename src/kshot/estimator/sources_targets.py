"""Labels that are numbers: read as targets of a regression, or told apart from names of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kshot.core import UserError
from kshot.estimator.sources_result import Source, listed

#: So many different numbers, and for so large a share of the examples another one, are no names of classes.
MANY, SHARE = 20, 0.5


def targets(source: Source, where: str) -> NDArray[np.float64]:
    """Read the labels as numbers.

    Args:
        source: with labels.
        where: the file or folder.

    Returns:
        float64 (N,).

    Raises:
        UserError: some are no finite numbers; they are named.
    """
    labels = source.labels or []
    found = [_number(label) for label in labels]
    bad = [f"{name} ({label})" for name, label, value in zip(source.names, labels, found, strict=True) if value is None]
    if bad:
        raise UserError(
            f"expected numbers as targets in {where}, got others: {listed(bad)}; correct them, or leave out "
            "--task regression to learn classes"
        )
    return np.array(found, dtype=np.float64)


def check_named(labels: Sequence[str], where: str) -> list[str]:
    """Ask back where labels look like amounts rather than names of classes.

    Args:
        labels: of the examples.
        where: the file or folder.

    Returns:
        A note for a person where many labels are different whole numbers; else nothing.

    Raises:
        UserError: many labels are different numbers, and some have fractions.
    """
    values = [_number(label) for label in labels]
    known = [value for value in values if value is not None]
    different = len(set(known))
    if len(known) < len(labels) or different < MANY or different <= SHARE * len(labels):
        return []
    seen = f"{different:,} different numbers among {len(labels):,} labels"
    if all(value.is_integer() for value in known):
        return [f"{seen} are taken for names of classes; if they are amounts, say --task regression"]
    raise UserError(
        f"expected names of classes in {where}, got {seen}; to learn numbers pass --task regression, "
        "and if these are names all the same, --task classification"
    )


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in label else None
