"""Looks at an image several times, each time moved a little, and averages what the network makes of it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core.errors import UserError

#: Angle and shear in degrees, size along each axis: the image itself, then what a hand may do to it.
MOVES = (
    (0.0, 0.0, 1.0, 1.0),
    (8.0, 0.0, 1.0, 1.0),
    (-8.0, 0.0, 1.0, 1.0),
    (0.0, 12.0, 1.0, 1.0),
    (0.0, -12.0, 1.0, 1.0),
    (0.0, 0.0, 0.88, 0.88),
    (0.0, 0.0, 1.12, 1.12),
    (0.0, 0.0, 0.88, 1.12),
    (0.0, 0.0, 1.12, 0.88),
)


class Views(nn.Module):
    """The mean of a network's embeddings of one image under the first moves of ``MOVES``.

    Args:
        backbone: maps (N, C, H, W) to embeddings (N, D).
        n_views: V, 1 to 9; 1 is the network alone.

    Attributes:
        n_features: D.

    Raises:
        UserError: there are not so many moves.
    """

    moves: Tensor
    n_features: int

    def __init__(self, backbone: nn.Module, n_views: int = len(MOVES)) -> None:
        super().__init__()
        if not 1 <= n_views <= len(MOVES):
            raise UserError(f"expected 1 to {len(MOVES)} views, got {n_views}; choose another number")
        self.backbone, self.n_features = backbone, int(backbone.n_features)  # pyright: ignore[reportArgumentType]
        self.register_buffer("moves", torch.stack([_matrix(*move) for move in MOVES[:n_views]]))

    def forward(self, x: Tensor) -> Tensor:
        """Embed images.

        Args:
            x: (N, C, H, W), paper 0; bilinear interpolation, and paper from outside.

        Returns:
            (N, D); costs V times what the network costs.
        """
        found = self.backbone(x)
        for move in self.moves[1:]:
            grid = F.affine_grid(move.to(x.dtype).expand(len(x), 2, 3), list(x.shape), align_corners=False)
            found = found + self.backbone(F.grid_sample(x, grid, padding_mode="zeros", align_corners=False))
        return found / len(self.moves)


def _matrix(angle: float, shear: float, wide: float, high: float) -> Tensor:
    # From a place in the result to the place in the input that is shown there, so that sizes divide.
    cos, sin, tan = math.cos(math.radians(angle)), math.sin(math.radians(angle)), math.tan(math.radians(shear))
    return torch.tensor([[cos / wide, (cos * tan - sin) / wide, 0.0], [sin / high, (sin * tan + cos) / high, 0.0]])
