"""What a person passes to ``kshot fit`` and ``kshot predict``: folders of pictures, CSV, TSV, JSON-lines, text files.

Everything is read before anything is done with it, and what is wrong is said with the place where it is. What had to be
guessed (encodings, separators, columns) is in ``Source.notes``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from kshot.core import OnProgress, UserError
from kshot.estimator.sources_folder import IMAGE_SUFFIXES, existing, list_images, read_class_folders
from kshot.estimator.sources_grid import GRID_SUFFIXES
from kshot.estimator.sources_result import (
    Skipped,
    Source,
    check_classes,
    conflicts,
    tell_conflicts,
    unreadable,
    without,
)
from kshot.estimator.sources_table import Wanted, read_lines, read_table

__all__ = ["Skipped", "Source", "read_inputs", "read_training"]

_KINDS = ("image", "text", "molecule", "table")
_LINES = {".txt": "text", ".smi": "molecule"}
_FORMATS = "a folder of pictures, or a .csv, .tsv or .jsonl file"


def read_training(
    data: Path | str,
    *,
    kind: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    columns: Sequence[str] = (),
    skip_bad: bool = False,
    strict: bool = False,
    numeric: bool = False,
    on_progress: OnProgress | None = None,
) -> Source:
    """Read labelled examples.

    Args:
        data: a folder whose sub-folders are classes of pictures, or a CSV, TSV or JSON-lines file with a column of
            labels and one of texts or SMILES, or numeric ones.
        kind: "image", "text", "molecule" or "table"; None to find out.
        text_column: column of texts or SMILES; None to guess by name.
        label_column: column of labels; None to guess by name.
        columns: numeric columns; none for all but that of labels (and without "id", "index" and nameless ones).
        skip_bad: leave bad examples out and list them in ``Source.skipped``; every picture is decoded to find out.
            Without it, pictures and molecules are not tried here: encoding them names a bad one.
        strict: refuse the same example under two labels, instead of noting it.
        numeric: labels are numbers to be learnt, and no names of classes.
        on_progress: told while pictures are decoded.

    Returns:
        The examples with their labels.

    Raises:
        UserError: what is there is not of this form; the message names the place and says what to do.
    """
    path = existing(Path(data).expanduser())
    _check_kind(kind)
    if path.is_dir():
        if kind not in (None, "image"):
            raise UserError(f"expected a file of {kind}s, got the folder {path}; pass a .csv, .tsv or .jsonl file")
        _refuse_columns(path, text_column, label_column, columns)
        source = read_class_folders(path, skip_bad=skip_bad)
    elif path.suffix.lower() in GRID_SUFFIXES and kind != "image":
        wanted = Wanted(kind, text_column, label_column, tuple(columns), numeric=numeric)
        source = read_table(path, wanted, skip_bad=skip_bad)
    else:
        raise UserError(f"expected {_FORMATS}, got {path}; {_advice(path)}")
    if skip_bad:
        source = without(source, unreadable(source, on_progress))
    if numeric:
        return source
    check_classes(source.labels or [], str(path), source.skipped)
    clashing = conflicts(_keys(source), source.labels or [], source.names)
    return replace(source, notes=[*source.notes, *tell_conflicts(clashing, str(path), strict=strict)])


def read_inputs(
    inputs: Sequence[Path | str] | Path | str,
    *,
    kind: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    columns: Sequence[str] = (),
    skip_bad: bool = False,
    numeric: bool = False,
    on_progress: OnProgress | None = None,
) -> Source:
    """Read examples to be named.

    Args:
        inputs: one or more files and folders of one kind: pictures and folders of them, flat or nested; CSV, TSV
            and JSON-lines files; ``.txt`` files with a text in each line, ``.smi`` files with a SMILES in each.
        kind: what a model was fitted on; None to find out.
        text_column: column of texts or SMILES; None to guess by name.
        label_column: column of labels, which are read if it is given, and otherwise not.
        columns: ``Source.columns`` that a model was fitted on: all numeric ones must be there, a text column is
            preferred to others.
        skip_bad: leave bad examples out and list them in ``Source.skipped``.
        numeric: labels are numbers.
        on_progress: told while pictures are decoded.

    Returns:
        The examples. Of several files, rows are named "file.csv: row 2".

    Raises:
        UserError: nothing there, of several kinds, or of another kind than asked for.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    paths = [existing(Path(p).expanduser()) for p in given]
    if not paths:
        raise UserError("expected at least one file or folder, got none; name what to predict")
    _check_kind(kind)
    if all(_holds_images(p, kind) for p in paths):
        _refuse_columns(paths[0], text_column, label_column, columns)
        source = list_images(paths)
    else:
        wanted = Wanted(kind, text_column, label_column, tuple(columns), labelled=False, numeric=numeric)
        source = _joined([_read_file(p, wanted, skip_bad) for p in paths], paths)
    if skip_bad:
        source = without(source, unreadable(source, on_progress))
        if not len(source):
            first = source.skipped[0]
            raise UserError(
                f"expected something that can be read, got none ({first.name}: {first.why}); check the input"
            )
    return source


