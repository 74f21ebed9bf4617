"""What ``kshot predict`` says of rows of a table that are unlike all that a model was fitted on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kshot.core import UserError

if TYPE_CHECKING:
    import numpy as np

    from kshot.estimator.sources import Source

#: Columns that a note names.
_MOST_COLUMNS = 3
_AS_END = "; what is beyond it is read as its end"
_AS_MEDIAN = ", where every shot had one; it is read as the median of the shots"


def checked_rows(encoder: Any, source: Source, where: str, *, skip_bad: bool) -> Source:
    """Refuse rows without any value, and note those that the scales of a model do not reach.

    Args:
        encoder: of the model; of all but tables, nothing is checked.
        source: what was read.
        where: the files.
        skip_bad: leave rows without any value out, in the place of refusing them.

    Returns:
        The source, with notes and what was left out added.

    Raises:
        UserError: a row has no value in any column that is read, and may not be left out; or none has.
    """
    from kshot.apps.tables import TableEncoder

    if not isinstance(encoder, TableEncoder):
        return source
    from kshot.cli.fitted import examples_of
    from kshot.estimator.sources_result import Skipped, left_out, without

    unseen = encoder.unseen(examples_of(source))
    bad = dict.fromkeys(unseen.empty.nonzero()[0].tolist(), "no value in any column that the model reads")
    left_out([Skipped(source.names[i], why) for i, why in bad.items()], where, skip_bad=skip_bad)
    if len(bad) == len(source):
        raise UserError(f"expected rows with values in {where}, got none; check the input")
    good = ~unseen.empty
    source = without(source, bad)
    outside = _note(source, unseen.outside[good], "lies", "lie", "outside the range of the shots in", _AS_END)
    missing = _note(source, unseen.missing[good], "has", "have", "no value in", _AS_MEDIAN)
    return replace(source, notes=[*source.notes, *outside, *missing])


def _note(source: Source, found: np.ndarray, one: str, many: str, where: str, meaning: str) -> list[str]:
    from kshot.estimator.sources_result import listed

    rows = found.any(1).nonzero()[0].tolist()
    if not rows:
        return []
    # Columns with the most such rows come first.
    columns = [c for c in (-found.sum(0)).argsort(kind="stable").tolist() if found[:, c].any()]
    names = listed([source.columns[c] for c in columns], _MOST_COLUMNS)
    subject = f"1 row {one}" if len(rows) == 1 else f"{len(rows):,} rows {many}"
    several = "s" * (len(columns) > 1)
    return [f"{subject} {where} column{several} {names} (first: {source.names[rows[0]]}){meaning}"]
