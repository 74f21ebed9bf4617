"""The one protocol: adapt to a support set, predict on queries, and a loss whose gradient is the outer update.

scikit-learn's ``fit`` is ``adapt``; a server's session is a ``State``; a robot's adaptation is ``adapt`` on rollouts.
A learner is written for ONE episode. The engine adds the task axis.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core.episode import Episode, Split
from kshot.core.errors import UserError
from kshot.core.tree import Tree

#: Kinds of task: what is asked decides about loss and score.
Kind = Literal["classification", "regression", "sequence"]


class Spec(NamedTuple):
    """What a kind of task looks like from outside: enough to build a network for it.

    Attributes:
        kind: "classification" (logits, cross-entropy), "regression" (means, squared error), or "sequence": steps are
            read and answered in order, each by logits of bits (binary cross-entropy).
        input_shape: shape of one example, (C, H, W) for images, (D,) for vectors and for steps of a sequence.
        n_outputs: number of classes W of an episode, or width O of a regression target or of a step's bits.
    """

    kind: Kind
    input_shape: tuple[int, ...]
    n_outputs: int


def task_loss(prediction: Tensor, y: Tensor) -> Tensor:
    """Mean loss of one task: cross-entropy for class indices or bits, squared error for floats.

    Args:
        prediction: logits (Q, W), means (Q, O), or logits of bits (Q, O).
        y: int64 (Q,), floats (Q, O), or bool (Q, O).

    Returns:
        A scalar; of bits the mean over steps and bits, in nats.
    """
    if y.dtype == torch.bool:
        return F.binary_cross_entropy_with_logits(prediction, y.to(prediction.dtype))
    if y.is_floating_point():
        return F.mse_loss(prediction, y)
    return F.cross_entropy(prediction, y)


class Learner(nn.Module, ABC):
    """A method of meta-learning.

    ``adapt`` is the inner loop: pure, it returns the state and stores nothing on ``self``. ``predict`` answers queries
    from a state. ``outer_loss`` is a scalar whose gradient is the outer update; by default the loss of the queries.

    A learner that answers one query differently when other queries stand beside it is transductive, and must say so:
    override the property, or use layers that carry ``transductive = True`` (normalisation by the statistics of the
    batch at hand does). The leak test of the contract holds everyone to it.
    """

    #: Normalisation mode that the method's paper uses, for backbones built by name (see ``kshot.nn.norm``).
    default_normalisation: ClassVar[str] = "running"
    #: Kinds of task (see ``Spec.kind``) that the method can learn.
    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    #: True where a learner built for W classes can be evaluated at another number of them.
    any_way: ClassVar[bool] = True
    #: True where the order of the support examples counts, as in memories that read them one after the other.
    order_matters: ClassVar[bool] = False
    #: True where naming the classes otherwise permutes the logits and does no more; not so with a learned head.
    label_equivariant: ClassVar[bool] = True
    #: What training shows the method: "episodes"; "classes", batches in which every training class has its own label,
    #: as plain classification needs; or "nothing", where there is nothing to train.
    trained_on: ClassVar[Literal["episodes", "classes", "nothing"]] = "episodes"

    #: What tasks the learner was built for, where that is known; evaluation on other tasks is then refused.
    spec: Spec | None = None

    @property
    def transductive(self) -> bool:
        """True if one query's answer depends on the other queries."""
        return any(module_is_transductive(m) for m in self.modules() if m is not self)

    @property
    def exact_gradient(self) -> bool:
        """True if the gradient of ``outer_loss`` is its derivative; first-order methods leave terms out on purpose."""
        return True

    @property
    def native(self) -> bool:
        """True if ``outer_losses`` takes a whole batch of tasks at once."""
        return False

    @property
    def fused(self) -> bool:
        """True if a compiled kernel computes the outer losses of this very network here: see ``fused_losses``."""
        return False

    @abstractmethod
    def adapt(self, support: Split) -> Tree:
        """Learn a task from its support set.

        Args:
            support: x (S, ...), y (S,) int64, (S, O), or bool (S, 0) of the steps of a sequence.

        Returns:
            The state: a tensor, a dict or a named tuple. Nothing is stored on ``self``.
        """

    @abstractmethod
    def predict(self, state: Tree, x: Tree) -> Tensor:
        """Answer queries for the task that a state knows.

        Args:
            state: what ``adapt`` returned.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W), means (Q, O), or logits of bits (Q, O).
        """

    def outer_loss(self, episode: Episode) -> Tensor:
        """Scalar whose gradient with respect to the parameters is the outer update.

        Args:
            episode: one episode.

        Returns:
            A scalar; by default the loss of ``predict(adapt(support), query.x)`` on ``query.y``.
        """
        return task_loss(self.predict(self.adapt(episode.support), episode.query.x), episode.query.y)

    def outer_losses(self, episodes: Episode) -> Tensor:
        """Outer losses of a batch of tasks at once: the *native* batching of methods whose ``native`` is True.

        Args:
            episodes: a batch of T episodes.

        Returns:
            (T,) losses, equal to ``outer_loss`` of each episode.

        Raises:
            NotImplementedError: the method has no native batching; the engine then uses ``vmap`` or a loop.
        """
        raise NotImplementedError

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Outer losses of a batch of tasks by a compiled kernel: the *fused* batching, where ``fused`` is True.

        Args:
            episodes: a batch of T episodes.

        Returns:
            (T,) losses, equal to ``outer_loss`` of each episode; only their mean need be differentiable, once.

        Raises:
            NotImplementedError: the method has no kernel.
        """
        raise NotImplementedError

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> Learner:
        """Build the learner around a backbone that maps (N, *input_shape) to (N, n_features).

        Args:
            backbone: the network; it has an attribute ``n_features``.
            spec: what the tasks look like.
            **options: the method's own keyword options.

        Returns:
            The learner.
        """
        return cls(backbone, **options)

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return the settings that the method's paper uses for tasks like these, where they are not the defaults.

        Args:
            spec: what the tasks look like.

        Returns:
            Some of the method's keyword options.
        """
        return {}

    def forward(self, episodes: Episode, *, how: Literal["one", "native", "fused"] = "one") -> Tensor:
        """Return the outer loss, so that a functional call of the learner is one of its loss.

        Args:
            episodes: one episode, or a batch of T.
            how: "one" episode by ``outer_loss``, or a batch: "native" by ``outer_losses``, "fused" by ``fused_losses``.

        Returns:
            A scalar, or (T,).
        """
        if how == "one":
            return self.outer_loss(episodes)
        return self.fused_losses(episodes) if how == "fused" else self.outer_losses(episodes)


