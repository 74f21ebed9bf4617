"""Matrices as small PNG pictures with a clear ground: they stand on light paper and on dark."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Colours of values above and below zero where a matrix has both; both can be told from light and from dark paper.
ABOVE, BELOW = (222, 112, 38), (62, 125, 214)
INK = (0, 0, 0)
#: Side of an image in a strip.
LARGEST = 48


def ink(values: Tensor) -> Tensor:
    """Paint values of 0..1 as ink: one is black, zero is clear.

    Args:
        values: (H, W), clamped to 0..1.

    Returns:
        uint8 (H, W, 4), red, green, blue and how much covers the ground.
    """
    return _painted(torch.zeros(*values.shape, 3), values.clamp(0, 1))


def signed(values: Tensor) -> Tensor:
    """Paint values above zero in one colour and those below in another, the largest of either sign in full.

    Args:
        values: (H, W).

    Returns:
        uint8 (H, W, 4).
    """
    colours = torch.tensor([ABOVE, BELOW], dtype=torch.float32)
    largest = values.abs().max().clamp_min(1e-12)
    return _painted(colours[(values < 0).long()], values.abs() / largest)


def _painted(colour: Tensor, cover: Tensor) -> Tensor:
    return torch.cat([colour, 255 * cover[..., None]], -1).round().to(torch.uint8)


def strip(images: Tensor) -> Tensor:
    """Put images of equal size side by side; those of one channel as ink, their ground clear.

    Args:
        images: uint8 (L, C, H, W), C of 1 or 3.

    Returns:
        uint8 (H', L * H', 4), squares of at most ``LARGEST`` pixels.
    """
    side = min(LARGEST, max(images.shape[2:]))
    shares = F.interpolate(images.float() / 255, size=(side, side), mode="area")
    row = shares.permute(1, 2, 0, 3).flatten(2)  # (C, H', L * W')
    if images.shape[1] == 3:
        return _painted(255 * row.permute(1, 2, 0), torch.ones(row.shape[1:]))
    # Strokes are ink, whether they are light on dark or dark on light.
    return ink(row[0] if float(row.mean()) < 0.5 else 1 - row[0])


def picture(pixels: Tensor) -> Any:
    """Make a picture.

    Args:
        pixels: uint8 (H, W, 4).

    Returns:
        A PIL image.
    """
    from PIL import Image  # imported here, as only reports need it

    return Image.fromarray(pixels.contiguous().numpy(), "RGBA")


def data_address(pixels: Tensor) -> str:
    """Encode a picture.

    Args:
        pixels: uint8 (H, W, 4).

    Returns:
        A ``data:`` address of a PNG.
    """
    file = io.BytesIO()
    picture(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
