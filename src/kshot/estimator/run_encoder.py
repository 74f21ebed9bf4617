"""The network of a run of ``kshot train`` as an encoder: what was meta-learnt, used on a person's own pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kshot.core import OnProgress, Spec, UserError
from kshot.experiment.build import build_backbone
from kshot.experiment.config import BackboneConfig, RunConfig
from kshot.experiment.run import load_run

_BATCH = 256


class RunEncoder:
    """Encodes pictures, or rows of numbers, by the network of a run.

    Pictures are made grey where the run's were, cut to the middle square, and brought to the run's size; 0 is black and
    1 is white. Data sets of characters show white ink on black.

    Args:
        backbone: maps (N, *input_shape) to (N, D).
        network: how it was built.
        input_shape: of one example.
        name: the folder of the run.

    Attributes:
        kind: "image", or "vector" where the run's examples are rows.
        name: the folder of the run.
        dim: D.

    Raises:
        UserError: the network answers one example differently when others stand beside it.
    """

    def __init__(self, backbone: nn.Module, network: BackboneConfig, input_shape: Sequence[int], name: str) -> None:
        if network.normalisation in ("episode", "support"):
            raise UserError(
                f"expected a network that encodes each example by itself, the run {name} normalises by the "
                "statistics of a batch; train one with --normalisation running, layer or none"
            )
        self._backbone, self._network = backbone.eval(), network
        self.input_shape = tuple(input_shape)
        self.name = name
        self.kind = "image" if len(self.input_shape) == 3 else "vector"
        self.dim = int(backbone.n_features)  # pyright: ignore[reportArgumentType]

    @classmethod
    def open(cls, run: Path) -> RunEncoder:
        """Take the network out of a run's folder.

        Args:
            run: the folder.

        Returns:
            The encoder.

        Raises:
            UserError: the folder holds no run, or its method has no network that encodes examples.
        """
        config, learner, _ = load_run(run)
        backbone = getattr(learner, "backbone", None)
        if not isinstance(backbone, nn.Module) or learner.spec is None:
            raise UserError(f"expected a method with a backbone, {config.algorithm} in {run} has none; train protonet")
        return cls(backbone, config.network, learner.spec.input_shape, str(run))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings, but for the folder, and of the weights."""
        about = {k: v for k, v in self.settings().items() if k != "name"}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name, t in sorted(self.tensors().items()):
            digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
            digest.update(t.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def key(self, example: Any) -> str:
        """Hash the content of an example.

        Args:
            example: a picture, or a row of numbers.

        Returns:
            Hexadecimal digits.
        """
        if self.kind == "image":
            from kshot.apps.vision.load import image_key

            return image_key(example)
        return hashlib.sha256(np.asarray(example, dtype="<f4").tobytes()).hexdigest()

    def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
        """Encode examples.

        Args:
            examples: N pictures or rows.
            on_progress: told after each batch.

        Returns:
            (N, D), float32.
        """
        z = torch.empty(len(examples), self.dim)
        for start in range(0, len(examples), _BATCH):
            batch = examples[start : start + _BATCH]
            x = torch.stack([self.prepare(e) for e in batch])
            with torch.inference_mode():
                z[start : start + len(batch)] = self._backbone(x)
            if on_progress is not None:
                on_progress(start + len(batch), len(examples))
        return z

    def prepare(self, example: Any) -> Tensor:
        """Turn an example into what the network takes.

        Args:
            example: a picture, or a row of numbers.

        Returns:
            float32 of ``input_shape``.

        Raises:
            UserError: a row of another length.
        """
        if self.kind == "image":
            from kshot.apps.vision.preprocess import Preprocessing

            channels, height, width = self.input_shape
            pixels = Preprocessing(size=(height, width), crop_pct=1.0).read(example)
            x = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div_(255)
            return x if channels == 3 else x.mean(0, keepdim=True).expand(channels, -1, -1)
        row = torch.as_tensor(np.array(example, dtype=np.float32))
        if row.shape != self.input_shape:
            raise UserError(
                f"expected rows of shape {self.input_shape}, got {tuple(row.shape)}; pass as the run had them"
            )
        return row

    def network(self) -> tuple[nn.Module, Tensor]:
        """Return the network, for exporting.

        Returns:
            A module (N, *input_shape) -> (N, D) in evaluation mode, and an example input of two examples.
        """
        return self._backbone, torch.zeros(2, *self.input_shape)

    def preprocessing(self) -> dict[str, Any]:
        """Say how an example becomes the input of ``network``.

        Returns:
            Plain JSON values.
        """
        return {"kind": self.kind, "inputs": ["pixels" if self.kind == "image" else "rows"], "scale": "0..1"} | {
            "input_shape": list(self.input_shape)
        }

    def settings(self) -> dict[str, Any]:
        """Return what makes this encoder again, beside its tensors.

        Returns:
            Kind, name, and how the network is built.
        """
        n = self._network
        return {
            "kind": self.kind,
            "name": self.name,
            "run": True,
            "input_shape": list(self.input_shape),
            "network": {
                "backbone": n.backbone,
                "normalisation": n.normalisation,
                "n_filters": n.n_filters,
                "downsample": n.downsample,
                "hidden": list(n.hidden),
            },
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights: a run may be gone tomorrow.

        Returns:
            Name -> tensor.
        """
        return {name: t.detach().cpu().contiguous() for name, t in self._backbone.state_dict().items()}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> RunEncoder:
        """Make an encoder again.

        Args:
            settings: what ``settings`` returned.
            tensors: what ``tensors`` returned.

        Returns:
            An encoder that gives the same vectors.

        Raises:
            UserError: the tensors are not those of such a network.
        """
        network = BackboneConfig(**{**settings["network"], "hidden": tuple(settings["network"]["hidden"])})
        shape = tuple(settings["input_shape"])
        spec = Spec("classification", shape, 2)
        with torch.random.fork_rng([]):
            backbone = build_backbone(RunConfig("protonet", "own", network=network), spec)
        try:
            backbone.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise UserError(f"the network in the model is damaged: {error}; fit again") from error
        return cls(backbone, network, shape, settings["name"])
