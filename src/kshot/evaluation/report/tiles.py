"""Small pictures as PNG data addresses."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

from torch import Tensor

MAX_SIDE = 96


class Tile(NamedTuple):
    """One picture of a page.

    Attributes:
        src: a ``data:`` address.
        ink: True for one-channel pictures, which are shown dark on light paper and turned over by a dark theme.
    """

    src: str
    ink: bool


def tile(image: Tensor) -> Tile:
    """Encode a picture.

    A one-channel picture on a dark ground is turned over, so that strokes are ink on paper in every data set. Pictures
    larger than ``MAX_SIDE`` pixels are shrunk.

    Args:
        image: uint8 (C, H, W), C of 1 or 3.

    Returns:
        The tile.
    """
    from PIL import Image  # imported here, as only reports need it

    ink = image.shape[0] == 1
    if ink and _on_dark(image[0]):
        image = 255 - image
    pixels = image[0] if ink else image.permute(1, 2, 0)
    picture = Image.fromarray(pixels.contiguous().numpy())
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return Tile("data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), ink)


def _on_dark(image: Tensor) -> bool:
    sides = [image[0], image[-1], image[:, 0], image[:, -1]]
    return sum(float(s.float().mean()) for s in sides) / 4 < 127.5
