"""Bytes to text: which encoding a person's file is in, said rather than guessed in silence."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import NamedTuple

from kshot.core import UserError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8 with a byte order mark"),
)
# Among bytes of one parity, this share of zeros makes UTF-16 of a text without a mark.
_ZEROS = 0.25
_AS_UTF8 = "save the file as UTF-8"


class Text(NamedTuple):
    """A file's text.

    Attributes:
        text: what it says.
        notes: the encoding, where it is not plain UTF-8.
    """

    text: str
    notes: list[str]


def read_text(path: Path, *, lenient: bool = False) -> Text:
    """Read a file and find out its encoding.

    A byte order mark is believed; else zeros in every other byte mean UTF-16; else it is UTF-8 if it can be; else
    Latin-1 as Windows writes it (code page 1252), unless parts of it are UTF-8: then two encodings were mixed.

    Args:
        path: the file.
        lenient: of a mixture, return text in which every byte that is not UTF-8 stands as a lone surrogate
            (``surrogateescape``), for the reader to leave out its row.

    Returns:
        Its text, line ends as they are.

    Raises:
        UserError: it cannot be read, is empty, holds a zero byte, or is in no encoding; the byte is named.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"expected a file that can be read, got {path} ({error.strerror or error}); check it"
        ) from error
    text, notes = _decode(data, path, lenient)
    if "\0" in text:
        at = data.find(b"\0")
        raise UserError(
            f"expected text, got a NUL byte in {path} at byte {at}{_line(data, at)}: it is damaged or not a text file; "
            "if it is a spreadsheet, save it as CSV (UTF-8)"
        )
    if not text.strip():
        raise UserError(f"expected text, got the empty file {path}; check how it was saved")
    return Text(text, notes)


def _decode(data: bytes, path: Path, lenient: bool) -> Text:
    for mark, codec, name in _MARKS:
        if data.startswith(mark):
            return Text(_strict(data, codec, len(mark), path, name), [f"{path.name} was read as {name}"])
    guess = _without_mark(data)
    if guess:
        return Text(_strict(data, guess, 0, path, "UTF-16"), [f"{path.name} was read as UTF-16 without a mark"])
    try:
        return Text(data.decode("utf-8"), [])
    except UnicodeDecodeError as error:
        at = error.start
    place = f"byte {at} (0x{data[at]:02x}){_line(data, at)}"
    if not data.decode("utf-8", "ignore").isascii():
        if lenient:
            return Text(data.decode("utf-8", "surrogateescape"), [f"{path.name} mixes encodings: not UTF-8 at {place}"])
        raise UserError(
            f"expected one encoding, got {path} that is UTF-8 in parts but not at {place}; {_AS_UTF8}, "
            "or leave such rows out with --skip-bad"
        )
    text = _strict(data, "cp1252", 0, path, "UTF-8, UTF-16 or Latin-1")
    note = f"{path.name} is not UTF-8 ({place}) and was read as Latin-1 (Windows 1252); check letters with accents"
    return Text(text, [note])


def _strict(data: bytes, codec: str, skip: int, path: Path, name: str) -> str:
    try:
        return data[skip:].decode(codec)
    except UnicodeDecodeError as error:
        at = error.start + skip
        raise UserError(
            f"expected {path} to be {name}, got byte {at} (0x{data[at]:02x}){_line(data, at)} that is none; {_AS_UTF8}"
        ) from error


def _without_mark(data: bytes) -> str:
    head = data[:4096]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > _ZEROS * len(head) / 2 and not even:
        return "utf-16-le"
    return "utf-16-be" if even > _ZEROS * len(head) / 2 and not odd else ""


def _line(data: bytes, at: int) -> str:
    return f" in line {data.count(10, 0, at) + 1}"
