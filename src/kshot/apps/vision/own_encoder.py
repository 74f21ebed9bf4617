"""An encoder of pictures of a person's own: any module or function that takes a batch of pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kshot.apps.vision.batches import encode_in_batches
from kshot.apps.vision.encoder import at_least_one, choose_device, width_of
from kshot.apps.vision.load import image_key, threads
from kshot.apps.vision.preprocess import Preprocessing
from kshot.apps.vision.weights import fingerprint
from kshot.core import OnProgress, UserError, generator


class ModuleEncoder:
    """Pictures to vectors by a module or function of one's own.

    Attributes:
        kind: "image".
        name: what it is called in a model file.
        dim: D, length of a vector.
        prepare: what is done to a picture first.
        device: where pictures are put for the function.
    """

    kind = "image"

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        name: str = "image:module",
        version: str = "",
        preprocessing: Preprocessing | None = None,
        device: str = "cpu",
        batch_size: int = 32,
        n_threads: int | None = None,
    ) -> None:
        """Wrap a network.

        Args:
            network: normalised pictures (N, 3, H, W), float32 -> (N, D). A module is copied to ``device`` and put into
                evaluation mode; the original is left as it is.
            name: what to call it.
            version: of a function without weights: change it whenever its results change, since vectors are cached.
            preprocessing: what is done to a picture first; None for 224 x 224 pixels and the colours of ImageNet.
            device: "auto" for a GPU where there is one, or a device of PyTorch.
            batch_size: pictures at once.
            n_threads: that read pictures; None for one to a core, at most 8.

        Raises:
            UserError: it cannot be called, or gives something other than (N, D).
        """
        if not callable(network):
            raise UserError(f"expected a module or function as image encoder, got {type(network).__name__}; pass one")
        self.name = name if name.startswith("image:") else f"image:{name}"
        self.device = choose_device(device)
        self.prepare = preprocessing or Preprocessing()
        self.batch_size = at_least_one(batch_size, "batch_size") or 32
        self.n_threads = at_least_one(n_threads, "n_threads") or threads()
        self._version = version
        weights: list[Tensor] = []
        if isinstance(network, nn.Module):
            network = copy.deepcopy(network).to(self.device).requires_grad_(False).eval()
            weights = list(network.state_dict().values())
        self._network = network
        self.dim = width_of(network, torch.zeros((1, 3, *self.prepare.size), device=self.device))
        self._fingerprint = fingerprint(weights, {**self.settings(), "of": _origin(network)})

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, name, version and preprocessing, in hexadecimal."""
        return self._fingerprint

    def key(self, example: Any) -> str:
        """Hash the content of a picture.

        Args:
            example: a path, a picture of Pillow, an array or a tensor.

        Returns:
            SHA-256 in hexadecimal, of a file that of its bytes.
        """
        return image_key(example)

    def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
        """Turn pictures into vectors.

        Args:
            examples: N pictures: paths, pictures of Pillow, arrays or tensors.
            on_progress: told after each batch.

        Returns:
            (N, D), float32, on the CPU.
        """
        return encode_in_batches(
            examples,
            self.prepare.read,
            self._forward,
            dim=self.dim,
            batch_size=self.batch_size,
            n_threads=self.n_threads,
            in_threads=False,
            on_progress=on_progress,
        )

    def settings(self) -> dict[str, Any]:
        """Return what is known of this encoder; the network itself cannot be made again of it.

        Returns:
            JSON values.
        """
        return {"name": self.name, "version": self._version, "preprocessing": self.prepare.settings()}

    def tensors(self) -> dict[str, Tensor]:
        """Return what was learnt from a person's own data.

        Returns:
            Nothing: the network is frozen.
        """
        return {}

    def preprocessing(self) -> dict[str, Any]:
        """Return what must be done to a picture before ``network``, to be kept beside an exported file.

        Returns:
            JSON values.
        """
        return {"layout": "NCHW", "channels": "RGB", "range": [0, 1], **self.prepare.settings()}

    def network(self) -> tuple[nn.Module, Tensor]:
        """Return the network itself, for export.

        Returns:
            A copy on the CPU in evaluation mode, normalised pictures (N, 3, H, W) -> (N, D), and an example of what it
            takes.

        Raises:
            UserError: it is a function.
        """
        if not isinstance(self._network, nn.Module):
            raise UserError(
                f"expected an encoder with a network, got {self.name}, a function that can't be exported; encode by it "
                "yourself and fit a model of kind 'vector' on the vectors"
            )
        example = torch.randn((2, 3, *self.prepare.size), generator=generator(0, "image example"))
        return copy.deepcopy(self._network).cpu(), example

    def _forward(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._network(self.prepare.normalise(pixels.to(self.device)).contiguous())


def _origin(network: Callable[[Tensor], Tensor]) -> str:
    module = isinstance(network, nn.Module)
    owner = type(network) if module or not hasattr(network, "__qualname__") else network
    # Layers without weights, such as two kinds of pooling, are told apart by what they print.
    return f"{owner.__module__}.{owner.__qualname__}" + (f" {network!r}" if module else "")
