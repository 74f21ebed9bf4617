"""From a picture to what a network takes: crop, size, and scaling of colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kshot.apps.vision.load import read_reduced
from kshot.core import UserError

CROPS = ("center", "squash", "border")
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture before a network sees it; the same picture always gives the same numbers.

    Attributes:
        size: height and width in pixels of what the network takes.
        crop: "center" cuts the longer side, "squash" changes the aspect, "border" adds a border in the mean colour.
        crop_pct: share of a side that is kept.
        interpolation: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos".
        mean: of each channel, within 0..1; taken away.
        std: of each channel; divided by.

    Raises:
        UserError: a setting that is not one of these.
    """

    size: tuple[int, int] = (224, 224)
    crop: str = "center"
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise UserError(f"crop must be one of {', '.join(CROPS)}, got {self.crop!r}; choose one")
        if self.interpolation not in _FILTERS:
            raise UserError(
                f"interpolation must be one of {', '.join(_FILTERS)}, got {self.interpolation!r}; choose one"
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"expected height and width in pixels as size, got {self.size}; pass (224, 224)")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"expected crop_pct above 0 and at most 1, got {self.crop_pct}; 1 keeps all")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(
                f"expected three means and three deviations above 0, got {self.mean}, {self.std}; pass three"
            )

    def settings(self) -> dict[str, Any]:
        """Return all of it as plain values.

        Returns:
            JSON values by name.
        """
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def read(self, example: Any) -> np.ndarray:
        """Read a picture, crop it and bring it to size.

        A file that is much larger than needed is decoded at a fraction of its size, at least twice of what is needed.

        Args:
            example: whatever ``read_image`` takes.

        Returns:
            uint8 (H, W, 3).
        """
        enough = 2 * max(self._scaled())
        return self.fit(read_reduced(example, lambda w, h: min(w, h) // enough))

    def fit(self, picture: Image.Image) -> np.ndarray:
        """Crop a picture and bring it to size, in one pass over its pixels.

        Args:
            picture: in mode RGB.

        Returns:
            uint8 (H, W, 3).
        """
        width, height = self._whole(*picture.size)
        rows, columns = self.size
        # Where the crop lies on the resized picture, and from there on the original.
        left, right = _window(width, columns)
        top, bottom = _window(height, rows)
        across, down = picture.width / width, picture.height / height
        box = (left * across, top * down, min(right * across, picture.width), min(bottom * down, picture.height))
        size = (right - left, bottom - top)
        done = picture.resize(size, _FILTERS[self.interpolation], box=box, reducing_gap=3.0)
        if size != (columns, rows):
            ground = Image.new("RGB", (columns, rows), tuple(round(255 * m) for m in self.mean))
            ground.paste(done, ((columns - size[0]) // 2, (rows - size[1]) // 2))
            done = ground
        return np.asarray(done)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale colours as the network was trained with.

        Args:
            pixels: uint8 (N, H, W, 3), on any device.

        Returns:
            float32 (N, 3, H, W) in the memory format channels_last.
        """
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=pixels.device)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=pixels.device)
        return pixels.to(torch.float32).mul_(scale).add_(shift).permute(0, 3, 1, 2)

    def _scaled(self) -> tuple[int, int]:
        # Height and width before the crop.
        return math.floor(self.size[0] / self.crop_pct), math.floor(self.size[1] / self.crop_pct)

    def _whole(self, width: int, height: int) -> tuple[int, int]:
        # Width and height to which a whole picture is resized, before the crop.
        rows, columns = self._scaled()
        if self.crop == "squash":
            return columns, rows
        if self.crop == "center" and rows == columns:
            # The longer side is rounded down, as in the transforms that models of timm were measured with.
            return (columns, columns * height // width) if width <= height else (columns * width // height, columns)
        ratios = width / columns, height / rows
        ratio = max(ratios) if self.crop == "border" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def of_timm(config: Mapping[str, Any], **changes: Any) -> Preprocessing:
    """Take over the data configuration of a model of timm.

    Args:
        config: as ``timm.data.resolve_model_data_config`` gives it.
        **changes: settings of ``Preprocessing`` that are to differ; None stands for no change.

    Returns:
        The preprocessing.
    """
    found = {
        "size": tuple(config["input_size"][-2:]),
        "crop": config.get("crop_mode") or "center",
        "crop_pct": float(config.get("crop_pct") or 0.875),
        "interpolation": config.get("interpolation") or "bicubic",
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
    return Preprocessing(**{**found, **{name: value for name, value in changes.items() if value is not None}})


def _window(whole: int, part: int) -> tuple[int, int]:
    # Begin and end of the middle part of a length.
    if whole <= part:
        return 0, whole
    begin = round((whole - part) / 2)
    return begin, begin + part
