"""Few-shot image classification: an image set, a sampler and perhaps a transform make a task source."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Split, Tree
from kshot.core import generator as stream
from kshot.data.features import FeatureSet
from kshot.data.images import ImageSet
from kshot.data.sampler import EpisodeSampler
from kshot.data.source import TaskSource
from kshot.data.transforms import Transform

if TYPE_CHECKING:
    from typing_extensions import Self


class ImageTasks(TaskSource):
    """Episodes of W classes drawn from an image set.

    A plan is a dict of ``classes`` (T, W), which class of ``self.classes`` each label stands for, and for each of
    ``support`` and ``query`` the example indices (T, S), the labels (T, S) as ``support_y``, and with a transform its
    parameters (T, S, ...) as ``support_transform``. Examples of one class stand together: label 0 first. With
    ``shuffle`` comes ``support_order`` (T, S), in which the support is gathered; all else is as without it.

    Args:
        images: the examples; vectors will do.
        name: the data set's name.
        n_way: W; replaced by ``n_way_range``.
        n_shot: K, support examples per class; replaced by ``n_shot_range``.
        n_query: Q, query examples per class.
        within_group: share of tasks whose classes all come from one group (one alphabet).
        turns_apart: of a group that is turned, each orientation is a group of its own: classes of a task within a group
            are then turned alike.
        n_way_range: smallest and largest W, for episodes that vary.
        n_shot_range: smallest and largest K, for episodes that vary.
        transform: augmentation of support and query, or None.
        shuffle: gather the support in random order, for learners to which the place of an example means something.

    Raises:
        UserError: the images cannot fill such an episode.
    """

    def __init__(
        self,
        images: ImageSet | FeatureSet,
        *,
        name: str,
        n_way: int = 5,
        n_shot: int = 1,
        n_query: int = 15,
        within_group: float = 0.0,
        turns_apart: bool = False,
        n_way_range: tuple[int, int] | None = None,
        n_shot_range: tuple[int, int] | None = None,
        transform: Transform | None = None,
        shuffle: bool = False,
    ) -> None:
        self.name = name
        self.images = images
        self.classes = images.all_class_names()
        apart = images.turned_groups() if turns_apart and isinstance(images, ImageSet) else None
        self.groups = images.all_groups() if apart is None else apart
        self.sampler = EpisodeSampler(
            images.all_labels(),
            self.groups,
            n_way=n_way,
            n_shot=n_shot,
            n_query=n_query,
            within_group=within_group,
            n_way_range=n_way_range,
            n_shot_range=n_shot_range,
            class_names=self.classes,
        )
        self.transform, self.shuffle, self.turns_apart = transform, shuffle, turns_apart
        self.n_shot, self.n_query = self.sampler.n_shot, self.sampler.n_query
        self.varying = self.sampler.varying
        self.spec = Spec("classification", images.image_shape, self.sampler.n_way)
        self.device = images.device
        self._labels = images.all_labels()

    @property
    def sha256(self) -> str:
        """Hash of the decoded examples."""
        return self.images.sha256

    def to(self, device: torch.device | str) -> Self:
        """Move the images to a device.

        Args:
            device: where to.

        Returns:
            This source itself, changed in place.
        """
        self.images = self.images.to(device)
        return super().to(device)

    def plan(self, n_tasks: int, generator: torch.Generator) -> Tree:
        """Draw classes, examples and augmentation of T tasks.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            A plan as in the class's description, or a list of T plans with T = 1 each if ``varying``.
        """
        own = _aside(generator) if self.shuffle else None
        if self.varying:
            drawn = self.sampler.plan_varying(n_tasks, generator)
            return [self._completed(self._ragged(shots, index), generator, own) for shots, index in drawn]
        index = self.sampler.plan(n_tasks, generator)
        shot, way = self.n_shot, index.shape[1]
        plan = {
            "classes": self._labels[index[..., 0]],
            "support": index[..., :shot].flatten(1),
            "support_y": _class_major(way, shot).repeat(n_tasks, 1),
            "query": index[..., shot:].flatten(1),
            "query_y": _class_major(way, self.n_query).repeat(n_tasks, 1),
        }
        return self._completed(plan, generator, own)

    def _ragged(self, shots: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the plan of one task whose classes have K of their own."""
        way, n_support = len(shots), int(shots.sum())
        query = index[n_support:]
        plan = {
            "classes": self._labels[query[:: self.n_query]],
            "support": index[:n_support],
            "support_y": torch.arange(way).repeat_interleave(shots),
            "query": query,
            "query_y": _class_major(way, self.n_query),
        }
        return {key: value[None] for key, value in plan.items()}

    def _completed(
        self, plan: dict[str, Tensor], generator: torch.Generator, own: torch.Generator | None
    ) -> dict[str, Tensor]:
        if self.transform is not None:
            for part in ("support", "query"):
                n_tasks, n_examples = plan[part].shape
                plan[f"{part}_transform"] = self.transform.plan(n_tasks, n_examples, generator)
        if own is not None:
            plan["support_order"] = torch.rand(plan["support"].shape, dtype=torch.float64, generator=own).argsort(1)
        return plan

    def episodes(self, plan: Tree) -> Episode:
        """Gather the images of a plan.

        Args:
            plan: from ``plan``, one item of it if ``varying``, or a slice of it along the task axis.

        Returns:
            Episodes on ``device``: ``support.x`` (T, S, C, H, W) float32 within [0, 1], ``support.y`` (T, S) int64 of
            0..W-1, where S = W * K; ``query`` the same with W * Q.
        """
        return Episode(self._gather(plan, "support"), self._gather(plan, "query"))

    def _gather(self, plan: dict[str, Tensor], part: str) -> Split:
        order = plan.get(f"{part}_order")
        index, y, change = (_ordered(plan.get(f"{part}{name}"), order) for name in ("", "_y", "_transform"))
        x = self.images.gather(index)
        if self.transform is not None:
            x = self.transform.apply(x, change)
        y = y.to(self.device, non_blocking=True)
        return Split(x, y, plan["classes"].shape[1])


def _aside(generator: torch.Generator) -> torch.Generator:
    """Make a generator that depends on where another one stands, and leave that where it is.

    Returns:
        A generator of its own.
    """
    state = hashlib.sha256(generator.get_state().numpy().tobytes()).digest()
    return stream(int.from_bytes(state[:8], "little"), "order")


def _ordered(t: Any, order: Tensor | None) -> Any:
    """Return the entries (T, S, ...) of a plan in another order (T, S) of its examples."""
    if t is None or order is None:
        return t
    return t[torch.arange(len(order))[:, None], order]


def _class_major(n_way: int, n_each: int) -> Tensor:
    """Return labels (W * n,): n zeros, n ones, and so on."""
    return torch.arange(n_way).repeat_interleave(n_each)
