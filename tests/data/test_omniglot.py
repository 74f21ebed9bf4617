"""Omniglot: decoding, downscaling and splitting, on small archives made here and on the real ones."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kshot.core import UserError
from kshot.data import omniglot, store

REAL = Path(os.environ.get("KSHOT_DATA", "absent"))
absent = pytest.mark.skipif(
    not (REAL / "omniglot").is_dir(), reason="needs the real archives in omniglot/ below KSHOT_DATA"
)

# Alphabets and numbers of characters of the small archives; of the scheme vinyals only those that its list names count.
TINY = {
    "images_background.zip": {"Greek": 3, "Hebrew": 2, "Latin": 2, "N_Ko": 1, "Korean": 1, "Tagalog": 2},
    "images_evaluation.zip": {"Angelic": 2, "Gurmukhi": 43, "Tibetan": 1},
    "images_background_small1.zip": {"Greek": 2, "Latin": 1, "Korean": 2},
    "images_background_small2.zip": {"Greek": 1, "Latin": 2},
}
N_DRAWINGS = 2


def drawing(number: int) -> np.ndarray:
    """Make black ink on white paper, as the archives have it: True is paper."""
    ink = np.random.default_rng(number).random((105, 105)) < 0.1
    ink[number % 105, :] = True
    return ~ink


def png(paper: np.ndarray, mode: str = "1") -> bytes:
    out = io.BytesIO()
    Image.fromarray(paper).convert(mode).save(out, "PNG")
    return out.getvalue()


def pack(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def drawings_of(top: str, alphabets: dict[str, int], mode: str = "1") -> dict[str, bytes]:
    names = [
        f"{top}/{alphabet}/character{c:02d}/{c:04d}_{k:02d}.png"
        for alphabet, n in alphabets.items()
        for c in range(1, n + 1)
        for k in range(1, N_DRAWINGS + 1)
    ]
    return {name: png(drawing(i), mode) for i, name in enumerate(names)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    for name, alphabets in TINY.items():
        pack(root / "omniglot" / name, drawings_of(name.removesuffix(".zip"), alphabets))
    return root


@pytest.fixture
def tiny(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root of small archives, which count as the right ones."""
    made = {}
    for name in ("BACKGROUND", "EVALUATION", "SMALL1", "SMALL2"):
        archive = getattr(omniglot, name)
        made[archive] = replace(archive, contents=omniglot.hash_contents(packed / archive.path))
        monkeypatch.setattr(omniglot, name, made[archive])
    for scheme, archive in omniglot._BACKGROUNDS.items():
        monkeypatch.setitem(omniglot._BACKGROUNDS, scheme, made[archive])
    return packed


def names(alphabet: str, first: int, last: int) -> list[str]:
    return [f"{alphabet}/character{c:02d}" for c in range(first, last + 1)]


def test_decoding_turns_ink_into_ones_and_sorts(tmp_path: Path) -> None:
    files = {"x/B/character01/0002_01.png": png(drawing(2)), "x/A/character02/0001_03.png": png(drawing(1))}
    found = omniglot.decode(pack(tmp_path / "a.zip", files))
    assert found.paths == (("A", "character02", "0001_03.png"), ("B", "character01", "0002_01.png"))
    ink = omniglot.shrink(found, 105, "area")
    for image, number in zip(ink, (1, 2), strict=True):
        assert np.array_equal(image[0].numpy(), np.where(drawing(number), 0, 255))


@pytest.mark.parametrize("size", [28, 105])
@pytest.mark.parametrize("downscale", ["area", "nearest"])
def test_blank_paper_is_zero_and_full_ink_is_255(tmp_path: Path, size: int, downscale: str) -> None:
    paper = np.ones((105, 105), dtype=bool)
    files = {"A/character01/0001_01.png": png(paper), "A/character01/0001_02.png": png(~paper)}
    blank, full = omniglot.shrink(omniglot.decode(pack(tmp_path / "a.zip", files)), size, downscale)
    assert int(blank.max()) == 0
    assert int(full.min()) == 255


