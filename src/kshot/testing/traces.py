"""Finds what a call left behind on a module: every attribute, however deep, is written down before and after."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

#: How deep foreign objects are looked into.
DEPTH = 8


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Write down everything that hangs on a module: tensors, gradients, flags, lists, generators, objects.

    Args:
        module: the module.

    Returns:
        Path -> a value that compares equal as long as nothing there has changed.
    """
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key == "_modules":
                found[f"{name}.{key}"] = tuple((k, id(v)) for k, v in value.items())
            else:
                _write(found, f"{name}.{key}".lstrip("."), value, set(), DEPTH)
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what differs between two snapshots.

    Args:
        before: the earlier.
        after: the later.

    Returns:
        Paths that are new, gone or changed.
    """
    return sorted(k for k in before.keys() | after.keys() if before.get(k, _ABSENT) != after.get(k, _ABSENT))


_ABSENT = object()


def _write(found: dict[str, Any], path: str, value: Any, above: set[int], depth: int) -> None:
    if isinstance(value, Tensor):
        found[path] = _tensor(value)
        if value.is_leaf and value.grad is not None:
            found[f"{path}.grad"] = _tensor(value.grad)
    elif isinstance(value, torch.Generator):
        found[path] = bytes(value.get_state().tolist())
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        found[path] = repr(value)
    elif isinstance(value, nn.Module) or callable(value) or depth == 0 or id(value) in above:
        found[path] = id(value)  # modules are visited by name; what is called is taken as it is
    else:
        _write_parts(found, path, value, above | {id(value)}, depth - 1)


def _write_parts(found: dict[str, Any], path: str, value: Any, above: set[int], depth: int) -> None:
    found[path] = type(value).__qualname__
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        items = list(enumerate(sorted(value, key=repr) if isinstance(value, set | frozenset) else value))
    elif hasattr(value, "tobytes"):
        found[path] = hashlib.sha256(value.tobytes()).hexdigest()
        items = []
    else:
        items = list(getattr(value, "__dict__", {"itself": repr(value)}).items())
    for key, part in items:
        _write(found, f"{path}.{key}", part, above, depth)


def _tensor(t: Tensor) -> tuple[Any, ...]:
    digest = hashlib.sha256(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    return (tuple(t.shape), t.dtype, t.requires_grad, digest)
