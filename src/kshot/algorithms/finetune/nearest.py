"""Nearest neighbour on pixels: the oldest baseline, with nothing to train.

Paper: Thomas Cover, Peter Hart, "Nearest Neighbor Pattern Classification", IEEE Transactions on Information Theory,
1967.

Idea: an example has the class of the known example that is nearest to it.

======================  ==============================================
paper                   here
======================  ==============================================
x_i, theta_i            the support and its labels
d                       squared Euclidean distance of the inputs
x'_n                    the support example with the largest logit
======================  ==============================================

Differs from the paper: none. One neighbour; as few-shot papers use it on the raw pixels.

Checked by: tests/algorithms/test_untrained.py (plain loops).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from kshot.core import Learner, Spec, Split, register
from kshot.nn.heads import nearest_by_class, squared_distances


class Examples(NamedTuple):
    """The support, kept.

    Attributes:
        x: flattened inputs (S, D).
        y: int64 (S,).
        ways: W.
    """

    x: Tensor
    y: Tensor
    ways: int


@register(
    "nearest",
    family="finetune",
    paper="Cover, Hart, Nearest Neighbor Pattern Classification, IEEE Transactions on Information Theory, 1967",
)
class Nearest(Learner):
    """The nearest support example, by the distance of the inputs themselves."""

    trained_on = "nothing"

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> Nearest:
        """Leave the backbone aside.

        Args:
            backbone: any network; it is not used.
            spec: what the tasks look like.
            **options: none.

        Returns:
            The learner.
        """
        return cls(**options)

    def adapt(self, support: Split) -> Examples:
        """Remember the support.

        Args:
            support: x (S, ...), y (S,) int64.

        Returns:
            The examples.
        """
        return Examples(support.x.flatten(1), support.y, support.ways())

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        """Return minus the squared distance to the nearest example of each class.

        Args:
            state: the examples.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W).
        """
        return -nearest_by_class(squared_distances(x.flatten(1), state.x), state.y, state.ways)
