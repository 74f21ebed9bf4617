"""What the house knows of a data set: facts, archives, and how to open it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kshot.core import Kind, UserError
from kshot.core.registry import unknown
from kshot.data.download import OnProgress
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.data.source import TaskSource
from kshot.data.store import Archive
from kshot.data.transforms import RandomAffine

META_SPLITS = ("meta_train", "meta_val", "meta_test")
AUGMENTATIONS = ("none", "affine")

_STANDARD = ("name", "n_way", "n_shot", "n_query", "root", "on_progress")


class Growth(NamedTuple):
    """A size of the tasks that can be asked for beyond that of training, to see whether a learner goes on.

    Attributes:
        along: its name.
        options: the options that all take its value.
        values: some, ascending; the first ones lie within training.
    """

    along: str
    options: tuple[str, ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class DataSet:
    """One data set. Its options are the keyword-only parameters of ``tasks`` and ``images`` that have a default.

    Attributes:
        name: what one types on the command line.
        kind: of its tasks, see ``kshot.core.Spec``.
        summary: one line.
        licence: its terms.
        url: where to read about it.
        tasks: ``tasks(split, *, ...)`` makes the task source; if there are images, ``tasks(split, image_set, *, ...)``.
        images: ``images(split, *, ...)`` makes an image set; None where tasks are made by a formula.
        archives: files that it needs; none where it is generated.
        splits: what can be opened.
        growth: how its tasks grow, None where they do not.
    """

    name: str
    kind: Kind
    summary: str
    licence: str
    url: str
    tasks: Callable[..., TaskSource]
    images: Callable[..., ImageSet] | None = None
    archives: tuple[Archive, ...] = ()
    splits: tuple[str, ...] = META_SPLITS
    growth: Growth | None = None

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The data set's own options by name, each with an annotation and a default."""
        found = {**(_keywords(self.images) if self.images else {}), **_keywords(self.tasks)}
        return {name: p for name, p in found.items() if name not in _STANDARD}

    def open(
        self,
        split: str,
        *,
        n_way: int,
        n_shot: int,
        n_query: int,
        root: Path | str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> TaskSource:
        """Open one split.

        Args:
            split: one of ``splits``.
            n_way: classes of a task; regression has none and leaves it aside, and sequences all three.
            n_shot: support examples of a class, or points of a regression task.
            n_query: query examples of a class, or points of a regression task.
            root: the data root, see ``kshot.data.store.data_root``.
            on_progress: called during a download with file name, bytes so far and bytes in all.
            **options: the data set's own, see ``options``.

        Returns:
            The task source, on the CPU.

        Raises:
            UserError: the split or an option is unknown, or the data are absent, damaged or too few.
        """
        if split not in self.splits:
            raise UserError(unknown(f"split of {self.name}", split, list(self.splits)))
        for option in options:
            if option not in self.options:
                raise UserError(unknown(f"option of {self.name}", option, list(self.options) or ["none"]))
        standard = (self.name, n_way, n_shot, n_query, root, on_progress)
        given = {**dict(zip(_STANDARD, standard, strict=True)), **options}
        if self.images is None:
            return _call(self.tasks, given, split)
        return _call(self.tasks, given, split, _call(self.images, given, split))


def image_tasks(
    split: str,
    images: ImageSet,
    *,
    name: str,
    n_way: int,
    n_shot: int,
    n_query: int,
    within_group: float = 0.0,
    turns_apart: bool = False,
    n_way_range: tuple[int, int] | None = None,
    n_shot_range: tuple[int, int] | None = None,
    augment: Literal["none", "affine"] = "none",
    shuffle: bool = False,
) -> ImageTasks:
    """Draw episodes from images: the ``tasks`` of every data set of images.

    Args:
        split: meta_train is augmented, the others never are.
        images: the examples.
        name: of the data set.
        n_way: W.
        n_shot: K.
        n_query: Q.
        within_group: share of tasks whose classes all come from one group (alphabet, script), 0 to 1.
        turns_apart: classes of a task within one group are turned alike, where rotations are classes.
        n_way_range: smallest and largest W of episodes that vary; replaces ``n_way``.
        n_shot_range: smallest and largest K of episodes that vary; replaces ``n_shot``.
        augment: "affine" turns, shifts, scales and shears every training image by a little, in the ranges of Koch,
            Zemel and Salakhutdinov (Siamese Neural Networks for One-shot Image Recognition, 2015).
        shuffle: give the support in random order, and not class by class; the examples stay the same.

    Returns:
        The task source.

    Raises:
        UserError: the images cannot fill such an episode, or the augmentation is unknown.
    """
    if augment not in AUGMENTATIONS:
        raise UserError(unknown("augmentation", augment, list(AUGMENTATIONS)))
    affine = augment == "affine" and split == "meta_train"
    return ImageTasks(
        images,
        name=name,
        n_way=n_way,
        n_shot=n_shot,
        n_query=n_query,
        within_group=within_group,
        turns_apart=turns_apart,
        n_way_range=n_way_range,
        n_shot_range=n_shot_range,
        # Their shear of 0.3 is 17 degrees, their shift of 2 pixels of 105 a share of 0.02.
        transform=RandomAffine(rotation=10, shift=0.02, scale=(0.8, 1.2), shear=17) if affine else None,
        shuffle=shuffle,
    )


def _keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found = inspect.signature(function, eval_str=True).parameters
    return {name: p for name, p in found.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _call(function: Callable[..., Any], given: dict[str, Any], *args: Any) -> Any:
    """Return what a function makes of those keywords that it has."""
    return function(*args, **{name: given[name] for name in _keywords(function) if name in given})
