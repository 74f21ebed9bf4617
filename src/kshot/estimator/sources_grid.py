"""CSV, TSV and JSON-lines files as a grid of rows and named columns; what cells mean is decided elsewhere."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kshot.core import UserError
from kshot.estimator.sources_encoding import read_text
from kshot.estimator.sources_result import Skipped

#: Suffixes that are read, and what lies between two cells (JSON lines have nothing of the kind).
GRID_SUFFIXES = {".csv": ",;\t|", ".tsv": "\t", ".tab": "\t", ".jsonl": "", ".ndjson": ""}

# The limit of the csv module is one for the whole process.
_LIMIT_LOCK = threading.Lock()
_MOST_CELL = (1 << 31) - 1


@dataclass(frozen=True)
class Grid:
    """Rows of cells.

    Attributes:
        path: the file.
        columns: names, unique; "" for one without a name.
        rows: each as long as ``columns``; text, or for JSON any value, None where a line has no such column.
        numbers: of each row: "row 2" is the first below the header, as a spreadsheet counts; "line 1" the first of
            a JSON-lines file.
        bad: rows that could not be read, each with the reason.
        notes: what a person should know.
        decimal_comma: True if "1,5" may be a number, since cells are separated by semicolons.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[list[Any]]
    numbers: list[str]
    bad: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    decimal_comma: bool = False

    def column(self, name: str) -> list[Any]:
        """Return the cells of a column.

        Args:
            name: one of ``columns``.

        Returns:
            One cell per row.
        """
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


def read_grid(path: Path, *, lenient: bool = False) -> Grid:
    """Read a CSV, TSV or JSON-lines file.

    Args:
        path: the file; its suffix is one of ``GRID_SUFFIXES``.
        lenient: let bytes of another encoding pass as lone surrogates, see ``read_text``.

    Returns:
        The grid. Rows that do not fit are in ``bad``, not in ``rows``.

    Raises:
        UserError: it cannot be decoded or parsed at all, or has no columns, or two of one name.
    """
    text, notes = read_text(path, lenient=lenient)
    separators = GRID_SUFFIXES[path.suffix.lower()]
    grid = _read_separated(path, text, separators) if separators else _read_json_lines(path, text)
    grid.notes[:0] = notes
    return grid


def _read_separated(path: Path, text: str, separators: str) -> Grid:
    notes = []
    separator = _separator(text, separators)
    literal_quotes = False
    if separator == "\t" and not _parses(text, separator):
        literal_quotes = True
        notes.append(f"quotation marks in {path.name} are taken as they stand, since they do not pair up")
    elif separator != separators[0]:
        notes.append(f"cells of {path.name} are separated by {'tabs' if separator == chr(9) else repr(separator)}")
    records = _records(path, text, separator, literal_quotes=literal_quotes)
    first = next((i for i, record in enumerate(records) if any(cell.strip() for cell in record)), None)
    if first is None:
        raise UserError(f"expected a header with the names of columns in {path}, got none; add one")
    columns = _header(path, records[first])
    grid = Grid(path, columns, [], [], notes=notes, decimal_comma=separator == ";")
    n_blank = 0
    for number, record in enumerate(records[first + 1 :], first + 2):
        if not any(record):
            n_blank += 1
        elif len(record) != len(columns):
            why = f"{len(columns)} cells expected, as in the header, got {len(record)}"
            grid.bad.append(Skipped(f"row {number}", why))
        else:
            grid.rows.append(record)
            grid.numbers.append(f"row {number}")
    if n_blank:
        notes.append(f"{n_blank} blank rows of {path.name} are left out")
    return grid


def _header(path: Path, cells: list[str]) -> tuple[str, ...]:
    columns = tuple(cell.strip() for cell in cells)
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise UserError(f"expected columns of different names in {path}, got {', '.join(twice)} twice; rename one")
    return columns


def _separator(text: str, separators: str) -> str:
    # What splits the first record into most cells; on a tie the first in line.
    return max(separators, key=lambda separator: _width(text, separator)) if len(separators) > 1 else separators


def _width(text: str, separator: str) -> int:
    with _any_size():
        try:
            rows = csv.reader(io.StringIO(text.lstrip(" \r\n"), newline=""), delimiter=separator, strict=True)
            return len(next(rows))
        except csv.Error:
            return 0


def _parses(text: str, separator: str) -> bool:
    with _any_size():
        try:
            return all(True for _ in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
        except csv.Error:
            return False


def _records(path: Path, text: str, separator: str, *, literal_quotes: bool) -> list[list[str]]:
    records: list[list[str]] = []
    with _any_size():
        quoting = csv.QUOTE_NONE if literal_quotes else csv.QUOTE_MINIMAL
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True)
        line = 1
        try:
            for record in lines:
                records.append(record)
                line = lines.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"expected quotation marks in pairs in {path}, got a cell in row {len(records) + 1} (line {line}) "
                f"where they are not ({error}); close it, and write a quotation mark within a cell twice"
            ) from error
    return records


@contextmanager
def _any_size() -> Iterator[None]:
    """Let cells be of any length while the csv module reads, and put its limit back."""
    with _LIMIT_LOCK:
        before = csv.field_size_limit(_MOST_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _read_json_lines(path: Path, text: str) -> Grid:
    objects: list[tuple[str, dict[str, Any]]] = []
    bad: list[Skipped] = []
    # Not splitlines(), which also breaks at characters that may stand within a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            objects.append((f"line {number}", _object(line)))
        except (ValueError, RecursionError) as error:
            bad.append(Skipped(f"line {number}", f'an object such as {{"text": ...}} expected, got {_what(error)}'))
    columns = tuple(dict.fromkeys(name for _, found in objects for name in found))
    if not columns:
        why = f"; {bad[0].name}: {bad[0].why}" if bad else ""
        raise UserError(f"expected a JSON object in every line of {path}, got none{why}; see https://jsonlines.org")
    rows = [[found.get(name) for name in columns] for _, found in objects]
    return Grid(path, columns, rows, [number for number, _ in objects], bad=bad)


def _object(line: str) -> dict[str, Any]:
    found = json.loads(line, object_pairs_hook=_unique)
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__} {line.strip():.40}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


def _what(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno} ({error.msg})"
    return "JSON nested too deep" if isinstance(error, RecursionError) else str(error)
