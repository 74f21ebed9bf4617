"""Which shapes become classes: no shape twice, no accents, no bars, no wrong labels."""

import unicodedata

import matplotlib
import pytest
import torch

from kshot.core import UserError
from kshot.data import glyph_outlines
from kshot.data.glyph_outlines import GRID, SAME, Outlines, apart, font_files, outlines
from kshot.data.glyph_scripts import SCRIPTS, Script, characters

LETTERS = Script("Letters", "meta_train", ((0x41, 0x7E), (0x21, 0x40), (0xC0, 0xFF)))
GREEK, HEBREW = (next(s for s in SCRIPTS if s.name == name) for name in ("Greek", "Hebrew"))


@pytest.fixture(scope="module")
def found() -> Outlines:
    return outlines((LETTERS, GREEK, HEBREW))


def test_a_shape_of_two_scripts_belongs_to_the_first(found: Outlines) -> None:
    script = dict(zip(found.codes, found.scripts, strict=True))
    for latin, greek in zip("ABEHKMNPTXYZ", "ΑΒΕΗΚΜΝΡΤΧΥΖ", strict=True):
        assert script[ord(latin)] is LETTERS
        assert ord(greek) not in script
    assert script[ord("Ω")] is GREEK
    assert script[ord("ש")] is HEBREW


def test_size_and_place_make_no_second_class(found: Outlines) -> None:
    for same in ("oO", "xX", "vV", "zZ"):
        assert sum(ord(c) in found.codes for c in same) == 1


def test_wide_and_narrow_make_no_second_class() -> None:
    latin = Script("Latin K", "meta_train", ((0x4B, 0x4B),))
    italic = Script("Old Italic K", "meta_val", ((0x1030A, 0x1030A),))
    wide, narrow = outlines((latin,)), outlines((italic,))
    assert float(apart(wide.spread[:1], narrow.spread[:1])) > SAME
    assert outlines((latin, italic)).codes == (0x4B,)


def test_bars_dots_and_accents_are_left_out(found: Outlines) -> None:
    for left_out in "|-_.,'IlÀéüά":
        assert ord(left_out) not in found.codes


def test_all_outlines_of_different_classes_are_apart(found: Outlines) -> None:
    gaps = apart(found.spread, found.spread)
    different = found.classes[:, None] != found.classes
    assert float(gaps[different].min()) >= SAME
    # Distances are averaged over squares of 2 x 2 pixels, so that a shape is not quite at 0 from itself.
    assert float(gaps.diagonal().max()) < 0.7


def test_outlines_are_sorted_centred_and_whole(found: Outlines) -> None:
    n = len(found.codes)
    assert found.images.shape == (len(found.classes), GRID, GRID)
    assert torch.equal(found.classes, found.classes.sort().values)
    assert torch.equal(found.classes.unique(), torch.arange(n))
    assert int(found.classes.bincount().max()) <= 3
    edge = found.images.clone()
    edge[:, 7:-7, 7:-7] = 0
    assert int(edge.max()) == 0


def test_letters_come_in_several_typefaces(found: Outlines) -> None:
    drawn = found.classes.bincount()[found.codes.index(ord("R"))]
    assert drawn >= 2


def test_a_drawing_that_looks_like_another_letter_is_no_second_face() -> None:
    # Italic Cyrillic te and pe are drawn as the Latin m and n.
    both = outlines(
        (Script("Latin", "meta_train", ((0x61, 0x7A),)), Script("te and pe", "meta_val", ((0x43F, 0x442),)))
    )
    m, n = (both.spread[both.classes == both.codes.index(ord(c))][:1] for c in "mn")
    cyrillic = torch.tensor([script.name == "te and pe" for script in both.scripts])[both.classes]
    assert bool(cyrillic.any())
    assert float(apart(both.spread[cyrillic], torch.cat([m, n])).min()) >= SAME


def test_scripts_share_no_character_and_each_goes_into_one_split() -> None:
    assert len({script.name for script in SCRIPTS}) == len(SCRIPTS)
    codes = [code for script in SCRIPTS for code in characters(script)]
    assert len(set(codes)) == len(codes)
    assert {script.split for script in SCRIPTS} == {"meta_train", "meta_val", "meta_test"}


def test_characters_stand_alone() -> None:
    for script in SCRIPTS:
        for code in characters(script):
            assert unicodedata.category(chr(code))[0] not in "MCZ"
            assert not unicodedata.combining(chr(code))


def test_scripts_without_characters_are_refused() -> None:
    with pytest.raises(UserError, match="take some of SCRIPTS"):
        outlines((Script("Hangul", "meta_test", ((0xAC00, 0xAC0F),)),))


def test_missing_fonts_are_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"DejaVuSans\.ttf.*reinstall matplotlib"):
        font_files()


def test_every_face_is_there() -> None:
    assert len(font_files()) == len(glyph_outlines.FACES)
