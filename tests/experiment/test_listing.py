"""The plain list of measured rows: which recipes, how numbers are written, what is missing."""

from __future__ import annotations

from typing import Any

from kshot.experiment.config import RunConfig
from kshot.experiment.recipes.listing import listing
from kshot.experiment.recipes.recipe import Recipe


def _row(name: str, mean: float | None, **more: Any) -> dict[str, Any]:
    usual = {"published": None, "least": None, "passed": None, "metric": "bits", "over_seeds": "mean"}
    return {"name": name, "mean": mean, "ci95_episodes": 0.25, "ci95_seeds": None, **usual, **more}


def _recipe(name: str, data: str) -> Recipe:
    return Recipe(name, "", RunConfig("ntm", data), (), "")


KNOWN = {name: _recipe(name, data) for name, data in (("a", "copy"), ("b", "copy"), ("c", "sinusoid"))}


def test_rows_of_a_recipe() -> None:
    rows = [
        _row("cost", 12.3456, published=1.0, least=20, passed=True, ci95_seeds=0.5),
        _row("long", 4321.0, least=1, passed=False),
        _row("until", 6000.0, metric="sequences", over_seeds="median", least=60_000, passed=True),
        _row("never", None, metric="sequences", over_seeds="largest"),
    ]
    result = {"recipe": "a", "seeds": [0, 1], "train_seconds": [100.0, 160.0], "rows": rows}
    lines = listing({"a": result, "c": {**result, "recipe": "c"}}, KNOWN, ("copy",)).splitlines()
    assert lines[2:6] == [
        "| `a` | cost | 12.3 ± 0.5 | 1 | 20 ✓ | 2 | 2 min |",
        "|  | long | 4,321 ± 0.25 |  | 1 ✗ |  |  |",
        "|  | until | 6,000 |  | 60,000 ✓ |  |  |",
        "|  | never | not reached |  |  |  |  |",
    ]
    assert lines[6:] == ["", "Without a record yet: `b`."]


def test_medians_are_called_so() -> None:
    result = {"recipe": "c", "seeds": [0], "train_seconds": [90.0], "rows": [_row("cost", 0.5, over_seeds="median")]}
    lines = listing({"c": result}, KNOWN, ("sinusoid",)).splitlines()
    assert lines[2:] == ["| `c` | cost | 0.5 ± 0.25, median |  |  | 1 | 90 s |"]
