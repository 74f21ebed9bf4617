"""R2-D2: the head of a task is the solution of ridge regression on its labels.

Paper: Luca Bertinetto, João Henriques, Philip Torr, Andrea Vedaldi, "Meta-learning with Differentiable Closed-form
Solvers", ICLR 2019, arXiv:1805.08136.

Idea: fit the last layer of a task exactly, and learn the embedding by the gradient through that solution.

======================  ==============================================
paper                   here
======================  ==============================================
omega                   ``backbone``
X, Y                    embedded support with a column of ones; labels as rows of zeros and a one
W                       ``ridge``, by Woodbury's identity where that is smaller
lambda                  ``exp(log_penalty)``, learned
alpha, beta             ``exp(log_scale)``, ``shift``, learned
======================  ==============================================

Differs from the paper: the learned scalars start at 1 (lambda), 10 (alpha) and 0 (beta), and lambda and alpha are kept
above zero by an exponential; the paper does not print its start. The authors' code learns alpha and beta alone: lambda
stays at 50, and since it divides X and Y by the root of the number n of support examples, that is 50 n here. Its
commands for Omniglot train on 60-way tasks with a rate of 5e-3 and alpha from 10.

Checked by: tests/reference/test_solvers.py (NumPy's least squares on the augmented system), tests/nn/test_solvers.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kshot.core import register
from kshot.engine.embedding import EmbeddingLearner, Labelled
from kshot.nn.heads import memberships, with_ones
from kshot.nn.solvers import ridge


@register(
    "r2d2",
    family="solver",
    paper="Bertinetto, Henriques, Torr, Vedaldi, Meta-learning with Differentiable Closed-form Solvers, ICLR 2019, "
    "arXiv:1805.08136",
)
class R2D2(EmbeddingLearner):
    """Ridge regression on the labels.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.log_penalty = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.shift = nn.Parameter(torch.zeros(()))

    def fit_head(self, support: Labelled) -> Tensor:
        """Solve for the weights.

        Args:
            support: the embedded support.

        Returns:
            (D + 1, W), the last row is the bias.
        """
        y = memberships(support.y, support.ways, support.z.dtype)
        return ridge(with_ones(support.z), y, self.log_penalty.exp())

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Return alpha X W + beta.

        Args:
            head: (D + 1, W).
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        # Beta moves all logits alike and so no softmax; the paper has it, and it costs nothing.
        return self.log_scale.exp() * (with_ones(z) @ head) + self.shift
