"""Decoded tensors, kept in the user's cache folder so that the second opening of a data set takes no time.

The cache holds nothing that cannot be built again, so it never stops anyone: a damaged file is built again, and where
the folder cannot be written things are built each time. Both say so once, by a ``CacheWarning``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
import torch
from torch import Tensor

from kshot.core import UserError
from kshot.core.files import replace_file
from kshot.data.images import ImageSet


class CacheWarning(UserWarning):
    """The cache folder did not serve: the result is right, but was or will be built again."""


class Decoded(NamedTuple):
    """What a cache file holds.

    Attributes:
        tensors: by name.
        notes: short strings by name, such as class names as JSON.
    """

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, str]


def cache_dir() -> Path:
    """Return the folder of derived things: ``KSHOT_CACHE``, or the user's cache folder of this system.

    Returns:
        The folder, which may not exist yet.
    """
    named = os.environ.get("KSHOT_CACHE", "")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("kshot", appauthor=False)


def cached(key: str, build: Callable[[], Decoded]) -> Decoded:
    """Return decoded tensors from the cache, or build them and keep them there.

    A file is written under another name and renamed, so that a reader sees all of it or nothing; a hash inside it
    tells a damaged one. Two processes that build at once both do the work, and either result stays.

    Args:
        key: file name without extension; it names the content and the version of the code that derives it, so that
            a change of either makes a new file.
        build: makes the tensors; called only where the cache has none.

    Returns:
        The tensors on the CPU, and the notes.

    Raises:
        UserError: the key cannot be a file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", key):
        raise UserError(f"expected a cache key of letters, digits, '-', '_' and '.', got {key!r}; rename it")
    path = cache_dir() / "decoded" / f"{key}.safetensors"
    found = _load(path)
    if found is None:
        found = build()
        _save(path, found)
    return found


def cached_images(key: str, build: Callable[[], ImageSet]) -> ImageSet:
    """Return an image set from the cache, or build it and keep it there.

    Images of pure black and white are kept as bits, an eighth of the size.

    Args:
        key: see ``cached``.
        build: makes the set; its ``rotations`` are not kept.

    Returns:
        The set, on the CPU, without rotations.
    """
    held = cached(key, lambda: _pack(build()))
    tensors = held.tensors
    images = tensors["images"]
    if "bits" in tensors:
        images = _from_bits(tensors["bits"], images.shape[-1])
    return ImageSet(
        images=images,
        labels=tensors["labels"],
        class_names=tuple(json.loads(held.notes["class_names"])),
        groups=tensors["groups"],
        group_names=tuple(json.loads(held.notes["group_names"])),
    )


def _load(path: Path) -> Decoded | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            # Cloned, since a tensor that is mapped from the file would keep it from being replaced on Windows.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            notes = dict(file.metadata() or {})
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        return _damaged(path, str(error))
    if notes.pop("sha256", None) != _digest(tensors, notes):
        return _damaged(path, "its content does not match its hash")
    return Decoded(tensors, notes)


def _damaged(path: Path, why: str) -> None:
    warnings.warn(f"{path} is damaged ({why}) and is built again", CacheWarning, stacklevel=4)


def _save(path: Path, found: Decoded) -> None:
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous() for name, t in found.tensors.items()}
    notes = {**found.notes, "sha256": _digest(tensors, found.notes)}
    try:
        replace_file(path, save(tensors, metadata=notes))
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror or error)
        warnings.warn(
            f"{path.parent} cannot keep decoded data ({why}), so it is built again each time; "
            "set KSHOT_CACHE to a folder that you can write",
            CacheWarning,
            stacklevel=3,
        )


def _digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(notes), sort_keys=True).encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pack(images: ImageSet) -> Decoded:
    names = {"class_names": json.dumps(images.class_names), "group_names": json.dumps(images.group_names)}
    index = {"labels": images.labels, "groups": images.groups}
    x = images.images.cpu()
    if bool(((x == 0) | (x == 255)).all()):
        # The empty tensor says how wide a row was before it was filled up to whole bytes.
        return Decoded({"bits": _to_bits(x), "images": x[:0], **index}, names)
    return Decoded({"images": x, **index}, names)


def _to_bits(x: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(x.numpy() != 0, axis=-1))


def _from_bits(bits: Tensor, width: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1, count=width)).mul_(255)
