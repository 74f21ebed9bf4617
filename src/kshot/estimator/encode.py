"""Examples to vectors, each encoded once: vectors are kept on disk by the content of their example.

One SQLite file for each encoder, named by its fingerprint, in the cache folder (``KSHOT_CACHE``). SQLite, because many
processes may read and write one file, a write is done whole or not at all, and one lookup costs the same among a
thousand vectors as among a million; single files would be slow to list, shards would have to be merged. Its rollback
journal is used rather than its write-ahead log, which needs shared memory (so no network folders) and cannot be read
where the folder is read-only. Each vector has a checksum over its key and its numbers, which SQLite itself has not.

The cache never stops anyone. Damage costs a new encoding, and where nothing can be written (a full disk, a read-only
folder) a ``CacheWarning`` says so once per call.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.core import Encoder, OnProgress, UserError
from kshot.data.cache import CacheWarning, cache_dir

#: Most bytes of vectors kept for one encoder; the oldest go first.
MAX_BYTES = 2 << 30
#: Most bytes of all encoders; files that nobody used for longest go first, but none that was used within a day.
MAX_TOTAL_BYTES = 8 << 30

# So many new vectors are encoded, then written: what an interruption can cost. Twice as many next time where that took
# less than two seconds, up to the second number: a write costs the same for few as for many.
_CHUNK, _MOST_CHUNK, _CHUNK_SECONDS = 512, 16_384, 2.0
# Names in one question; older versions of SQLite allow 999.
_ASK = 500
_WAIT_SECONDS = 20.0
_DAY_SECONDS = 86_400.0
# Part of the file's name: a change of what is stored makes a new file.
_VERSION = "v1"


def encode(
    encoder: Encoder, examples: Sequence[Any], *, cache: bool = True, on_progress: OnProgress | None = None
) -> Tensor:
    """Encode examples, taking from the cache what was encoded before.

    The same example is encoded once, however often it occurs. An encoder with a true attribute ``cheap`` is asked
    directly, without keys or cache: making its vectors takes no longer than looking them up.

    Args:
        encoder: what encodes.
        examples: N examples.
        cache: False to neither read nor write the disk.
        on_progress: told how many are done, of N; those that were found are done at once.

    Returns:
        (N, D), float32, on the CPU.

    Raises:
        UserError: an example cannot be read, or the encoder gives something other than finite vectors of its length.
    """
    n = len(examples)
    if n == 0:
        return torch.empty(0, encoder.dim)
    if getattr(encoder, "cheap", False):
        return _encoded(encoder, examples, on_progress)
    keys = [_key(encoder, example, i) for i, example in enumerate(examples)]
    # Place of the first example of each content.
    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    unique = list(first)
    vectors = np.empty((len(unique), encoder.dim), dtype=np.float32)
    shelf = VectorShelf(encoder) if cache else None
    found = shelf.read(unique, vectors) if shelf else np.zeros(len(unique), dtype=bool)
    missing = np.flatnonzero(~found).tolist()
    n_known = n - len(missing)
    if on_progress is not None and n_known:
        on_progress(n_known, n)
    start, size = 0, _CHUNK
    while start < len(missing):
        began = time.monotonic()
        some = missing[start : start + size]
        tell = _shifted(on_progress, n_known + start, n)
        vectors[some] = _encoded(encoder, [examples[first[unique[i]]] for i in some], tell).numpy()
        if shelf:
            shelf.write([unique[i] for i in some], vectors[some])
        start += size
        if time.monotonic() - began < _CHUNK_SECONDS:
            size = min(2 * size, _MOST_CHUNK)
    if len(unique) == n:
        return torch.from_numpy(vectors)
    place = {key: i for i, key in enumerate(unique)}
    return torch.from_numpy(vectors[[place[key] for key in keys]])


class VectorShelf:
    """The vectors of one encoder on disk. Nothing here raises: what fails is told once, and done without."""

    def __init__(self, encoder: Encoder) -> None:
        readable = re.sub(r"[^A-Za-z0-9]+", "-", encoder.name)[:60].strip("-")
        name = hashlib.sha256(f"{encoder.fingerprint} {encoder.dim}".encode()).hexdigest()[:32]
        self.path = cache_dir() / "vectors" / f"{readable}-{name}-{_VERSION}.sqlite"
        self._dim = encoder.dim
        self._told = False

    def read(self, keys: Sequence[str], out: np.ndarray) -> np.ndarray:
        """Look vectors up.

        Args:
            keys: of N examples, each once.
            out: float32 (N, D), whose rows are filled in where a vector is here and undamaged.

        Returns:
            bool (N,), which were filled in.
        """
        found = np.zeros(len(keys), dtype=bool)
        if not self.path.is_file():
            return found
        short = [_short(key) for key in keys]
        place = {key: i for i, key in enumerate(short)}
        try:
            # Files are tidied away by the time of their last use.
            with contextlib.suppress(OSError):
                os.utime(self.path)
            with self._open() as base:
                for key, blob in self._good(base, short):
                    out[place[key]] = np.frombuffer(blob, dtype="<f4")
                    found[place[key]] = True
        except sqlite3.Error as error:
            self._failed(error)
        return found

    def write(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Keep vectors, and drop the oldest ones beyond ``MAX_BYTES``.

        Args:
            keys: of N examples, each once.
            vectors: float32 (N, D).
        """
        if self._told:
            return
        blobs = [vector.astype("<f4").tobytes() for vector in vectors]
        rows = [(key, _crc(key, blob), blob) for key, blob in zip(map(_short, keys), blobs, strict=True)]
        try:
            if not self.path.is_file():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    _tidy(self.path.parent)
            with self._open() as base, base:
                base.executemany("INSERT OR REPLACE INTO vectors (key, crc, vector) VALUES (?, ?, ?)", rows)
                self._drop_oldest(base)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)

    def _drop_oldest(self, base: sqlite3.Connection) -> None:
        most = max(1, MAX_BYTES // (4 * self._dim + 128))
        (n,) = base.execute("SELECT count(*) FROM vectors").fetchone()
        if n > most:
            # A tenth more, so that this is not done at each write.
            oldest = "SELECT rowid FROM vectors ORDER BY rowid LIMIT ?"
            base.execute(f"DELETE FROM vectors WHERE rowid IN ({oldest})", (n - most + most // 10,))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        base = sqlite3.connect(self.path, timeout=_WAIT_SECONDS)
        try:
            # Several vectors to a page: of 1,280 numbers each takes 5 kB.
            base.execute("PRAGMA page_size = 16384")
            base.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB UNIQUE NOT NULL, crc INTEGER, vector BLOB)")
            yield base
        finally:
            base.close()

    def _good(self, base: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(keys), _ASK):
            some = keys[start : start + _ASK]
            marks = ",".join("?" * len(some))
            for key, crc, blob in base.execute(f"SELECT key, crc, vector FROM vectors WHERE key IN ({marks})", some):
                if isinstance(blob, bytes) and len(blob) == 4 * self._dim and crc == _crc(key, blob):
                    yield key, blob

    def _failed(self, error: sqlite3.Error | OSError) -> None:
        # What is not the fault of the moment (locked, full, read-only) but of the file: it is made anew.
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            try:
                # First the journal, which SQLite would apply to the new file.
                self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
                self.path.unlink(missing_ok=True)
            except OSError as failure:
                self._give_up(failure)
            else:
                self._tell(f"{self.path} is damaged ({error}); its vectors are computed again")
        else:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error | OSError) -> None:
        if not self._told:
            self._told = True
            self._tell(
                f"{self.path.parent} cannot keep vectors ({error}), so examples are encoded again each time; free some "
                "space, or set KSHOT_CACHE to a folder that you can write"
            )

    def _tell(self, message: str) -> None:
        warnings.warn(message, CacheWarning, stacklevel=5)


def _key(encoder: Encoder, example: Any, place: int) -> str:
    try:
        return encoder.key(example)
    except UserError as error:
        raise UserError(f"example {place}: {error}") from error


def _encoded(encoder: Encoder, examples: Sequence[Any], on_progress: OnProgress | None) -> Tensor:
    x = encoder.encode(examples, on_progress)
    if x.ndim != 2 or tuple(x.shape) != (len(examples), encoder.dim):
        raise UserError(
            f"expected {encoder.name} to give vectors of shape ({len(examples)}, {encoder.dim}), got {tuple(x.shape)}; "
            "correct the encoder"
        )
    x = x.detach().to("cpu", torch.float32).contiguous()
    bad = (~torch.isfinite(x).all(1)).nonzero()
    if len(bad):
        shown = f"{examples[int(bad[0])]!r:.80}"
        raise UserError(f"expected finite vectors, got NaN or infinity from {encoder.name} for {shown}; leave it out")
    return x


def _shifted(on_progress: OnProgress | None, done: int, total: int) -> OnProgress | None:
    if on_progress is None:
        return None
    return lambda more, _: on_progress(done + more, total)


def _short(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _crc(key: bytes, blob: bytes) -> int:
    return zlib.crc32(blob, zlib.crc32(key))


def _tidy(folder: Path) -> None:
    # Before a new encoder's file is begun: those least used make room. A day apart, since a file in use must stay.
    files = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.sqlite"))
    total = sum(size for _, size, _ in files)
    for used, size, path in files:
        if total <= MAX_TOTAL_BYTES or time.time() - used < _DAY_SECONDS:
            return
        path.unlink(missing_ok=True)
        total -= size
