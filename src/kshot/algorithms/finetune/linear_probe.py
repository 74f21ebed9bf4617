"""Linear probe: multinomial logistic regression on the normalised features of a plain classifier.

Paper: Yonglong Tian, Yue Wang, Dilip Krishnan, Joshua Tenenbaum, Phillip Isola, "Rethinking Few-Shot Image
Classification: a Good Embedding Is All You Need?", ECCV 2020, arXiv:2003.11539.

Idea: train one classifier of all training classes, keep its features, and fit a linear classifier to each new task.

======================  ==============================================
paper                   here
======================  ==============================================
f_phi                   ``backbone``
D^new                   all training classes: ``trained_on = "classes"``
theta = {W, b}          the head of a task
R(theta)                half of ``penalty`` times the squared weights
======================  ==============================================

Differs from the paper: no self-distillation ("simple" in its tables). The regression is fitted to convergence by
Newton's method in the place of L-BFGS, which leads to the same, unique, weights.

Checked by: tests/reference/test_solvers.py (SciPy's L-BFGS), tests/nn/test_solvers.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import Labelled, PretrainedLearner
from kshot.nn.heads import memberships, unit
from kshot.nn.solvers import softmax_regression


@register(
    "linear_probe",
    family="finetune",
    paper="Tian, Wang, Krishnan, Tenenbaum, Isola, Rethinking Few-Shot Image Classification, ECCV 2020, "
    "arXiv:2003.11539",
)
class LinearProbe(PretrainedLearner):
    """Logistic regression on frozen features of length one.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None on embeddings that come from elsewhere.
        penalty: on half the squared weights, against the sum of cross-entropies over the support; 1 as in the
            authors' code.

    Raises:
        UserError: a penalty that is not above zero.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module | None = None, *, penalty: float = 1.0) -> None:
        super().__init__(backbone, classifier)
        if not penalty > 0:
            raise UserError(f"expected penalty > 0, got {penalty}; without it separable classes have no solution")
        self.penalty = penalty

    def fit_head(self, support: Labelled) -> dict[str, Tensor]:
        """Fit the regression.

        Args:
            support: the embedded support.

        Returns:
            ``weight`` (D, W) and ``bias`` (W,).
        """
        y = memberships(support.y, support.ways, support.z.dtype)
        weight, bias = softmax_regression(unit(support.z), y, self.penalty)
        return {"weight": weight, "bias": bias}

    def apply_head(self, head: dict[str, Tensor], z: Tensor) -> Tensor:
        """Answer by the regression.

        Args:
            head: from ``fit_head``.
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return unit(z) @ head["weight"] + head["bias"]
