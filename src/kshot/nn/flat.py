"""No network at all: examples as they are, their axes made one."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn


class Flat(nn.Module):
    """The backbone "none": (N, *shape) to (N, D), without a parameter.

    Args:
        shape: of one example.

    Attributes:
        takes_tasks: a leading task axis is allowed.
        n_features: D, the product of the shape.
    """

    takes_tasks = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.n_features = tuple(shape), prod(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Flatten examples.

        Args:
            x: (N, *shape), or (T, N, *shape) of T tasks.

        Returns:
            (N, D), or (T, N, D).
        """
        return x.flatten(-len(self.shape)) if len(self.shape) > 1 else x
