"""Rows of numbers as one float64 matrix, whatever they come as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from kshot.core import UserError


def matrix(rows: Any, width: int | None = None) -> np.ndarray:
    """Stack rows of numbers.

    Args:
        rows: an (N, C) array, tensor or data frame, or N sequences of C numbers; None stands for a missing one.
        width: C, or None for that of the first row.

    Returns:
        (N, C), float64, a copy; NaN where a number is missing.

    Raises:
        UserError: rows of different or of another width, or something that is no number.
    """
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu().numpy()
    elif hasattr(rows, "to_numpy"):
        rows = rows.to_numpy()
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "biuf":
        values = rows.astype(np.float64)
    else:
        values = _stack([r.detach().cpu().numpy() if isinstance(r, Tensor) else r for r in rows], width)
    if values.ndim != 2 or (width is not None and values.shape[1] != width):
        wanted = f"(N, {width})" if width is not None else "(N, C), one row an example"
        raise UserError(f"expected numbers of shape {wanted}, got {values.shape}; give every row the same columns")
    return values


def _stack(rows: Sequence[Any], width: int | None) -> np.ndarray:
    if not rows:
        return np.empty((0, width or 0))
    for number, row in enumerate(rows):
        if isinstance(row, str | bytes) or not hasattr(row, "__len__"):
            raise UserError(f"expected rows of numbers, got {row!r:.80} as row {number}; pass a list of numbers each")
    n = width if width is not None else len(rows[0])
    other = next((i for i, row in enumerate(rows) if len(row) != n), None)
    if other is not None:
        raise UserError(
            f"expected {n} numbers in every row, got {len(rows[other])} in row {other}; give every row the same columns"
        )
    try:
        return np.array(rows, dtype=np.float64).reshape(len(rows), n)
    except (TypeError, ValueError, OverflowError):
        return np.array([[_number(v, i, j) for j, v in enumerate(row)] for i, row in enumerate(rows)], dtype=np.float64)


def _number(value: Any, row: int, column: int) -> float:
    # None, and the missing value of pandas, which is of no type that can be named here.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"expected a number in row {row}, column {column}, got {value!r:.80}; "
            "correct it, or leave it out (None or NaN) if it is unknown"
        ) from error
