"""How fast photographs become vectors: ``ImageEncoder`` against plain timm."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kshot.apps.vision import ImageEncoder
from kshot.bench.result import Result, lines_of
from kshot.bench.timing import take_turns

#: Photographs, their width and height, and how many of them a minute are asked of two threads.
N_IMAGES, SIZE, PER_MINUTE = 96, (500, 375), 1500
_BATCH = 32


def image_encoding(rounds: int, n_images: int = N_IMAGES) -> Result:
    """Time the encoding of photographs, from JPEG files to vectors, by the embedded EfficientNet-Lite0.

    Args:
        rounds: measured rounds.
        n_images: photographs in a round.

    Returns:
        Seconds of an image.
    """
    # One that keeps nothing of what it has encoded, unlike the commands.
    encoder = ImageEncoder(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        paths = _photographs(Path(folder), n_images)
        contenders: dict[str, Callable[[], Tensor]] = {
            "kshot": lambda: encoder.encode(paths),
            "timm, plain eager": _plain_timm(encoder.plain_network(), encoder.prepare.size, paths),
        }
        ours, theirs = (run() for run in contenders.values())
        gap = float((ours - theirs).abs().max() / theirs.abs().max())
        timings = take_turns(contenders, rounds)
    n_threads = torch.get_num_threads()
    notes = {
        "kshot": f"{n_threads} threads, each with a batch of its own",
        "timm, plain eager": f"batches of {_BATCH}, {n_threads} threads within each layer",
    }
    width, height = SIZE
    return Result(
        "image-encoding",
        f"{n_images} JPEG files of {width} x {height} to vectors by EfficientNet-Lite0: one image, reading included",
        lines_of(timings, "kshot", n_images, notes),
        f"vectors of kshot and timm, relative to the largest: {gap:.1e}",
        per_minute=PER_MINUTE,
        extra={"threads": n_threads, "images_per_minute": 60 * n_images / timings["kshot"].median},
    )


def _photographs(folder: Path, n: int) -> list[Path]:
    # Smooth shapes with some grain compress, and so take as long to read, as photographs do.
    dice = np.random.default_rng(0)
    paths = [folder / f"{i}.jpg" for i in range(n)]
    for path in paths:
        shapes = Image.fromarray(dice.integers(0, 256, (12, 16, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        grain = dice.normal(0, 6, (SIZE[1], SIZE[0], 1))
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def _plain_timm(network: nn.Module, size: tuple[int, int], paths: list[Path]) -> Callable[[], Tensor]:
    # As the pages of timm show it, with the same squeezing of the whole picture into a square.
    transforms = importlib.import_module("timm.data.transforms_factory")
    half = (0.5, 0.5, 0.5)
    prepare = transforms.transforms_imagenet_eval(
        size, crop_pct=1.0, crop_mode="squash", interpolation="bicubic", mean=half, std=half
    )

    def read(path: Path) -> Tensor:
        with Image.open(path) as image:
            return prepare(image.convert("RGB"))

    def run() -> Tensor:
        found = []
        with torch.inference_mode():
            for start in range(0, len(paths), _BATCH):
                found.append(network(torch.stack([read(path) for path in paths[start : start + _BATCH]])))
        return torch.cat(found)

    return run
