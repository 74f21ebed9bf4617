"""Glyphs: distinct drawings, disjoint splits, the same bytes each time, and a cache that may fail."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kshot.core import UserError, generator
from kshot.data import glyphs
from kshot.data.cache import CacheWarning
from kshot.data.glyph_scripts import SCRIPTS
from kshot.data.glyphs import N_DRAWINGS, SPLITS, draw_glyphs, glyphs_images
from kshot.data.images import ImageSet

# One small script of each split.
FEW = tuple(script for script in SCRIPTS if script.name in ("Currency", "Ogham", "Hebrew"))


@pytest.fixture(scope="module")
def few() -> ImageSet:
    return draw_glyphs(FEW)


@pytest.fixture
def few_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ``FEW`` were all scripts, and nothing had been drawn before."""
    monkeypatch.setattr(glyphs, "SCRIPTS", FEW)
    glyphs._everything.cache_clear()
    yield
    glyphs._everything.cache_clear()


def test_each_character_has_24_distinct_drawings(few: ImageSet) -> None:
    assert N_DRAWINGS >= 20
    assert torch.equal(few.labels.bincount(), torch.full((few.n_classes,), N_DRAWINGS))
    assert len(few.images.flatten(1).unique(dim=0)) == few.n_examples


def test_drawings_are_ink_on_black(few: ImageSet) -> None:
    assert few.images.dtype == torch.uint8
    assert few.images.shape[1:] == (1, 28, 28)
    assert bool((few.images.flatten(1).amax(1) > 200).all())
    ink = (few.images > 128).float().mean((1, 2, 3))
    assert float(ink.max()) < 0.5
    assert float(few.images[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean()) < 1


def test_classes_are_characters_and_groups_are_scripts(few: ImageSet) -> None:
    assert set(few.group_names) == {script.name for script in FEW}
    for name, group in zip(few.class_names, few.groups.tolist(), strict=True):
        script, code = name.split("/U+")
        assert script == few.group_names[group]
        ranges = next(s.ranges for s in FEW if s.name == script)
        assert any(first <= int(code, 16) <= last for first, last in ranges)


def test_a_character_is_drawn_alike_whatever_else_is_drawn(few: ImageSet) -> None:
    alone = draw_glyphs([script for script in FEW if script.name == "Hebrew"])
    for c, name in enumerate(alone.class_names):
        mine = few.images[few.labels == few.class_names.index(name)]
        assert torch.equal(alone.images[alone.labels == c], mine)


def test_the_same_bytes_in_another_process_with_other_threads(few: ImageSet) -> None:
    code = (
        "import torch; torch.manual_seed(7); torch.set_num_threads(2); torch.set_float32_matmul_precision('medium')\n"
        "from kshot.data.glyphs import SCRIPTS, draw_glyphs\n"
        "print(draw_glyphs([s for s in SCRIPTS if s.name in ('Currency', 'Ogham', 'Hebrew')]).sha256)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == few.sha256


def test_drawing_leaves_the_global_generator_and_the_threads_alone() -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(before + 1)
    try:
        draw_glyphs(FEW[:1], n_drawings=2)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_split_has_its_scripts_from_one_drawing_kept_in_the_cache(
    few: ImageSet, few_in_all: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    opened = {split: glyphs_images(split) for split in SPLITS}
    assert [images.group_names for images in opened.values()] == [("Currency",), ("Ogham",), ("Hebrew",)]
    assert sum(images.n_classes for images in opened.values()) == few.n_classes
    monkeypatch.setattr(glyphs, "draw_glyphs", lambda *_: pytest.fail("drawn again in spite of the cache"))
    glyphs._everything.cache_clear()
    for split in SPLITS:
        assert glyphs_images(split).sha256 == opened[split].sha256


def test_without_a_cache_that_can_be_written_it_works_and_draws_once(
    few_in_all: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "file" / "below"))
    drawn = []
    draw = glyphs.draw_glyphs
    monkeypatch.setattr(glyphs, "draw_glyphs", lambda scripts: drawn.append(1) or draw(scripts))
    with pytest.warns(CacheWarning):
        n_classes = [glyphs_images(split).n_classes for split in SPLITS]
    assert min(n_classes) > 10
    assert drawn == [1]


def test_unknown_splits_and_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'meta_test'"):
        glyphs_images("meta_tset")
    with pytest.raises(UserError, match="image_size 28 for glyphs, got 105"):
        glyphs_images("meta_train", image_size=105)  # type: ignore[arg-type]


def pixel_neighbour_accuracy(images: ImageSet, n_tasks: int) -> float:
    """5-way 1-shot accuracy of the nearest neighbour by pixels, 15 queries a class."""
    stream, right = generator(0, "neighbour"), []
    x = images.images.float().flatten(1).view(images.n_classes, N_DRAWINGS, -1)
    for _ in range(n_tasks):
        some = x[torch.randperm(images.n_classes, generator=stream)[:5]]
        some = some[:, torch.randperm(N_DRAWINGS, generator=stream)[:16]]
        guess = torch.cdist(some[:, 1:].flatten(0, 1), some[:, 0]).argmin(1)
        right.append((guess == torch.arange(5).repeat_interleave(15)).float().mean())
    return float(torch.stack(right).mean())


@pytest.mark.slow
def test_the_whole_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    glyphs._everything.cache_clear()
    before = time.process_time()
    sets = {split: glyphs_images(split) for split in SPLITS}
    # Processor time, so that other work on the machine does not count; one thread draws.
    assert time.process_time() - before < 30
    assert sum(images.n_classes for images in sets.values()) >= 2000
    assert sets["meta_val"].n_classes >= 200
    assert sets["meta_test"].n_classes >= 300
    scripts = [name for images in sets.values() for name in images.group_names]
    assert len(set(scripts)) == len(scripts)
    pixels = torch.cat([images.images for images in sets.values()]).flatten(1)
    assert len(pixels.unique(dim=0)) == len(pixels)
    # Neither trivial nor hopeless: an untrained learner is far above chance (20 %), and far below a trained one.
    for split in ("meta_val", "meta_test"):
        assert 0.38 < pixel_neighbour_accuracy(sets[split], 300) < 0.6
    glyphs._everything.cache_clear()
