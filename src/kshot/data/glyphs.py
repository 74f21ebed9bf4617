"""Glyphs: the data set that needs no download. Thousands of characters of many scripts, 24 drawings of each, 28 x 28.

Characters come from the fonts that ship with matplotlib. About half of the drawings of each follow the strokes with a
pen of even width, as a hand does, the others are printed in up to three typefaces; all of them are turned, slanted,
stretched and bent at random. Scripts are split as wholes, so that those of meta_val and meta_test are unseen, and a
shape that two scripts share is a class of one of them alone.

The same fonts and libraries give the same bytes: every drawing takes its randomness from its own character's stream.
Making all of it takes about ten seconds of one processor, once; later the cache has it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kshot.core import UserError, generator
from kshot.core.registry import unknown
from kshot.data import distort, glyph_outlines, glyph_scripts, strokes
from kshot.data.cache import cached_images
from kshot.data.glyph_scripts import SCRIPTS, Script
from kshot.data.images import ImageSet

SPLITS = ("meta_train", "meta_val", "meta_test")
#: Drawings of each character.
N_DRAWINGS = 24

_SIDE = 28
_SEED = 0


def glyphs_images(split: str, *, image_size: Literal[28] = 28) -> ImageSet:
    """Open one split of the glyphs. Classes are characters, ``Greek/U+03A9``, and groups are scripts.

    The first opening draws all splits; later ones read the cache.

    Args:
        split: meta_train, meta_val or meta_test.
        image_size: side in pixels; 28 is the only one.

    Returns:
        The images, uint8 (N, 1, 28, 28), 255 is ink.

    Raises:
        UserError: the split or the size is unknown, or matplotlib is here without its fonts.
    """
    if split not in SPLITS:
        raise UserError(unknown("split of glyphs", split, list(SPLITS)))
    if image_size != _SIDE:
        raise UserError(f"expected image_size {_SIDE} for glyphs, got {image_size}; leave it at {_SIDE}")
    key = f"glyphs-{_SIDE}-{_fingerprint()[:16]}"
    images = cached_images(key, lambda: _everything(key))
    here = {script.name for script in SCRIPTS if script.split == split}
    return images.subset([c for c, group in enumerate(images.groups.tolist()) if images.group_names[group] in here])


def draw_glyphs(scripts: Sequence[Script] = SCRIPTS, *, n_drawings: int = N_DRAWINGS) -> ImageSet:
    """Draw every character of some scripts.

    A character's drawings do not depend on which others are drawn, but whether it is one at all does: of equal shapes
    the first stays.

    Args:
        scripts: which.
        n_drawings: drawings of each character.

    Returns:
        The images, uint8 (N, 1, 28, 28), classes in order and the drawings of one class together.
    """
    with _one_thread():
        return _drawn(scripts, n_drawings)


def _drawn(scripts: Sequence[Script], n_drawings: int) -> ImageSet:
    found = glyph_outlines.outlines(scripts)
    shapes = distort.shapes_of(found.images, found.spread, reach=glyph_outlines.REACH)
    streams = [generator(_SEED, "glyphs", code) for code in found.codes]
    knobs = torch.stack(
        [torch.rand(n_drawings, distort.KNOBS, generator=stream, dtype=torch.float32) for stream in streams]
    )
    which = _typefaces(found.classes, knobs[..., -1])
    images = distort.drawings(shapes, knobs.flatten(0, 1), which.flatten(), side=_SIDE)
    names = tuple(dict.fromkeys(script.name for script in found.scripts))
    return ImageSet(
        images=images[:, None],
        labels=torch.arange(len(found.codes)).repeat_interleave(n_drawings),
        class_names=tuple(f"{s.name}/U+{code:04X}" for s, code in zip(found.scripts, found.codes, strict=True)),
        groups=torch.tensor([names.index(script.name) for script in found.scripts]),
        group_names=names,
    )


def _typefaces(classes: Tensor, knob: Tensor) -> Tensor:
    """Choose one of its class's outlines for each drawing.

    Args:
        classes: int64 (N,), class of each outline, sorted.
        knob: (C, D), uniform in [0, 1).

    Returns:
        int64 (C, D) of 0..N-1.
    """
    count = torch.bincount(classes)
    first = count.cumsum(0) - count
    return first[:, None] + (knob * count[:, None]).long()


@contextmanager
def _one_thread() -> Iterator[None]:
    # Tens of thousands of small operations: threads that wait for each other after every one take seven times as long
    # where the processor has other work, and gain nothing where it has none.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _everything(key: str) -> ImageSet:
    """Draw all scripts, and remember them for this process in case the cache cannot: three splits are one drawing.

    Returns:
        The images of all splits.
    """
    return draw_glyphs(SCRIPTS)


@lru_cache(maxsize=1)
def _fingerprint() -> str:
    """Hash all that the pixels depend on: this code, the fonts, and the libraries that draw.

    Returns:
        64 hexadecimal digits.
    """
    code = [module.__file__ for module in (distort, glyph_outlines, glyph_scripts, strokes)]
    files = [Path(file) for file in (__file__, *code) if file] + glyph_outlines.font_files()
    versions = [unicodedata.unidata_version, *(metadata.version(name) for name in ("torch", "pillow"))]
    digest = hashlib.sha256(repr(versions).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
