"""Multi-layer perceptron embedding: the two hidden layers of 40 units of MAML's sinusoid experiment by default."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from kshot.nn.norm import Norm


class MLP(nn.Module):
    """Linear layers with ReLU (and normalisation, if asked): (N, D_in) to (N, n_features).

    Args:
        in_features: D_in; inputs with more axes are flattened to it.
        hidden: widths of the layers; (40, 40) is MAML's sinusoid network, whose linear head the learner adds.
        normalisation: see ``kshot.nn.norm``; "none" by default.

    Attributes:
        n_features: D, width of the last layer.
    """

    def __init__(self, in_features: int, hidden: Sequence[int] = (40, 40), normalisation: str = "none") -> None:
        super().__init__()
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise(widths):
            layers += [nn.Linear(i, o), *([] if normalisation == "none" else [Norm(o, normalisation)]), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.in_features, self.n_features = in_features, widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Embed vectors.

        Args:
            x: (N, ...), whose last axes multiply to D_in.

        Returns:
            (N, D).
        """
        return self.layers(x.reshape(x.shape[0], self.in_features))
