"""MAML: model-agnostic meta-learning, second and first order.

Paper: Chelsea Finn, Pieter Abbeel, Sergey Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
ICML 2017, arXiv:1703.03400.

Idea: learn an initialisation from which a few gradient steps on a task's support set give good answers on its queries.

======================  ==============================================
paper                   here
======================  ==============================================
theta                   the parameters of ``model``
theta'_i                ``Weights`` returned by ``adapt``
alpha                   ``inner_lr``
beta                    the trainer's ``outer_lr``
D_i, D'_i               ``episode.support``, ``episode.query``
L_Ti                    ``task_loss``: Eq. 2 (regression), Eq. 3 (classification)
======================  ==============================================

Differs from the paper: Eq. 2 is a sum, the authors' code and this file take the mean. Normalisation "episode" is the
authors' code (the queries' own batch statistics: transductive); "support" is inductive and costs one more forward
pass, so that the statistics are those of the adapted weights.

Checked by: tests/reference/test_maml.py (plain loops with ``torch.autograd.grad``), tests/algorithms/test_maml.py
(closed form on a quadratic), benchmarks/quality (sinusoid, Omniglot).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from kshot.core import Spec, register
from kshot.engine.inner import FusedInnerLoop, Inner, check_rate, matching, named_rule


@register(
    "maml",
    family="gradient",
    paper="Finn, Abbeel, Levine, Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400",
)
class MAML(FusedInnerLoop):
    """Model-agnostic meta-learning.

    Args:
        model: any network that maps (N, ...) to logits (N, W), or to means (N, O).
        inner_lr: alpha; 0.4 for 5-way and 0.1 for 20-way Omniglot, 0.01 for the sinusoid (appendix A.1, section 5.1).
        n_inner_steps: gradient steps while training; 1 in 5-way Omniglot and the sinusoid.
        n_inner_steps_eval: gradient steps when evaluating, 0 for as many as in training; 3 in 5-way Omniglot.
        first_order: leave the second derivatives out (section 5.2, FOMAML).
        truncate: inner steps, the last ones, that the outer gradient runs through; 0 for all.
        inner_optimiser: "sgd" as in the paper, "momentum" (0.9) or "adam".
        inner_clip: bound of the norm of an inner gradient; 0 for none.
        adapted: patterns of names of the parameters that the inner steps change, such as "0.*"; others stay.

    Raises:
        UserError: a step count, rate, optimiser or bound that makes no sense, or a pattern that no parameter fits.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.4,
        n_inner_steps: int = 1,
        n_inner_steps_eval: int = 0,
        first_order: bool = False,
        truncate: int = 0,
        inner_optimiser: str = "sgd",
        inner_clip: float = 0.0,
        adapted: tuple[str, ...] = ("*",),
    ) -> None:
        super().__init__(model, n_inner_steps, n_inner_steps_eval, truncate)
        check_rate("inner_lr", inner_lr)
        self.inner_lr, self.first_order = inner_lr, first_order
        self.inner_optimiser, self.inner_clip, self.adapted = inner_optimiser, inner_clip, tuple(adapted)
        matching(dict(model.named_parameters()), self.adapted)
        named_rule(inner_optimiser, inner_clip)

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return the paper's settings for tasks like these.

        Args:
            spec: what the tasks look like.

        Returns:
            Options: section 5.1 for regression; appendix A.1 for 5-way and 20-way classification.
        """
        if spec.kind == "regression":
            return {"inner_lr": 0.01, "n_inner_steps": 1}
        if spec.n_outputs >= 20:
            return {"inner_lr": 0.1, "n_inner_steps": 5, "n_inner_steps_eval": 5}
        return {"inner_lr": 0.4, "n_inner_steps": 1, "n_inner_steps_eval": 3}

    def inner(self, n_steps: int) -> Inner:
        """Take the inner steps of section 2.2: theta' = theta - alpha * grad L(theta), repeated.

        Args:
            n_steps: number of steps.

        Returns:
            The settings; ``InnerLoop`` does the rest: Eq. 1, the loss of theta' on the queries, differentiated through
            the steps.
        """
        rule = named_rule(self.inner_optimiser, self.inner_clip)
        return Inner(self.inner_lr, n_steps, rule, self.first_order, self.adapted, self.truncate)
