"""Outlines of the characters of ``glyphs``, as the fonts draw them.

Every character is drawn large, cut to its ink and fitted into one square, so that size and position tell nothing:
``o``, ``O`` and the ring operator are then one shape, and only the first of them stays. Two shapes are compared by
how far the middle lines of their strokes lie apart, so that a bold letter counts as its light sister too, and a wide
one as its narrow sister.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.core import UserError, tree_map
from kshot.data.glyph_scripts import SCRIPTS, Script, characters
from kshot.data.strokes import distance, half_box, skeleton

if TYPE_CHECKING:
    from PIL import ImageFont

#: Side of the grid that outlines are drawn on, and of the square within it that their ink fills.
GRID, FILL = 64, 48
#: Distances beyond this many grid pixels are not told apart.
REACH = 12
#: Shapes whose strokes lie nearer than this, in grid pixels (root mean square), count as one.
SAME = 2.0
#: Faces in order of preference: the first that has a character decides what it looks like.
FACES = ("DejaVuSans", "DejaVuSerif-Italic", "STIXGeneral", "DejaVuSansMono", "DejaVuSerif", "STIXGeneralItalic")

_EM = 96
_FACES_PER_CLASS = 3
_INK = 128
# What of a smooth edge counts when a picture is cut to its ink: grey of a quarter and more.
_SEEN = [0] * 64 + [255] * 192
# In shares of the em: what is smaller is a point, a prime or the like, and all of them are one blot when enlarged.
_SMALLEST = 0.3
# Bars and dashes (shorter side over longer), and solid shapes (a disc of this radius, in grid pixels, fits inside).
_NARROWEST, _SOLID = 0.2, 7
# Widths over heights that differ by less than this factor make no two shapes: the drawings differ by as much.
_STRETCH = 1.5
# A dot's bones reach this far from its middle, in grid pixels.
_DOT = 2
# Where strokes are compared, what is farther off than this counts as this far.
_FAR = 8


class Outlines(NamedTuple):
    """Outlines of C classes, one to three of each (N in all), sorted by class.

    Attributes:
        images: uint8 (N, GRID, GRID), antialiased, 255 is ink.
        spread: float32 (N, GRID, GRID), distance to the skeleton in grid pixels, at most ``REACH``.
        classes: int64 (N,) of 0..C-1.
        codes: the code point of each class.
        scripts: the script of each class.
    """

    images: Tensor
    spread: Tensor
    classes: Tensor
    codes: tuple[int, ...]
    scripts: tuple[Script, ...]


class _Looks(NamedTuple):
    """What shapes are compared by: distances to the skeleton, the same after stretching, and log(width / height)."""

    spread: Tensor
    square: Tensor
    aspect: Tensor


class _Face(NamedTuple):
    font: ImageFont.FreeTypeFont
    codes: frozenset[int]


def font_files() -> list[Path]:
    """Find the font files of ``FACES``, which ship with matplotlib.

    Returns:
        Their paths, in order.

    Raises:
        UserError: matplotlib is here without its fonts.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [folder / f"{face}.ttf" for face in FACES]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"expected the fonts of matplotlib in {folder}, got none named {', '.join(missing)}; reinstall matplotlib"
        )
    return files