def test_area_is_the_share_of_ink_under_each_pixel(tmp_path: Path) -> None:
    found = omniglot.decode(pack(tmp_path / "a.zip", {"A/character01/0001_01.png": png(drawing(7))}))
    ink, side = ~drawing(7), 105 / 28
    slow = np.zeros((28, 28))
    for i in range(28):
        for j in range(28):
            for y in range(int(i * side), min(105, int((i + 1) * side) + 1)):
                for x in range(int(j * side), min(105, int((j + 1) * side) + 1)):
                    tall = min(y + 1, (i + 1) * side) - max(y, i * side)
                    wide = min(x + 1, (j + 1) * side) - max(x, j * side)
                    slow[i, j] += ink[y, x] * max(0, tall) * max(0, wide) / side**2
    fast = omniglot.shrink(found, 28, "area")[0, 0].numpy()
    # Rounding to a byte is off by half a step at most.
    assert np.abs(fast - 255 * slow).max() <= 0.5 + 1e-6


def test_nearest_is_what_pillow_does_to_black_and_white(tmp_path: Path) -> None:
    found = omniglot.decode(pack(tmp_path / "a.zip", {"A/character01/0001_01.png": png(drawing(7))}))
    pillow = np.asarray(Image.fromarray(drawing(7)).resize((28, 28)))
    assert np.array_equal(omniglot.shrink(found, 28, "nearest")[0, 0].numpy(), np.where(pillow, 0, 255))


def test_contents_do_not_depend_on_packing(tmp_path: Path) -> None:
    files = drawings_of("one", {"A": 2})
    before = omniglot.hash_contents(pack(tmp_path / "a.zip", files))
    others = {f"__MACOSX/{name.replace('0001_01', '._0001_01')}": b"left aside" for name in files}
    again = {name.removeprefix("one/"): data for name, data in drawings_of("one", {"A": 2}, mode="L").items()}
    shuffled = dict(reversed({**again, **others, "readme.txt": b"x"}.items()))
    assert omniglot.hash_contents(pack(tmp_path / "b.zip", shuffled, zipfile.ZIP_DEFLATED)) == before


@pytest.mark.parametrize("change", ["pixel", "name", "absent"])
def test_contents_depend_on_every_drawing_and_name(tmp_path: Path, change: str) -> None:
    files = drawings_of("one", {"A": 2})
    before = omniglot.hash_contents(pack(tmp_path / "a.zip", files))
    last = list(files)[-1]
    data = files.pop(last)
    if change == "pixel":
        paper = np.asarray(Image.open(io.BytesIO(data))).copy()
        paper[104, 104] ^= True
        files[last] = png(paper)
    elif change == "name":
        files[last.replace("/A/", "/B/")] = data
    assert omniglot.hash_contents(pack(tmp_path / "b.zip", files)) != before


@pytest.mark.parametrize(
    "damage",
    [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"<html>sign in</html>", lambda d: d[:90] + b"~~~~" + d[94:]],
    ids=["truncated", "empty", "login page", "overwritten"],
)
def test_damaged_archive_is_said(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = pack(tmp_path / "a.zip", drawings_of("one", {"A": 2}))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"a\.zip cannot be read .*damaged: replace it by `kshot data fetch omniglot`"):
        omniglot.decode(path)


@pytest.mark.parametrize("data", [b"", b"no PNG at all, but longer than a header", png(drawing(0))[:60]])
def test_damaged_drawing_is_said(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match=r"replace it by `kshot data fetch omniglot`"):
        omniglot.decode(pack(tmp_path / "a.zip", {"A/character01/0001_01.png": data}))


