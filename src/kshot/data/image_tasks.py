"""Few-shot image classification: an image set, a sampler and perhaps a transform make a task source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Split, Tree
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
    parameters (T, S, ...) as ``support_transform``. Examples of one class stand together: label 0 first.

    Args:
        images: the examples.
        name: the data set's name.
        n_way: W; replaced by ``n_way_range``.
        n_shot: K, support examples per class; replaced by ``n_shot_range``.
        n_query: Q, query examples per class.
        within_group: share of tasks whose classes all come from one group (one alphabet).
        n_way_range: smallest and largest W, for episodes that vary.
        n_shot_range: smallest and largest K, for episodes that vary.
        transform: augmentation of support and query, or None.

    Raises:
        UserError: the images cannot fill such an episode.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        name: str,
        n_way: int = 5,
        n_shot: int = 1,
        n_query: int = 15,
        within_group: float = 0.0,
        n_way_range: tuple[int, int] | None = None,
        n_shot_range: tuple[int, int] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.name = name
        self.images = images
        self.classes = images.all_class_names()
        self.sampler = EpisodeSampler(
            images.all_labels(),
            images.all_groups(),
            n_way=n_way,
            n_shot=n_shot,
            n_query=n_query,
            within_group=within_group,
            n_way_range=n_way_range,
            n_shot_range=n_shot_range,
            class_names=self.classes,
        )
        self.transform = transform
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
        if self.varying:
            drawn = self.sampler.plan_varying(n_tasks, generator)
            return [self._augmented(self._ragged(shots, index), generator) for shots, index in drawn]
        index = self.sampler.plan(n_tasks, generator)
        shot, way = self.n_shot, index.shape[1]
        plan = {
            "classes": self._labels[index[..., 0]],
            "support": index[..., :shot].flatten(1),
            "support_y": _class_major(way, shot).repeat(n_tasks, 1),
            "query": index[..., shot:].flatten(1),
            "query_y": _class_major(way, self.n_query).repeat(n_tasks, 1),
        }
        return self._augmented(plan, generator)

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

    def _augmented(self, plan: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        if self.transform is not None:
            for part in ("support", "query"):
                n_tasks, n_examples = plan[part].shape
                plan[f"{part}_transform"] = self.transform.plan(n_tasks, n_examples, generator)
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
        x = self.images.gather(plan[part])
        if self.transform is not None:
            x = self.transform.apply(x, plan[f"{part}_transform"])
        y = plan[f"{part}_y"].to(self.device, non_blocking=True)
        return Split(x, y, plan["classes"].shape[1])


def _class_major(n_way: int, n_each: int) -> Tensor:
    """Return labels (W * n,): n zeros, n ones, and so on."""
    return torch.arange(n_way).repeat_interleave(n_each)
