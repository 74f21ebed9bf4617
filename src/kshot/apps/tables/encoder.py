"""Rows of a table, each column put on one scale by its ranks.

A column of numbers may be of any unit and any distribution: money, ages, counts with a long tail. What holds for all of
them is their order. Each distinct value seen in fitting stands at the middle of its ranks, a share p of 0..1, and gets
the normal score of it, Phi^-1(p). Between two of these knots the score is interpolated linearly, outside it is that of
the nearest end. So the scores do not change when a column is measured in another unit, and at the knots not under
any increasing transform (logarithm or not), and an outlier is no farther away than the last rank is.

What is missing (NaN, None) becomes the median of its column, and a column with something missing in fitting is followed
by an indicator of 0 and 1. What is missing elsewhere becomes the median only. Infinities are errors, in fitting and
after. Columns with a single value carry nothing and are dropped; their indicator stays if there is one.

So a row far outside of all that was seen looks like one at the end, and a row without any value like the median of all:
``TableEncoder.unseen`` tells which rows are like this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.apps.tables.rows import matrix
from kshot.core import OnProgress, UserError

_STATE = {
    "knots": torch.float64,
    "scores": torch.float64,
    "starts": torch.int64,
    "medians": torch.float64,
    "flagged": torch.bool,
}


class Unseen(NamedTuple):
    """What fitting has not seen the like of, in N rows of C columns.

    Attributes:
        outside: bool (N, C): below the least or above the greatest number of the column, and read as that end.
        missing: bool (N, C): missing where fitting saw none missing, and read as the median, without an indicator.
        empty: bool (N,): nothing stands in any column that is read.
    """

    outside: np.ndarray
    missing: np.ndarray
    empty: np.ndarray


@dataclass(frozen=True, eq=False)
class TableEncoder:
    """Encodes rows by quantile scaling to normal scores.

    Attributes:
        n_quantiles: most knots per column; a column of more distinct values keeps evenly spaced ones.
        state: what was fitted, or empty. For C columns: "knots" and "scores", float64, of all columns one after the
            other; "starts", int64 (C + 1,), where each column's begin (none for a dropped one); "medians",
            float64 (C,); "flagged", bool (C,), which have an indicator.
        kind: "table".
        name: "table:quantile".
        cheap: True: nothing is gained by caching.

    Raises:
        UserError: ``n_quantiles`` or the state makes no sense.

    Example:
        >>> encoder = TableEncoder().fit([[1, 0.5], [10, None], [100, 0.5]])
        >>> [[round(v, 2) for v in row] for row in encoder.encode([[10, 0.5], [1000, None]]).tolist()]
        [[0.0, 0.0], [0.97, 1.0]]
    """

    n_quantiles: int = 256
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    kind: ClassVar[str] = "table"
    name: ClassVar[str] = "table:quantile"
    cheap: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 2 <= self.n_quantiles <= 1 << 16:
            raise UserError(f"expected n_quantiles of 2 to {1 << 16}, got {self.n_quantiles}; 256 is usual")
        if self.state:
            _check_state(self.state)

    def fit(self, rows: Any) -> TableEncoder:
        """Learn the scale of every column.

        Args:
            rows: (N, C) numbers; see ``kshot.apps.tables.rows.matrix`` for what they may be.

        Returns:
            A fitted encoder with the same settings; this one is left as it was.

        Raises:
            UserError: no rows, rows of different width, an infinity, or no column with two different values.
        """
        values = matrix(rows)
        if not values.size:
            raise UserError(f"expected at least one row and one column, got {values.shape}; pass the training rows")
        _refuse_infinities(values)
        missing = np.isnan(values)
        columns = [_knots(values[~gone, c], self.n_quantiles) for c, gone in enumerate(missing.T)]
        flagged = missing.any(0) & ~missing.all(0)
        if not flagged.any() and not any(len(knots) for knots, _, _ in columns):
            raise UserError(
                "expected a column with two different values, got constant columns only; add one that varies"
            )
        state = {
            "knots": np.concatenate([knots for knots, _, _ in columns]),
            "scores": np.concatenate([scores for _, scores, _ in columns]),
            "starts": np.cumsum([0, *(len(knots) for knots, _, _ in columns)]),
            "medians": np.array([median for _, _, median in columns]),
            "flagged": flagged,
        }
        return TableEncoder(self.n_quantiles, {name: torch.from_numpy(array) for name, array in state.items()})

    @property
    def n_columns(self) -> int:
        """Number of columns that a row has, C; 0 before fitting."""
        return len(self.state["medians"]) if self.state else 0

    @property
    def dim(self) -> int:
        """Length of a vector, D: kept columns and indicators; 0 before fitting."""
        if not self.state:
            return 0
        return int((self.state["starts"].diff() > 0).sum() + self.state["flagged"].sum())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings and of what was fitted."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        for name, tensor in sorted(self.state.items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def key(self, example: Any) -> str:
        """Hash a row.

        Args:
            example: C numbers.

        Returns:
            64 hexadecimal digits.
        """
        values = matrix([example], self.n_columns or None)
        # One bit pattern for each of zero and missing.
        return hashlib.sha256(np.where(np.isnan(values), np.nan, values + 0.0).astype("<f8").tobytes()).hexdigest()

    def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
        """Put rows on the fitted scales.

        Args:
            examples: N rows of C numbers, in any form that ``fit`` takes.
            on_progress: told once, at the end.

        Returns:
            (N, D), float32: the scores of the kept columns in their order, then the indicators.

        Raises:
            UserError: not fitted, rows of another width, or an infinity.
        """
        values, state = self._opened(examples)
        missing = np.isnan(values)
        out = np.empty((len(values), self.dim), dtype=np.float32)
        at = 0
        for c, (start, end) in enumerate(zip(state["starts"][:-1], state["starts"][1:], strict=True)):
            if end > start:
                filled = np.where(missing[:, c], state["medians"][c], values[:, c])
                out[:, at] = _interpolate(filled, state["knots"][start:end], state["scores"][start:end])
                at += 1
        out[:, at:] = missing[:, state["flagged"]]
        if on_progress is not None:
            on_progress(len(out), len(out))
        return torch.from_numpy(out)

    def unseen(self, rows: Any) -> Unseen:
        """Tell where rows are unlike all that fitting saw, so that their vectors say less than they seem to.

        Args:
            rows: N rows of C numbers, in any form that ``fit`` takes.

        Returns:
            What is outside, missing and empty. Of dropped columns, which are not read, nothing is told.

        Raises:
            UserError: not fitted, rows of another width, or an infinity.

        Example:
            >>> TableEncoder().fit([[1, 5], [2, 7]]).unseen([[1.5, 6], [1000, None]]).outside.tolist()
            [[False, False], [True, False]]
        """
        values, state = self._opened(rows)
        missing = np.isnan(values)
        kept = np.diff(state["starts"]) > 0
        outside = np.zeros_like(missing)
        low, high = state["knots"][state["starts"][:-1][kept]], state["knots"][state["starts"][1:][kept] - 1]
        outside[:, kept] = (values[:, kept] < low) | (values[:, kept] > high)
        flagged = state["flagged"]
        empty = np.asarray(missing[:, kept | flagged].all(1))
        return Unseen(outside, missing & kept & ~flagged, empty)

    def settings(self) -> dict[str, Any]:
        """Return what makes this encoder again, beside its tensors.

        Returns:
            Its name and number of quantiles.
        """
        return {"name": self.name, "n_quantiles": self.n_quantiles}

    def tensors(self) -> dict[str, Tensor]:
        """Return what was fitted.

        Returns:
            The state, see the class; empty before fitting.
        """
        return dict(self.state)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TableEncoder:
        """Make an encoder again.

        Args:
            settings: what ``settings`` returned.
            tensors: what ``tensors`` returned.

        Returns:
            An encoder that gives the same vectors.

        Raises:
            UserError: they are those of another encoder, or damaged.
        """
        if settings.get("name") != cls.name or type(settings.get("n_quantiles")) is not int:
            raise UserError(f"expected settings of {cls.name}, got {dict(settings)}; the model is of another encoder")
        return cls(settings["n_quantiles"], dict(tensors))

    def _opened(self, rows: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        # Rows as a matrix of the fitted width, and the state as arrays.
        if not self.state:
            raise UserError(
                "expected a fitted encoder, got one that has seen no rows; call fit(rows) and use its result"
            )
        values = matrix(rows, self.n_columns)
        _refuse_infinities(values)
        return values, {name: tensor.numpy() for name, tensor in self.state.items()}


def _knots(present: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, float]:
    # The values that are kept of a column, their normal scores, and its lower median.
    # Adding zero makes one value of -0.0 and 0.0.
    values, counts = np.unique(present + 0.0, return_counts=True)
    if not len(values):
        return np.empty(0), np.empty(0), 0.0
    # A value that occurs, so that it moves with the column under any increasing transform.
    ends = np.cumsum(counts)
    median = float(values[np.searchsorted(ends, (ends[-1] + 1) // 2)])
    if len(values) == 1:
        return np.empty(0), np.empty(0), median
    middles = (ends - counts / 2) / ends[-1]
    kept = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(np.int64)
    scores = torch.special.ndtri(torch.from_numpy(middles[kept])).numpy()
    return values[kept], scores, median


def _interpolate(x: np.ndarray, knots: np.ndarray, scores: np.ndarray) -> np.ndarray:
    # Written so that the result never falls as x grows, whatever the rounding.
    right = np.clip(np.searchsorted(knots, x, side="right"), 1, len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    # The width of a gap may exceed the largest number; that of the halves does not.
    unit = np.where(np.maximum(np.abs(low), np.abs(high)) > np.finfo(np.float64).max / 4, 0.25, 1.0)
    share = np.clip((np.clip(x, low, high) * unit - low * unit) / (high * unit - low * unit), 0.0, 1.0)
    below, above = scores[right - 1], scores[right]
    return np.where(x >= high, above, np.minimum(below + share * (above - below), above))


def _refuse_infinities(values: np.ndarray) -> None:
    bad = np.argwhere(np.isinf(values))
    if len(bad):
        row, column = bad[0].tolist()
        raise UserError(
            f"expected finite numbers, got {values[row, column]} in row {row}, column {column}; "
            "correct it, or leave it out (None or NaN) if it is unknown"
        )


def _check_state(state: Mapping[str, Tensor]) -> None:
    damaged = UserError(
        f"expected the tensors of {TableEncoder.name}, got {sorted(state)}; they are damaged: fit again"
    )
    if {name: t.dtype for name, t in state.items()} != _STATE or any(t.ndim != 1 for t in state.values()):
        raise damaged
    starts, n = state["starts"], len(state["medians"])
    lengths = (len(starts), len(state["flagged"]), len(state["knots"]), len(state["scores"]))
    if not len(starts) or lengths != (n + 1, n, int(starts[-1]), int(starts[-1])) or int(starts[0]) != 0:
        raise damaged
    widths = starts.diff()
    if (
        bool((widths < 0).any())
        or bool((widths == 1).any())
        or not all(bool(torch.isfinite(state[name]).all()) for name in ("knots", "scores", "medians"))
    ):
        raise damaged
    # Within a column, knots rise.
    rising = state["knots"].diff() > 0
    rising[starts[1:-1][(starts[1:-1] > 0) & (starts[1:-1] < int(starts[-1]))] - 1] = True
    if not bool(rising.all()):
        raise damaged
