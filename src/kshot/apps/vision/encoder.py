"""Encoders of pictures: pretrained networks of timm, as they are or tuned to a person's own pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kshot.apps.vision.batches import encode_in_batches
from kshot.apps.vision.load import image_key, threads
from kshot.apps.vision.preprocess import of_timm
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
    connection; it is built when it is first used. Nothing changes the weights of an encoder once it is made, so a deep
    copy shares them; see ``changed`` for a tuned one.

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
        self.batch_size = at_least_one(batch_size, "batch_size") or _BATCH.get(self.device.type, 32)
        self.n_threads = at_least_one(n_threads, "n_threads")
        changes: dict[str, Any] = {} if crop == "model" else {"crop": crop, "crop_pct": 1.0}
        if crop_pct is not None:
            changes["crop_pct"] = crop_pct
        self._crop = {"crop": crop, **({} if crop_pct is None else {"crop_pct": crop_pct})}
        self._runs: nn.Module | None = None
        self._change: dict[str, Tensor] = {}
        self._recipe: dict[str, Any] | None = None
        if model in _EMBEDDED_NAMES and checkpoint is None:
            self.prepare = replace(EMBEDDED_PREPROCESSING, **changes)
            self.dim = EMBEDDED_DIM
            self._plain: nn.Module | None = None
            weights = list(embedded_weights().values())[:-2]
        else:
            self._plain, config = pretrained_network(model, self.checkpoint)
            self.prepare = of_timm(config, **changes)
            self.dim = width_of(self._plain, self._example(1))
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
            JSON values, for ``restore``; without tuning ``ImageEncoder(**settings)``.
        """
        checkpoint = {} if self.checkpoint is None else {"checkpoint": str(self.checkpoint)}
        tuned = {} if self._recipe is None else {"finetuned": self._recipe}
        return {"name": self.name, **checkpoint, **self._crop, **tuned}

    def tensors(self) -> dict[str, Tensor]:
        """Return what was learnt from a person's own data.

        Returns:
            Name of a parameter -> what tuning added to it; empty for a frozen encoder.
        """
        return dict(self._change)

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ImageEncoder:
        """Make an encoder again.

        Args:
            settings: what ``settings`` returned.
            tensors: what ``tensors`` returned.

        Returns:
            An encoder that gives the same vectors, if its fingerprint is the same.
        """
        plain = {name: value for name, value in settings.items() if name != "finetuned"}
        return cls(**plain).changed(tensors, settings["finetuned"]) if tensors else cls(**plain)

    def changed(self, change: Mapping[str, Tensor], recipe: Mapping[str, Any]) -> ImageEncoder:
        """Return a copy with changed weights; this one stays as it is.

        Args:
            change: name of a parameter of ``plain_network`` -> what is added to it.
            recipe: how the change was found, JSON values.

        Returns:
            The changed encoder.

        Raises:
            UserError: this encoder is changed already, or the change does not fit the network.
        """
        if self._change:
            raise UserError("expected a frozen encoder, got one that was fine-tuned already; start from a fresh one")
        other = copy.copy(self)
        other._plain, other._runs = self.plain_network(), None
        other._change = {name: t.detach().cpu().clone() for name, t in sorted(change.items())}
        other._recipe = dict(recipe)
        held = dict(other._plain.named_parameters())
        for name, t in other._change.items():
            if name not in held or held[name].shape != t.shape:
                raise UserError(
                    f"expected a change of {self.name}, got {name} of shape {tuple(t.shape)}; it was made for another "
                    "model: fit again"
                )
            with torch.no_grad():
                held[name].add_(t.to(held[name]))
        other._fingerprint = fingerprint(other._change.values(), {"of": self.fingerprint, "names": list(other._change)})
        return other

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


def at_least_one(value: int | None, what: str) -> int | None:
    """Check a setting.

    Args:
        value: of it, None for the default.
        what: it is called.

    Returns:
        The value.

    Raises:
        UserError: it is below 1.
    """
    if value is not None and value < 1:
        raise UserError(f"expected {what} of at least 1, got {value}; leave it out for the default")
    return value


def width_of(network: Callable[[Tensor], Tensor], example: Tensor) -> int:
    """Find the length of the vectors that a network gives.

    Args:
        network: (N, 3, H, W) -> (N, D).
        example: what it takes.

    Returns:
        D.

    Raises:
        UserError: it gives something else.
    """
    with torch.inference_mode():
        y = network(example)
    if not isinstance(y, Tensor) or y.ndim != 2 or y.shape[0] != len(example) or not y.is_floating_point():
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(
            f"expected an image encoder to give floats (N, D) for (N, 3, H, W), got {got} for {tuple(example.shape)}; "
            "pool or flatten its features"
        )
    return y.shape[1]
