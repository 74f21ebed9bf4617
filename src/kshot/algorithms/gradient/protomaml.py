"""Proto-MAML: MAML whose head starts from the prototypes of the task.

Paper: Eleni Triantafillou, Tyler Zhu, Vincent Dumoulin, Pascal Lamblin, Utku Evci, Kelvin Xu, Ross Goroshin, Carles
Gelada, Kevin Swersky, Pierre-Antoine Manzagol, Hugo Larochelle, "Meta-Dataset: A Dataset of Datasets for Learning to
Learn from Few Examples", ICLR 2020, arXiv:1903.03096.

Idea: a Prototypical Network is a linear classifier with w_k = 2 c_k and b_k = -|c_k|^2; begin there, and fine-tune
everything by gradient steps, as MAML does. So there is no head to learn, and any number of classes will do.

======================  ==============================================
paper                   here
======================  ==============================================
theta                   the parameters of ``model``, an embedding
c_k                     ``class_means`` of the embedded support
w_k, b_k                ``HEAD`` (section 3)
alpha                   ``inner_lr``
======================  ==============================================

Differs from the paper: none in the method. The paper searches for the inner rate and number of steps on its validation
data; the defaults here are for small images.

Checked by: tests/reference/test_gradient_family.py (plain loops), tests/algorithms/test_gradient_family.py (without a
step, a Prototypical Network).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Episode, Spec, Split, Tree, register
from kshot.core.episode import select
from kshot.engine.inner import HEAD, FusedInnerLoop, Inner, Weights, call, check_rate, weights_of
from kshot.nn.conv import known_to_kernels
from kshot.nn.heads import class_means
from kshot.nn.norm import collecting


@register(
    "protomaml",
    family="gradient",
    paper="Triantafillou et al., Meta-Dataset, ICLR 2020, arXiv:1903.03096",
)
class ProtoMAML(FusedInnerLoop):
    """Proto-MAML.

    Args:
        model: the embedding; maps (N, ...) to (N, D).
        inner_lr: alpha.
        n_inner_steps: gradient steps while training.
        n_inner_steps_eval: gradient steps when evaluating, 0 for as many as in training.
        first_order: leave the second derivatives of the steps out (fo-Proto-MAML); the prototypes keep theirs.
        truncate: inner steps, the last ones, that the outer gradient runs through; 0 for all.

    Raises:
        UserError: a step count or rate that makes no sense.
    """

    kinds = ("classification",)
    any_way = True
    label_equivariant = True

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.01,
        n_inner_steps: int = 2,
        n_inner_steps_eval: int = 0,
        first_order: bool = False,
        truncate: int = 0,
    ) -> None:
        super().__init__(model, n_inner_steps, n_inner_steps_eval, truncate)
        check_rate("inner_lr", inner_lr)
        self.inner_lr, self.first_order = inner_lr, first_order

    @property
    def backbone(self) -> nn.Module | None:
        """The embedding."""
        return self.model

    @property
    def fused(self) -> bool:
        """True if the model is a Conv4 that compiled kernels know, while training."""
        return self.kernels_know(self.model)

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> ProtoMAML:
        """Build Proto-MAML on a backbone; there is no head.

        Args:
            backbone: maps (N, *input_shape) to (N, D).
            spec: what the tasks look like.
            **options: see the class.

        Returns:
            The learner.
        """
        return cls(backbone, **options)

    def inner(self, n_steps: int) -> Inner:
        """Step embedding and head with one rate.

        Args:
            n_steps: number of steps.

        Returns:
            The settings.
        """
        return Inner(self.inner_lr, n_steps, first_order=self.first_order, truncate=self.truncate)

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Embed all supports at once by compiled kernels; then these take the steps, task by task: each has its head.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        body, support = known_to_kernels(self.model), episodes.support
        named = dict(zip(body.kernel_names(), body.kernel_parameters(), strict=True))
        c = class_means(body.fused(support.x), support.y, support.ways())
        losses = [
            self.losses_of(select(episodes, slice(t, t + 1)), {**named, **_head(c[t])}, body.pools)
            for t in range(len(c))
        ]
        return torch.cat(losses)

    def start(self, support: Split) -> Weights:
        """Start from the linear classifier that is the Prototypical Network: w_k = 2 c_k, b_k = -|c_k|^2 (section 3).

        Args:
            support: x (S, ...), y (S,) int64.

        Returns:
            The weights of embedding and head.
        """
        with collecting(self.model):
            z, theta = call(self.model, weights_of(self.model), support.x)
        c = class_means(z, support.y, support.ways())
        return Weights({**theta.params, **_head(c)}, theta.buffers)

    def run(self, weights: Weights, x: Tree) -> tuple[Tensor, Weights]:
        """Embed, and classify by the head.

        Args:
            weights: of embedding and head.
            x: inputs (N, ...).

        Returns:
            Logits (N, W), and the weights with the buffers as the forward pass left them.
        """
        theta = {k: p for k, p in weights.params.items() if k not in HEAD}
        z, after = call(self.model, Weights(theta, weights.buffers), x)
        weight, bias = (weights.params[k] for k in HEAD)
        return F.linear(z, weight, bias), Weights(weights.params, after.buffers)


def _head(c: Tensor) -> dict[str, Tensor]:
    return dict(zip(HEAD, (2 * c, -(c * c).sum(-1)), strict=True))
