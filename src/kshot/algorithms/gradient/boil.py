"""BOIL: body only update in the inner loop; the head stays.

Paper: Jaehoon Oh, Hyungjun Yoo, ChangHwan Kim, Se-Young Yun, "BOIL: Towards Representation Change for Few-shot
Learning", ICLR 2021, arXiv:2008.08882.

Idea: hold the head still in the inner loop, so that the features themselves must move to fit a task.

======================  ==============================================
paper                   here
======================  ==============================================
theta_b                 ``body``, adapted with rate alpha_b
theta_h                 ``head``, adapted with rate alpha_h = 0
alpha_b                 ``inner_lr``
theta_b,tau_i           ``Weights`` returned by ``adapt`` (section 3.1)
======================  ==============================================

Differs from the paper: none. The head takes no inner gradient at all, which is what a rate of zero comes to.

Checked by: tests/reference/test_gradient_family.py (MAML's plain loops with the head held still),
tests/algorithms/test_gradient_family.py (closed form on a quadratic).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from kshot.core import Spec, register
from kshot.engine.inner import FusedInnerLoop, Inner, check_rate


@register(
    "boil",
    family="gradient",
    paper="Oh, Yoo, Kim, Yun, BOIL: Towards Representation Change for Few-shot Learning, ICLR 2021, arXiv:2008.08882",
)
class BOIL(FusedInnerLoop):
    """Body only update in the inner loop.

    Args:
        body: maps (N, ...) to features (N, D).
        head: maps features to logits (N, W), or to means (N, O).
        inner_lr: alpha_b; 0.5 in the paper (section 4.1).
        n_inner_steps: gradient steps while training; 1 in the paper.
        n_inner_steps_eval: gradient steps when evaluating, 0 for as many as in training.
        first_order: leave the second derivatives out.
        truncate: inner steps, the last ones, that the outer gradient runs through; 0 for all.

    Raises:
        UserError: a step count or rate that makes no sense.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        *,
        inner_lr: float = 0.5,
        n_inner_steps: int = 1,
        n_inner_steps_eval: int = 0,
        first_order: bool = False,
        truncate: int = 0,
    ) -> None:
        super().__init__(nn.Sequential(body, head), n_inner_steps, n_inner_steps_eval, truncate)
        check_rate("inner_lr", inner_lr)
        self.inner_lr, self.first_order = inner_lr, first_order

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> BOIL:
        """Build BOIL on a backbone with a linear head.

        Args:
            backbone: maps (N, *input_shape) to (N, n_features).
            spec: what the tasks look like.
            **options: see the class.

        Returns:
            The learner.
        """
        return cls(backbone, nn.Linear(int(backbone.n_features), spec.n_outputs), **options)  # pyright: ignore[reportArgumentType]

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return settings for tasks like these.

        Args:
            spec: what the tasks look like.

        Returns:
            MAML's rate for regression, which the paper leaves out; its own, the defaults, for classes.
        """
        return {"inner_lr": 0.01} if spec.kind == "regression" else {}

    def inner(self, n_steps: int) -> Inner:
        """Step the body alone.

        Args:
            n_steps: number of steps.

        Returns:
            The settings.
        """
        return Inner(self.inner_lr, n_steps, first_order=self.first_order, adapted=("0.*",), truncate=self.truncate)
