"""Pretrained methods that train the whole network within a task: what they share."""

from __future__ import annotations

from torch import Tensor, nn

from kshot.core import Tree, UserError
from kshot.engine.embedding import Labelled, PretrainedLearner
from kshot.engine.inner import HEAD, Inner, Named, Weights, adam, call, weights_of
from kshot.nn.heads import class_means, unit


class TunedLearner(PretrainedLearner):
    """A pretrained learner that trains the whole network in a task, below a new layer that starts at the class means.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None where nothing is trained.
        inner_lr: learning rate of Adam in a task.
        n_inner_steps: steps, each on the whole task.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module | None = None,
        *,
        inner_lr: float = 5e-5,
        n_inner_steps: int = 25,
    ) -> None:
        super().__init__(backbone, classifier)
        if n_inner_steps < 1 or not inner_lr > 0:
            raise UserError(
                f"expected n_inner_steps >= 1 and inner_lr > 0, got {n_inner_steps} and {inner_lr}; "
                "the paper takes 25 and 5e-5"
            )
        self.inner = Inner(inner_lr, n_inner_steps, adam(), first_order=True)

    def fit_head(self, support: Labelled) -> Tensor:
        """Return the start of the new layer.

        Args:
            support: the embedded support.

        Returns:
            (W, D), of length one.
        """
        return unit(class_means(support.z, support.y, support.ways))

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Answer by the new layer as it starts.

        Args:
            head: (W, D).
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return z @ head.mT

    def with_new_layer(self, head: Tensor, buffers: Named) -> Weights:
        """Start a task.

        Args:
            head: from ``fit_head``.
            buffers: from ``embed_support``.

        Returns:
            The weights of the backbone, and those of the layer.
        """
        layer = dict(zip(HEAD, (head, head.new_zeros(len(head))), strict=True))
        return Weights({**weights_of(self.backbone).params, **layer}, buffers)

    def answer(self, weights: Weights, x: Tree) -> tuple[Tensor, Weights]:
        """Run backbone and new layer.

        Args:
            weights: of both.
            x: inputs (N, ...).

        Returns:
            Logits (N, W), and the weights with the buffers as they are after it.
        """
        own = {k: p for k, p in weights.params.items() if k not in HEAD}
        z, after = call(self.backbone, Weights(own, weights.buffers), x)
        weight, bias = (weights.params[k] for k in HEAD)
        logits = z @ weight.mT + bias
        return logits, Weights(weights.params, after.buffers)
