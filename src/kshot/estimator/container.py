"""The container of a model: safetensors with a JSON header, written whole or not at all, and read without running code.

The metadata of the safetensors file hold "kshot_model", the version of this layout; "kshot", the version of the program
that wrote it; "sha256" over header and tensors; and "header", JSON. Lists of bytes (thumbnails, names) are one uint8
tensor and one of offsets.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import kshot
from kshot.core import UserError
from kshot.core.files import write_atomically

VERSION = 1
#: No header is longer; a longer one is of another program, or damaged.
_MOST_HEADER = 100_000_000


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        header: JSON values.
        tensors: by name.
    """

    header: dict[str, Any]
    tensors: dict[str, Tensor]


def write(path: Path, content: Content) -> None:
    """Write a file.

    Args:
        path: where.
        content: what.

    Raises:
        UserError: it could not be written; what was there is left as it was.
    """
    from safetensors.torch import save

    if path.is_dir():
        raise UserError(
            f"expected a file to write the model to, {path} is a folder; name a file in it, such as model.kshot"
        )
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in content.tensors.items()}
    header = json.dumps(content.header, sort_keys=True, allow_nan=False)
    metadata = {
        "kshot_model": str(VERSION),
        "kshot": kshot.__version__,
        "sha256": _digest(header, tensors),
        "header": header,
    }
    write_atomically(path, _ordered(save(tensors, metadata=metadata), metadata))


def read(path: Path) -> Content:
    """Read a file.

    Args:
        path: where.

    Returns:
        What it holds; its header has "kshot", the version that wrote it.

    Raises:
        UserError: there is none, or it is foreign, damaged, or of a newer version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    metadata = read_metadata(path)
    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(damaged(path, str(error))) from error
    if metadata.get("sha256") != _digest(metadata["header"], tensors):
        raise UserError(damaged(path, "its content does not match its hash"))
    return Content(header_of(path, metadata), tensors)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the beginning of a file.

    Args:
        path: where.

    Returns:
        Its metadata.

    Raises:
        UserError: there is none, or it is foreign, damaged at its beginning, or of a newer version.
    """
    metadata = _metadata(path)
    version = metadata.get("kshot_model", "")
    if not version.isascii() or not version.isdigit() or "header" not in metadata:
        raise UserError(_foreign(path))
    if int(version) > VERSION:
        raise UserError(
            f"expected a model of format {VERSION} or older in {path}, got format {version}: made by kshot "
            f"{metadata.get('kshot', '?')}, this is {kshot.__version__}; upgrade: pip install --upgrade kshot"
        )
    return metadata


def header_of(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Parse a header.

    Args:
        path: of the file, for messages.
        metadata: from ``read_metadata``.

    Returns:
        JSON values, with "kshot" and "kshot_model".

    Raises:
        UserError: it is damaged.
    """
    try:
        header = json.loads(metadata["header"])
    except (ValueError, RecursionError) as error:
        raise UserError(damaged(path, "its header cannot be read")) from error
    if not isinstance(header, dict):
        raise UserError(damaged(path, "its header is none"))
    return {**header, "kshot": metadata.get("kshot", "?"), "kshot_model": int(metadata["kshot_model"])}


def damaged(path: Path, why: str) -> str:
    """Say that a file is damaged.

    Args:
        path: of the file.
        why: what is wrong.

    Returns:
        The message of an error.
    """
    return f"expected a whole model in {path}, but it is damaged or truncated ({why}); copy it again, or fit again"


def pack(items: Sequence[bytes]) -> dict[str, Tensor]:
    """Turn a list of bytes into tensors.

    Args:
        items: N of them.

    Returns:
        "bytes", uint8, and "offsets", int64 (N + 1,).
    """
    joined = b"".join(items)
    offsets = torch.tensor([0, *(len(i) for i in items)]).cumsum(0)
    return {"bytes": torch.frombuffer(bytearray(joined or b"\0"), dtype=torch.uint8)[: len(joined)], "offsets": offsets}


def unpack(joined: Tensor, offsets: Tensor) -> list[bytes]:
    """Undo ``pack``.

    Args:
        joined: uint8.
        offsets: int64 (N + 1,).

    Returns:
        N of them.
    """
    data, at = joined.numpy().tobytes(), offsets.tolist()
    return [data[a:b] for a, b in itertools.pairwise(at)]


def _ordered(file: bytes, metadata: Mapping[str, str]) -> bytes:
    # The library writes metadata in an order that changes from one call to the next; the same model is the same file.
    (length,) = struct.unpack("<Q", file[:8])
    tensors = {name: told for name, told in json.loads(file[8 : 8 + length]).items() if name != "__metadata__"}
    header = json.dumps({"__metadata__": dict(metadata), **tensors}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([struct.pack("<Q", len(header)), header, memoryview(file)[8 + length :]])


def _metadata(path: Path) -> dict[str, str]:
    # The layout: eight bytes that say how long the JSON header is, then the header.
    try:
        with path.open("rb") as file:
            start = file.read(8)
            (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
            if not 2 <= length <= _MOST_HEADER:
                raise UserError(_foreign(path))
            text = file.read(length)
    except OSError as error:
        raise UserError(f"expected a model at {path}, got: {error.strerror or error}; check the name") from error
    if text[:1] != b"{":
        raise UserError(_foreign(path))
    if len(text) < length:
        raise UserError(damaged(path, "it ends early") if b"kshot_model" in text else _foreign(path))
    try:
        metadata = json.loads(text).get("__metadata__")
    except (ValueError, RecursionError, AttributeError) as error:
        why = damaged(path, "its beginning cannot be read") if b"kshot_model" in text else _foreign(path)
        raise UserError(why) from error
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UserError(_foreign(path))
    return metadata


def _foreign(path: Path) -> str:
    return f"expected a model of kshot in {path}, got something else; make one by: kshot fit DATA --out {path}"


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