def module_is_transductive(module: nn.Module) -> bool:
    """Tell whether a layer lets examples of one batch influence each other when it predicts.

    Returns:
        True for layers that say so, and for PyTorch's batch norms without running statistics.
    """
    said = getattr(module, "transductive", None)
    if said is not None:
        return bool(said)
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def unchanged_since(learner: Learner, way: str, names: Iterable[str]) -> bool:
    """Tell whether a way to take many tasks still knows the methods that it does not call.

    A class that declares such a way, say ``fused_losses``, speaks for the methods as it has or inherits them. Whoever
    overrides one of them later, and not the way, has changed what the way should compute.

    Args:
        learner: any.
        way: name of the method that computes the same as others do.
        names: of those others.

    Returns:
        True if no subclass of the class that declares ``way``, nor the object itself, overrides any of them.
    """
    cls = type(learner)
    speaker = next(c for c in cls.__mro__ if way in vars(c))
    return all(name not in vars(learner) and getattr(cls, name) is getattr(speaker, name) for name in names)


def options_of(cls: type[Learner]) -> dict[str, inspect.Parameter]:
    """List a method's own options: the keyword-only parameters of its constructor.

    Returns:
        Name -> parameter, in the order of the signature.

    Raises:
        UserError: an option has no default or no annotation, so it could not be offered on the command line.
    """
    found = {}
    for name, p in inspect.signature(cls.__init__, eval_str=True).parameters.items():
        if p.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if p.default is p.empty or p.annotation is p.empty:
            raise UserError(f"option {name!r} of {cls.__name__} needs an annotation and a default")
        found[name] = p
    return found
