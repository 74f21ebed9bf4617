"""Every colour mode that a picture can have, made eight-bit red, green and blue."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from kshot.core import UserError

_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_INTEGERS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
#: Cameras and scanners measure in so many bits, whatever the number that holds them.
_BITS = (8, 10, 12, 14, 16)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Make a picture red, green and blue, eight bits each.

    What is transparent becomes white. Numbers of more than eight bits are scaled by the fewest of 8, 10, 12, 14 or 16
    bits that hold the largest one; fractions within 0..1 by 255; anything else from its least to its largest value.

    Args:
        picture: in any mode; it is not changed.

    Returns:
        A new picture in mode RGB.

    Raises:
        ValueError: fractions that are not finite, or a mode that Pillow cannot convert.
    """
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        return _on_white(picture)
    if picture.mode in _INTEGERS:
        return Image.fromarray(_eight_bits(np.asarray(picture).astype(np.float64))).convert("RGB")
    if picture.mode == "F":
        return Image.fromarray(_from_fractions(np.asarray(picture))).convert("RGB")
    if picture.mode == "LAB":
        return _from_lab(picture)
    return picture.convert("RGB")


def from_array(example: np.ndarray | Tensor) -> Image.Image:
    """Make a picture of an array or a tensor.

    Args:
        example: (H, W), (H, W, 1), (H, W, 3), (H, W, 4), (1, H, W), (3, H, W) or (4, H, W), whichever fits first;
            uint8, bool, or floats within 0..1. A fourth channel is alpha.

    Returns:
        A picture in mode RGB.

    Raises:
        UserError: another shape or type of number, or floats that are not within 0..1.
    """
    x = example.detach().cpu() if isinstance(example, Tensor) else example
    # NumPy has no bfloat16.
    x = x.float().numpy() if isinstance(x, Tensor) and x.is_floating_point() else np.asarray(x)
    if x.ndim == 3 and x.shape[-1] not in (1, 3, 4) and x.shape[0] in (1, 3, 4):
        x = np.moveaxis(x, 0, -1)
    if x.ndim not in (2, 3) or not x.size or (x.ndim == 3 and x.shape[-1] not in (1, 3, 4)):
        raise UserError(
            f"expected a picture as an array of shape (H, W), (H, W, 1), (H, W, 3), (H, W, 4) or (3, H, W), got "
            f"{tuple(example.shape)}; give one picture at a time, and permute its axes"
        )
    if x.ndim == 3 and x.shape[-1] == 1:
        x = x[..., 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(_to_bytes(x))))


def _to_bytes(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint8:
        return x
    if x.dtype == np.bool_:
        return x.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(x.dtype, np.floating):
        raise UserError(
            f"expected a picture of uint8 or of floats within 0..1, got {x.dtype}; scale it to 0..255 and convert it "
            "with .astype('uint8')"
        )
    low, high = float(x.min()), float(x.max())
    # Written so that NaN fails as well.
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise UserError(
            f"expected floats within 0..1 in a picture, got {low:.4g}..{high:.4g}; scale them, or pass uint8"
        )
    return np.rint(np.clip(x.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def _on_white(picture: Image.Image) -> Image.Image:
    # A palette's transparency is known to RGBA only.
    rgba = picture.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _eight_bits(x: np.ndarray) -> np.ndarray:
    low, high = float(x.min()), float(x.max())
    fitting = [bits for bits in _BITS if high < 2**bits]
    if low < 0 or not fitting:
        return _stretched(x)
    return np.rint(x * (255 / (2 ** fitting[0] - 1))).astype(np.uint8)


def _from_fractions(x: np.ndarray) -> np.ndarray:
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        raise ValueError(f"{bad} of its numbers are NaN or infinite")
    if x.min() >= 0 and x.max() <= 1:
        return np.rint(x * 255).astype(np.uint8)
    return _stretched(x.astype(np.float64))


def _stretched(x: np.ndarray) -> np.ndarray:
    low, high = float(x.min()), float(x.max())
    return np.rint((x - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)


def _from_lab(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    done = ImageCms.applyTransform(picture, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    return picture.convert("RGB") if done is None else done
