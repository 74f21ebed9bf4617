"""Files that are either the old one or the whole new one, whatever happens while they are written."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from kshot.core.errors import UserError


def replace_file(path: Path, data: bytes) -> None:
    """Write a file under another name, flush it to the disk, and rename it.

    A symbolic link stays one, and what it points to is replaced; a file that is there keeps its permissions. What is no
    file, such as a pipe or ``/dev/null``, is written into, since a rename would put a file in its place.

    Args:
        path: the file; its folder is made where it is missing.
        data: the whole content.

    Raises:
        OSError: it could not be written; what was there is left as it was, and nothing beside it.
    """
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        with path.open("wb") as f:
            f.write(data)
        return
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as f:
            # Before the content, which nobody may read meanwhile who could not read the old one.
            _permit(part, mode)
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
        _flush_folder(path.parent)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file that a person asked for, as ``replace_file`` does.

    Args:
        path: the file; its folder is made where it is missing.
        data: the whole content; text is encoded in UTF-8.

    Raises:
        UserError: the disk is full, or the folder may not be written to.
    """
    try:
        replace_file(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise UserError(
            f"could not write {path}: {error.strerror or error}; free some space, or choose a folder you may write to"
        ) from error


def _mode(path: Path) -> int | None:
    # Of what is there, at the end of all links; None where nothing is.
    try:
        return path.stat().st_mode
    except OSError:
        return None


def _permit(part: Path, mode: int | None) -> None:
    # Some file systems know no permissions.
    if mode is not None and stat.S_ISREG(mode):
        with suppress(OSError):
            part.chmod(stat.S_IMODE(mode))


def _flush_folder(folder: Path) -> None:
    # A rename is on the disk once its folder is.
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
