"""Run a module with other tensors than its own, leaving it as it was, whatever its parts share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def functional_call(
    module: nn.Module, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Any:
    """Run a module with other parameters and buffers.

    ``torch.func.functional_call`` replaces the tensors of a module that stands under two names twice, and so puts the
    wrong ones back: it would train no more. Here every module counts once, and a tensor that several modules share is
    replaced in all of them.

    Args:
        module: the module.
        tensors: name -> tensor, names as ``named_parameters`` and ``named_buffers`` give them; buffers that the call
            replaces are replaced in this dict.
        args: positional arguments of the call.
        kwargs: keyword arguments.

    Returns:
        What the module returns.
    """
    everywhere = {**tensors, **_elsewhere(module, tensors)}
    out = torch.func.functional_call(module, everywhere, args, kwargs, tie_weights=False)
    tensors.update({name: everywhere[name] for name in tensors})
    return out


def _elsewhere(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what must stand under names that are not given, since they are other names of tensors that are."""
    places: dict[int, list[str]] = {}
    for prefix, part in module.named_modules():
        for leaf, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                places.setdefault(id(tensor), []).append(f"{prefix}.{leaf}" if prefix else leaf)
    found = {}
    for names in places.values():
        given = [name for name in names if name in tensors]
        if given and len(given) < len(names):
            found |= {name: tensors[given[0]] for name in names if name not in tensors}
    return found