def outlines(scripts: Sequence[Script] = SCRIPTS) -> Outlines:
    """Draw the characters of some scripts, leaving out what is empty, solid, or a shape seen before.

    Args:
        scripts: which; shapes are told apart within these alone.

    Returns:
        The outlines.

    Raises:
        UserError: the scripts have no character that can be drawn.
    """
    faces = [_open(file) for file in font_files()]
    drawn = [
        (script, code, rank, image)
        for script in scripts
        for code in characters(script)
        for rank, image in _draw_all(faces, code, most=1)
    ]
    if not drawn:
        raise UserError("expected scripts that the fonts have, got none of their characters; take some of SCRIPTS")
    images = torch.stack([image for *_, image in drawn])
    slim = (~_solid(images)).nonzero().squeeze(1)
    looks = _look(images[slim])
    keep = _distinct(_gaps(looks, looks))
    images, looks = images[slim[keep]], _take(looks, keep)
    chosen = [drawn[i] for i in slim[keep].tolist()]
    more_images, more_spread, more_classes = _other_faces(faces, [(code, rank) for _, code, rank, _ in chosen], looks)
    classes, order = torch.cat([torch.arange(len(chosen)), more_classes]).sort(stable=True)
    return Outlines(
        images=torch.cat([images, more_images])[order],
        spread=torch.cat([looks.spread, more_spread])[order],
        classes=classes,
        codes=tuple(code for _, code, *_ in chosen),
        scripts=tuple(script for script, *_ in chosen),
    )


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Tell how far two shapes are apart: from each stroke to the nearest stroke of the other, and back.

    The root mean square over the pixels of a skeleton, and the larger of both directions: a mark that only one of
    the shapes has counts in one direction. Sums are of whole numbers below 2**24, hence exact in any order.

    Args:
        a: distances to the skeletons (A, GRID, GRID), see ``Outlines.spread``.
        b: the same, (B, GRID, GRID).

    Returns:
        float32 (A, B), in grid pixels.
    """
    a_bones, a_square = _pooled(a)
    b_bones, b_square = (a_bones, a_square) if b is a else _pooled(b)
    there = a_bones @ b_square.T / a_bones.sum(1, keepdim=True)
    back = there.T if b is a else a_square @ b_bones.T / b_bones.sum(1)
    return torch.maximum(there, back).sqrt_()


def _pooled(spread: Tensor) -> tuple[Tensor, Tensor]:
    bones = F.avg_pool2d((spread == 0).float()[:, None], 2).mul_(4)
    square = F.avg_pool2d(spread.clamp(max=_FAR)[:, None] ** 2, 2).round_()
    return bones.flatten(1), square.flatten(1)


def _gaps(a: _Looks, b: _Looks) -> Tensor:
    """Tell how far shapes are apart, where a stretch within reason makes no difference.

    Returns:
        float32 (A, B), in grid pixels.
    """
    gaps = apart(a.spread, b.spread)
    alike = (a.aspect[:, None] - b.aspect).abs() < math.log(_STRETCH)
    return torch.where(alike, torch.minimum(gaps, apart(a.square, b.square)), gaps)


def _look(images: Tensor) -> _Looks:
    half = half_box(images >= _INK)
    return _Looks(_spread(images), _spread(_squared(images, half)), half[:, 0].log() - half[:, 1].log())


def _take(looks: _Looks, index: Tensor) -> _Looks:
    return tree_map(lambda t: t[index], looks)


def _squared(images: Tensor, half: Tensor) -> Tensor:
    """Stretch shapes until their ink fills the square both ways.

    Returns:
        uint8 (N, GRID, GRID).
    """
    line = (torch.arange(GRID, dtype=torch.float32) - (GRID - 1) / 2) * (2 / GRID)
    parts = []
    for some, (x, y) in zip(images.split(512), [h.unbind(1) for h in (half * (2 / FILL)).split(512)], strict=True):
        shape = (len(some), GRID, GRID)
        points = torch.stack(
            [(line * x[:, None, None]).expand(shape), (line[:, None] * y[:, None, None]).expand(shape)], 3
        )
        parts.append(F.grid_sample(some[:, None].float(), points, align_corners=False)[:, 0].round().to(torch.uint8))
    return torch.cat(parts)


def _open(file: Path) -> _Face:
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    # The basic layout draws the glyph of one code point, without shaping it as if it stood in a word.
    font = ImageFont.truetype(str(file), _EM, layout_engine=ImageFont.Layout.BASIC)
    return _Face(font, frozenset(FT2Font(str(file)).get_charmap()))


def _draw_all(faces: Sequence[_Face], code: int, *, most: int) -> Iterator[tuple[int, Tensor]]:
    """Draw a character in the first faces that have it.

    Yields:
        The place of the face in ``faces``, and the picture.
    """
    having = [rank for rank, face in enumerate(faces) if code in face.codes][:most]
    for rank in having:
        image = _draw(faces[rank].font, code)
        if image is not None:
            yield rank, image


def _draw(font: ImageFont.FreeTypeFont, code: int) -> Tensor | None:
    """Draw one character so that its ink fills the square.

    Returns:
        uint8 (GRID, GRID), or None where it is empty, tiny or a bar.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    left, top, right, bottom = (round(edge) for edge in font.getbbox(chr(code)))
    ink = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), chr(code), fill=255, font=font)
    box = ink.point(_SEEN).getbbox()
    if box is None:
        return None
    width, height = box[2] - box[0], box[3] - box[1]
    long, short = max(width, height), min(width, height)
    if long < _SMALLEST * _EM or short < _NARROWEST * long:
        return None
    size = (max(1, round(width * FILL / long)), max(1, round(height * FILL / long)))
    filter_ = Image.Resampling.BOX if long > FILL else Image.Resampling.BICUBIC
    page = Image.new("L", (GRID, GRID))
    page.paste(ink.resize(size, filter_, box=box), ((GRID - size[0]) // 2, (GRID - size[1]) // 2))
    return torch.from_numpy(np.array(page))


def _solid(images: Tensor) -> Tensor:
    """Find the shapes that are no strokes.

    Returns:
        bool (N,).
    """
    return (distance(images < _INK, _SOLID + 1).amax((1, 2)) >= _SOLID) | ~(images >= _INK).any(2).any(1)


def _spread(images: Tensor) -> Tensor:
    return distance(_with_dots(skeleton(images >= _INK)), REACH)


def _with_dots(bones: Tensor) -> Tensor:
    """Enlarge the lone pixels of skeletons: a pen that follows them would hardly leave a mark.

    Returns:
        bool (N, GRID, GRID).
    """
    flat = bones.flatten()
    lit = flat.nonzero().squeeze(1)
    # Ink keeps away from the edges, so that steps in the flat picture stay within it.
    ring = [dy * GRID + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    dots = lit[~torch.stack([flat[lit + step] for step in ring]).any(0)]
    for dy in range(-_DOT, _DOT + 1):
        for dx in range(-_DOT, _DOT + 1):
            flat[dots + dy * GRID + dx] = True
    return flat.view(bones.shape)


def _distinct(gaps: Tensor) -> Tensor:
    """Choose greedily, in order, the shapes that are not the same as one chosen before.

    Args:
        gaps: (N, N), see ``apart``.

    Returns:
        int64, their indices in order.
    """
    same = gaps < SAME
    free = torch.ones(len(gaps), dtype=torch.bool)
    for i in range(len(gaps)):
        if free[i]:
            free[i + 1 :] &= ~same[i, i + 1 :]
    return free.nonzero().squeeze(1)


def _other_faces(
    faces: Sequence[_Face], chosen: Sequence[tuple[int, int]], looks: _Looks
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the chosen characters in more faces, where those look like no other character.

    Args:
        faces: all of them.
        chosen: code point and rank of the first face of each class.
        looks: of their first faces, C in all.

    Returns:
        Images, spreads and classes of the further outlines.
    """
    drawn = [
        (label, image)
        for label, (code, first) in enumerate(chosen)
        for rank, image in _draw_all(faces, code, most=_FACES_PER_CLASS)
        if rank != first
    ]
    images = torch.stack([image for _, image in drawn]) if drawn else torch.empty(0, GRID, GRID, dtype=torch.uint8)
    classes = torch.tensor([label for label, _ in drawn], dtype=torch.int64)
    slim = (~_solid(images)).nonzero().squeeze(1)
    images, classes = images[slim], classes[slim]
    theirs = _look(images)
    good = _own(theirs, classes, looks)
    return images[good], theirs.spread[good], classes[good]


def _own(theirs: _Looks, classes: Tensor, looks: _Looks) -> Tensor:
    """Find the further outlines that could be taken for their own class alone.

    Italic Cyrillic te, say, is a Latin m: such a drawing would be a wrong label.

    Args:
        theirs: of the further outlines, M in all.
        classes: int64 (M,), their classes.
        looks: of the first outline of each class.

    Returns:
        bool (M,).
    """
    if not len(classes):
        return torch.empty(0, dtype=torch.bool)
    to_first = _gaps(theirs, looks)
    own = to_first.gather(1, classes[:, None]).squeeze(1)
    rival = to_first.scatter(1, classes[:, None], torch.inf).amin(1)
    good = rival >= own.clamp(min=SAME)
    clash = (_gaps(theirs, theirs) < SAME) & (classes[:, None] != classes) & good
    return good & ~clash.any(1)
