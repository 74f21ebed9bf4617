"""ANIL: almost no inner loop; only the head adapts.

Paper: Aniruddh Raghu, Maithra Raghu, Samy Bengio, Oriol Vinyals, "Rapid Learning or Feature Reuse? Towards
Understanding the Effectiveness of MAML", ICLR 2020, arXiv:1909.09157.

Idea: what MAML learns is mostly features that are reused as they are, so the inner loop may leave the body alone.

======================  ==============================================
paper                   here
======================  ==============================================
theta_1 ... theta_l-1   ``body``, never changed by a task
theta_l                 ``head``, the last layer
alpha                   ``inner_lr``
theta_m^(b)             ``Weights`` returned by ``adapt`` (section 4.1)
======================  ==============================================

Differs from the paper: none. The support goes through the body once, not once a step, since no step changes its
features.

Checked by: tests/reference/test_gradient_family.py (MAML's plain loops with the body held still),
tests/algorithms/test_gradient_family.py (closed form on a quadratic).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kshot.core import Episode, Spec, Split, register, task_loss, unchanged_since
from kshot.engine.inner import Inner, InnerLoop, Weights, call, check_rate, unrolled, weights_of
from kshot.nn.conv import by_kernels, known_to_kernels
from kshot.nn.norm import collecting, uses_support_statistics


@register(
    "anil",
    family="gradient",
    paper="Raghu, Raghu, Bengio, Vinyals, Rapid Learning or Feature Reuse?, ICLR 2020, arXiv:1909.09157",
)
class ANIL(InnerLoop):
    """Almost no inner loop.

    Args:
        body: maps (N, ...) to features (N, D).
        head: maps features to logits (N, W), or to means (N, O).
        inner_lr: alpha; 0.1 on Omniglot, 0.01 for mini-ImageNet (appendix).
        n_inner_steps: gradient steps while training.
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
        inner_lr: float = 0.1,
        n_inner_steps: int = 1,
        n_inner_steps_eval: int = 0,
        first_order: bool = False,
        truncate: int = 0,
    ) -> None:
        super().__init__(nn.Sequential(body, head), n_inner_steps, n_inner_steps_eval, truncate)
        check_rate("inner_lr", inner_lr)
        self.inner_lr, self.first_order = inner_lr, first_order

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> ANIL:
        """Build ANIL on a backbone with a linear head.

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
            MAML's of the same tasks, but for a rate of 0.5 and as many steps in the test below 20 ways.
        """
        if spec.kind == "regression":
            return {"inner_lr": 0.01, "n_inner_steps": 1}
        return {"inner_lr": 0.1, "n_inner_steps": 5} if spec.n_outputs >= 20 else {"inner_lr": 0.5, "n_inner_steps": 1}

    @property
    def fused(self) -> bool:
        """True if compiled kernels embed by the very body, while training."""
        body, head = self.model.get_submodule("0"), self.model.get_submodule("1")
        known = unchanged_since(self, "fused_losses", ("start", "run", "adapt", "path", "keep_buffers", "outer_loss"))
        return self.training and known and by_kernels(body) and not any(True for _ in head.buffers())

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Embed the examples of all tasks by compiled kernels; the head alone has an inner loop.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        body, head = known_to_kernels(self.model.get_submodule("0")), self.model.get_submodule("1")
        support, query = episodes

        def one(z: Tensor, zq: Tensor, y: Tensor, yq: Tensor) -> Tensor:
            on_features = Split(z, y, support.n_way)
            (adapted,) = unrolled(self.support_loss, weights_of(head), on_features, self.inner(self.n_steps()))
            return task_loss(call(head, adapted, zq)[0], yq)

        z, zq = body.fused(support.x), body.fused(query.x)
        return torch.func.vmap(one, randomness="different")(z, zq, support.y, query.y)

    def inner(self, n_steps: int) -> Inner:
        """Step with one rate.

        Args:
            n_steps: number of steps.

        Returns:
            The settings.
        """
        return Inner(self.inner_lr, n_steps, first_order=self.first_order, truncate=self.truncate)

    def support_loss(self, weights: Weights, support: Split, step: int) -> tuple[Tensor, Weights]:
        """Loss of the head on features.

        Args:
            weights: of the head.
            support: features (S, D) and targets.
            step: from 0 on.

        Returns:
            A scalar, and the weights.
        """
        head = self.model.get_submodule("1")
        with collecting(head):
            prediction, weights = call(head, weights, support.x)
        return task_loss(prediction, support.y), weights

    def path(self, support: Split, n_steps: int, *, every: bool) -> Iterator[Weights]:
        """Adapt the head on the body's features.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).
            n_steps: k.
            every: yield the weights after 0, 1, ..., k steps, else the last alone.

        Yields:
            Weights of body and head.
        """
        body, head = self.model.get_submodule("0"), self.model.get_submodule("1")
        with collecting(body):
            features, kept = call(body, weights_of(body), support.x)
        on_features = Split(features, support.y, support.n_way)
        for adapted in unrolled(self.support_loss, weights_of(head), on_features, self.inner(n_steps), every=every):
            if uses_support_statistics(head):  # the last inner step saw the weights before it
                adapted = self.support_loss(adapted, on_features, n_steps)[1]
            yield Weights(_named(kept.params, adapted.params), _named(kept.buffers, adapted.buffers))


def _named(body: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"0.{k}": t for k, t in body.items()} | {f"1.{k}": t for k, t in head.items()}
