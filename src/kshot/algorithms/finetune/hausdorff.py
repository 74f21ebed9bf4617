"""Modified Hausdorff distance on ink: the classical baseline of Omniglot, with nothing to train.

Paper: Marie-Pierre Dubuisson, Anil Jain, "A Modified Hausdorff Distance for Object Matching", ICPR 1994.

Idea: two drawings are alike if every point of ink of the one has some ink of the other near it.

======================  ==============================================
paper                   here
======================  ==============================================
A, B                    points of ink, moved so that their mean is 0
d(a, B)                 distance to the nearest point
d_6(A, B)               mean over a of d(a, B)
f_2                     the larger of d_6(A, B) and d_6(B, A)
======================  ==============================================

Differs from the paper: points of ink in the place of edges, centred, as in the demonstration that its authors ship with
Omniglot. Of drawings with more than ``max_points`` points of ink, evenly spaced ones are taken.

Checked by: tests/algorithms/test_untrained.py (plain loops), tests/data/test_challenge.py (the published error on the
original challenge).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Learner, Spec, Split, UserError, register
from kshot.nn.heads import nearest_by_class


class Drawings(NamedTuple):
    """Points of ink of N drawings, P places for each.

    Attributes:
        at: (N, P, 2) row and column, from the drawing's own centre.
        ink: (N, P) one where there is a point, zero where the place is empty.
    """

    at: Tensor
    ink: Tensor


class Known(NamedTuple):
    """The support, kept as ink.

    Attributes:
        drawings: of the S examples.
        y: int64 (S,).
        ways: W.
    """

    drawings: Drawings
    y: Tensor
    ways: int


@register(
    "hausdorff",
    family="finetune",
    paper="Dubuisson, Jain, A Modified Hausdorff Distance for Object Matching, ICPR 1994",
)
class Hausdorff(Learner):
    """The nearest drawing, by the modified Hausdorff distance.

    Args:
        max_points: P, points of ink that are kept of a drawing; no Omniglot drawing of 28 x 28 pixels has more than
            256, those of 105 x 105 have 930 on average.
        threshold: a pixel brighter than this is ink; 0.35 keeps thin strokes of Omniglot at 28 x 28 pixels whole.

    Raises:
        UserError: a number that makes no sense.
    """

    trained_on = "nothing"

    def __init__(self, *, max_points: int = 256, threshold: float = 0.35) -> None:
        super().__init__()
        if max_points < 1 or not 0 <= threshold < 1:
            raise UserError(
                f"expected max_points >= 1 and a threshold of 0 to 1, got {max_points} and {threshold}; change them"
            )
        self.max_points, self.threshold = max_points, threshold

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> Hausdorff:
        """Leave the backbone aside.

        Args:
            backbone: any network; it is not used.
            spec: what the tasks look like.
            **options: see the class.

        Returns:
            The learner.
        """
        return cls(**options)

    def adapt(self, support: Split) -> Known:
        """Find the ink of the support.

        Args:
            support: images x (S, C, H, W) within [0, 1], ink is bright; y (S,) int64.

        Returns:
            The ink.
        """
        return Known(self.points(support.x), support.y, support.ways())

    def predict(self, state: Known, x: Tensor) -> Tensor:
        """Return minus the distance to the nearest drawing of each class.

        Args:
            state: the ink of the support.
            x: images (Q, C, H, W).

        Returns:
            Logits (Q, W).
        """
        few, many, far = self.points(x), state.drawings, float(sum(x.shape[-2:]))
        # One drawing of the smaller set after the other: max(Q, S) * P * P distances are the most that is in memory.
        swap = len(state.y) < len(x)
        few, many = (many, few) if swap else (few, many)
        each = torch.stack([modified_hausdorff(many, Drawings(*one), far) for one in zip(*few, strict=True)])
        each = each.mT if swap else each
        return -nearest_by_class(each, state.y, state.ways)

    def points(self, x: Tensor) -> Drawings:
        """Find the points of ink of drawings.

        Args:
            x: images (N, C, H, W).

        Returns:
            The points; none for a blank drawing.

        Raises:
            UserError: the inputs are no images.
        """
        if x.ndim != 4:
            raise UserError(
                f"hausdorff compares drawings: expected images (N, C, H, W), got {tuple(x.shape)}; use nearest"
            )
        height, width = x.shape[-2:]
        n_places = min(self.max_points, height * width)
        ink = x.mean(1).flatten(1) > self.threshold
        total, before = ink.sum(-1, keepdim=True), ink.cumsum(-1) - 1
        # The k-th point of n is kept where k * P / n passes a whole number; all of them where n <= P.
        most = total.clamp(min=n_places)
        step = torch.div((before + 1) * n_places, most, rounding_mode="floor")
        kept = ink & (step > torch.div(before * n_places, most, rounding_mode="floor"))
        place = torch.arange(height * width, device=x.device)
        at = torch.stack([torch.div(place, width, rounding_mode="floor"), place % width], -1).to(x.dtype)
        centre = ink.to(x.dtype) @ at / total.clamp(min=1)
        chosen = kept.to(x.dtype).topk(n_places).indices
        return Drawings(at[chosen] - centre.unsqueeze(1), kept.gather(1, chosen).to(x.dtype))


def modified_hausdorff(many: Drawings, one: Drawings, far: float) -> Tensor:
    """Distance of N drawings to one, f_2 of d_6.

    Args:
        many: N drawings.
        one: a single drawing, without the first axis.
        far: what a point is from a drawing without ink.

    Returns:
        (N,).
    """
    rows = many.at[..., 0].unsqueeze(-1) - one.at[..., 0]
    columns = many.at[..., 1].unsqueeze(-1) - one.at[..., 1]
    # Empty places are far from everything; no two points of ink are.
    apart = rows * rows + columns * columns + far * far * (2 - many.ink.unsqueeze(-1) - one.ink)
    to_one = apart.amin(-1).clamp(max=far * far).sqrt()
    to_many = apart.amin(-2).clamp(max=far * far).sqrt()
    there = (to_one * many.ink).sum(-1) / many.ink.sum(-1).clamp(min=1)
    back = (to_many * one.ink).sum(-1) / one.ink.sum(-1).clamp(min=1)
    return torch.maximum(there, back)
