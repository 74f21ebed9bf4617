"""A network cut in two: a body that stays as it is, and a tail that can be trained on what the body gives.

The cut lies before one of the blocks that the network is a chain of. The tail is the whole network, but that block
takes what it is given in the place of what comes to it, so that names of parameters are those of the network itself.
Whether body and tail together are the network is tried, not assumed.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kshot.core import UserError

#: How far results may lie apart, of their largest.
TOLERANCE = 1e-4
_CHAINS = (nn.Sequential, nn.ModuleList)


class _Reached(Exception):
    # No error: it ends a forward pass early.
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


class Body(nn.Module):
    """Runs a network up to a block.

    Args:
        network: the whole; it is shared, and gets a hook at that block.
        name: of the block.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        network.get_submodule(name).register_forward_pre_hook(_stop)

    def forward(self, x: Tensor) -> Tensor:
        """Run.

        Args:
            x: (N, 3, H, W).

        Returns:
            What comes to the block, (N, ...).

        Raises:
            UserError: the network does not run through the block.
        """
        try:
            self.network(x)
        except _Reached as reached:
            return reached.x
        raise UserError("expected a network that runs through its blocks, got one that leaves them out")


class Tail(nn.Module):
    """Runs a network from a block on.

    Args:
        network: the whole; a copy is kept.
        name: of the block.
        example: (N, 3, H, W), what the network takes.
    """

    def __init__(self, network: nn.Module, name: str, example: Tensor) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        for earlier, _ in blocks(self.network):
            if earlier == name:
                break
            self.network.set_submodule(earlier, nn.Identity())
        self._blank = torch.zeros_like(example[:1])
        self._given: Tensor | None = None
        self.network.get_submodule(name).register_forward_pre_hook(self._replace)

    def forward(self, given: Tensor) -> Tensor:
        """Run; by one thread at a time.

        Args:
            given: what the body gave, (N, ...).

        Returns:
            (N, D).
        """
        self._given = given
        try:
            return self.network(self._blank)
        finally:
            self._given = None

    def trainable(self, given: Tensor) -> dict[str, nn.Parameter]:
        """Find the parameters that matter here, and freeze all others.

        Args:
            given: an example of what the body gives.

        Returns:
            Name in the network -> parameter, those that change what the tail gives.
        """
        self.network.requires_grad_(True)
        self(given).square().sum().backward()
        found = {name: p for name, p in self.network.named_parameters() if p.grad is not None}
        self.network.requires_grad_(False)
        for p in found.values():
            p.grad = None
            p.requires_grad_(True)
        return found

    def _replace(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor | None]:
        return (self._given,)


def _stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise _Reached(inputs[0])


def blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the blocks that a network is a chain of, in their order.

    Args:
        network: such as those of timm.

    Returns:
        Name and module: members of sequences that are no sequences themselves, and hold no chain of blocks.
    """
    return _blocks(network, "", False)


def _blocks(module: nn.Module, name: str, in_chain: bool) -> list[tuple[str, nn.Module]]:
    found = []
    for key, child in module.named_children():
        found += _blocks(child, f"{name}.{key}" if name else key, isinstance(module, _CHAINS))
    if not in_chain or isinstance(module, _CHAINS) or len(found) > 1:
        # A stage that is a chain of blocks is no block itself.
        return found
    whole = any(True for _ in module.children()) and any(True for _ in module.parameters())
    return [(name, module)] if whole else []


def cut(network: nn.Module, n_blocks: int, example: Tensor) -> tuple[str, Tail]:
    """Cut a network before its last blocks.

    Args:
        network: in evaluation mode; not changed.
        n_blocks: in the tail, at most.
        example: (N, 3, H, W), N at least 2, what it takes.

    Returns:
        The name of the first block of the tail, and the tail.

    Raises:
        UserError: the network is no chain of blocks.
    """
    names = [name for name, _ in blocks(network)]
    problem = f"expected a network that is a chain of at least two blocks, got {len(names)}"
    if len(names) >= 2:
        name = names[-min(n_blocks, len(names) - 1)]
        problem = f"expected a network that can be run from its block {name} on"
        tail = _tried(network, name, example)
        if tail is not None:
            return name, tail
    raise UserError(f"{problem}, which fine-tuning needs; leave finetune out, or choose another encoder")


def _tried(network: nn.Module, name: str, example: Tensor) -> Tail | None:
    body, tail = Body(copy.deepcopy(network), name), Tail(network, name, example)
    try:
        with torch.no_grad():
            expected, got = network(example), tail(body(example))
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, UserError):
        return None
    if got.shape != expected.shape:
        return None
    near = float((got - expected).abs().max()) <= TOLERANCE * max(float(expected.abs().max()), 1e-6)
    return tail if near else None
