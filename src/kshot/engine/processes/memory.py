"""Tensors that several processes see: one file, mapped by all of them, and without a name as soon as all have it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

#: Bytes to which a tensor is aligned: a line of the processor's cache, so that no two writers share one.
_LINE = 64
#: Where Linux keeps files in memory.
_MEMORY = Path("/dev/shm")


class Place(NamedTuple):
    """Where a tensor lies.

    Attributes:
        name: of the tensor.
        shape: its shape.
        dtype: its type.
        start: its first byte.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    @property
    def end(self) -> int:
        """The byte behind its last one."""
        return self.start + torch.Size(self.shape).numel() * self.dtype.itemsize


def laid_out(kinds: Mapping[str, tuple[torch.Size, torch.dtype]]) -> tuple[Place, ...]:
    """Find a place for each of several tensors.

    Args:
        kinds: name -> shape and type.

    Returns:
        The places, in order.
    """
    found, at = [], 0
    for name, (shape, dtype) in kinds.items():
        found.append(Place(name, tuple(shape), dtype, at))
        at = -(-found[-1].end // _LINE) * _LINE
    return tuple(found)


def new_file(n_bytes: int) -> Path:
    """Make a file of zeros, in memory where the system has room for files there.

    Args:
        n_bytes: its size.

    Returns:
        Its path; who made it removes it.
    """
    try:
        return _filled(n_bytes, _MEMORY if _MEMORY.is_dir() else None)
    except OSError:  # full, as containers keep it small, or not for us to write
        return _filled(n_bytes, None)


def _filled(n_bytes: int, folder: Path | None) -> Path:
    # Every byte is written: of a file with holes, a full disk is noticed when it is too late.
    handle, name = tempfile.mkstemp(prefix="kshot-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            piece = bytes(min(n_bytes, 2**24))
            for start in range(0, n_bytes, 2**24):
                file.write(piece[: n_bytes - start])
    except OSError:
        with suppress(OSError):
            os.unlink(name)
        raise
    return Path(name)


def mapped(path: Path, places: tuple[Place, ...]) -> dict[str, Tensor]:
    """Map tensors of a file into this process; what one process writes, all see.

    Args:
        path: the file.
        places: what lies in it.

    Returns:
        Name -> tensor.
    """
    size = max((p.end for p in places), default=0)
    flat = torch.from_file(str(path), shared=True, size=max(size, 1), dtype=torch.uint8)
    return {p.name: flat[p.start : p.end].view(p.dtype).view(p.shape) for p in places}
