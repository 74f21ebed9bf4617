"""Which columns of a file are examples and labels, and what their cells say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.core import UserError
from kshot.estimator.sources_encoding import read_text
from kshot.estimator.sources_grid import Grid, read_grid
from kshot.estimator.sources_result import Skipped, Source, left_out, listed

#: Names of columns that are looked for, first come first served; large and small letters are the same.
TEXT_NAMES = ("text", "sentence", "question", "utterance", "query", "message")
LABEL_NAMES = ("label", "category", "class", "intent", "target")
#: The same where numbers are to be learnt.
TARGET_NAMES = ("target", "y", "value", "label")
SMILES_NAMES = ("smiles", "canonical_smiles")
#: Numeric columns of these names tell rows apart and nothing else.
_INDEX_NAMES = ("", "id", "index", "unnamed: 0")
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
# What no text holds: NUL, and halves of characters (bytes of another encoding come as such).
_BROKEN = re.compile("[\0\ud800-\udfff]")
_NAN = math.nan


@dataclass(frozen=True)
class Wanted:
    """What is looked for in a file.

    Attributes:
        kind: "text", "molecule" or "table"; None to find out.
        text_column: where texts or SMILES are; None to guess.
        label_column: where labels are; None to guess.
        columns: what a model was fitted on: its numeric columns, which must all be there, or its text column, which
            is preferred.
        labelled: True if there must be labels; else they are read only where ``label_column`` is given.
        numeric: True if labels are numbers to be learnt.
    """

    kind: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    columns: tuple[str, ...] = ()
    labelled: bool = True
    numeric: bool = False


@dataclass(frozen=True)
class _Layout:
    kind: str
    columns: tuple[str, ...]
    notes: list[str]


def read_table(path: Path, wanted: Wanted, *, skip_bad: bool = False) -> Source:
    """Read a CSV, TSV or JSON-lines file.

    Args:
        path: the file.
        wanted: what is looked for.
        skip_bad: leave rows out that are ragged, empty, or no numbers where numbers are expected.

    Returns:
        Its examples and labels.

    Raises:
        UserError: it cannot be read, a column is missing, or there are bad rows that may not be left out.
    """
    grid = read_grid(path, lenient=skip_bad)
    label = _label_column(grid, wanted)
    layout = _layout(grid, wanted, label)
    read = _numbers if layout.kind == "table" else _texts
    examples, wrong = read(grid, layout.columns)
    if layout.kind == "table" and wanted.labelled:
        wrong = {**_empty(examples), **wrong}
    labels: list[str] | None = None
    if label is not None and (wanted.labelled or wanted.label_column is not None):
        labels, unlabelled = _targets(grid, label) if wanted.numeric else _labels(grid.column(label))
        wrong = {**unlabelled, **wrong}
    bad = [*grid.bad, *(Skipped(grid.numbers[i], why) for i, why in wrong.items())]
    bad.sort(key=lambda skipped: int(skipped.name.rpartition(" ")[2]))
    skipped = left_out(bad, str(path), skip_bad=skip_bad)
    good = [i for i in range(len(examples)) if i not in wrong]
    if not good:
        first = (
            f"none is good ({skipped[0].name}: {skipped[0].why})" if skipped else "there is nothing below the header"
        )
        raise UserError(f"expected rows in {path}, but {first}; add examples")
    return Source(
        kind=layout.kind,
        examples=[examples[i] for i in good],
        labels=None if labels is None else [labels[i] for i in good],
        names=[grid.numbers[i] for i in good],
        columns=layout.columns,
        label_column=label or "",
        notes=[*grid.notes, *layout.notes],
        skipped=skipped,
    )


def read_lines(path: Path, kind: str) -> Source:
    """Read a text, or a SMILES, from each line of a file.

    Args:
        path: the file; blank lines are left out. In a ``.smi`` file, what follows a blank is a name and left out.
        kind: "text" or "molecule".

    Returns:
        The texts, without labels.
    """
    text, notes = read_text(path)
    lines = [(f"line {i}", line.strip()) for i, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip()]
    if path.suffix.lower() == ".smi":
        lines = [(name, line.split()[0]) for name, line in lines]
    return Source(kind, [line for _, line in lines], None, [name for name, _ in lines], notes=notes)


def _label_column(grid: Grid, wanted: Wanted) -> str | None:
    if wanted.label_column is not None:
        return _given(grid, wanted.label_column, "label")
    what, names = ("targets", TARGET_NAMES) if wanted.numeric else ("labels", LABEL_NAMES)
    found = _guess(grid.columns, names)
    if found is None and wanted.labelled:
        raise UserError(
            f"expected a column of {what} in {grid.path} ({', '.join(names)}), got {_named(grid.columns)}; "
            "rename one, or name it with --label-column (label_column=)"
        )
    return found


def _layout(grid: Grid, wanted: Wanted, label: str | None) -> _Layout:
    # What was asked for, else SMILES, else texts, else numbers.
    others = [name for name in grid.columns if name != label]
    if wanted.text_column is not None:
        name = _given(grid, wanted.text_column, "text")
        if name == label:
            raise UserError(f"expected texts and labels in two columns, got {name!r} for both; name another")
        kind = wanted.kind or ("molecule" if name.lower() in SMILES_NAMES else "text")
        return _Layout(kind, (name,), _unused(others, (name,)))
    if wanted.columns and wanted.labelled and wanted.kind is None:
        return _numeric_layout(grid, wanted, others)
    for kind, names in (("molecule", SMILES_NAMES), ("text", TEXT_NAMES)):
        if wanted.kind in (None, kind):
            name = _guess(others, (*wanted.columns, *names) if wanted.kind else names)
            if name is not None:
                return _Layout(kind, (name,), _unused(others, (name,)))
    if wanted.kind in (None, "table"):
        return _numeric_layout(grid, wanted, others)
    return _only_column(grid, wanted.kind or "text", others, wanted.labelled)


def _numeric_layout(grid: Grid, wanted: Wanted, others: list[str]) -> _Layout:
    if wanted.columns:
        absent = [name for name in wanted.columns if name not in grid.columns]
        if absent:
            raise UserError(
                f"expected the columns {listed(list(wanted.columns), 20)} in {grid.path}, got {_named(grid.columns)}; "
                f"add {listed(absent, 20)}"
            )
        return _Layout("table", wanted.columns, _unused(others, wanted.columns))
    candidates = tuple(name for name in others if name.lower() not in _INDEX_NAMES)
    foreign = {name: cell for name in candidates if (cell := _foreign(grid, name)) is not None}
    if candidates and not foreign:
        return _Layout("table", candidates, _unused(others, candidates))
    if wanted.kind is None and len(candidates) == 1:
        return _only_column(grid, "text", list(candidates), wanted.labelled)
    got = "; ".join(f"{name or 'a column without a name'} ({cell})" for name, cell in list(foreign.items())[:5])
    texts = "" if wanted.kind else f"a column of texts ({', '.join(TEXT_NAMES)}), of SMILES ({SMILES_NAMES[0]}), or "
    raise UserError(
        f"expected {texts}numbers in all columns but that of labels in {grid.path}, got {_named(grid.columns)}"
        f"{', of which no numbers: ' + got if got else ''}; rename one, or name the texts with --text-column "
        "(text_column=)"
    )


def _only_column(grid: Grid, kind: str, others: list[str], labelled: bool) -> _Layout:
    # Only beside labels: a file of one column may have no header, and its first line would be lost.
    if labelled and len(others) == 1:
        return _Layout(kind, (others[0],), [f"column {others[0]!r} is taken for the {kind}s"])
    names = SMILES_NAMES if kind == "molecule" else TEXT_NAMES
    raise UserError(
        f"expected a column of {kind}s in {grid.path} ({', '.join(names)}), got {_named(grid.columns)}; rename one, "
        "name it with --text-column (text_column=), or save the lines as a .txt file if there is no header"
    )


def _given(grid: Grid, name: str, what: str) -> str:
    if name not in grid.columns:
        raise UserError(
            f"expected the {what} column {name!r} in {grid.path}, got {_named(grid.columns)}; name one of them"
        )
    return name


def _guess(columns: Sequence[str], names: Sequence[str]) -> str | None:
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)


def _named(columns: Sequence[str]) -> str:
    return f"the columns {listed([name or '(no name)' for name in columns], 20)}"


def _unused(others: Sequence[str], used: Sequence[str]) -> list[str]:
    unused = [name or "(no name)" for name in others if name not in used]
    return [f"columns left out: {listed(unused, 20)}"] if unused else []


def _foreign(grid: Grid, name: str) -> str | None:
    """Return a cell that shows that a column is not of numbers: more than half of what it has are none."""
    cells = grid.column(name)
    numbers = [_number(cell, grid.decimal_comma) for cell in cells]
    wrong = [i for i, number in enumerate(numbers) if number is None]
    right = sum(number is not None and not math.isnan(number) for number in numbers)
    return f"{grid.numbers[wrong[0]]}: {_short(cells[wrong[0]])}" if len(wrong) > right else None


def _numbers(grid: Grid, columns: Sequence[str]) -> tuple[list[Any], dict[int, str]]:
    wrong: dict[int, str] = {}
    numbers: list[list[float]] = []
    for name in columns:
        cells = grid.column(name)
        found = [_number(cell, grid.decimal_comma) for cell in cells]
        for i in [i for i, number in enumerate(found) if number is None]:
            wrong.setdefault(i, f"column {name!r}: a finite number expected, got {_short(cells[i])}")
        numbers.append([_NAN if number is None else number for number in found])
    return list(zip(*numbers, strict=True)), wrong


def _empty(rows: Sequence[Sequence[float]]) -> dict[int, str]:
    # Nothing can be learnt from them, and kshot predict refuses them likewise.
    columns = "a numeric column" if rows and len(rows[0]) == 1 else "any numeric column"
    return {i: f"no value in {columns}" for i, row in enumerate(rows) if all(map(math.isnan, row))}


def _number(cell: Any, decimal_comma: bool) -> float | None:
    """Return a number, NaN for a missing one, None for anything else."""
    if cell is None:
        return _NAN
    if isinstance(cell, str):
        cell = cell.strip()
        if decimal_comma and "." not in cell:
            cell = cell.replace(",", ".")
        if cell.lower() in _MISSING:
            return _NAN
    if not isinstance(cell, str | int | float) or (isinstance(cell, str) and "_" in cell):
        return None
    try:
        value = float(cell)
    except (ValueError, OverflowError):
        return None
    # One NaN for all, so that rows can be compared.
    return _NAN if math.isnan(value) else None if math.isinf(value) else value


def _texts(grid: Grid, columns: Sequence[str]) -> tuple[list[Any], dict[int, str]]:
    cells = grid.column(columns[0])
    wrong: dict[int, str] = {}
    for i, cell in enumerate(cells):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            wrong[i] = f"empty cell in column {columns[0]!r}"
        elif not isinstance(cell, str):
            wrong[i] = f"column {columns[0]!r}: text expected, got {_short(cell)}"
        elif _BROKEN.search(cell):
            wrong[i] = f"column {columns[0]!r}: characters that are no text (mixed encodings, or NUL)"
    return cells, wrong


def _labels(cells: Sequence[Any]) -> tuple[list[str], dict[int, str]]:
    labels: list[str] = []
    wrong: dict[int, str] = {}
    for i, cell in enumerate(cells):
        label = cell.strip() if isinstance(cell, str) else "" if cell is None else str(cell)
        labels.append(label)
        if not label:
            wrong[i] = "empty label"
        elif not isinstance(cell, str | int | float):
            wrong[i] = f"text expected as label, got {_short(cell)}"
        elif _BROKEN.search(label):
            wrong[i] = "label of characters that are no text (mixed encodings, or NUL)"
    return labels, wrong


def _targets(grid: Grid, name: str) -> tuple[list[str], dict[int, str]]:
    cells = grid.column(name)
    found = [_number(cell, grid.decimal_comma) for cell in cells]
    wrong = {
        i: f"column {name!r}: a finite number expected as target, got {_short(cells[i])}"
        for i, number in enumerate(found)
        if number is None or math.isnan(number)
    }
    return [repr(number) for number in found], wrong


def _short(cell: Any) -> str:
    shown = repr(cell)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
