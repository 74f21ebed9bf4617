"""Encoders of pictures: pretrained networks of timm, and any module or function that takes a batch of pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kshot.apps.vision.batches import encode_in_batches
from kshot.apps.vision.load import image_key, threads
from kshot.apps.vision.preprocess import Preprocessing, of_timm
from kshot.apps.vision.simplify import simplified
from kshot.apps.vision.weights import (
    EMBEDDED,
    EMBEDDED_DIM,
    EMBEDDED_PREPROCESSING,
    embedded_network,
    embedded_weights,
    fingerprint,
    pretrained_network,
)
from kshot.core import OnProgress, UserError, generator

DEFAULT = f"image:{EMBEDDED}"
#: Names of the same weights.
_EMBEDDED_NAMES = (EMBEDDED, f"{EMBEDDED}.in1k")
#: A small batch stays in the processor's cache.
_BATCH = {"cpu": 8, "cuda": 128}


class ImageEncoder:
    """Pictures to vectors by a pretrained network of timm: its pooled features, before the classifier.

    The embedded default, EfficientNet-Lite0 trained on ImageNet, comes with the extra ``vision`` and needs no network
    connection; it is built when it is first used. Weights are frozen, so a deep copy shares them.

    Attributes:
        kind: "image".
        name: "image:" and the name in timm.
        dim: D, length of a vector.
        prepare: what is done to a picture first.
        checkpoint: the file that weights came from, or None.
        device: where the network runs.

    Example:
        >>> encoder = ImageEncoder()  # doctest: +SKIP
        >>> encoder.encode(["heron.jpg", "gull.jpg"]).shape  # doctest: +SKIP
        torch.Size([2, 1280])
    """

    kind = "image"

    def __init__(
        self,
        name: str = DEFAULT,
        *,
        checkpoint: str | Path | None = None,
        crop: str = "squash",
        crop_pct: float | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        n_threads: int | None = None,
    ) -> None:
        """Choose a network.

        Args:
            name: "image:" and a model name of timm; the prefix may be left out.
            checkpoint: a file of weights of that model; None for pretrained ones from cache or hub.
            crop: "center", "squash" or "border", see ``Preprocessing``; or "model" for what the model was measured
                with, which for most cuts away what is near the edges.
            crop_pct: share of a side that is kept; None for all, or with "model" for the model's own.
            device: "auto" for a GPU where there is one, or a device of PyTorch.
            batch_size: pictures at once; None for 8 on a CPU and 128 on a GPU.
            n_threads: that read pictures, and on a CPU run the network, each by itself; None for as
                many as PyTorch uses.

        Raises:
            UserError: no such model, weights that are not to be had, or a wrong setting.
        """
        model = name.removeprefix("image:")
        self.name = f"image:{model}"
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.device = choose_device(device)
        self.batch_size = _at_least_one(batch_size, "batch_size") or _BATCH.get(self.device.type, 32)
        self.n_threads = _at_least_one(n_threads, "n_threads")
        changes: dict[str, Any] = {} if crop == "model" else {"crop": crop, "crop_pct": 1.0}
        if crop_pct is not None:
            changes["crop_pct"] = crop_pct
        self._crop = {"crop": crop, **({} if crop_pct is None else {"crop_pct": crop_pct})}
        self._runs: nn.Module | None = None
        if model in _EMBEDDED_NAMES and checkpoint is None:
            self.prepare = replace(EMBEDDED_PREPROCESSING, **changes)
            self.dim = EMBEDDED_DIM
            self._plain: nn.Module | None = None
            weights = list(embedded_weights().values())[:-2]
        else:
            self._plain, config = pretrained_network(model, self.checkpoint)
            self.prepare = of_timm(config, **changes)
            self.dim = _dim(self._plain, self._example(1))
            weights = list(self._plain.state_dict().values())
        self._fingerprint = fingerprint(weights, self.prepare.settings())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights and preprocessing, in hexadecimal."""
        return self._fingerprint

    def __deepcopy__(self, memo: dict[int, Any]) -> ImageEncoder:
        return copy.copy(self)

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
        on_cpu = self.device.type == "cpu"
        if len(examples):
            self._ready()
        return encode_in_batches(
            examples,
            self.prepare.read,
            self._forward,
            dim=self.dim,
            batch_size=self.batch_size,
            n_threads=self.n_threads or (torch.get_num_threads() if on_cpu else threads()),
            in_threads=on_cpu,
            on_progress=on_progress,
        )

    def settings(self) -> dict[str, Any]:
        """Return what makes this encoder again.

        Returns:
            JSON values: ``ImageEncoder(**settings)``.
        """
        checkpoint = {} if self.checkpoint is None else {"checkpoint": str(self.checkpoint)}
        return {"name": self.name, **checkpoint, **self._crop}

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
        """Return the network itself, for export or fine-tuning.

        Returns:
            A copy on the CPU in evaluation mode, normalised pictures (N, 3, H, W) -> (N, D), with batch norm folded
            into convolutions; and an example (2, 3, H, W) of what it takes.
        """
        network = copy.deepcopy(self._ready()).to("cpu").to(memory_format=torch.contiguous_format)
        return network, self._example(2)

    def plain_network(self) -> nn.Module:
        """Return the network as timm builds it, with nothing folded.

        Returns:
            A copy on the CPU in evaluation mode, (N, 3, H, W) -> (N, D).
        """
        return copy.deepcopy(self._build())

    def _build(self) -> nn.Module:
        return embedded_network(embedded_weights()) if self._plain is None else self._plain

    def _ready(self) -> nn.Module:
        runs = self._runs
        if runs is None:
            simple = simplified(self._build(), self._example(1)).to(self.device)
            runs = self._runs = simple.to(memory_format=torch.channels_last)
        return runs

    def _example(self, n: int) -> Tensor:
        return torch.randn((n, 3, *self.prepare.size), generator=generator(0, "image example"))

    def _forward(self, pixels: Tensor) -> Tensor:
        network = self._ready()
        with torch.inference_mode():
            return network(self.prepare.normalise(pixels.to(self.device)))


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
        self.batch_size = _at_least_one(batch_size, "batch_size") or 32
        self.n_threads = _at_least_one(n_threads, "n_threads") or threads()
        self._version = version
        weights: list[Tensor] = []
        if isinstance(network, nn.Module):
            network = copy.deepcopy(network).to(self.device).requires_grad_(False).eval()
            weights = list(network.state_dict().values())
        self._network = network
        self.dim = _dim(network, torch.zeros((1, 3, *self.prepare.size), device=self.device))
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

    def _forward(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._network(self.prepare.normalise(pixels.to(self.device)).contiguous())


def choose_device(device: str) -> torch.device:
    """Find a device.

    Args:
        device: "auto", or a device of PyTorch such as "cpu" or "cuda:0".

    Returns:
        The device; for "auto" a GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f'expected a device such as "auto", "cpu" or "cuda", got {device!r}, which is not here; pass "auto"'
        ) from error
    return found


def _at_least_one(value: int | None, what: str) -> int | None:
    if value is not None and value < 1:
        raise UserError(f"expected {what} of at least 1, got {value}; leave it out for the default")
    return value


def _dim(network: Callable[[Tensor], Tensor], example: Tensor) -> int:
    with torch.inference_mode():
        y = network(example)
    if not isinstance(y, Tensor) or y.ndim != 2 or y.shape[0] != len(example) or not y.is_floating_point():
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(
            f"expected an image encoder to give floats (N, D) for (N, 3, H, W), got {got} for {tuple(example.shape)}; "
            "pool or flatten its features"
        )
    return y.shape[1]


def _origin(network: Callable[[Tensor], Tensor]) -> str:
    owner = type(network) if isinstance(network, nn.Module) or not hasattr(network, "__qualname__") else network
    return f"{owner.__module__}.{owner.__qualname__}"
