"""A data set's entry: what it passes on, and to whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.core import UserError, generator
from kshot.data.dataset import DataSet, image_tasks
from kshot.data.images import ImageSet

SMALL = {"n_way": 3, "n_shot": 1, "n_query": 2}


def image_set(n_classes: int = 6) -> ImageSet:
    return ImageSet(
        images=torch.randint(0, 256, (4 * n_classes, 1, 8, 8), dtype=torch.uint8, generator=generator(0, "images")),
        labels=torch.arange(4 * n_classes) % n_classes,
        class_names=tuple(f"c{c}" for c in range(n_classes)),
        groups=torch.arange(n_classes) % 2,
        group_names=("g", "h"),
    )


def shapes(seen: dict[str, Any]) -> DataSet:
    def images(split: str, *, root: Path | None = None, on_progress: Any = None, size: int = 8) -> ImageSet:
        seen.update(split=split, root=root, on_progress=on_progress, size=size)
        return image_set()

    return DataSet("shapes", "classification", "shapes", "MIT", "https://", image_tasks, images)


def test_options_reach_images_and_tasks(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    source = shapes(seen).open("meta_val", **SMALL, root=tmp_path, on_progress=print, size=9, within_group=1.0)
    assert seen == {"split": "meta_val", "root": tmp_path, "on_progress": print, "size": 9}
    assert source.name == "shapes"
    assert (source.spec.n_outputs, source.n_shot, source.n_query) == (3, 1, 2)
    plan = source.plan(8, generator(0))
    # Classes of one group have numbers of one parity.
    assert bool((plan["classes"] % 2 == plan["classes"][:, :1] % 2).all())


def test_options_that_are_left_out_keep_their_defaults() -> None:
    seen: dict[str, Any] = {}
    shapes(seen).open("meta_train", **SMALL)
    assert seen == {"split": "meta_train", "root": None, "on_progress": None, "size": 8}


@pytest.mark.parametrize("option", ["name", "sizes", "transform"])
def test_unknown_options_are_refused_before_anything_is_read(option: str) -> None:
    seen: dict[str, Any] = {}
    with pytest.raises(UserError, match=f"unknown option of shapes '{option}'.*Known: size, within_group"):
        shapes(seen).open("meta_train", **SMALL, **{option: 1})
    assert not seen


def test_varying_episodes() -> None:
    source = image_tasks("meta_train", image_set(), name="s", **SMALL, n_way_range=(2, 4), n_shot_range=(1, 2))
    assert source.varying
    plans = source.plan(20, generator(0))
    assert {plan["classes"].shape[1] for plan in plans} == {2, 3, 4}


def test_only_training_images_are_augmented() -> None:
    plans = {
        (split, augment): image_tasks(split, image_set(), name="s", **SMALL, augment=augment).plan(2, generator(0))
        for split in ("meta_train", "meta_val", "meta_test")
        for augment in ("none", "affine")
    }
    augmented = [key for key, plan in plans.items() if "support_transform" in plan]
    assert augmented == [("meta_train", "affine")]


def test_unknown_augmentation() -> None:
    with pytest.raises(UserError, match="unknown augmentation 'afine'; did you mean 'affine'"):
        image_tasks("meta_train", image_set(), name="s", **SMALL, augment="afine")  # type: ignore[arg-type]
