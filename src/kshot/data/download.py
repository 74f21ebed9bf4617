"""Download one file: checksum, resumption of what a cut connection left, and errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from kshot.core import UserError

#: Called with a file's name, the bytes that are here, and how many there will be (None where the server does not say).
OnProgress: TypeAlias = Callable[[str, int, int | None], None]

_CHUNK = 1 << 17
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class _Broken(OSError):
    """The transfer ended early; what came is kept."""


def download(
    url: str,
    path: Path,
    *,
    md5: str,
    on_progress: OnProgress | None = None,
    attempts: int = 3,
    pause: float = 0.5,
    timeout: float = 30.0,
) -> None:
    """Download a file, or go on where an earlier try stopped.

    Bytes go to ``path`` + ".part", which stays when the transfer is cut or interrupted; the file gets its name only
    once its checksum is right. A second process that wants the same file waits for the first.

    Args:
        url: http(s) address.
        path: where the file goes; its folder is made where it is missing.
        md5: checksum of the whole file, as its publisher gives it.
        on_progress: called after every piece.
        attempts: tries in a row that bring nothing new, before giving up.
        pause: seconds before the second try; it doubles with each.
        timeout: seconds of silence after which a connection counts as cut.

    Raises:
        UserError: the network or the server refuses, the checksum is wrong, or the disk is full or not writable.
    """
    from filelock import FileLock

    part = path.with_name(path.name + ".part")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    try:
        if path.is_file() and file_md5(path) == md5:
            return
        resumed = part.is_file()
        _transfer(url, part, on_progress, attempts, pause, timeout)
        if resumed and file_md5(part) != md5:
            # What was there before may have been part of another version: only a whole new copy can tell.
            part.unlink()
            _transfer(url, part, on_progress, attempts, pause, timeout)
        _settle(url, part, path, md5)
    finally:
        lock.release()
    # After a failure the lock file stays: two that wait for it must go on waiting for the same one.
    Path(lock.lock_file).unlink(missing_ok=True)


def file_md5(path: Path) -> str:
    """Return the MD5 of a file: a checksum against damage, not a proof of origin.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _settle(url: str, part: Path, path: Path, md5: str) -> None:
    got = file_md5(part)
    if got != md5:
        part.unlink()
        raise UserError(
            f"expected MD5 {md5} of {url}, got {got}: the transfer was damaged, or something else answered in its "
            "place (a proxy or a login page); try again, or get the file by another way"
        )
    with _writing(path):
        os.replace(part, path)


def _transfer(
    url: str, part: Path, on_progress: OnProgress | None, attempts: int, pause: float, timeout: float
) -> None:
    failures = 0
    while True:
        had = _size(part)
        try:
            _continue(url, part, on_progress, timeout)
            return
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in _TRANSIENT:
                raise UserError(f"{url} answered {error.code} {error.reason}; look there for a new address") from error
            failures = 0 if _size(part) > had else failures + 1
            if failures >= attempts:
                raise UserError(
                    f"{url} could not be reached ({_reason(error)}); check the network and try again"
                ) from error
            time.sleep(pause * 2**failures)


def _continue(url: str, part: Path, on_progress: OnProgress | None, timeout: float) -> None:
    offset = _size(part)
    headers = {"User-Agent": "kshot", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
            raise
        if error.headers.get("Content-Range", "").strip() != f"bytes */{offset}":
            part.unlink()
            raise _Broken("the part that was here is longer than the file") from error
        return  # all of it is here already
    with response:
        if not _starts_at(response, offset):
            offset = 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        _receive(response, part, offset, total, on_progress)


def _starts_at(response: http.client.HTTPResponse, offset: int) -> bool:
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return False
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == offset


def _receive(
    response: http.client.HTTPResponse, part: Path, offset: int, total: int | None, on_progress: OnProgress | None
) -> None:
    if total is not None:
        _check_room(part, total - offset)
    with _writing(part):
        file = open(part, "ab" if offset else "wb", buffering=0)  # noqa: SIM115 (closed below)
    done = offset
    with file:
        while chunk := response.read1(_CHUNK):
            with _writing(part):
                file.write(chunk)
            done += len(chunk)
            if on_progress is not None:
                on_progress(part.name.removesuffix(".part"), done, total)
    if total is not None and done < total:
        raise _Broken(f"the connection closed after {done} of {total} bytes")


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise UserError(
            f"{part.parent} has {free / 1e6:.1f} MB free, but {needed / 1e6:.1f} MB are to come; free some space, "
            "or name another folder by KSHOT_DATA or --data-root"
        )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that names the folder and the way out.

    Raises:
        UserError: the file system refused.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "its disk is full: free some space" if full else f"{error.strerror or error}: make it writable"
        raise UserError(f"cannot write {path} ({why}), or name another folder by KSHOT_DATA or --data-root") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error) or type(error).__name__
