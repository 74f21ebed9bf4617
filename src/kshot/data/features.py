"""A set of labelled vectors, such as the embeddings of an image set: what a frozen network leaves to draw from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from kshot.core import UserError
from kshot.core.checks import check_finite


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Vectors of C classes; it stands in the place of an ``ImageSet`` in ``ImageTasks``, which draws the same episodes.

    Attributes:
        features: float32 (N, D); the only tensor that ``to`` moves.
        labels: int64 (N,) of 0..C-1, on the CPU.
        class_names: names of the C classes.
        groups: int64 (C,) group of each class, on the CPU.

    Raises:
        UserError: shapes do not fit together, or a feature is not finite.
    """

    features: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    groups: Tensor

    def __post_init__(self) -> None:
        n, c = len(self.labels), len(self.class_names)
        if self.features.ndim != 2 or len(self.features) != n or len(self.groups) != c:
            raise UserError(
                f"expected features (N, D), N labels and a group for each of C classes, got "
                f"{tuple(self.features.shape)}, {n} labels, {len(self.groups)} groups and {c} names; make them agree"
            )
        check_finite(self.features, "features")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one example, (D,)."""
        return tuple(self.features.shape[1:])

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        """Where the features lie."""
        return self.features.device

    def all_labels(self) -> Tensor:
        """Return the class of every example.

        Returns:
            int64 (N,).
        """
        return self.labels

    def all_groups(self) -> Tensor:
        """Return the group of every class.

        Returns:
            int64 (C,).
        """
        return self.groups

    def all_class_names(self) -> tuple[str, ...]:
        """Return the name of every class.

        Returns:
            C names.
        """
        return self.class_names

    def gather(self, index: Tensor) -> Tensor:
        """Take examples by index.

        Args:
            index: int64 (...).

        Returns:
            float32 (..., D).
        """
        found = self.features.index_select(0, index.reshape(-1).to(self.device, non_blocking=True))
        return found.view(*index.shape, -1)

    def to(self, device: torch.device | str) -> FeatureSet:
        """Copy the features to a device.

        Args:
            device: where to.

        Returns:
            The set there.
        """
        return replace(self, features=self.features.to(device))

    @cached_property
    def sha256(self) -> str:
        """Hash of features, labels and names."""
        digest = hashlib.sha256(repr((tuple(self.features.shape), self.class_names)).encode())
        digest.update(self.features.cpu().contiguous().numpy().data)
        digest.update(self.labels.numpy().astype("<i8").data)
        return digest.hexdigest()
