"""What methods that adapt by gradient steps share, so that a method's file holds the method alone."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kshot.core import Episode, Learner, Spec, Split, Tree, UserError, task_loss
from kshot.core.episode import unbind
from kshot.engine.inner.steps import Inner, InnerDivergence, unrolled, watching
from kshot.engine.inner.weights import (
    Weights,
    call,
    mean_of_tasks,
    outside_inference_mode,
    replace_buffers,
    weights_of,
)
from kshot.nn import native
from kshot.nn.norm import collecting, uses_support_statistics


class InnerLoop(Learner):
    """A learner whose ``adapt`` takes gradient steps from weights that the outer loop learns. Abstract.

    A method says by ``inner`` how it steps, and may say where it starts (``start``), how it runs its network (``run``)
    and what it descends (``support_loss``). In normalisation mode "support" the statistics are those of the adapted
    weights, at the price of one more forward pass.

    Args:
        model: any network that maps (N, ...) to logits (N, W), or to means (N, O).
        n_inner_steps: gradient steps while training.
        n_inner_steps_eval: gradient steps when evaluating; 0 for as many as in training.
        truncate: inner steps, the last ones, that the outer gradient runs through; 0 for all.

    Raises:
        UserError: a step count that makes no sense.
    """

    default_normalisation = "episode"
    kinds = ("classification", "regression")
    any_way = False
    label_equivariant = False

    #: Leave the second derivatives out.
    first_order: bool = False

    def __init__(self, model: nn.Module, n_inner_steps: int, n_inner_steps_eval: int, truncate: int = 0) -> None:
        super().__init__()
        counts = (n_inner_steps, n_inner_steps_eval, truncate)
        if n_inner_steps < 1 or n_inner_steps_eval < 0 or not all(isinstance(n, int) for n in counts):
            raise UserError(
                f"expected whole numbers, n_inner_steps >= 1, got {n_inner_steps} (and {n_inner_steps_eval} to "
                f"evaluate, {truncate} to run back through); a learner that takes no step learns nothing of its task"
            )
        if truncate < 0:
            raise UserError(f"expected truncate >= 0 inner steps, got {truncate}; 0 runs back through all of them")
        self.model, self.truncate = model, truncate
        self.n_inner_steps, self.n_inner_steps_eval = n_inner_steps, n_inner_steps_eval

    @property
    def backbone(self) -> nn.Module | None:
        """The network below its head, for pictures of the embedding; None where the model is no sequence."""
        return self.model[:-1] if isinstance(self.model, nn.Sequential) and len(self.model) > 1 else None

    @property
    def exact_gradient(self) -> bool:
        """False for first order, where the second derivatives are missing, and where early steps are left out."""
        return not (self.first_order or self.truncated)

    @property
    def truncated(self) -> bool:
        """True if the outer gradient does not run through all inner steps."""
        return 0 < self.truncate < self.n_steps()

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> InnerLoop:
        """Build the method on a backbone with a linear head.

        Args:
            backbone: maps (N, *input_shape) to (N, n_features).
            spec: what the tasks look like.
            **options: see the class.

        Returns:
            The learner.
        """
        head = nn.Linear(int(backbone.n_features), spec.n_outputs)  # pyright: ignore[reportArgumentType]
        return cls(nn.Sequential(backbone, head), **options)

    @abstractmethod
    def inner(self, n_steps: int) -> Inner:
        """Say how the inner loop steps.

        Args:
            n_steps: number of steps.

        Returns:
            The settings; tensors in them may be parameters.
        """

    def start(self, support: Split) -> Weights:
        """Say where the inner loop starts.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).

        Returns:
            theta: by default the network's own weights.
        """
        return weights_of(self.model)

    def run(self, weights: Weights, x: Tree) -> tuple[Tensor, Weights]:
        """Run the network with some weights.

        Args:
            weights: what to run it with.
            x: inputs (N, ...).

        Returns:
            Logits (N, W) or means (N, O), and the weights with the buffers as the forward pass left them.
        """
        return call(self.model, weights, x)

    def support_loss(self, weights: Weights, support: Split, step: int) -> tuple[Tensor, Weights]:
        """Loss that the inner loop descends.

        Args:
            weights: before the step.
            support: x (S, ...), y (S,) int64 or (S, O).
            step: from 0 on.

        Returns:
            A scalar, and the weights with the buffers as the forward pass left them.
        """
        with collecting(self.model):
            prediction, weights = self.run(weights, support.x)
        return task_loss(prediction, support.y), weights

    def n_steps(self) -> int:
        """Return the number of inner steps: in training mode that of training, else that of evaluation."""
        return self.n_inner_steps if self.training else self.n_inner_steps_eval or self.n_inner_steps

    def adapt(self, support: Split) -> Weights:
        """Take the inner steps.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).

        Returns:
            The adapted weights.
        """
        with outside_inference_mode(support) as given:
            (last,) = self.path(given, self.n_steps(), every=False)
        return last

    def states(self, support: Split, n_steps: int | None = None) -> list[Weights]:
        """List the weights after 0, 1, ..., k inner steps.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).
            n_steps: k; by default what training, or evaluating, uses.

        Returns:
            k + 1 states.
        """
        with outside_inference_mode(support) as given:
            return list(self.path(given, self.n_steps() if n_steps is None else n_steps, every=True))

    def path(self, support: Split, n_steps: int, *, every: bool) -> Iterator[Weights]:
        """Yield the weights on the way.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).
            n_steps: k.
            every: yield those after 0, 1, ..., k steps, else the last alone.

        Yields:
            Weights that queries can be answered with.
        """
        steps = unrolled(self.support_loss, self.start(support), support, self.inner(n_steps), every=every)
        for weights in steps:
            yield self.with_statistics(weights, support.x)

    def with_statistics(self, weights: Weights, x: Tree) -> Weights:
        """Take the statistics of the support anew; the last inner step saw the weights before it.

        Args:
            weights: adapted.
            x: inputs of the support (S, ...).

        Returns:
            The weights; unchanged where no layer is in mode "support".
        """
        if not uses_support_statistics(self.model):
            return weights
        with collecting(self.model):
            return self.run(weights, x)[1]

    def predict(self, state: Weights, x: Tree) -> Tensor:
        """Run the adapted network.

        Args:
            state: the adapted weights.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W), or means (Q, O).
        """
        return self.run(state, x)[0]

    def outer_loss(self, episode: Episode) -> Tensor:
        """Loss of the adapted weights on the queries.

        Args:
            episode: one episode.

        Returns:
            A scalar.
        """
        prediction, after = self.run(self.adapt(episode.support), episode.query.x)
        self.keep_buffers(after)
        return task_loss(prediction, episode.query.y)

    def keep_buffers(self, after: Weights) -> None:
        """While training, put the buffers that a task left behind into the network; the engine averages over tasks.

        Args:
            after: the last weights of the task.
        """
        if self.training:
            with torch.no_grad():
                replace_buffers(self.model, after.buffers)


def one_by_one(learner: Learner, episodes: Episode) -> Tensor:
    """Take the outer losses of tasks one after the other, with compiled kernels wherever a network has them.

    Every task starts from the same buffers; the mean of what they leave is left.

    Args:
        learner: any, whose outer loss will be differentiated once.
        episodes: T episodes.

    Returns:
        (T,) losses.
    """
    before, losses, left = weights_of(learner).buffers, [], []
    with native.differentiated_once():
        for episode in unbind(episodes):
            replace_buffers(learner, before)
            losses.append(learner.outer_loss(episode))
            left.append(weights_of(learner).buffers)
    replace_buffers(learner, {k: mean_of_tasks(torch.stack([b[k] for b in left])) for k in before})
    return torch.stack(losses)


def check_rate(name: str, rate: float) -> None:
    """Refuse a learning rate that makes no sense.

    Args:
        name: of the option.
        rate: its value.

    Raises:
        UserError: it is not positive, or infinite.
    """
    if not 0 < rate < math.inf:
        raise UserError(f"expected {name} > 0, and finite, got {rate}; 0.01 to 0.5 is usual")


def first_divergence(learner: Learner, episode: Episode) -> str | None:
    """Find where an inner loop goes to infinity.

    Args:
        learner: any learner.
        episode: one episode.

    Returns:
        Such as "the gradient of 0.weight in inner step 3"; None where every inner step is finite, or unknown.
    """
    try:
        with watching(), torch.no_grad():
            learner.adapt(episode.support)
    except InnerDivergence as found:
        return str(found)
    return None
