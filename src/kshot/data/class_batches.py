"""Batches for plain classification: examples of all training classes, each class with one label for the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Split, Tree, UserError
from kshot.data.image_tasks import ImageTasks
from kshot.data.source import TaskSource

if TYPE_CHECKING:
    from typing_extensions import Self


class ClassBatches(TaskSource):
    """Turns a source of few-shot tasks into one of batches whose labels are those of the whole training set.

    A batch has as many examples as a task, W * (K + Q), drawn uniformly with replacement; it keeps the form of an
    episode, but that its n_way is the number of all classes and its classes need not have support.

    Args:
        tasks: few-shot tasks on images.

    Raises:
        UserError: the source has no fixed classes of images, or shapes its tasks in a way that batches have not.
    """

    shows_every_class = False

    def __init__(self, tasks: TaskSource) -> None:
        if not isinstance(tasks, ImageTasks):
            raise UserError(
                f"expected images of fixed classes to train a plain classifier on, got {tasks.name} "
                f"({type(tasks).__name__}); choose such data, or a method that is trained on episodes"
            )
        if tasks.sampler.within_group > 0 or tasks.varying:
            raise UserError(
                "within_group and ranges of ways and shots shape tasks, and a plain classifier is trained on batches "
                "of all classes; leave them out, or choose a method that is trained on episodes"
            )
        self.tasks, self.name, self.classes = tasks, tasks.name, tasks.classes
        self.labels = tasks.images.all_labels()
        self.spec = Spec("classification", tasks.spec.input_shape, tasks.images.n_classes)
        self.n_shot, self.n_query, self.device = tasks.n_shot, tasks.n_query, tasks.device
        way = tasks.spec.n_outputs
        self.sizes = {"support": way * tasks.n_shot, "query": way * tasks.n_query}

    @property
    def sha256(self) -> str:
        """Hash of the decoded examples."""
        return self.tasks.sha256

    def to(self, device: torch.device | str) -> Self:
        """Move the images to a device.

        Args:
            device: where to.

        Returns:
            This source itself, changed in place.
        """
        self.tasks.to(device)
        return super().to(device)

    def plan(self, n_tasks: int, generator: torch.Generator) -> Tree:
        """Draw the examples of T batches, and their augmentation.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            ``support`` and ``query`` (T, N) example indices, and with a transform its parameters.
        """
        plan: dict[str, Tensor] = {}
        for part, size in self.sizes.items():
            plan[part] = torch.randint(len(self.labels), (n_tasks, size), generator=generator)
            if self.tasks.transform is not None:
                plan[f"{part}_transform"] = self.tasks.transform.plan(n_tasks, size, generator)
        return plan

    def episodes(self, plan: Tree) -> Episode:
        """Gather the images of a plan.

        Args:
            plan: from ``plan``, or a slice of it along the task axis.

        Returns:
            Batches in the form of episodes; ``y`` is the class among all of ``classes``.
        """
        return Episode(self._gather(plan, "support"), self._gather(plan, "query"))

    def _gather(self, plan: dict[str, Tensor], part: str) -> Split:
        x = self.tasks.images.gather(plan[part])
        if self.tasks.transform is not None:
            x = self.tasks.transform.apply(x, plan[f"{part}_transform"])
        return Split(x, self.labels[plan[part]].to(self.device, non_blocking=True), self.spec.n_outputs)
