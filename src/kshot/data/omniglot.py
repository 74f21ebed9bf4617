"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each, 105 x 105 in black and white.

Lake, Salakhutdinov and Tenenbaum, Human-level concept learning through probabilistic program induction, Science 2015.
Here ink is 1 and paper 0, as in the papers that learn from it; the archives have it the other way round.

Schemes of splitting it:

- ``vinyals``: 1,028 / 172 / 423 characters, each of them in four orientations as four classes: the random split of
  Matching Networks (Vinyals et al., NeurIPS 2016, arXiv:1606.04080) as Prototypical Networks use it.
- ``lake``: meta_train and meta_val from the 30 background alphabets, meta_test the 20 evaluation alphabets.
- ``small1``, ``small2``: the same with the five background alphabets of the "minimal" sets.

Where a scheme has no validation alphabets of its own, the last sixth by name (5 of 30, 1 of 5) is meta_val.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.core import UserError
from kshot.core.registry import unknown
from kshot.data import store
from kshot.data.cache import cached_images
from kshot.data.download import OnProgress
from kshot.data.images import ImageSet

SPLITS = ("meta_train", "meta_val", "meta_test")
SCHEMES = ("vinyals", "lake", "small1", "small2")
DOWNSCALES = ("area", "nearest")
#: Sides in pixels; 105 is that of the archives.
SIZES = (20, 28, 42, 56, 105)

_SIDE = 105
_ADDRESS = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
# Names the code that derives cached tensors; change it when ``decode`` or ``shrink`` give other values.
_VERSION = "v1"
_DRAWING = re.compile(r"(?:.*/)?([^/]+)/(character\d\d)/(\d{4}_\d\d\.png)")
_MOST_BYTES = 1 << 20


class Drawings(NamedTuple):
    """An archive, decoded.

    Attributes:
        bits: uint8 (N, 105, 14), rows of pixels as bits, ink is 1.
        paths: for each drawing its alphabet, character and file name, in alphabetical order.
    """

    bits: Tensor
    paths: tuple[tuple[str, str, str], ...]

    def sha256(self) -> str:
        """Hash names and pixels, whatever the packing of the archive.

        Returns:
            64 hexadecimal digits.
        """
        digest = hashlib.sha256()
        for path, bits in zip(self.paths, self.bits.numpy(), strict=True):
            digest.update("/".join(path).encode())
            digest.update(bits.tobytes())
        return digest.hexdigest()


