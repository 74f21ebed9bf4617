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

import torch
from torch import Tensor, nn

from kshot.core import Episode, Learner, Spec, Split, Tree, UserError, register, task_loss
from kshot.core.episode import unbind
from kshot.engine.inner import Weights, call, replace_buffers, sgd_steps, weights_of
from kshot.nn import native
from kshot.nn.conv import Conv4
from kshot.nn.norm import collecting, normalisation_of, uses_support_statistics


@register(
    "maml",
    family="gradient",
    paper="Finn, Abbeel, Levine, Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400",
)
class MAML(Learner):
    """Model-agnostic meta-learning.

    Args:
        model: any network that maps (N, ...) to logits (N, W), or to means (N, O).
        inner_lr: alpha; 0.4 for 5-way and 0.1 for 20-way Omniglot, 0.01 for the sinusoid (appendix A.1, section 5.1).
        n_inner_steps: gradient steps while training; 1 in 5-way Omniglot and the sinusoid.
        n_inner_steps_eval: gradient steps when evaluating, 0 for as many as in training; 3 in 5-way Omniglot.
        first_order: leave the second derivatives out (section 5.2, FOMAML).

    Raises:
        UserError: a step count or rate that makes no sense.
    """

    default_normalisation = "episode"
    kinds = ("classification", "regression")
    any_way = False
    label_equivariant = False

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.4,
        n_inner_steps: int = 1,
        n_inner_steps_eval: int = 0,
        first_order: bool = False,
    ) -> None:
        super().__init__()
        if n_inner_steps < 1 or n_inner_steps_eval < 0:
            raise UserError(f"expected n_inner_steps >= 1, got {n_inner_steps} (and {n_inner_steps_eval} to evaluate)")
        if not inner_lr > 0:
            raise UserError(f"expected inner_lr > 0, got {inner_lr}")
        self.model = model
        self.inner_lr = inner_lr
        self.n_inner_steps, self.n_inner_steps_eval = n_inner_steps, n_inner_steps_eval
        self.first_order = first_order

    @property
    def backbone(self) -> nn.Module | None:
        """The network below its head, for pictures of the embedding; None where the model is no sequence."""
        return self.model[:-1] if isinstance(self.model, nn.Sequential) and len(self.model) > 1 else None

    @property
    def exact_gradient(self) -> bool:
        """False for first order: the second derivatives are missing."""
        return not self.first_order

    @property
    def fused(self) -> bool:
        """True if the model is a Conv4 that compiled kernels know and a linear head, while training."""
        if not (self.training and type(self.model) is nn.Sequential and len(self.model) == 2):
            return False
        backbone, head = self.model
        return (
            (isinstance(backbone, Conv4) and type(head) is nn.Linear and head.bias is not None)
            and normalisation_of(backbone) == "episode"
            and (head.weight.dtype == next(backbone.parameters()).dtype and backbone.fusable)
        )

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Outer losses by compiled kernels, whose gradient runs backward through the steps without a graph.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        backbone, head = self.model  # pyright: ignore[reportGeneralTypeIssues]
        support, query = episodes
        if support.y.is_floating_point():  # the kernels know cross-entropy only
            return torch.stack([self.outer_loss(episode) for episode in unbind(episodes)])
        parameters = [*backbone.kernel_parameters(), head.weight, head.bias]
        inner = native.Inner(self.inner_lr, self.n_inner_steps, self.first_order)
        return native.maml_losses(
            native.Labelled(support.x, support.y), native.Labelled(query.x, query.y), parameters, inner
        )

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> MAML:
        """Build MAML on a backbone with a linear head.

        Args:
            backbone: maps (N, *input_shape) to (N, n_features).
            spec: what the tasks look like.
            **options: see the class.

        Returns:
            The learner.
        """
        head = nn.Linear(int(backbone.n_features), spec.n_outputs)  # pyright: ignore[reportArgumentType]
        return cls(nn.Sequential(backbone, head), **options)

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

    def adapt(self, support: Split) -> Weights:
        """Take the inner steps of section 2.2, theta' = theta - alpha * grad L(theta), repeated.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).

        Returns:
            theta', the adapted weights.
        """
        return self.states(support)[-1]

    def states(self, support: Split, n_steps: int | None = None) -> list[Weights]:
        """List the weights after 0, 1, ..., k inner steps.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).
            n_steps: k; by default what training, or evaluating, uses.

        Returns:
            k + 1 states.
        """
        if n_steps is None:
            n_steps = self.n_inner_steps if self.training else self.n_inner_steps_eval or self.n_inner_steps

        def support_loss(weights: Weights) -> tuple[Tensor, Weights]:
            with collecting(self.model):
                prediction, weights = call(self.model, weights, support.x)
            return task_loss(prediction, support.y), weights

        steps = sgd_steps(
            support_loss, weights_of(self.model), lr=self.inner_lr, n_steps=n_steps, first_order=self.first_order
        )
        return [self._with_statistics(weights, support.x) for weights in steps]

    def _with_statistics(self, weights: Weights, x: Tree) -> Weights:
        # The last inner step saw the weights before it; inductive queries need statistics of the weights after it.
        if not uses_support_statistics(self.model):
            return weights
        with collecting(self.model):
            return call(self.model, weights, x)[1]

    def predict(self, state: Weights, x: Tree) -> Tensor:
        """Run the adapted network.

        Args:
            state: theta'.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W), or means (Q, O).
        """
        return call(self.model, state, x)[0]

    def outer_loss(self, episode: Episode) -> Tensor:
        """Loss of the adapted weights on the queries, L(theta'), the term of the sum in the outer objective.

        Args:
            episode: one episode.

        Returns:
            A scalar.
        """
        prediction, after = call(self.model, self.adapt(episode.support), episode.query.x)
        if self.training:
            with torch.no_grad():
                replace_buffers(self.model, after.buffers)
        return task_loss(prediction, episode.query.y)
