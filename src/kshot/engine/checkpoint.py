"""Checkpoints that survive a crash at any moment, and that run no code when they are read.

A checkpoint is one safetensors file: the tensors, and in its header a JSON text with everything else and a digest of
both. It is written to a new file, flushed to the disk, and renamed; so a file with a checkpoint's name is either
whole or was damaged later, which the digest tells.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kshot.core import Tree, UserError
from kshot.core.files import write_atomically

FORMAT = "kshot-checkpoint"
VERSION = 1
KEEP = 2


def flatten(tree: Tree, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split a tree into its tensors, named by their path, and a JSON value with a reference in the place of each.

    Args:
        tree: dicts, lists, tuples, numbers, texts, None and tensors.
        prefix: of the names.

    Returns:
        Name -> tensor, and the JSON value.

    Raises:
        UserError: a key is neither a text nor a whole number (of one kind in one dict), or a leaf is no such value.
    """
    if isinstance(tree, Tensor):
        return {prefix: tree}, {"$tensor": prefix}
    if isinstance(tree, dict):
        kinds = {type(k) for k in tree}
        if kinds - {str} and kinds - {int}:
            raise UserError(
                f"expected the keys of a dict to be all texts or all whole numbers, got {sorted(map(str, tree))} "
                f"at {prefix or 'the top'}; rename them"
            )
        parts = {str(k): flatten(v, _below(prefix, str(k))) for k, v in tree.items()}
        # Optimiser states are keyed by integers, which JSON would turn into texts.
        keys = "$int" if int in kinds else "$dict"
        return _union(t for t, _ in parts.values()), {keys: {k: v for k, (_, v) in parts.items()}}
    if isinstance(tree, list | tuple):
        items = [flatten(v, f"{prefix}/{i}") for i, v in enumerate(tree)]
        return _union(t for t, _ in items), [v for _, v in items]
    if tree is not None and not isinstance(tree, bool | int | float | str):
        raise UserError(
            f"expected tensors, dicts, lists, tuples, numbers and texts, got a {type(tree).__name__} "
            f"at {prefix or 'the top'}; convert it first"
        )
    return {}, tree


def _below(prefix: str, key: str) -> str:
    # A slash within a key, or an empty key, must not make one name of two paths.
    name = key.replace("~", "~0").replace("/", "~1") or "~2"
    return f"{prefix}/{name}" if prefix else name


