"""PNG files too large to be held in memory, read strip by strip and reduced on the way.

A strip is made a PNG file of its own, which the ordinary decoder reads. The filters of PNG refer to the row above, so
each such file begins with the last row of the strip before, unfiltered, and that row is dropped again.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PIECE = 1 << 20
#: Pixels of one strip.
STRIP = 1 << 22


class Header(NamedTuple):
    """What the first chunk of a PNG file says.

    Attributes:
        width: in pixels.
        height: in pixels.
        depth: bits of a channel.
        colour: PNG's number of the colour type.
        compression: 0.
        filtering: 0.
        interlace: 0, or 1 for Adam7.
    """

    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filtering: int
    interlace: int


def read_header(file: BinaryIO) -> Header | None:
    """Read the header of a PNG file.

    Args:
        file: at any place; it is left after the header.

    Returns:
        The header, or None if the file does not begin like a PNG file.
    """
    file.seek(0)
    start = file.read(33)
    if len(start) < 33 or start[:8] != _SIGNATURE or start[12:16] != b"IHDR":
        return None
    return Header(*struct.unpack(">IIBBBBB", start[16:29]))


def can_be_read_in_strips(header: Header, factor: int) -> bool:
    """Tell whether ``read_in_strips`` takes such a file.

    Args:
        header: of the file.
        factor: that it would be reduced by.

    Returns:
        True for eight bits a channel without interlacing, where ``factor`` rows are no more than four strips.
    """
    plain = header.depth == 8 and header.interlace == 0 and header.colour in _CHANNELS
    return plain and header.width * factor <= 4 * STRIP


def read_in_strips(file: BinaryIO, factor: int, to_rgb: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Read a PNG file and reduce it, holding a strip at a time.

    Args:
        file: a PNG file that ``can_be_read_in_strips``.
        factor: each square of so many pixels a side becomes one pixel, their average.
        to_rgb: makes a strip red, green and blue.

    Returns:
        The picture in mode RGB, of ceil(W / factor) x ceil(H / factor) pixels.

    Raises:
        OSError: the file is truncated or damaged.
    """
    header = read_header(file)
    if header is None:
        raise OSError("not a PNG file")
    stride = header.width * _CHANNELS[header.colour] + 1
    n_rows = max(1, STRIP // header.width // factor) * factor
    palette, pieces = _chunks(file)
    out = Image.new("RGB", (-(-header.width // factor), -(-header.height // factor)))
    above = b""
    rows = _rows(pieces, stride * n_rows)
    for first in range(0, header.height, n_rows):
        count = min(n_rows, header.height - first)
        filtered = next(rows, b"")[: count * stride]
        if len(filtered) < count * stride:
            raise OSError("image file is truncated")
        strip = _strip(header, palette, above, filtered, count)
        above = b"\0" + np.asarray(strip)[-1].tobytes()
        if strip.height > count:
            strip = strip.crop((0, 1, strip.width, strip.height))
        out.paste(to_rgb(strip).reduce(factor), (0, first // factor))
    return out


def _chunks(file: BinaryIO) -> tuple[bytes, Iterator[bytes]]:
    # The chunks before the pixels, as bytes, and the pixels' own, in pieces.
    before = b""
    while True:
        length, kind = _head(file)
        if kind == b"IDAT":
            return before, _pixels(file, length)
        content = file.read(length + 4)
        if kind in (b"PLTE", b"tRNS"):
            before += struct.pack(">I", length) + kind + content


def _head(file: BinaryIO) -> tuple[int, bytes]:
    head = file.read(8)
    if len(head) < 8:
        raise OSError("image file is truncated")
    return struct.unpack(">I4s", head)


def _pixels(file: BinaryIO, length: int) -> Iterator[bytes]:
    kind = b"IDAT"
    while kind == b"IDAT":
        while length:
            piece = file.read(min(length, _PIECE))
            if not piece:
                raise OSError("image file is truncated")
            length -= len(piece)
            yield piece
        file.seek(4, io.SEEK_CUR)
        length, kind = _head(file)


def _rows(pieces: Iterator[bytes], n_bytes: int) -> Iterator[bytes]:
    # Inflated bytes, so many at a time; the last may be fewer.
    inflate = zlib.decompressobj()
    held = bytearray()
    for piece in pieces:
        waiting = piece
        while waiting and not inflate.eof:
            try:
                held += inflate.decompress(waiting, n_bytes)
            except zlib.error as error:
                raise OSError(f"damaged pixels: {error}") from error
            waiting = inflate.unconsumed_tail
            while len(held) >= n_bytes:
                yield bytes(held[:n_bytes])
                del held[:n_bytes]
    yield bytes(held + inflate.flush())


def _strip(header: Header, palette: bytes, above: bytes, filtered: bytes, count: int) -> Image.Image:
    n_rows = count + bool(above)
    start = struct.pack(">IIBBBBB", header.width, n_rows, 8, header.colour, 0, 0, 0)
    pixels = zlib.compress(above + filtered, 0)
    data = _SIGNATURE + _chunk(b"IHDR", start) + palette + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    strip = PngImageFile(io.BytesIO(data))
    strip.load()
    return strip


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
