"""Folders of pictures: one sub-folder for each class, or anything at all to be named."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kshot.core import UserError
from kshot.estimator.sources_result import Skipped, Source, left_out, listed

#: Suffixes of files that are taken for pictures.
IMAGE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("avif", "bmp", "dib", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm", "png"),
        *("pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
# What systems leave in folders.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing"))


def read_class_folders(folder: Path, *, skip_bad: bool = False) -> Source:
    """List the pictures of a folder whose sub-folders are classes.

    Pictures deeper than a class folder belong to its class. Hidden files and folders, and what systems leave behind,
    are ignored; files that are no pictures by their suffix are left out with a note.

    Args:
        folder: the folder.
        skip_bad: leave class folders without pictures out.

    Returns:
        Paths, in order of class and path, labelled by the names of the sub-folders. None was opened.

    Raises:
        UserError: the folder is empty, has no sub-folders or one without pictures, or they are splits.
    """
    entries = _entries(folder)
    classes = [p for p in entries if p.is_dir()]
    loose = [p for p in entries if _is_image(p)]
    if not classes:
        raise UserError(
            f"expected one sub-folder of pictures for each class in {folder}, got {_instead(entries, loose)}; put the "
            "pictures of each class into a folder with its name, or pass a CSV, TSV or JSONL file"
        )
    if {p.name.lower() for p in classes} <= _SPLITS and any(q.is_dir() for p in classes for q in _entries(p)):
        raise UserError(
            f"expected one sub-folder for each class in {folder}, got splits ({listed([p.name for p in classes])}); "
            f"pass one of them, such as {classes[0]}"
        )
    found = {p: _walk(p) for p in classes}
    images = {p: [q for q in files if _is_image(q)] for p, files in found.items()}
    bad = [Skipped(str(p), _why_empty(found[p])) for p, mine in images.items() if not mine]
    paths = [q for mine in images.values() for q in mine]
    notes = _notes(loose, [q for files in found.values() for q in files])
    return Source(
        kind="image",
        examples=paths,
        labels=[_readable(p.name) for p, mine in images.items() for _ in mine],
        names=[_readable(str(q)) for q in paths],
        notes=notes,
        skipped=left_out(bad, str(folder), skip_bad=skip_bad),
    )


def list_images(inputs: Sequence[Path]) -> Source:
    """List pictures without labels.

    Args:
        inputs: files of pictures, and folders, in which pictures are looked for however deep.

    Returns:
        Paths in the order given, those of a folder in their own order. None was opened.

    Raises:
        UserError: no such file or folder, or a folder without pictures.
    """
    paths: list[Path] = []
    notes: list[str] = []
    for given in inputs:
        if not given.is_dir():
            paths.append(existing(given))
            continue
        files = _walk(given)
        mine = [p for p in files if _is_image(p)]
        if not mine:
            raise UserError(f"expected pictures in {given}, got {_why_empty(files)}; name a folder that holds some")
        paths += mine
        notes += _notes([], files)
    return Source(
        kind="image", examples=list(paths), labels=None, names=[_readable(str(p)) for p in paths], notes=notes
    )


def existing(path: Path) -> Path:
    """Make sure that something is there.

    Args:
        path: a file or folder.

    Returns:
        The same path.

    Raises:
        UserError: there is nothing of that name.
    """
    if not path.exists():
        raise UserError(f"expected a file or folder, got {path}, which does not exist; check the name")
    return path


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not _ignored(p.name))
    except OSError as error:
        raise _closed(error, folder) from error


def _walk(folder: Path) -> list[Path]:
    # All files below, in order of their paths. Folders that are links are not entered, for they may be loops.
    files: list[Path] = []

    def refuse(error: OSError) -> None:
        raise _closed(error, folder) from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not _ignored(name)]
        files += [Path(place, name) for name in names if not _ignored(name)]
    return sorted(files)


def _closed(error: OSError, folder: Path) -> UserError:
    place = error.filename or folder
    return UserError(f"expected a folder that can be listed, got {place} ({error.strerror or error}); check it")


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _instead(entries: list[Path], loose: list[Path]) -> str:
    if loose:
        return "pictures directly in it and no sub-folders"
    return f"no sub-folders but {listed([p.name for p in entries])}" if entries else "an empty folder"


def _why_empty(files: list[Path]) -> str:
    return f"no pictures, but {listed([p.name for p in files])}" if files else "no pictures"


def _notes(loose: list[Path], files: list[Path]) -> list[str]:
    notes = []
    if loose:
        notes.append(
            f"pictures outside of class folders are left out ({len(loose)}): {listed([p.name for p in loose])}"
        )
    other = Counter(p.suffix.lower() or "no suffix" for p in files if not _is_image(p))
    if other:
        kinds = listed([f"{count} {suffix}" for suffix, count in sorted(other.items())])
        notes.append(f"files that are no pictures are left out: {kinds}")
    return notes


def _readable(name: str) -> str:
    # Names of files may hold bytes that are no text, which could be printed and written nowhere.
    return os.fsencode(name).decode("utf-8", "backslashreplace")
