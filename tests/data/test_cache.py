"""The cache of decoded tensors: built once, never wrong, never in the way."""

import os
import warnings
from pathlib import Path

import pytest
import torch

from kshot.core import UserError, generator
from kshot.data.cache import CacheWarning, Decoded, cache_dir, cached, cached_images
from kshot.data.images import ImageSet


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Decoded:
        self.calls += 1
        x = torch.rand(10, 3, generator=generator(0, "x"))
        return Decoded({"x": x, "t": x.T, "none": torch.empty(0, 4, dtype=torch.uint8)}, {"names": '["a", "ü"]'})


def same(a: Decoded, b: Decoded) -> bool:
    return (
        a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(t, b.tensors[k]) and t.dtype == b.tensors[k].dtype for k, t in a.tensors.items())
        and a.notes == b.notes
    )


def test_built_once_then_read(folder: Path) -> None:
    build = Builder()
    first, second = cached("key-1", build), cached("key-1", build)
    assert build.calls == 1
    assert same(first, second)
    assert [p.name for p in (folder / "decoded").iterdir()] == ["key-1.safetensors"]
    cached("key-2", build)
    assert build.calls == 2


def flip(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def note(data: bytes) -> bytes:
    return data.replace(b'[\\"a\\"', b'[\\"b\\"')


@pytest.mark.parametrize(
    "damage",
    [flip, note, lambda d: d[:-10], lambda d: d[:4], lambda d: b"", lambda d: b"PK\x03\x04 not a tensor file"],
    ids=["bit", "note", "end", "header", "empty", "foreign"],
)
def test_damaged_file_is_built_again(folder: Path, damage) -> None:
    build = Builder()
    right = cached("key", build)
    path = folder / "decoded" / "key.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(CacheWarning, match="is damaged .* and is built again"):
        again = cached("key", build)
    assert build.calls == 2
    assert same(again, right)
    assert same(cached("key", build), right)
    assert build.calls == 2


def test_unwritable_cache_is_said_and_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "file"))
    build = Builder()
    for calls in (1, 2):
        with pytest.warns(CacheWarning, match="cannot keep decoded data .* set KSHOT_CACHE"):
            found = cached("key", build)
        assert build.calls == calls
        assert same(found, Builder()())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full, a disk that is always full")
def test_full_disk_is_said_and_done_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "decoded").mkdir(parents=True)
    monkeypatch.setattr("kshot.core.files.secrets.token_hex", lambda n: "0")
    (folder / "decoded" / f".key.safetensors.{os.getpid()}.0.part").symlink_to("/dev/full")
    with pytest.warns(CacheWarning, match="the disk is full"):
        found = cached("key", Builder())
    assert same(found, Builder()())
    assert not list((folder / "decoded").iterdir())


@pytest.mark.parametrize("key", ["", "../up", "a/b", ".hidden", "a b"])
def test_key_must_be_a_file_name(key: str) -> None:
    with pytest.raises(UserError, match="expected a cache key"):
        cached(key, Builder())


@pytest.mark.parametrize("binary", [True, False])
def test_image_sets_come_back_whole(folder: Path, binary: bool) -> None:
    x = torch.randint(0, 256, (6, 1, 5, 13), dtype=torch.uint8, generator=generator(0, "images"))
    images = ImageSet(
        images=(x > 99).to(torch.uint8) * 255 if binary else x,
        labels=torch.arange(6) % 3,
        class_names=("a", "b", "ü/1"),
        groups=torch.tensor([0, 0, 1]),
        group_names=("g", "h"),
    )
    first = cached_images("key", lambda: images)
    second = cached_images("key", lambda: pytest.fail("built twice"))
    for found in (first, second):
        assert found.sha256 == images.sha256
        assert torch.equal(found.images, images.images)
        assert found.group_names == ("g", "h")


def test_black_and_white_takes_an_eighth(folder: Path) -> None:
    def images(most: int) -> ImageSet:
        x = torch.zeros(64, 1, 64, 64, dtype=torch.uint8)
        x[0, 0, 0, 0] = most
        return ImageSet(x, torch.zeros(64, dtype=torch.int64), ("a",), torch.zeros(1, dtype=torch.int64), ("g",))

    cached_images("bits", lambda: images(255))
    cached_images("grey", lambda: images(254))
    bits, grey = ((folder / "decoded" / f"{k}.safetensors").stat().st_size for k in ("bits", "grey"))
    assert bits < grey / 7


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_CACHE", "~/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("KSHOT_CACHE", "")
    assert cache_dir().is_absolute()
    assert "kshot" in cache_dir().parts[-1]


def test_first_use_makes_no_noise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached("key", Builder())