def _check_kind(kind: str | None) -> None:
    if kind is not None and kind not in _KINDS:
        raise UserError(f"expected a kind of {', '.join(_KINDS)}, got {kind!r}; leave it out to find out by the data")


def _refuse_columns(path: Path, text: str | None, label: str | None, columns: Sequence[str]) -> None:
    named = [name for name in (text, label, *columns) if name]
    if named:
        raise UserError(
            f"expected a file with the column{'s' * (len(named) > 1)} {', '.join(named)}, got pictures ({path}), which "
            "have none; name a table, or leave them out: the classes of pictures are the names of their folders"
        )


def _holds_images(path: Path, kind: str | None) -> bool:
    if kind == "image":
        if path.suffix.lower() in (*GRID_SUFFIXES, *_LINES) and not path.is_dir():
            raise UserError(f"expected pictures, as the model was fitted on, got {path}; name pictures or their folder")
        return True
    is_image = path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES
    if is_image and kind is not None:
        raise UserError(f"expected a file of {kind}s, got {path}; pass a .csv, .tsv, .jsonl or .txt file")
    return is_image


def _read_file(path: Path, wanted: Wanted, skip_bad: bool) -> Source:
    suffix = path.suffix.lower()
    if suffix in GRID_SUFFIXES:
        return read_table(path, wanted, skip_bad=skip_bad)
    if suffix in _LINES and wanted.kind in (None, "text", "molecule"):
        return read_lines(path, wanted.kind or _LINES[suffix])
    if path.is_dir() or suffix in IMAGE_SUFFIXES:
        raise UserError(f"expected files of one kind, got pictures ({path}) beside others; predict them apart")
    raise UserError(f"expected {_FORMATS}, or a picture or a .txt file, got {path}; {_advice(path)}")


def _joined(sources: Sequence[Source], paths: Sequence[Path]) -> Source:
    first = sources[0]
    if len(sources) == 1:
        return first
    for source, path in zip(sources[1:], paths[1:], strict=True):
        if source.kind != first.kind or (source.kind == "table" and source.columns != first.columns):
            raise UserError(
                f"expected files of one form, got {paths[0]} ({first.kind}: {', '.join(first.columns)}) and {path} "
                f"({source.kind}: {', '.join(source.columns)}); predict them apart"
            )
    pairs = list(zip(sources, paths, strict=True))
    labelled = all(source.labels is not None for source in sources)
    return replace(
        first,
        examples=[example for source in sources for example in source.examples],
        labels=[label for source in sources for label in source.labels or []] if labelled else None,
        names=[f"{path}: {name}" for source, path in pairs for name in source.names],
        notes=[note for source in sources for note in source.notes],
        skipped=[Skipped(f"{path}: {name}", why) for source, path in pairs for name, why in source.skipped],
    )


def _keys(source: Source) -> Sequence[Hashable]:
    """Return what tells examples apart; files are read only where two are of one size."""
    if source.kind != "image":
        return source.examples
    from kshot.apps.vision.load import image_key

    sizes = [_size(path) for path in source.examples]
    seen: set[int] = set()
    twice = {size for size in sizes if size in seen or seen.add(size)}
    return [image_key(path) if size in twice else str(path) for path, size in zip(source.examples, sizes, strict=True)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"expected a picture at {path}, got: {error.strerror or error}; check it") from error


def _advice(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods", ".numbers"):
        return "save the sheet as CSV (UTF-8)"
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        return "unpack it first"
    if suffix == ".json":
        return "write one JSON object per line and name it .jsonl"
    if suffix in _LINES:
        return "labels are needed beside the texts: save two columns, text and label, as .csv"
    return f"its suffix is {suffix!r}; convert it" if suffix else "it has no suffix that tells what it is; rename it"
