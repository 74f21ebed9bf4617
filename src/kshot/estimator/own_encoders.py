"""A person's own encoder: a function or a network, wrapped so that it can be used like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kshot.core import OnProgress, UserError

_BATCH = 64


class OwnEncoder:
    """Calls a function or a network on batches of examples.

    A function gets a list of examples, or an (N, C) array where they are rows of numbers. A network gets a float32
    tensor (N, C) of rows, or a list of texts or molecules. A network with a method ``encode``, as those of
    sentence-transformers have, is asked through it. (Networks of pictures: ``kshot.apps.vision.ModuleEncoder``.)

    Args:
        function: the function or network; it returns N vectors, as an array, a tensor or lists of numbers.
        kind: what the examples are.

    Attributes:
        kind: what the examples are.
        name: "function:" or "module:" and the name of the function or of the network's class.
        cheap: True: what a function answers cannot be cached, since it may change.
    """

    cheap: ClassVar[bool] = True

    def __init__(self, function: Callable[..., Any], kind: str) -> None:
        self.function, self.kind = function, kind
        self.is_module = isinstance(function, nn.Module)
        own = type(function).__name__ if self.is_module else getattr(function, "__name__", type(function).__name__)
        self.name = f"{'module' if self.is_module else 'function'}:{own}"
        self.dim = 0

    @property
    def fingerprint(self) -> str:
        """A hash of a network's weights and buffers; of a function its name alone."""
        digest = hashlib.sha256(self.name.encode())
        if isinstance(self.function, nn.Module):
            for name, t in sorted(self.function.state_dict().items()):
                if isinstance(t, Tensor):
                    digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
                    digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def key(self, example: Any) -> str:
        """Refuse: nothing is cached by content.

        Args:
            example: any.

        Returns:
            Nothing.

        Raises:
            UserError: always.
        """
        raise UserError(f"what {self.name} answers is not cached; call encode")

    def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
        """Call the function on batches.

        Args:
            examples: N examples.
            on_progress: told after each batch.

        Returns:
            (N, D), float32, on the CPU.

        Raises:
            UserError: the answer is not one vector of the same length for each example.
        """
        found: list[Tensor] = []
        for start in range(0, len(examples), _BATCH):
            batch = examples[start : start + _BATCH]
            found.append(self._checked(self._call(batch), len(batch)))
            if on_progress is not None:
                on_progress(start + len(batch), len(examples))
        return torch.cat(found)

    def _call(self, batch: Sequence[Any]) -> Any:
        if not isinstance(self.function, nn.Module):
            return self.function(batch)
        encode: Any = getattr(self.function, "encode", None)
        if encode is not None:
            return encode(list(batch))
        return _ask(self.function, self._tensor(batch))

    def _tensor(self, batch: Sequence[Any]) -> Any:
        return torch.as_tensor(np.array(batch, dtype=np.float32)) if self.kind in ("table", "vector") else list(batch)

    def _checked(self, answer: Any, n: int) -> Tensor:
        z = answer if isinstance(answer, Tensor) else torch.as_tensor(np.asarray(answer, dtype=np.float32))
        z = z.detach().to("cpu", torch.float32)
        if z.ndim != 2 or len(z) != n or not z.shape[1] or (self.dim and z.shape[1] != self.dim):
            wanted = f"({n}, {self.dim or 'D'})"
            raise UserError(
                f"expected vectors {wanted} of {self.name}, got {tuple(z.shape)}; return one vector an example"
            )
        self.dim = z.shape[1]
        return z

    def settings(self) -> dict[str, Any]:
        """Return what is known of it; it takes the function itself to make it again.

        Returns:
            Kind and name.
        """
        return {"kind": self.kind, "name": self.name}

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: the function is not ours to keep.

        Returns:
            An empty dictionary.
        """
        return {}


def _ask(network: nn.Module, x: Any) -> Any:
    # Evaluation mode for as long as it is asked, whatever it was in.
    modes = {m: m.training for m in network.modules()}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        with torch.inference_mode():
            return network(x.to(device) if isinstance(x, Tensor) else x)
    finally:
        for module, mode in modes.items():
            module.training = mode
