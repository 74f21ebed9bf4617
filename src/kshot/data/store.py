"""The store: where data lie, how they get there, and whether they are what they should be.

A data set's archive is used from the data root if its *contents* check out, else it is downloaded. Contents are
identified by a hash over the decoded examples, so that an archive packed again is accepted and a damaged one is not.
The check reads every example once; a stamp in the cache folder then remembers the archive by its size and time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kshot.core import UserError
from kshot.core.files import replace_file
from kshot.data.cache import cache_dir
from kshot.data.download import OnProgress, download


@dataclass(frozen=True)
class Archive:
    """One file of a data set.

    Attributes:
        path: place below the data root, with "/".
        url: official address.
        md5: checksum of the file at that address.
        contents: sha256 over its decoded examples, whatever the packing.
        hash_contents: decodes a file and returns that hash; UserError where it cannot be decoded.
    """

    path: str
    url: str
    md5: str
    contents: str
    hash_contents: Callable[[Path], str]


@dataclass(frozen=True)
class ArchiveStatus:
    """What is known of an archive without opening it.

    Attributes:
        archive: which.
        path: where it is, or would be.
        present: True if there is a file.
        verified: True if that very file (same size and time) was checked before.
        n_bytes: its size, or None where it is absent.
    """

    archive: Archive
    path: Path
    present: bool
    verified: bool
    n_bytes: int | None


def data_root(root: Path | str | None = None) -> Path:
    """Return the folder that holds data sets.

    Args:
        root: the folder, or None for ``KSHOT_DATA``, or where that is not set for the user's cache folder.

    Returns:
        The folder; it need not exist yet, and may be read-only.

    Raises:
        UserError: something other than a folder has that name.
    """
    named = root if root is not None else os.environ.get("KSHOT_DATA", "")
    path = Path(named).expanduser() if named else platformdirs.user_cache_path("kshot", appauthor=False) / "data"
    if path.exists() and not path.is_dir():
        raise UserError(f"expected a folder as data root, got the file {path}; name its folder by KSHOT_DATA")
    return path


def provide(
    archives: Sequence[Archive], root: Path | str | None = None, on_progress: OnProgress | None = None
) -> list[Path]:
    """Find archives in the data root, and download those that are absent.

    Args:
        archives: which.
        root: the data root, see ``data_root``.
        on_progress: called during a download.

    Returns:
        Their paths, contents not checked.

    Raises:
        UserError: an archive is absent and cannot be downloaded; the message names every absent file, its place and
            its address.
    """
    folder = data_root(root)
    absent = [a for a in archives if not (folder / a.path).is_file()]
    for archive in absent:
        try:
            download(archive.url, folder / archive.path, md5=archive.md5, on_progress=on_progress)
        except UserError as error:
            raise UserError(_by_hand(absent, folder, error)) from error
    return [folder / a.path for a in archives]


def fetch(archive: Archive, root: Path | str | None = None, on_progress: OnProgress | None = None) -> Path:
    """Make sure that an archive is in the data root with the right contents; a damaged one is replaced.

    Args:
        archive: which.
        root: the data root, see ``data_root``.
        on_progress: called during a download.

    Returns:
        Its path.

    Raises:
        UserError: it cannot be downloaded.
    """
    folder = data_root(root)
    path = folder / archive.path
    if path.is_file() and (is_verified(archive, path) or _is_good(archive, path)):
        return path
    try:
        download(archive.url, path, md5=archive.md5, on_progress=on_progress)
    except UserError as error:
        raise UserError(_by_hand([archive], folder, error)) from error
    return verify(archive, root)


def verify(archive: Archive, root: Path | str | None = None) -> Path:
    """Check the contents of an archive by decoding all of it, whatever was known of it before.

    Args:
        archive: which.
        root: the data root, see ``data_root``.

    Returns:
        Its path.

    Raises:
        UserError: it is absent or damaged.
    """
    folder = data_root(root)
    path = folder / archive.path
    if not path.is_file():
        raise UserError(
            f"expected {path}, which is absent; get it by `kshot data fetch` or put it there from {archive.url}"
        )
    with contextlib.suppress(OSError):
        _stamp_path(path).unlink(missing_ok=True)
    confirm(archive, path, archive.hash_contents(path))
    return path


def confirm(archive: Archive, path: Path, contents: str) -> None:
    """Compare contents that were just decoded with what they should be, and remember that they were right.

    Args:
        archive: which.
        path: where it lies.
        contents: hash over the decoded examples.

    Raises:
        UserError: they differ.
    """
    if contents != archive.contents:
        raise UserError(
            f"expected {path} to hold examples with sha256 {archive.contents}, got {contents}; it is damaged or "
            "incomplete: replace it by `kshot data fetch`, or remove it"
        )
    found = path.stat()
    stamp = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "contents": contents}
    # Without a stamp the next opening only takes longer.
    with contextlib.suppress(OSError):
        replace_file(_stamp_path(path), json.dumps(stamp).encode())


def is_verified(archive: Archive, path: Path) -> bool:
    """Tell whether this very file was checked before, by its size and time of change.

    Args:
        archive: which.
        path: where it lies.

    Returns:
        True if it was and had the right contents.
    """
    try:
        stamp = json.loads(_stamp_path(path).read_bytes())
        found = path.stat()
    except (OSError, ValueError):
        return False
    return stamp == {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "contents": archive.contents}


def status(archive: Archive, root: Path | str | None = None) -> ArchiveStatus:
    """Look up what is known of an archive, without opening it.

    Args:
        archive: which.
        root: the data root, see ``data_root``.

    Returns:
        The status.
    """
    path = data_root(root) / archive.path
    present = path.is_file()
    return ArchiveStatus(archive, path, present, is_verified(archive, path), path.stat().st_size if present else None)


def _is_good(archive: Archive, path: Path) -> bool:
    try:
        confirm(archive, path, archive.hash_contents(path))
    except UserError:
        return False
    return True


def _stamp_path(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    return cache_dir() / "verified" / f"{name}.json"


def _by_hand(archives: Sequence[Archive], folder: Path, error: UserError) -> str:
    wanted = "; ".join(f"{folder / a.path} from {a.url}" for a in archives)
    return f"{error}. Or put there by hand: {wanted}"
