"""Reading pictures: every colour mode, size, turn and damage."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from kshot.apps.vision import image_key, load, read_image, strips, unreadable
from kshot.core import UserError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture without symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray(np.rint(np.stack([x, y, x * y], -1) * 255).astype(np.uint8))


def near(a: Image.Image, b: Image.Image, levels: float) -> bool:
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return x.shape == y.shape and float(np.abs(x - y).max()) <= levels


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("form", ["str", "path", "picture", "array", "tensor", "channels first", "floats"])
def test_every_form_gives_the_same_picture(tmp_path: Path, form: str) -> None:
    picture = gradient()
    x = np.array(picture)
    path = saved(tmp_path / "a.png", picture)
    example: Any = {
        "str": str(path),
        "path": path,
        "picture": picture,
        "array": x,
        "tensor": torch.from_numpy(x),
        "channels first": torch.from_numpy(x).permute(2, 0, 1),
        "floats": x / 255,
    }[form]
    got = read_image(example)
    assert got.mode == "RGB"
    assert near(got, picture, 0)
    assert got is not picture


@pytest.mark.parametrize(
    ("mode", "fill", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 200, (200, 200, 200)),
        ("LA", (0, 0), WHITE),
        ("LA", (7, 255), (7, 7, 7)),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("I;16", 65535, WHITE),
        ("I;16", 4095, WHITE),
        ("I;16", 255, WHITE),
        ("I;16", 2048, (128, 128, 128)),
        ("I", 65535, WHITE),
        ("F", 1.0, WHITE),
        ("F", 0.2, (51, 51, 51)),
    ],
)
def test_colour_modes(mode: str, fill: Any, expected: tuple[int, int, int]) -> None:
    # 2048 needs twelve bits: 2048 * 255 / 4095 = 127.5, rounded to even.
    got = read_image(Image.new(mode, (3, 2), fill))
    assert got.mode == "RGB"
    assert set(got.getdata() if not hasattr(got, "get_flattened_data") else got.get_flattened_data()) == {expected}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("a.png", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("a.tif", m) for m in ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB")),
        *(("a.jpg", m) for m in ("L", "RGB", "CMYK")),
        *(("a.gif", m) for m in ("L", "P")),
        *(("a.webp", m) for m in ("RGB", "RGBA")),
        *(("a.bmp", m) for m in ("L", "RGB")),
    ],
)
def test_colour_modes_of_files(tmp_path: Path, name: str, mode: str) -> None:
    picture = gradient() if mode in ("RGB", "CMYK", "LAB") else gradient().convert("L")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.applyTransform(picture, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
        assert converted is not None
    elif mode == "I;16":
        converted = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    elif mode == "F":
        converted = Image.fromarray(np.asarray(picture).astype(np.float32) / 255)
    else:
        converted = picture.convert(mode)
    exact = {"a.jpg": {"quality": 98, "subsampling": 0}, "a.webp": {"lossless": True}}
    if mode == "CMYK":
        exact = {}
    got = read_image(saved(tmp_path / name, converted, **exact.get(name, {})))
    assert got.mode == "RGB"
    levels = {"1": 255, "P": 24, "LAB": 40}.get(mode, 8 if name in ("a.jpg", "a.webp") else 1)
    assert near(got, picture.convert("RGB"), levels)
    assert np.asarray(got).std() > 30


def test_a_palette_with_transparency_is_on_white(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    for transparency in (1, b"\xff\x00"):
        got = read_image(saved(tmp_path / "a.png", picture, transparency=transparency))
        assert got.getpixel((0, 0)) == RED
        assert got.getpixel((3, 3)) == WHITE


def test_fractions_out_of_range_are_stretched_and_not_finite_ones_refused(tmp_path: Path) -> None:
    x = np.linspace(-3, 5, 12, dtype=np.float32).reshape(3, 4)
    got = np.asarray(read_image(saved(tmp_path / "a.tif", Image.fromarray(x))))
    assert (got.min(), got.max()) == (0, 255)
    x[0, 0] = np.nan
    with pytest.raises(UserError, match=r"a\.tif.*1 of its numbers are NaN"):
        read_image(saved(tmp_path / "a.tif", Image.fromarray(x)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "memory"])
def test_the_turn_of_the_camera_is_done(tmp_path: Path, orientation: int, name: str) -> None:
    # How a camera that notes this orientation stores an upright picture: NumPy's turns and flips undo themselves.
    upright = np.asarray(gradient())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    picture = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"a.jpg": {"quality": 98, "subsampling": 0}, "a.webp": {"lossless": True}}.get(name, {})
    if name == "memory":
        picture.getexif()[0x0112] = orientation
        got = read_image(picture)
    else:
        got = read_image(saved(tmp_path / name, picture, exif=exif, **options))
    assert near(got, gradient(), 10)


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, (0, 255, 0), (0, 0, 255))]
    for name in ("a.gif", "a.png", "a.webp"):
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        assert near(read_image(path), frames[0], 8)


def test_larger_pictures_are_reduced(tmp_path: Path) -> None:
    large = gradient(800, 200)
    for name in ("a.png", "a.jpg"):
        got = read_image(saved(tmp_path / name, large), max_side=100)
        assert got.size == (100, 25)
        assert near(got, large.resize((100, 25), Image.Resampling.BOX), 8)
    assert read_image(large, max_side=None).size == (800, 200)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 3, 4, 5), "uint8", r"got \(2, 3, 4, 5\); give one picture at a time"),
        ((5, 6, 7), "uint8", "permute its axes"),
        ((0, 4), "uint8", "expected a picture as an array"),
        ((4, 4), "int64", r"got int64; scale it to 0\.\.255"),
        ((4, 4), "float32", r"expected floats within 0\.\.1"),
    ],
)
def test_arrays_that_are_no_picture(shape: tuple[int, ...], dtype: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_image(np.full(shape, 2, dtype=dtype))


def test_nan_in_an_array() -> None:
    with pytest.raises(UserError, match=r"within 0\.\.1 in a picture, got nan"):
        read_image(np.full((2, 2), np.nan))


def test_booleans_are_black_and_white() -> None:
    got = read_image(torch.tensor([[True, False]]))
    assert (got.getpixel((0, 0)), got.getpixel((1, 0))) == (WHITE, (0, 0, 0))


@pytest.mark.parametrize("example", [None, 3, b"bytes", ["a.png"]])
def test_other_things_are_no_picture(example: Any) -> None:
    for function in (read_image, image_key):
        with pytest.raises(UserError, match=r"expected a picture.*got"):
            function(example)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.tif", "a.bmp"])
def test_truncated_files_are_named_with_the_way_on(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{name}, but.*--skip-bad"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"hello, I am a text", "no known format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC.*pip install pillow-heif, or convert it to JPEG"),
        (b"\x89PNG\r\n\x1a\n", "--skip-bad"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "--skip-bad"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known format"),
    ],
)
def test_files_that_are_no_picture(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"odd\.jpg.*{message}"):
        read_image(path)


def test_heic_is_read_where_its_package_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Heic(ImageFile.ImageFile):
        format = "TEST-HEIC"

        def _open(self) -> None:
            self._size, self._mode = (2, 1), "RGB"
            self.tile = [ImageFile._Tile("raw", (0, 0, 2, 1), 16, ("RGB", 0, 1))]

    def register() -> None:
        Image.register_open(Heic.format, Heic, lambda prefix: prefix[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0" + bytes([255, 0, 0, 0, 0, 255]))
    assert np.asarray(read_image(path)).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_absent_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError, match=f"expected a picture at {path}, got: .*; check the name"):
            read_image(path)
    with pytest.raises(UserError, match=r"none\.png, got: No such file"):
        image_key(tmp_path / "none.png")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
@pytest.mark.parametrize("factor", [1, 3])
def test_png_in_strips_is_the_same_picture(mode: str, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "STRIP", 48 * 6)
    noisy = np.asarray(gradient()).astype(int) + np.random.default_rng(0).integers(-9, 9, (32, 48, 3))
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    picture.save(file, "PNG")
    got = strips.read_in_strips(file, factor, load.to_rgb)
    file.seek(0)
    assert near(got, load.to_rgb(Image.open(file)).reduce(factor), 0)


def test_large_files_are_read_in_parts_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MAX_PIXELS", 40_000)
    large = gradient(600, 400)
    small = large.resize((100, 67), Image.Resampling.BOX)
    good = [saved(tmp_path / "a.jpg", large), saved(tmp_path / "a.png", large)]
    for path in good:
        assert near(read_image(path, max_side=100), small, 8)
        whole = read_image(path, max_side=None)
        assert whole.width * whole.height <= 40_000
    bad = [
        saved(tmp_path / "progressive.jpg", large, progressive=True),
        saved(tmp_path / "deep.png", Image.fromarray(np.zeros((400, 600), np.uint16))),
        saved(tmp_path / "b.tif", large),
        saved(tmp_path / "b.bmp", large),
    ]
    for path in bad:
        with pytest.raises(UserError, match=rf"{path.name}, but its 600 x 400 pixels are more than 40,000.*save it"):
            read_image(path, max_side=100)
    with pytest.raises(UserError, match=r"at most 40,000 pixels, got 600 x 400; pass the path"):
        read_image(large)


def test_a_large_png_that_is_truncated_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MAX_PIXELS", 10_000)
    path = saved(tmp_path / "a.png", gradient(300, 200))
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:33], whole[:80] + bytes(200) + whole[280:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.png, but it is truncated or damaged.*--skip-bad"):
            read_image(path)


def huge_png(path: Path, side: int) -> Path:
    """A grey PNG file of any size, written without holding it."""
    deflate = zlib.compressobj(1)
    row = b"\0" + bytes([128]) * side
    data = b"".join([*(deflate.compress(row) for _ in range(side)), deflate.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def huge_jpeg(path: Path, side: int) -> Path:
    """A grey JPEG file of any size: rows of blocks between restart marks, repeated under another height."""
    file = io.BytesIO()
    Image.new("L", (side, 64), 128).save(file, "JPEG", restart_marker_rows=1)
    data = file.getvalue()
    size, scan = data.index(b"\xff\xc0") + 5, data.index(b"\xff\xda")
    start = scan + 2 + struct.unpack(">H", data[scan + 2 : scan + 4])[0]
    rows, n = data[start:-2], -(-side // 64)
    height = struct.pack(">H", 64 * n)
    path.write_bytes(data[:size] + height + data[size + 2 : start] + b"\xff\xd7".join([rows] * n) + b"\xff\xd9")
    return path


MEASURE = """
import resource, sys
from kshot.apps.vision import Preprocessing, read_image

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
got = read_image(sys.argv[1])
pixels = Preprocessing().read(sys.argv[1])
print(*got.size, *set(got.resize((4, 4)).tobytes()), *pixels.shape, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux counts it")
@pytest.mark.parametrize("make", [huge_png, huge_jpeg])
def test_thirty_thousand_pixels_a_side_take_bounded_memory(tmp_path: Path, make: Any) -> None:
    # 30,000 x 30,000 in three colours would be 2,575 MiB.
    command = [sys.executable, "-W", "error", "-c", MEASURE, str(make(tmp_path / "huge", 30_000))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *numbers, mebibytes = [int(word) for word in done.stdout.split()]
    assert numbers[2:] == [128, 224, 224, 3]
    assert max(numbers[:2]) == 2048
    assert mebibytes < 400


def test_keys_are_of_content(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a.png", gradient()), tmp_path / "b.png"
    b.write_bytes(a.read_bytes())
    assert image_key(a) == image_key(str(b)) == hashlib.sha256(a.read_bytes()).hexdigest()
    x = np.asarray(gradient())
    keys = [
        image_key(a),
        image_key(gradient()),
        image_key(gradient().convert("L")),
        image_key(gradient(32, 48)),
        image_key(x),
        image_key(x[::-1]),
        image_key(x.reshape(48, 32, 3)),
        image_key(x / 255),
    ]
    assert len(set(keys)) == len(keys)
    assert image_key(torch.tensor(x)) == image_key(x)
    turned = gradient()
    turned.getexif()[0x0112] = 6
    assert image_key(turned) != image_key(gradient())


def test_unreadable_ones_are_found(tmp_path: Path) -> None:
    good = saved(tmp_path / "good.png", gradient())
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    told: list[tuple[int, int]] = []
    found = unreadable([good, bad, gradient(), "none.png"], on_progress=lambda done, n: told.append((done, n)))
    assert list(found) == [1, 3]
    assert "bad.png" in found[1]
    assert "none.png" in found[3]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_damaged_notes_of_the_camera_do_not_stop_a_picture(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", gradient(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert near(read_image(path), gradient(), 0)