def test_drawings_of_another_size_are_refused(tmp_path: Path) -> None:
    files = {"A/character01/0001_01.png": png(np.ones((28, 30), dtype=bool))}
    with pytest.raises(UserError, match=r"expected drawings of 105 x 105, got .*0001_01.png of 30 x 28"):
        omniglot.decode(pack(tmp_path / "a.zip", files))


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    files = {"A/character01/0001_01.png": bytes(2 << 20)}
    with pytest.raises(UserError, match="expected small PNG files"):
        omniglot.decode(pack(tmp_path / "a.zip", files, zipfile.ZIP_DEFLATED))


def test_archive_without_drawings_has_other_contents(tmp_path: Path, tiny: Path) -> None:
    pack(tmp_path / "omniglot" / "images_evaluation.zip", {"readme.txt": b"x"})
    with pytest.raises(UserError, match=r"expected .*images_evaluation.zip to hold examples with sha256"):
        omniglot.omniglot_images("meta_test", root=tmp_path)


def test_vinyals_takes_listed_characters_in_four_orientations(tiny: Path) -> None:
    train, val, test = (omniglot.omniglot_images(split, root=tiny) for split in omniglot.SPLITS)
    greek_to_tagalog = [*names("Greek", 1, 3), *names("Korean", 1, 1), *names("Latin", 1, 2), *names("N_Ko", 1, 1)]
    background = [*greek_to_tagalog, *names("Tagalog", 1, 2)]
    assert train.class_names == (*background, *names("Angelic", 1, 2), *names("Gurmukhi", 1, 41))
    assert val.class_names == tuple(names("Hebrew", 1, 2))
    assert test.class_names == (*names("Gurmukhi", 42, 43), *names("Tibetan", 1, 1))
    for images in (train, val, test):
        assert images.rotations
        assert images.n_classes == 4 * len(images.class_names)
        assert [images.group_names[g] for g in images.groups] == [n.split("/")[0] for n in images.class_names]
        assert torch.bincount(images.labels).tolist() == [N_DRAWINGS] * len(images.class_names)


def test_pixels_stand_with_their_class(tiny: Path) -> None:
    images = omniglot.omniglot_images("meta_train", root=tiny, image_size=105)
    order = list(drawings_of("x", TINY["images_evaluation.zip"]))
    number = order.index("x/Gurmukhi/character05/0005_02.png")
    (first, second) = (images.labels == images.class_names.index("Gurmukhi/character05")).nonzero().flatten()
    assert np.array_equal(images.images[second, 0].numpy(), np.where(drawing(number), 0, 255))
    assert np.array_equal(images.images[first, 0].numpy(), np.where(drawing(number - 1), 0, 255))


def test_trainval_adds_the_classes_of_meta_val(tiny: Path) -> None:
    for scheme in omniglot.SCHEMES:
        train, val, both = (
            set(omniglot.omniglot_images(split, root=tiny, scheme=scheme, trainval=trainval).class_names)
            for split, trainval in (("meta_train", False), ("meta_val", True), ("meta_train", True))
        )
        assert val
        assert not train & val
        assert both == train | val


@pytest.mark.parametrize(
    ("scheme", "train", "val"),
    [
        ("lake", ["Greek", "Hebrew", "Korean", "Latin", "N_Ko"], ["Tagalog"]),
        ("small1", ["Greek", "Korean"], ["Latin"]),
        ("small2", ["Greek"], ["Latin"]),
    ],
)
def test_lake_splits_by_alphabet(tiny: Path, scheme: str, train: list[str], val: list[str]) -> None:
    found = {split: omniglot.omniglot_images(split, root=tiny, scheme=scheme) for split in omniglot.SPLITS}
    assert list(found["meta_train"].group_names) == train
    assert list(found["meta_val"].group_names) == val
    assert list(found["meta_test"].group_names) == ["Angelic", "Gurmukhi", "Tibetan"]
    assert found["meta_test"].n_classes == 46
    assert not any(images.rotations for images in found.values())


def test_rotations_can_be_chosen(tiny: Path) -> None:
    assert not omniglot.omniglot_images("meta_test", root=tiny, rotations=False).rotations
    assert omniglot.omniglot_images("meta_test", root=tiny, scheme="lake", rotations=True).rotations


