"""Meta-SGD: learn the starting point, the direction and the rate of every step, all at once.

Paper: Zhenguo Li, Fengwei Zhou, Fei Chen, Hang Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017,
arXiv:1707.09835.

Idea: give every weight an inner learning rate of its own, and learn the rates beside the starting point.

======================  ==============================================
paper                   here
======================  ==============================================
theta                   the parameters of ``model``
alpha                   ``rates``, one for each element of theta
theta'                  ``Weights`` returned by ``adapt`` (Eq. 2)
beta                    the trainer's ``outer_lr``
======================  ==============================================

Differs from the paper: rates start at ``inner_lr`` everywhere, or, with ``rate_spread``, at random numbers from
``inner_lr`` to ``inner_lr * (1 + rate_spread)``; the paper draws them from [0.005, 0.1], or says no more. More than
one step takes the same rates again.

Checked by: tests/reference/test_gradient_family.py (plain loops), tests/algorithms/test_gradient_family.py (closed form
on a quadratic: the gradient of a rate).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kshot.core import Spec, UserError, register
from kshot.engine.inner import FusedInnerLoop, Inner, check_rate


@register(
    "metasgd",
    family="gradient",
    paper="Li, Zhou, Chen, Li, Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017, arXiv:1707.09835",
)
class MetaSGD(FusedInnerLoop):
    """Meta-SGD.

    Args:
        model: any network that maps (N, ...) to logits (N, W), or to means (N, O).
        inner_lr: where the rates start.
        rate_spread: how far above it they may start, as a share of it.
        n_inner_steps: gradient steps while training; the paper's promise is that 1 is enough.
        n_inner_steps_eval: gradient steps when evaluating, 0 for as many as in training.
        first_order: leave the second derivatives out; rates still learn.
        truncate: inner steps, the last ones, that the outer gradient runs through; 0 for all.

    Raises:
        UserError: a step count or rate that makes no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.1,
        rate_spread: float = 0.0,
        n_inner_steps: int = 1,
        n_inner_steps_eval: int = 0,
        first_order: bool = False,
        truncate: int = 0,
    ) -> None:
        super().__init__(model, n_inner_steps, n_inner_steps_eval, truncate)
        check_rate("inner_lr", inner_lr)
        if not rate_spread >= 0:
            raise UserError(f"expected rate_spread >= 0, got {rate_spread}; 0 starts all rates at inner_lr")
        self.first_order = first_order
        # Drawn as PyTorch's layers draw their weights, from the global generator.
        self.rates = nn.ParameterList(
            inner_lr * (1 + rate_spread * (torch.rand_like(p) if rate_spread else torch.zeros_like(p))).detach()
            for p in model.parameters()
        )

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return the paper's settings for tasks like these.

        Args:
            spec: what the tasks look like.

        Returns:
            Rates of [0.005, 0.1] for classes; MAML's rate for regression.
        """
        if spec.kind == "regression":
            return {"inner_lr": 0.01}
        return {"inner_lr": 0.005, "rate_spread": 19.0}

    def inner(self, n_steps: int) -> Inner:
        """Step with the learned rates: theta' = theta - alpha * grad L(theta), element by element (Eq. 2).

        Args:
            n_steps: number of steps.

        Returns:
            The settings.
        """
        names = (name for name, _ in self.model.named_parameters())
        rates = dict(zip(names, self.rates, strict=True))
        return Inner(rates, n_steps, first_order=self.first_order, truncate=self.truncate)
