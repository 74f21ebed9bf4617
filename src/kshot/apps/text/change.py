"""What fine-tuning adds to the weights of a network: whole differences in half precision, or products of two thin ones.

A change is a dict of tensors:

* "whole/NAME": added to the parameter NAME;
* "left/NAME" (m, r) and "right/NAME" (r, n): their product is added to the (m, n) parameter NAME
  (LoRA, Hu et al., ICLR 2022, arXiv 2106.09685).

Differences are stored in half precision (half the file) and the weights in use are made from what is stored, so an
encoder that is saved and loaded gives the same vectors to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kshot.core import UserError


def whole_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store differences.

    Args:
        before: parameters by name.
        after: the same parameters when trained.

    Returns:
        The change; parameters that stayed as they were are left out.
    """
    moved = {name: (after[name] - before[name]).half() for name in after}
    return {f"whole/{name}": t.detach().cpu() for name, t in moved.items() if bool(t.any())}


def apply_change(network: nn.Module, change: Mapping[str, Tensor]) -> None:
    """Add a change to the weights of a network, in place.

    Args:
        network: the network that the change was made for.
        change: see the module.

    Raises:
        UserError: a parameter is unknown, or its shape is another.
    """
    held = dict(network.named_parameters())
    for key, t in change.items():
        how, _, name = key.partition("/")
        if how == "right":
            continue
        added = t.float() @ change[f"right/{name}"].float() if how == "left" else t.float()
        if name not in held or held[name].shape != added.shape:
            raise UserError(
                f"expected a change of this model's weights, got {key} of shape {tuple(added.shape)}; "
                "it was made for another model: fit again"
            )
        with torch.no_grad():
            held[name].add_(added.to(held[name]))
