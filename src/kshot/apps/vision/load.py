"""Reading pictures: from files, Pillow's pictures, arrays and tensors, of any size, in bounded memory.

Sizes. A picture is decoded at full size up to ``MAX_PIXELS``. Beyond that, JPEG files are decoded at 1/2, 1/4 or 1/8,
and PNG files of eight bits a channel are read strip by strip; other files are refused by a message that says so. A few
hundred megabytes are held at most: pictures above ``LARGE`` pixels are decoded one at a time.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from torch import Tensor

from kshot.apps.vision.colours import from_array, to_rgb
from kshot.apps.vision.strips import Header, can_be_read_in_strips, read_header, read_in_strips
from kshot.core import OnProgress, UserError

#: Most pixels that are decoded at once.
MAX_PIXELS = 80_000_000
#: Pictures above so many pixels are decoded one at a time.
LARGE = 12_000_000

#: Given width and height, how many times smaller a picture may become while it is read.
Shrink = Callable[[int, int], int]

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Formats that Pillow reads by running another program.
_NOT_OPENED = ("EPS",)
#: How files of HEIC call themselves.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
#: What decoders raise on files that are damaged.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_one_large_at_a_time = threading.Lock()


def read_image(example: Any, *, max_side: int | None = 2048) -> Image.Image:
    """Read a picture as red, green and blue, upright, and no larger than asked.

    The first frame is taken of an animation, transparency becomes white, and the turn that a camera notes in EXIF is
    done. See ``colours.to_rgb`` for colour modes and ``colours.from_array`` for arrays.

    Args:
        example: a path, a picture of Pillow, an array or a tensor.
        max_side: pixels of the longer side at most, larger ones are reduced; None keeps the size, as far as
            ``MAX_PIXELS`` allows.

    Returns:
        A new picture in mode RGB.

    Raises:
        UserError: no such file, not a picture, a damaged or truncated one, or one too large to be read.
    """
    picture = read_reduced(example, lambda w, h: max(w, h) // max_side if max_side else 1)
    longer = max(picture.size)
    if max_side is None or longer <= max_side:
        return picture
    width, height = (max(1, round(side * max_side / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def read_reduced(example: Any, shrink: Shrink) -> Image.Image:
    """Read a picture as ``read_image`` does, for a use that needs no more than a part of its pixels.

    Args:
        example: a path, a picture of Pillow, an array or a tensor.
        shrink: given width and height, how many times smaller it may be at least; 0 and 1 for not at all.

    Returns:
        A new picture in mode RGB; reduced by at most that factor where that spares time or memory.

    Raises:
        UserError: no such file, not a picture, a damaged or truncated one, or one too large to be read.
    """
    if isinstance(example, str | os.PathLike):
        return _read_file(Path(example), shrink)
    if isinstance(example, Image.Image):
        return _convert(example)
    if isinstance(example, np.ndarray | Tensor):
        return from_array(example)
    raise UserError(
        f"expected a picture as a path, a picture of Pillow, an array or a tensor, got {type(example).__name__}; "
        "convert it to one of these"
    )


def image_key(example: Any) -> str:
    """Hash the content of a picture.

    Args:
        example: a path, a picture of Pillow, an array or a tensor.

    Returns:
        SHA-256 in hexadecimal: of a file its bytes, whatever its name; else of kind, size and pixels.

    Raises:
        UserError: no such file, or not a picture.
    """
    if isinstance(example, str | os.PathLike):
        return _hash_file(Path(example))
    if isinstance(example, Image.Image):
        _load(example)
        palette = example.getpalette() if example.mode in ("P", "PA") else None
        about = (example.mode, example.size, palette, example.info.get("transparency"), _orientation(example))
        return _hash_pixels(about, example.tobytes())
    if isinstance(example, np.ndarray | Tensor):
        x = example.detach().cpu() if isinstance(example, Tensor) else example
        x = x.float().numpy() if isinstance(x, Tensor) and x.is_floating_point() else np.asarray(x)
        return _hash_pixels((x.dtype.str, x.shape), np.ascontiguousarray(x).tobytes())
    raise UserError(f"expected a picture, got {type(example).__name__}; pass a path, a picture of Pillow or an array")


def unreadable(
    examples: Sequence[Any], *, n_threads: int | None = None, on_progress: OnProgress | None = None
) -> dict[int, str]:
    """Find the pictures that cannot be read, by decoding each of them.

    Args:
        examples: pictures.
        n_threads: that decode; None for one to a core, at most 8.
        on_progress: told after each picture.

    Returns:
        Place of a bad picture in ``examples`` -> why it cannot be read; empty where all is well.
    """
    found: dict[int, str] = {}
    with ThreadPoolExecutor(n_threads or threads()) as pool:
        for i, why in enumerate(pool.map(_complaint, examples)):
            if why is not None:
                found[i] = why
            if on_progress is not None:
                on_progress(i + 1, len(examples))
    return found


def threads() -> int:
    """Return how many threads decode pictures where nothing else is asked.

    Returns:
        One to a core, at most 8.
    """
    return min(8, os.cpu_count() or 1)


def _complaint(example: Any) -> str | None:
    try:
        read_reduced(example, lambda w, h: max(1, min(w, h) // 64))
    except UserError as error:
        return str(error)
    return None


def _read_file(path: Path, shrink: Shrink) -> Image.Image:
    try:
        with path.open("rb") as file:
            return _decode(file, path, shrink)
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError, NotADirectoryError) as error:
        raise UserError(f"expected a picture at {path}, got: {error.strerror}; check the name") from error
    except _DAMAGED as error:
        raise _bad(path, f"it is truncated or damaged ({error})") from error


def _bad(path: Path | str, why: str) -> UserError:
    return UserError(
        f"expected a picture in {path}, but {why}; replace or remove it, or leave out what cannot be read by --skip-bad"
    )


def _decode(file: BinaryIO, path: Path, shrink: Shrink) -> Image.Image:
    header = read_header(file)
    if header is not None and header.width * header.height > MAX_PIXELS:
        return _decode_large_png(file, path, header, max(1, shrink(header.width, header.height)))
    picture = _open(file, path)
    width, height = picture.size
    factor = max(1, shrink(width, height))
    least = 1
    while width * height > MAX_PIXELS * least**2:
        least *= 2
    factor = max(factor, least)
    if picture.format in ("JPEG", "MPO") and factor > 1 and (width * height <= MAX_PIXELS or _in_one_scan(file)):
        # Pillow takes the next power of two below.
        picture.draft(None, (max(1, width // factor), max(1, height // factor)))
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_large(path, width, height)
    with _one_large_at_a_time if picture.width * picture.height > LARGE else nullcontext():
        picture.load()
        return _upright(to_rgb(picture), _orientation(picture))


def _decode_large_png(file: BinaryIO, path: Path, header: Header, factor: int) -> Image.Image:
    width, height = header.width, header.height
    while width * height > MAX_PIXELS * factor**2:
        factor += 1
    if not can_be_read_in_strips(header, factor):
        raise _too_large(path, width, height)
    with _one_large_at_a_time:
        return read_in_strips(file, factor, to_rgb)


def _too_large(path: Path, width: int, height: int) -> UserError:
    return _bad(
        path,
        f"its {width} x {height} pixels are more than {MAX_PIXELS:,}, and beyond that only JPEG files of one scan and "
        "PNG files of 8 bits a channel without interlacing are read; save it smaller or as one of these",
    )


def _open(file: BinaryIO, path: Path) -> Image.Image:
    # As ``Image.open``, but for its limits on size, which are warnings or errors by global settings; ours come next.
    file.seek(0)
    prefix = file.read(16)
    if not prefix:
        raise _bad(path, "it is empty")
    is_heic = prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIC
    for register in (Image.preinit, Image.init, *([_register_heic] if is_heic else [])):
        register()
        for name in [n for n in Image.ID if n not in _NOT_OPENED]:
            picture = _try(name, file, prefix, path)
            if picture is not None:
                return picture
    if is_heic:
        raise _bad(
            path,
            "it is a HEIC file, as telephones write them, which needs one more package: pip install pillow-heif, or "
            "convert it to JPEG",
        )
    raise _bad(path, "its content is of no known format")


def _register_heic() -> None:
    # Needed for this format alone, and read by a library that not everybody may want.
    with suppress(ModuleNotFoundError):
        importlib.import_module("pillow_heif").register_heif_opener()


def _try(name: str, file: BinaryIO, prefix: bytes, path: Path) -> Image.Image | None:
    factory, accept = Image.OPEN[name]
    accepted = accept is None or accept(prefix)
    # A text says that the format is known but that its decoder was not built.
    if not accepted or isinstance(accepted, str):
        return None
    file.seek(0)
    try:
        return factory(file, str(path))
    except (SyntaxError, IndexError, TypeError, struct.error):
        return None


def _in_one_scan(file: BinaryIO) -> bool:
    # A JPEG file of several scans, such as a progressive one, is held whole in memory, however small it is decoded.
    place = file.tell()
    try:
        file.seek(2)
        n_components = 0
        while True:
            mark, kind, length = struct.unpack(">BBH", file.read(4))
            content = file.read(length - 2)
            if mark != 0xFF:
                return False
            if kind in (0xC0, 0xC1):
                n_components = content[5]
            elif 0xC2 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                return False
            elif kind == 0xDA:
                return content[0] == n_components
    except (struct.error, IndexError, ValueError):
        return False
    finally:
        file.seek(place)


def _convert(picture: Image.Image) -> Image.Image:
    if picture.width * picture.height > MAX_PIXELS:
        raise UserError(
            f"expected a picture of at most {MAX_PIXELS:,} pixels, got {picture.width} x {picture.height}; pass the "
            "path of its file, which can be read in parts, or reduce it"
        )
    _load(picture)
    try:
        return _upright(to_rgb(picture), _orientation(picture))
    except _DAMAGED as error:
        raise _bad(_name(picture), f"it cannot be shown ({error})") from error


def _load(picture: Image.Image) -> None:
    # Two threads must not decode one picture at once.
    try:
        with _one_large_at_a_time:
            picture.load()
    except _DAMAGED as error:
        raise _bad(_name(picture), f"it is truncated or damaged ({error})") from error


def _name(picture: Image.Image) -> str:
    return getattr(picture, "filename", "") or f"memory ({picture.mode}, {picture.width} x {picture.height})"


def _orientation(picture: Image.Image) -> int:
    # Pillow warns of damaged notes; only this one matters here.
    notes = picture.info.get("exif")
    try:
        if isinstance(notes, bytes):
            return _find_orientation(notes.removeprefix(b"Exif\0\0"))
        return int(picture.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:
        return 1


def _find_orientation(notes: bytes) -> int:
    # Notes are laid out as a TIFF file: a first directory of entries of 12 bytes.
    order = {b"II": "<", b"MM": ">"}[notes[:2]]
    (place,) = struct.unpack_from(f"{order}I", notes, 4)
    (count,) = struct.unpack_from(f"{order}H", notes, place)
    for i in range(count):
        tag, kind, n, value = struct.unpack_from(f"{order}HHIH", notes, place + 2 + 12 * i)
        if (tag, kind, n) == (_ORIENTATION, 3, 1):
            return value
    return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"expected a picture at {path}, got: {error.strerror or error}; check the name") from error
    return digest.hexdigest()


def _hash_pixels(about: object, pixels: bytes) -> str:
    digest = hashlib.sha256(repr(about).encode())
    digest.update(pixels)
    return digest.hexdigest()
