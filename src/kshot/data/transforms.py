"""Augmentation of a whole batch of episodes at once. A transform plans its randomness first, then applies it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.core import UserError


class Transform(ABC):
    """A random change of images, drawn apart from being applied, so that a plan tells the whole episode."""

    @abstractmethod
    def plan(self, n_tasks: int, n_examples: int, generator: torch.Generator) -> Tensor:
        """Draw the parameters of each image.

        Args:
            n_tasks: T.
            n_examples: N, images per task.
            generator: a CPU generator.

        Returns:
            (T, N, ...) float32 on the CPU.
        """

    @abstractmethod
    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """Change the images.

        Args:
            x: (T, N, C, H, W) float32 within [0, 1].
            params: what ``plan`` drew for them, on any device.

        Returns:
            (T, N, C, H, W) float32 within [0, 1].
        """


class RandomAffine(Transform):
    """Turn, shift, scale and shear each image by its own amounts, all drawn uniformly; bilinear interpolation.

    Args:
        rotation: largest angle in degrees, either way.
        shift: largest shift along each axis, either way, as a share of the image's side.
        scale: smallest and largest factor of size; (1, 1) keeps it. Drawn uniformly in its logarithm.
        shear: largest horizontal shear angle in degrees, either way, below 90.
        fill: value of what comes in from outside the image, 0 to 1.

    Raises:
        UserError: an amount is out of its range.
    """

    def __init__(
        self,
        *,
        rotation: float = 0.0,
        shift: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        fill: float = 0.0,
    ) -> None:
        for what, value, most in (
            ("rotation", rotation, 180),
            ("shift", shift, 1),
            ("shear", shear, 89),
            ("fill", fill, 1),
        ):
            if not 0 <= value <= most:
                raise UserError(f"expected {what} between 0 and {most}, got {value}; choose another")
        if not 0 < scale[0] <= scale[1] < math.inf:
            raise UserError(f"expected scale as 0 < smallest <= largest, got {scale}; (1, 1) keeps the size")
        self.rotation, self.shift, self.scale, self.shear, self.fill = rotation, shift, scale, shear, fill

    def plan(self, n_tasks: int, n_examples: int, generator: torch.Generator) -> Tensor:
        """Draw one matrix for each image.

        Args:
            n_tasks: T.
            n_examples: N.
            generator: a CPU generator.

        Returns:
            (T, N, 2, 3): maps a place in the result, measured from the centre in half sides of a square image, to the
            place in the input that is shown there.
        """
        # All five amounts are drawn whatever the options, so that one option changes no other's draw.
        u = torch.rand(5, n_tasks, n_examples, generator=generator) * 2 - 1
        angle = u[0] * math.radians(self.rotation)
        shear = torch.tan(u[1] * math.radians(self.shear))
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        zoom = torch.exp(-(low + (high - low) * (u[2] + 1) / 2))
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        rows = [cos, cos * shear - sin, u[3] * 2 * self.shift, sin, sin * shear + cos, u[4] * 2 * self.shift]
        return torch.stack(rows, -1).view(n_tasks, n_examples, 2, 3)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """Show each image through its matrix.

        Args:
            x: (T, N, C, H, W) within [0, 1].
            params: (T, N, 2, 3).

        Returns:
            (T, N, C, H, W) within [0, 1].
        """
        flat = x.flatten(0, 1)
        theta = params.flatten(0, 1).to(x.device, x.dtype)
        height, width = x.shape[-2:]
        if height != width:
            # The grid is measured in half sides of its own axis: without this a turned oblong image would be sheared.
            aspect = theta.new_tensor([[1, height / width, 1], [width / height, 1, 1]])
            theta = theta * aspect
        grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
        # grid_sample fills with zeros only; moving the zero to ``fill`` and back serves every value.
        out = F.grid_sample(flat - self.fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return (out + self.fill).clamp_(0, 1).view(x.shape)
