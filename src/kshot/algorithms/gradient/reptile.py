"""Reptile: move the start towards where plain training ends.

Paper: Alex Nichol, Joshua Achiam, John Schulman, "On First-Order Meta-Learning Algorithms", 2018, arXiv:1803.02999.

Idea: train on a task for some steps, then step from the start towards the weights that came out; no derivative of the
training is taken.

======================  ==============================================
paper                   here
======================  ==============================================
phi                     the parameters of ``model``
U_tau^k(phi)            ``_train``: k steps of the inner optimiser
epsilon                 the trainer's ``outer_lr``
phi - W                 the gradient of ``outer_loss`` (section 2)
======================  ==============================================

Differs from the paper: the loss that is reported is that of the trained weights on the task's queries, which they have
seen; its gradient is Reptile's. Mini-batches are cut from the task's examples in turn, in place of being drawn anew.
Adam begins anew in each task, where the authors' code keeps its second moments from task to task. The outer step
phi <- phi + epsilon (W - phi) is that of ``optimiser="sgd"`` with momentum 0; the paper also uses Adam.

Checked by: tests/reference/test_gradient_family.py (plain loops), tests/algorithms/test_gradient_family.py (closed form
on a quadratic).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kshot.core import Episode, Spec, Split, UserError, register, task_loss, tree_map
from kshot.core.registry import unknown
from kshot.engine.inner import FusedGradients, Inner, Weights, adam, check_rate, sgd, unrolled, weights_of
from kshot.nn.norm import collecting

OPTIMISERS = ("adam", "sgd")


@register(
    "reptile",
    family="gradient",
    paper="Nichol, Achiam, Schulman, On First-Order Meta-Learning Algorithms, 2018, arXiv:1803.02999",
)
class Reptile(FusedGradients):
    """Reptile.

    Args:
        model: any network that maps (N, ...) to logits (N, W), or to means (N, O).
        inner_lr: rate of the inner optimiser; 0.001 (appendix A), 0.02 with sgd on the sinusoid (the authors' code).
        n_inner_steps: k while training; 5 in 5-way Omniglot.
        n_inner_steps_eval: k when evaluating, 0 for as many as in training; 50 in Omniglot.
        inner_optimiser: "adam" with its first decay at 0 (appendix A), or "sgd".
        inner_batch: examples of a mini-batch, 0 for all at once; 10 in 5-way Omniglot.

    Raises:
        UserError: a step count, rate, optimiser or batch that makes no sense.
    """

    #: Mini-batches are cut from the support in its order.
    order_matters = True
    first_order = True

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.02,
        n_inner_steps: int = 5,
        n_inner_steps_eval: int = 0,
        inner_optimiser: str = "sgd",
        inner_batch: int = 0,
    ) -> None:
        super().__init__(model, n_inner_steps, n_inner_steps_eval)
        check_rate("inner_lr", inner_lr)
        if inner_optimiser not in OPTIMISERS:
            raise UserError(unknown("inner_optimiser", inner_optimiser, list(OPTIMISERS)))
        if inner_batch < 0:
            raise UserError(f"expected inner_batch >= 0, got {inner_batch}; 0 takes all examples at once")
        self.inner_lr, self.inner_optimiser, self.inner_batch = inner_lr, inner_optimiser, inner_batch

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return the paper's settings for tasks like these.

        Args:
            spec: what the tasks look like.

        Returns:
            Those of the authors' sinusoid, or of Omniglot with 5 or 20 ways (appendix A).
        """
        if spec.kind == "regression":
            return {"inner_batch": 10, "n_inner_steps_eval": 32}
        many = spec.n_outputs >= 20
        batch, steps = (20, 10) if many else (10, 5)
        options = {"inner_optimiser": "adam", "inner_lr": 0.0005 if many else 0.001, "inner_batch": batch}
        return {**options, "n_inner_steps": steps, "n_inner_steps_eval": 50}

    def inner(self, n_steps: int) -> Inner:
        """Step by the inner optimiser, without second derivatives.

        Args:
            n_steps: number of steps.

        Returns:
            The settings.
        """
        rule = sgd() if self.inner_optimiser == "sgd" else adam(beta1=0.0)
        return Inner(self.inner_lr, n_steps, rule, first_order=True)

    def support_loss(self, weights: Weights, support: Split, step: int) -> tuple[Tensor, Weights]:
        """Loss of a mini-batch.

        Args:
            weights: before the step.
            support: x (S, ...), y (S,) int64 or (S, O).
            step: from 0 on; it says which examples are next.

        Returns:
            A scalar, and the weights with the buffers as the forward pass left them.
        """
        return super().support_loss(weights, _batch(support, step, self.inner_batch), step)

    def outer_loss(self, episode: Episode) -> Tensor:
        """Loss of the trained weights on the queries; its gradient is phi - W, with W = U^k(phi) (section 2).

        Args:
            episode: one episode; support and queries are trained on alike, since Reptile needs no split.

        Returns:
            A scalar.
        """
        support, query = episode
        x = tree_map(lambda *both: torch.cat(both), support.x, query.x)
        task = Split(x, torch.cat([support.y, query.y]), support.n_way)
        with torch.no_grad():
            phi = {k: p.detach() for k, p in self.model.named_parameters()}
            start = Weights(phi, weights_of(self.model).buffers)
            (trained,) = unrolled(self.support_loss, start, task, self.inner(self.n_steps()))
            with collecting(self.model):
                prediction, after = self.run(trained, query.x)
            loss = task_loss(prediction, query.y)
        self.keep_buffers(after)
        # d/dphi of <phi, phi - W>, the second factor held, is phi - W; it adds nothing to the value.
        pull = sum((p * (phi[k] - trained.params[k])).sum() for k, p in self.model.named_parameters())
        return loss + pull - pull.detach()  # pyright: ignore[reportOperatorIssue, reportAttributeAccessIssue]


def _batch(task: Split, step: int, size: int) -> Split:
    n = len(task.y)
    if not size or size >= n:
        return task
    # Strides spread a mini-batch over tasks that are sorted by class; all have had a turn before the first comes again.
    stride = -(-n // size)
    order = torch.cat([torch.arange(first, n, stride, device=task.y.device) for first in range(stride)])
    turn = order[(torch.arange(size, device=order.device) + step * size) % n]
    return Split(tree_map(lambda t: t[turn], task.x), task.y[turn], task.n_way)