def decode(path: Path) -> Drawings:
    """Decode every drawing of an archive; 32,460 of them take about 3 s.

    Args:
        path: zip file of PNG files ``.../Alphabet/character01/0001_01.png``; others are left aside.

    Returns:
        The drawings.

    Raises:
        UserError: the archive cannot be read, or a drawing has another size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            named = {(m[1], m[2], m[3]): name for name in archive.namelist() if (m := _DRAWING.fullmatch(name))}
            paths = tuple(sorted(named))
            rows = [decode_png(archive, named[p]) for p in paths]
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable") from error
    except UserError:
        raise
    # What zipfile and Pillow raise on damaged files: bad checksum or header, odd method, encryption, broken PNG chunk.
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an archive of drawings ({error}); {_REPLACE}") from error
    return Drawings(pack_bits(rows), paths)


def pack_bits(rows: list[bytes]) -> Tensor:
    """Join decoded drawings.

    Args:
        rows: of ``decode_png``.

    Returns:
        uint8 (N, 105, 14), rows of pixels as bits, ink is 1.
    """
    bits = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8) if rows else torch.empty(0, dtype=torch.uint8)
    # Stored white is 1. Of the last byte of a row only the first bit is a pixel.
    bits = bits.view(-1, _SIDE, 14).bitwise_not_()
    bits[..., -1] &= 0x80
    return bits


_REPLACE = "it is damaged: replace it by `kshot data fetch omniglot`, or remove it"


def decode_png(archive: zipfile.ZipFile, name: str) -> bytes:
    """Decode one drawing.

    Args:
        archive: an open zip file.
        name: of the PNG file in it.

    Returns:
        105 rows of 14 bytes, white is 1.

    Raises:
        UserError: it is no drawing of 105 x 105 pixels.
    """
    from PIL import Image

    if archive.getinfo(name).file_size > _MOST_BYTES:
        raise UserError(f"expected small PNG files, got {name} of more than {_MOST_BYTES} bytes; {_REPLACE}")
    data = archive.read(name)
    # Read from the header, so that Pillow never makes room for what a damaged one says.
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    if (width, height) != (_SIDE, _SIDE):
        raise UserError(f"expected drawings of {_SIDE} x {_SIDE}, got {name} of {width} x {height}; {_REPLACE}")
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return image.convert("1", dither=Image.Dither.NONE).tobytes()


def hash_contents(path: Path) -> str:
    """Decode an archive and hash it.

    Args:
        path: zip file.

    Returns:
        See ``Drawings.sha256``.
    """
    return decode(path).sha256()


def _archive(name: str, md5: str, contents: str) -> store.Archive:
    return store.Archive(f"omniglot/{name}", f"{_ADDRESS}/{name}", md5, contents, hash_contents)


BACKGROUND = _archive(
    "images_background.zip",
    "68d2efa1b9178cc56df9314c21c6e718",
    "03aa635e134e874dee5cbca7ca8144bb0c1c3ad01a6474991f0d6f84ce62f383",
)
EVALUATION = _archive(
    "images_evaluation.zip",
    "6b91aef0f799c5bb55b94e3f2daec811",
    "692cef716fb735355240b92293610180558581eb457800f1191b15058f4850a2",
)
SMALL1 = _archive(
    "images_background_small1.zip",
    "e704a628b5459e08445c13499850abc4",
    "37fcc337ee3762dfab01e7aa93dacf59bf71cb5837fdc80f5b6c3e60f060da4b",
)
SMALL2 = _archive(
    "images_background_small2.zip",
    "b75a71a51d3b13f821f212756fe481fd",
    "5609ebf8b7bd970299d772c4b28c2c5d94ffb058d88ddd07be96d0184c78a163",
)
ARCHIVES = (BACKGROUND, EVALUATION, SMALL1, SMALL2)
_BACKGROUNDS = {"vinyals": BACKGROUND, "lake": BACKGROUND, "small1": SMALL1, "small2": SMALL2}


def omniglot_images(
    split: str,
    *,
    root: Path | str | None = None,
    on_progress: OnProgress | None = None,
    scheme: Literal["vinyals", "lake", "small1", "small2"] = "vinyals",
    image_size: Literal[20, 28, 42, 56, 105] = 28,
    rotations: bool | None = None,
    trainval: bool = False,
    downscale: Literal["area", "nearest"] = "area",
) -> ImageSet:
    """Open one split of Omniglot. Classes are characters, ``Alphabet/character01``, and groups are alphabets.

    The first opening of an archive decodes and checks it; later ones read the cache.

    Args:
        split: meta_train, meta_val or meta_test.
        root: the data root, see ``store.data_root``.
        on_progress: called during a download.
        scheme: how classes are split, see the module.
        image_size: side in pixels: 20, 28, 42, 56 or 105.
        rotations: True to add each character's quarter turns as classes of their own, in every split; None for True in
            the scheme vinyals, False in the others.
        trainval: True to add the classes of meta_val to meta_train, as for the final runs of Prototypical Networks.
        downscale: how 28 x 28 is made. "area": grey is the share of ink in each pixel's area. "nearest": one pixel out
            of 3.75 along each axis, which loses thin strokes; it is what Pillow does to black-and-white images, and so
            what the code of MAML and of Prototypical Networks learns from.

    Returns:
        The images, uint8 (N, 1, image_size, image_size), 255 is ink.

    Raises:
        UserError: an option is unknown, or an archive is absent or damaged.
    """
    _check("split", split, SPLITS)
    _check("scheme", scheme, SCHEMES)
    _check("downscale", downscale, DOWNSCALES)
    check_size(image_size)
    parts = _vinyals(split, trainval) if scheme == "vinyals" else _by_alphabet(scheme, split, trainval)
    paths = store.provide([part.archive for part in parts], root, on_progress)
    sets = []
    for part, path in zip(parts, paths, strict=True):
        images = _images_of(part.archive, path, image_size, downscale)
        sets.append(images.subset([c for c, name in enumerate(images.class_names) if part.takes(name, images)]))
    return _join(sets, scheme == "vinyals" if rotations is None else rotations)


def vinyals_characters() -> dict[str, tuple[str, ...]]:
    """Return the characters of each split of the scheme vinyals.

    Returns:
        meta_train (1,028), meta_val (172) and meta_test (423 names ``Alphabet/character01``).
    """
    found: dict[str, list[str]] = {}
    here: list[str] = []
    for line in resources.files("kshot.data").joinpath("omniglot_vinyals.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            here = found.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            alphabet, first, last = line.split()
            here.extend(f"{alphabet}/character{n:02d}" for n in range(int(first), int(last) + 1))
    return {split: tuple(names) for split, names in found.items()}


def shrink(drawings: Drawings, image_size: int, downscale: str) -> Tensor:
    """Make grey images of the size that is asked for, in whole-number arithmetic: every machine gets the same pixels.

    Args:
        drawings: N of them.
        image_size: one of ``SIZES``.
        downscale: "area" or "nearest", see ``omniglot_images``.

    Returns:
        uint8 (N, 1, image_size, image_size), 255 is ink.
    """
    ink = torch.from_numpy(np.unpackbits(drawings.bits.numpy(), axis=-1, count=_SIDE))
    if image_size == _SIDE:
        return ink.mul_(255).unsqueeze(1)
    if downscale == "nearest":
        # The pixel under the centre of each new one.
        at = ((2 * torch.arange(image_size) + 1) * _SIDE).div(2 * image_size, rounding_mode="floor")
        return ink[:, at][:, :, at].mul_(255).unsqueeze(1)
    cover = _overlaps(image_size)
    whole = int(cover[0].sum()) ** 2
    # Sums stay below 2**24, so that float32 products are exact; in chunks, since float32 takes four times the memory.
    sums = torch.cat([cover @ (chunk.float() @ cover.T) for chunk in ink.split(2048)])
    return sums.int().mul_(255).add_(whole // 2).div_(whole, rounding_mode="floor").to(torch.uint8).unsqueeze(1)


def _overlaps(image_size: int) -> Tensor:
    """Return (image_size, 105) how much of each old row lies under each new one, as whole multiples of 1/image_size."""
    old, new = torch.arange(_SIDE + 1) * image_size, torch.arange(image_size + 1) * _SIDE
    upper = torch.minimum(old[1:], new[1:, None])
    lower = torch.maximum(old[:-1], new[:-1, None])
    return (upper - lower).clamp_(min=0).float()


class _Part(NamedTuple):
    """An archive, and which of its classes belong to a split."""

    archive: store.Archive
    takes: Callable[[str, ImageSet], bool]


def _vinyals(split: str, trainval: bool) -> list[_Part]:
    splits = (split, "meta_val") if trainval and split == "meta_train" else (split,)
    characters = vinyals_characters()
    chosen = {name for s in splits for name in characters[s]}
    archives = {"meta_train": (BACKGROUND, EVALUATION), "meta_val": (BACKGROUND,), "meta_test": (EVALUATION,)}[split]
    return [_Part(archive, lambda name, _: name in chosen) for archive in archives]


def _by_alphabet(scheme: str, split: str, trainval: bool) -> list[_Part]:
    if split == "meta_test":
        return [_Part(EVALUATION, lambda *_: True)]

    def takes(name: str, images: ImageSet) -> bool:
        held_out = images.group_names[-max(1, len(images.group_names) // 6) :]
        is_val = name.split("/")[0] in held_out
        return is_val if split == "meta_val" else trainval or not is_val

    return [_Part(_BACKGROUNDS[scheme], takes)]


def _images_of(archive: store.Archive, path: Path, image_size: int, downscale: str) -> ImageSet:
    """Return every image of an archive; it is decoded unless both the archive was checked and the cache has them."""
    drawings = None if store.is_verified(archive, path) else _checked(archive, path)
    way = "" if image_size == _SIDE else f"-{downscale}"
    key = f"omniglot-{path.stem}-{image_size}{way}-{archive.contents[:16]}-{_VERSION}"

    def build() -> ImageSet:
        return _image_set(drawings or _checked(archive, path), image_size, downscale)

    return cached_images(key, build)


def _checked(archive: store.Archive, path: Path) -> Drawings:
    drawings = decode(path)
    store.confirm(archive, path, drawings.sha256())
    return drawings


def _image_set(drawings: Drawings, image_size: int, downscale: str) -> ImageSet:
    of_drawing = [f"{alphabet}/{character}" for alphabet, character, _ in drawings.paths]
    names = tuple(sorted(set(of_drawing)))
    number = {name: c for c, name in enumerate(names)}
    alphabets = tuple(sorted({name.split("/")[0] for name in names}))
    return ImageSet(
        images=shrink(drawings, image_size, downscale),
        labels=torch.tensor([number[name] for name in of_drawing]),
        class_names=names,
        groups=torch.tensor([alphabets.index(name.split("/")[0]) for name in names]),
        group_names=alphabets,
    )


def _join(sets: list[ImageSet], rotations: bool) -> ImageSet:
    """Return sets of different classes and groups as one."""
    if len(sets) == 1:
        return replace(sets[0], rotations=rotations)
    classes = [0, *accumulate(len(s.class_names) for s in sets)]
    groups = [0, *accumulate(len(s.group_names) for s in sets)]
    return ImageSet(
        images=torch.cat([s.images for s in sets]),
        labels=torch.cat([s.labels + start for s, start in zip(sets, classes, strict=False)]),
        class_names=tuple(name for s in sets for name in s.class_names),
        groups=torch.cat([s.groups + start for s, start in zip(sets, groups, strict=False)]),
        group_names=tuple(name for s in sets for name in s.group_names),
        rotations=rotations,
    )


def check_size(image_size: int) -> None:
    """Refuse sizes that images are not made in.

    Args:
        image_size: side in pixels.

    Raises:
        UserError: it is none of ``SIZES``.
    """
    if image_size not in SIZES:
        sizes = ", ".join(map(str, SIZES))
        raise UserError(f"expected image_size {sizes} for Omniglot, got {image_size}; choose one of them")


def _check(what: str, got: str, known: tuple[str, ...]) -> None:
    if got not in known:
        raise UserError(unknown(f"{what} of omniglot", got, list(known)))
