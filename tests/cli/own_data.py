"""Small data of one's own for the commands on fitted models: rows of numbers, and drawn shapes."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("setosa", "virginica", "versicolor")
COLUMNS = ("height", "width", "weight")
COLOURS = {"circle": (200, 40, 40), "square": (40, 160, 60), "triangle": (50, 60, 210)}


def rows(n_each: int, kinds: tuple[str, ...] = KINDS, seed: int = 0, noise: float = 0.5) -> list[list[object]]:
    """Draw rows of three numbers and a label around one point for each kind."""
    dice = np.random.default_rng(seed)
    centres = {"setosa": (0, 0, 3), "virginica": (3, 0, 0), "versicolor": (0, 3, 0), "stranger": (40, 40, 40)}
    return [
        [*(f"{v:.4f}" for v in np.add(centres[kind], noise * dice.standard_normal(3))), kind]
        for _ in range(n_each)
        for kind in kinds
    ]


def write_table(path: Path, found: list[list[object]], label: str = "label") -> Path:
    """Write rows as CSV, with labels or, where ``label`` is empty, without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        made = csv.writer(f)
        made.writerow([*COLUMNS, *([label] if label else [])])
        made.writerows(row if label else row[: len(COLUMNS)] for row in found)
    return path


def draw(shape: str, seed: int, side: int = 48) -> Image.Image:
    """Draw a shape somewhere, in its colour on a grey ground."""
    dice = np.random.default_rng([sum(map(ord, shape)), seed])
    x, y, r = (int(v) for v in dice.integers((16, 16, 9), (side - 16, side - 16, 15)))
    picture = Image.new("RGB", (side, side), tuple(int(v) for v in dice.integers(150, 200, 3)))
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[shape])
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=COLOURS[shape])
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=COLOURS[shape])
    return picture


def draw_folder(folder: Path, n_each: int, shapes: tuple[str, ...] = tuple(COLOURS), first: int = 0) -> Path:
    """Draw a folder of shapes for each class."""
    for shape in shapes:
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + n_each):
            draw(shape, i).save(folder / shape / f"{shape}-{i}.png")
    return folder
