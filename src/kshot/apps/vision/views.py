"""Views of a picture for training: parts of it, as large as the whole; never mirrored, as letters would mind."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image


def view(pixels: np.ndarray, generator: torch.Generator, *, least: float) -> np.ndarray:
    """Cut a part out at random and enlarge it.

    Args:
        pixels: uint8 (H, W, 3).
        generator: source of randomness.
        least: share of the area that a part has at least.

    Returns:
        uint8 (H, W, 3).
    """
    area, aspect, x, y = torch.rand(4, generator=generator).tolist()
    share, stretch = math.sqrt(least + (1 - least) * area), math.exp(0.2 * aspect - 0.1)
    rows, columns = pixels.shape[:2]
    width, height = min(share * stretch, 1) * columns, min(share / stretch, 1) * rows
    left, top = x * (columns - width), y * (rows - height)
    part = Image.fromarray(pixels).resize(
        (columns, rows), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    return np.asarray(part)
