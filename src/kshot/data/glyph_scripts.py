"""Which characters ``glyphs`` has: scripts and kinds of symbol, each in one split as a whole.

Left out on purpose: accented letters (near copies of the bare ones), superscripts and subscripts, mathematical letters
that differ from plain ones by weight or slant alone, and patterns that nobody writes by hand (box drawing, blocks,
Braille, hexagrams, domino tiles, playing cards, faces).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

# Characters that stand for another in another place or style are kept only where their shape is their own.
_KEPT_STYLES = ("<font>", "<initial>", "<medial>", "<final>", "<isolated>", "<compat>", "<fraction>")


class Script(NamedTuple):
    """A group of characters that goes into one split as a whole.

    Attributes:
        name: of the script, or of the kind of symbol.
        split: meta_train, meta_val or meta_test.
        ranges: first and last code point of each run.
    """

    name: str
    split: str
    ranges: tuple[tuple[int, int], ...]


#: Of shapes that two scripts share, the script named first keeps them; letters stand before symbols.
SCRIPTS = (
    Script(
        "Latin",
        "meta_train",
        (
            (0x41, 0x5A),
            (0x61, 0x7A),
            (0xC0, 0xD6),
            (0xD8, 0xF6),
            (0xF8, 0x24F),
            (0x250, 0x2AF),
            (0x1D00, 0x1D25),
            (0x1D6B, 0x1D9A),
            (0x1E9C, 0x1EFF),
            (0x2C60, 0x2C7F),
            (0xA722, 0xA7FF),
        ),
    ),
    Script("Greek", "meta_val", ((0x370, 0x3FF), (0x1D26, 0x1D2A))),
    Script("Cyrillic", "meta_val", ((0x400, 0x52F), (0x1D2B, 0x1D2B), (0xA640, 0xA69F))),
    Script("Armenian", "meta_test", ((0x530, 0x58F),)),
    Script("Georgian", "meta_test", ((0x10A0, 0x10FF), (0x2D00, 0x2D2F))),
    Script("Hebrew", "meta_test", ((0x590, 0x5FF),)),
    Script("Tifinagh", "meta_test", ((0x2D30, 0x2D7F),)),
    Script("NKo", "meta_val", ((0x7C0, 0x7FF),)),
    Script("Lao", "meta_val", ((0xE80, 0xEFF),)),
    Script("Ogham", "meta_val", ((0x1680, 0x169F),)),
    Script("Old Italic", "meta_val", ((0x10300, 0x1032F),)),
    Script("Arabic", "meta_test", ((0x600, 0x6FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF))),
    Script("Canadian Aboriginal", "meta_train", ((0x1400, 0x167F),)),
    Script("Letterlike", "meta_train", ((0x2100, 0x214F), (0x1D49C, 0x1D56B))),
    Script(
        "Digits and punctuation",
        "meta_train",
        ((0x21, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0xA1, 0xBF), (0x2010, 0x205E)),
    ),
    Script("Currency", "meta_train", ((0x20A0, 0x20CF),)),
    Script("Number forms", "meta_train", ((0x2150, 0x218F),)),
    Script("Mathematical operators", "meta_train", ((0xD7, 0xD7), (0xF7, 0xF7), (0x2200, 0x22FF), (0x2A00, 0x2AFF))),
    Script("Mathematical symbols", "meta_train", ((0x27C0, 0x27EF), (0x2980, 0x29FF))),
    Script("Arrows", "meta_train", ((0x2190, 0x21FF), (0x27F0, 0x27FF), (0x2900, 0x297F), (0x2B00, 0x2B73))),
    Script("Technical", "meta_train", ((0x2300, 0x23FF),)),
    Script("Geometric shapes", "meta_train", ((0x25A0, 0x25FF),)),
    Script("Miscellaneous symbols", "meta_train", ((0x2600, 0x26FF),)),
    Script("Dingbats", "meta_train", ((0x2701, 0x27BF),)),
)


def characters(script: Script) -> Iterator[int]:
    """List the characters of a script that may be drawn: letters, numbers, marks of punctuation and symbols.

    Yields:
        Code points in order.
    """
    for first, last in script.ranges:
        yield from filter(_stands_alone, range(first, last + 1))


def _stands_alone(code: int) -> bool:
    category, made_of = unicodedata.category(chr(code)), unicodedata.decomposition(chr(code))
    return category[0] in "LNPS" and category != "Lm" and (not made_of or made_of.startswith(_KEPT_STYLES))