def _union(parts: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {k: v for part in parts for k, v in part.items()}


def unflatten(tensors: dict[str, Tensor], value: Any) -> Tree:
    """Undo ``flatten``; tuples come back as lists.

    Args:
        tensors: name -> tensor.
        value: the JSON value.

    Returns:
        The tree.
    """
    if isinstance(value, list):
        return [unflatten(tensors, v) for v in value]
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "$tensor":
        return tensors[content]
    return {int(k) if kind == "$int" else k: unflatten(tensors, v) for k, v in content.items()}


def save_tree(path: Path, tree: Tree) -> None:
    """Write a tree of tensors, numbers and texts to one file.

    Args:
        path: the file.
        tree: what to write.

    Raises:
        UserError: it could not be written.
    """
    found, value = flatten(tree)
    tensors: dict[str, Tensor] = {}
    held: set[int] = set()
    for name, t in found.items():
        own = t.detach().to("cpu").contiguous()
        # Tied weights are one tensor under two names, which the file format refuses: the second is written out again.
        tensors[name] = own.clone() if own.untyped_storage().data_ptr() in held else own
        held.add(own.untyped_storage().data_ptr())
    text = json.dumps(value)
    header = {"format": FORMAT, "version": VERSION, "digest": _digest(tensors, text), "value": text}
    write_atomically(path, save(tensors, {"kshot": json.dumps(header)}))


def load_tree(path: Path) -> Tree:
    """Read a file written by ``save_tree``; runs no code from it.

    Args:
        path: the file.

    Returns:
        The tree, on the CPU.

    Raises:
        UserError: the file is missing, damaged, foreign, or from a newer version.
    """
    try:
        with safe_open(path, framework="pt") as f:
            header = json.loads((f.metadata() or {}).get("kshot", "null"))
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"expected a checkpoint at {path}, found no file there") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged, or no checkpoint at all ({error}); use another one") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f"{path} was not written by kshot: expected a header of format {FORMAT!r}; use another file")
    version, text = header.get("version"), header.get("value")
    if isinstance(version, int) and version > VERSION:
        raise UserError(f"{path} has format version {version}, this kshot reads up to {VERSION}; upgrade kshot")
    if not isinstance(text, str) or header.get("digest") != _digest(tensors, text):
        raise UserError(f"{path} is damaged: its contents do not match its digest; use another checkpoint")
    return unflatten(tensors, json.loads(text))


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    h = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        t = tensors[name]
        h.update(f"{name}:{t.dtype}:{tuple(t.shape)};".encode())
        h.update(t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return h.hexdigest()


class Checkpoints:
    """The checkpoints of one run: ``step-00000100.safetensors``, of which the newest few are kept, and ``best``.

    Where several validations are kept, the weights of each lie in a ``validated-00000100.safetensors``.

    Args:
        folder: where they lie.
        keep: how many of the newest to keep; two, so that there is one before a damaged one.
    """

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self.folder, self.keep = folder, keep

    @property
    def best(self) -> Path:
        """Path of the best checkpoint by validation."""
        return self.folder / "best.safetensors"

    def steps(self) -> list[tuple[int, Path]]:
        """List the kept checkpoints, newest first.

        Returns:
            (step, path) pairs.
        """
        return self._numbered("step")

    def _numbered(self, kind: str) -> list[tuple[int, Path]]:
        found = []
        for path in self.folder.glob(f"{kind}-*.safetensors"):
            match = re.fullmatch(rf"{kind}-(\d+)\.safetensors", path.name)
            if match:
                found.append((int(match[1]), path))
        return sorted(found, reverse=True)

    def validated(self) -> list[tuple[int, Path]]:
        """List the kept weights by their validation, the best first, and of equal ones the first; damaged ones last.

        Returns:
            (step, path) pairs.
        """
        found = [(_validation(path), step, path) for step, path in self._numbered("validated")]
        return [(step, path) for _, step, path in sorted(found, key=lambda kept: (-kept[0], kept[1]))]

    def keep_validated(self, step: int, tree: Tree, most: int) -> None:
        """Write the weights of a validation, then forget the worst.

        Args:
            step: outer steps done.
            tree: with the number of the validation, ``val``; higher is better.
            most: how many to keep.

        Raises:
            UserError: it could not be written.
        """
        save_tree(self.folder / f"validated-{step:08d}.safetensors", tree)
        for _, path in self.validated()[most:]:
            path.unlink(missing_ok=True)

    def forget_validated(self, after: int) -> None:
        """Remove the weights of validations that a run goes past again.

        Args:
            after: the step from which it goes on.
        """
        for step, path in self._numbered("validated"):
            if step > after:
                path.unlink(missing_ok=True)  # each process of a run does so

    def save(self, step: int, tree: Tree) -> Path:
        """Write the checkpoint of a step, then forget the oldest.

        Args:
            step: outer steps done.
            tree: everything that is needed to go on.

        Returns:
            Its path.

        Raises:
            UserError: it could not be written; the ones before it are still there.
        """
        path = self.folder / f"step-{step:08d}.safetensors"
        save_tree(path, tree)
        # A later step is a damaged one that this run goes past again: it must not push out the ones before it.
        for old in [p for n, p in self.steps() if n <= step][self.keep :]:
            old.unlink(missing_ok=True)
        for part in self.folder.glob(".*.part"):  # of a process that was killed while it wrote
            part.unlink(missing_ok=True)
        return path

    def load_newest(self) -> tuple[Tree, Path, list[str]]:
        """Read the newest checkpoint that is whole.

        Returns:
            The tree, its path, and one message for each newer checkpoint that was not usable.

        Raises:
            UserError: none is usable.
        """
        problems: list[str] = []
        for _, path in self.steps():
            try:
                return load_tree(path), path, problems
            except UserError as error:
                problems.append(str(error))
        detail = "; ".join(problems) or "the folder has none"
        advice = "Start a new run with another --out" if problems else "Train it first: kshot train --resume --out"
        raise UserError(f"expected a usable checkpoint in {self.folder}: {detail}. {advice}")


def _validation(path: Path) -> float:
    # A damaged one must not keep a run from going on; who loads it is told.
    try:
        return float(load_tree(path)["val"])
    except UserError:
        return -math.inf