def test_second_opening_reads_the_cache(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = omniglot.omniglot_images("meta_train", root=tiny)
    monkeypatch.setattr(omniglot, "decode", lambda path: pytest.fail(f"{path} was decoded again"))
    assert omniglot.omniglot_images("meta_train", root=tiny).sha256 == first.sha256


def test_sizes_and_downscales_are_cached_apart(tiny: Path) -> None:
    ways = [(28, "area"), (28, "nearest"), (105, "area")]
    for _ in range(2):
        made = [omniglot.omniglot_images("meta_val", root=tiny, image_size=s, downscale=d) for s, d in ways]
        assert len({images.sha256 for images in made}) == 3
        assert [images.image_shape for images in made] == [(1, 28, 28), (1, 28, 28), (1, 105, 105)]


def test_archive_that_changed_is_checked_again(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "root" / "omniglot" / "images_evaluation.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes((tiny / "omniglot" / "images_evaluation.zip").read_bytes())
    omniglot.omniglot_images("meta_test", root=tmp_path / "root")
    pack(path, drawings_of("x", {"Tibetan": 2}))
    with pytest.raises(UserError, match="to hold examples with sha256"):
        omniglot.omniglot_images("meta_test", root=tmp_path / "root")


def test_absent_offline_names_file_and_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, path: Path, **_: object) -> None:
        raise UserError(f"{url} could not be reached")

    monkeypatch.setattr(store, "download", refuse)
    with pytest.raises(UserError) as caught:
        omniglot.omniglot_images("meta_train", root=tmp_path)
    for name in ("images_background.zip", "images_evaluation.zip"):
        address = f"https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{name}"
        assert f"{tmp_path / 'omniglot' / name} from {address}" in str(caught.value)


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("test", {}, "unknown split of omniglot 'test'.*Known: meta_train, meta_val, meta_test"),
        ("meta_test", {"scheme": "vinyal"}, "did you mean 'vinyals'"),
        ("meta_test", {"downscale": "bicubic"}, "Known: area, nearest"),
        ("meta_test", {"image_size": 32}, "expected image_size 20, 28, 42, 56, 105 for Omniglot, got 32"),
    ],
)
def test_unknown_options(tiny: Path, split: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        omniglot.omniglot_images(split, root=tiny, **options)


def test_embedded_split_has_the_published_sizes() -> None:
    found = omniglot.vinyals_characters()
    assert {split: len(characters) for split, characters in found.items()} == {
        "meta_train": 1028,
        "meta_val": 172,
        "meta_test": 423,
    }
    everything = [name for characters in found.values() for name in characters]
    assert len(set(everything)) == 1623


@pytest.mark.needs_data
@absent
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_embedded_split_equals_the_published_lists(split: str) -> None:
    ours = [f"{n}/rot{r}" for n in omniglot.vinyals_characters()[f"meta_{split}"] for r in ("000", "090", "180", "270")]
    published = (REAL / "omniglot" / "splits" / f"vinyals_{split}.txt").read_text().split()
    assert sorted(ours) == sorted(published)


@pytest.mark.needs_data
@absent
@pytest.mark.parametrize("archive", omniglot.ARCHIVES, ids=lambda archive: Path(archive.path).stem)
def test_real_archives_have_the_recorded_contents(archive: store.Archive) -> None:
    assert omniglot.hash_contents(REAL / archive.path) == archive.contents


@pytest.mark.needs_data
@pytest.mark.slow
@absent
def test_real_splits_have_their_sizes() -> None:
    for split, n in zip(omniglot.SPLITS, (1028, 172, 423), strict=True):
        images = omniglot.omniglot_images(split)
        assert images.n_classes == 4 * n
        assert images.images.shape == (20 * n, 1, 28, 28)
        assert torch.equal(torch.bincount(images.labels), torch.full((n,), 20))
        # Strokes are two to three pixels wide of 105: a twelfth of the paper is ink.
        assert 0.06 < float(images.images.float().mean()) / 255 < 0.1
