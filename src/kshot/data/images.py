"""A set of labelled images as one uint8 tensor: an episode batch is an index gather from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from kshot.core import UserError

_DEGREES = (0, 90, 180, 270)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of C classes, each class in one group (an alphabet, a script).

    With ``rotations`` the set stands for four times as many examples and classes: example ``r * N + i`` is image ``i``
    turned counter-clockwise by ``r`` quarter turns, and its class is ``r * C + labels[i]``. Nothing is stored for them.

    Attributes:
        images: uint8 (N, C, H, W); the only tensor that ``to`` moves.
        labels: int64 (N,) of stored classes 0..C-1, on the CPU.
        class_names: names of the C stored classes.
        groups: int64 (C,) group of each stored class, on the CPU.
        group_names: names of the groups.
        rotations: True to add the three rotated copies of every class as new classes.

    Raises:
        UserError: shapes, dtypes or labels do not fit together.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    groups: Tensor
    group_names: tuple[str, ...]
    rotations: bool = False

    def __post_init__(self) -> None:
        _check_images(self.images, self.rotations)
        _check_index(self.labels, self.images.shape[0], len(self.class_names), "labels", "class_names")
        _check_index(self.groups, len(self.class_names), len(self.group_names), "groups", "group_names")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def n_classes(self) -> int:
        """Number of classes, rotated ones included."""
        return len(self.class_names) * (4 if self.rotations else 1)

    @property
    def n_examples(self) -> int:
        """Number of examples, rotated ones included."""
        return self.images.shape[0] * (4 if self.rotations else 1)

    def __len__(self) -> int:
        return self.n_examples

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.images.device

    def all_labels(self) -> Tensor:
        """Return the class of every example, rotated ones included.

        Returns:
            int64 (n_examples,) of 0..n_classes-1.
        """
        if not self.rotations:
            return self.labels
        return torch.cat([self.labels + turn * len(self.class_names) for turn in range(4)])

    def all_groups(self) -> Tensor:
        """Return the group of every class, rotated ones included: a rotated class stays in its group.

        Returns:
            int64 (n_classes,).
        """
        return self.groups.repeat(4) if self.rotations else self.groups

    def turned_groups(self) -> Tensor:
        """Return the group of every class where each orientation of a group counts as a group of its own.

        Returns:
            int64 (n_classes,).
        """
        if not self.rotations:
            return self.groups
        return torch.cat([self.groups + turn * len(self.group_names) for turn in range(4)])

    def all_class_names(self) -> tuple[str, ...]:
        """Return the name of every class, rotated ones included.

        Returns:
            n_classes names; a rotated class adds its angle in degrees.
        """
        if not self.rotations:
            return self.class_names
        return tuple(f"{name} @{angle}" if angle else name for angle in _DEGREES for name in self.class_names)

    def gather(self, index: Tensor) -> Tensor:
        """Take examples by index, all at once.

        Args:
            index: int64 (...) of 0..n_examples-1, on any device.

        Returns:
            float32 (..., C, H, W) within [0, 1], on the device of the images.
        """
        flat = index.reshape(-1)
        n = self.images.shape[0]
        turns = torch.div(flat, n, rounding_mode="floor") if self.rotations else None
        stored = flat if turns is None else flat - turns * n
        x = self.images.index_select(0, stored.to(self.device, non_blocking=True))
        if turns is not None:
            x = quarter_turns(x, turns.to(self.device, non_blocking=True))
        x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return x.view(*index.shape, *self.images.shape[1:])

    def subset(self, classes: Sequence[int] | Tensor) -> ImageSet:
        """Keep some stored classes; they are relabelled 0.. in the order given, and groups left empty are dropped.

        Args:
            classes: distinct indices of stored classes.

        Returns:
            The smaller set, with the same ``rotations``.

        Raises:
            UserError: a class is unknown or named twice, or none is named.
        """
        keep = torch.as_tensor(classes, dtype=torch.int64)
        n = len(self.class_names)
        if not keep.numel() or int(keep.min()) < 0 or int(keep.max()) >= n or keep.unique().numel() < keep.numel():
            raise UserError(f"expected distinct classes of 0..{n - 1}, got {keep.tolist()[:10]}; name each class once")
        new_label = torch.full((n,), -1)
        new_label[keep] = torch.arange(len(keep))
        labels = new_label[self.labels]
        kept_groups, groups = self.groups[keep].unique(return_inverse=True)
        mine = (labels >= 0).nonzero().squeeze(1)
        return ImageSet(
            images=self.images[mine.to(self.device)],
            labels=labels[mine],
            class_names=tuple(self.class_names[c] for c in keep.tolist()),
            groups=groups,
            group_names=tuple(self.group_names[g] for g in kept_groups.tolist()),
            rotations=self.rotations,
        )

    def to(self, device: torch.device | str) -> ImageSet:
        """Copy the images to a device.

        Args:
            device: where to.

        Returns:
            The set there; labels and groups stay on the CPU, where plans are drawn.
        """
        moved = replace(self, images=self.images.to(device))
        if "sha256" in self.__dict__:
            moved.__dict__["sha256"] = self.sha256
        return moved

    @cached_property
    def sha256(self) -> str:
        """Hash of what was decoded: shape, pixels, labels, groups and names; not of ``rotations``, which adds none."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.class_names, self.group_names)).encode())
        for chunk in self.images.split(1024):
            digest.update(chunk.cpu().contiguous().numpy().data)
        for index in (self.labels, self.groups):
            digest.update(index.contiguous().numpy().astype("<i8").data)
        return digest.hexdigest()


def quarter_turns(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate each image of a batch by its own number of quarter turns, counter-clockwise.

    One gather of pixels by four precomputed orders: no image is visited alone, and no device waits for the host.

    Args:
        x: (N, C, H, H), of any dtype.
        turns: int64 (N,) of 0..3, on the device of ``x``.

    Returns:
        (N, C, H, H), contiguous.

    Example:
        >>> x = torch.tensor([[[[1, 2], [3, 4]]]])
        >>> quarter_turns(x, torch.tensor([1])).tolist()
        [[[[2, 4], [1, 3]]]]
    """
    side = x.shape[-1]
    pixels = torch.arange(side * side, device=x.device).view(side, side)
    orders = torch.stack([torch.rot90(pixels, turn).reshape(-1) for turn in range(4)])
    order = orders.index_select(0, turns).unsqueeze(1).expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, order).view(x.shape)


def _check_images(images: Tensor, rotations: bool) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(
            f"expected images as uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}; "
            "scale them to 0..255 and convert with .to(torch.uint8)"
        )
    if rotations and images.shape[-1] != images.shape[-2]:
        raise UserError(
            f"expected square images with rotations=True, got {tuple(images.shape[-2:])}; "
            "resize them or pass rotations=False"
        )


def _check_index(index: Tensor, length: int, n: int, what: str, names: str) -> None:
    if index.dtype != torch.int64 or tuple(index.shape) != (length,) or index.device.type != "cpu":
        raise UserError(
            f"expected {what} as int64 ({length},) on the CPU, got {index.dtype} {tuple(index.shape)} "
            f"on {index.device.type}; give one entry each"
        )
    if length and (int(index.min()) < 0 or int(index.max()) >= n):
        raise UserError(
            f"expected {what} 0..{n - 1} for {n} {names}, got {int(index.min())}..{int(index.max())}; "
            "number them from 0 or add names"
        )
