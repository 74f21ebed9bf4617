"""Methods that embed once and then fit a head on the embeddings: what they share.

``EmbeddingLearner`` does the embedding: with the statistics that the normalisation asks for, of support and queries as
one batch while training, of all tasks at once where the network can do that. A method says how a head is fitted to
embeddings and how it answers. ``PretrainedLearner`` is trained as a plain classifier of all training classes, and fits
its head only in the tasks of a test.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core.episode import Episode, Split
from kshot.core.learner import Learner, Spec, task_loss, unchanged_since
from kshot.core.tree import Tree, tree_map
from kshot.engine.inner import Named, Weights, call, outside_inference_mode, weights_of
from kshot.nn.conv import by_kernels, known_to_kernels
from kshot.nn.norm import collecting, uses_support_statistics

Embed = Callable[[Tree], Tensor]
#: A running mean forgets at this rate once it has seen a hundred batches.
_SLOWEST = 0.01


class Labelled(NamedTuple):
    """Embeddings and their targets.

    Attributes:
        z: (N, D).
        y: int64 (N,), or (N, O).
        ways: W, or 0 for regression.
    """

    z: Tensor
    y: Tensor
    ways: int


class TaskHead(NamedTuple):
    """What such a method knows of a task.

    Attributes:
        head: what ``fit_head`` made of the embedded support.
        buffers: the backbone's buffers; normalisation by support statistics keeps its own in them.
    """

    head: Tree
    buffers: Named


class EmbeddingLearner(Learner):
    """A backbone, and a head that is fitted to each task's embedded support.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
    """

    #: True where the head is a network, which mixed precision may speed up; distances and closed forms lose by it.
    network_head: ClassVar[bool] = False

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    @abstractmethod
    def fit_head(self, support: Labelled) -> Tree:
        """Fit the head of a task.

        Args:
            support: its embedded support.

        Returns:
            The head, a tree of tensors.
        """

    @abstractmethod
    def apply_head(self, head: Tree, z: Tensor) -> Tensor:
        """Answer embedded queries.

        Args:
            head: from ``fit_head``.
            z: (Q, D).

        Returns:
            Logits (Q, W), or means (Q, O).
        """

    def head_loss(self, support: Labelled, query: Labelled) -> Tensor:
        """Loss of one task from its embeddings.

        Args:
            support: embedded support.
            query: embedded queries.

        Returns:
            A scalar; by default the loss of the fitted head's answers.
        """
        return task_loss(self.apply_head(self.fit_head(support), query.z), query.y)

    def watch(self, z: Tensor) -> None:
        """Take note of training embeddings; the only place where such a method may replace buffers of its own.

        Args:
            z: embeddings (N, D), or (T, N, D) of T tasks, while training.
        """

    @property
    def native(self) -> bool:
        """True if the backbone takes a task axis, needs no statistics from ``adapt``, and the loss is the usual one."""
        takes = getattr(self.backbone, "takes_tasks", False) and not uses_support_statistics(self.backbone)
        return takes and unchanged_since(self, "outer_losses", ("outer_loss",))

    @property
    def fused(self) -> bool:
        """True if a compiled kernel embeds by the very backbone, while training."""
        known = unchanged_since(self, "fused_losses", ("outer_loss",))
        return self.training and known and by_kernels(self.backbone)

    def adapt(self, support: Split) -> TaskHead:
        """Embed the support and fit the head.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).

        Returns:
            The head, and the buffers to embed queries with.
        """
        with outside_inference_mode(support) as given:  # some heads are trained
            z, buffers = embed_support(self.backbone, given.x)
            return TaskHead(self.fit_head(labelled(z, given)), buffers)

    def predict(self, state: TaskHead, x: Tree) -> Tensor:
        """Embed queries and answer them.

        Args:
            state: from ``adapt``.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W), or means (Q, O).
        """
        return self.apply_head(state.head, embed_queries(self.backbone, state.buffers, x))

    def outer_loss(self, episode: Episode) -> Tensor:
        """Embed support and queries as one batch, and take the loss of the head.

        Args:
            episode: one episode.

        Returns:
            A scalar.
        """
        support, query = episode
        if uses_support_statistics(self.backbone):
            z, buffers = embed_support(self.backbone, support.x)
            zq = embed_queries(self.backbone, buffers, query.x)
        else:
            both = self.backbone(tree_map(lambda *xs: torch.cat(xs), support.x, query.x))
            z, zq = both[: len(support.y)], both[len(support.y) :]
        with self.head_precision(z):
            z, zq = self.in_head_precision(z), self.in_head_precision(zq)
            if self.training:
                self.watch(torch.cat([z, zq]).detach())
            return self.head_loss(labelled(z, support), labelled(zq, query))

    def head_precision(self, z: Tensor) -> AbstractContextManager[Any]:
        """Leave mixed precision where the head is no network.

        Args:
            z: embeddings, of any shape.

        Returns:
            A context for everything after the embedding.
        """
        mixed = torch.is_autocast_enabled(z.device.type) and not self.network_head
        return torch.autocast(z.device.type, enabled=False) if mixed else nullcontext()

    def in_head_precision(self, z: Tensor) -> Tensor:
        """Make embeddings of mixed precision float32 again, where the head is no network.

        Args:
            z: embeddings, of any shape.

        Returns:
            Of the same shape.
        """
        return z if self.network_head or z.dtype not in (torch.bfloat16, torch.float16) else z.float()

    def outer_losses(self, episodes: Episode) -> Tensor:
        """Embed the examples of all tasks in one pass.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        return self._losses(episodes, self.backbone)

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Embed the examples of all tasks by compiled kernels.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        return self._losses(episodes, known_to_kernels(self.backbone).fused)

    def _losses(self, episodes: Episode, embed: Embed) -> Tensor:
        support, query = episodes
        z = self.in_head_precision(embed(tree_map(lambda *xs: torch.cat(xs, 1), support.x, query.x)))
        n_support = support.y.shape[1]
        if self.training:
            self.watch(z.detach())

        def one(z: Tensor, zq: Tensor, y: Tensor, yq: Tensor) -> Tensor:
            return self.head_loss(
                labelled(z, Split(None, y, support.n_way)), labelled(zq, Split(None, yq, query.n_way))
            )

        with self.head_precision(z):
            return torch.func.vmap(one, randomness="different")(z[:, :n_support], z[:, n_support:], support.y, query.y)


class PretrainedLearner(EmbeddingLearner):
    """Trained as a plain classifier of all training classes; a head is fitted in the tasks of a test only.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings (N, D) to logits (N, C) of the training classes; None where the embeddings come
            from elsewhere, and nothing is trained.
    """

    trained_on = "classes"

    def __init__(self, backbone: nn.Module, classifier: nn.Module | None = None) -> None:
        super().__init__(backbone)
        self.classifier = classifier

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> PretrainedLearner:
        """Build the learner with a linear classifier of the training classes.

        Args:
            backbone: the network; it has an attribute ``n_features``.
            spec: of training, whose ``n_outputs`` is the number of training classes.
            **options: the method's own.

        Returns:
            The learner.
        """
        head = nn.Linear(int(backbone.n_features), spec.n_outputs)  # pyright: ignore[reportArgumentType]
        return cls(backbone, head, **options)

    def head_loss(self, support: Labelled, query: Labelled) -> Tensor:
        """Cross-entropy of the classifier of all training classes, over support and queries alike.

        Args:
            support: embeddings, labels among the training classes.
            query: the same.

        Returns:
            A scalar.

        Raises:
            RuntimeError: the learner was built without a classifier.
        """
        if self.classifier is None:
            raise RuntimeError("this learner was built on embeddings alone, it has no classifier to train")
        return F.cross_entropy(self.classifier(torch.cat([support.z, query.z])), torch.cat([support.y, query.y]))


class CentredLearner(PretrainedLearner):
    """A pretrained learner that keeps the mean of the training features, to centre features by.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None on embeddings that come from elsewhere,
            where ``mean`` is zero until it is set.
    """

    mean: Tensor
    n_seen: Tensor

    def __init__(self, backbone: nn.Module, classifier: nn.Module | None = None) -> None:
        super().__init__(backbone, classifier)
        self.register_buffer("mean", torch.zeros(getattr(backbone, "n_features", 1)))
        self.register_buffer("n_seen", torch.zeros(()))

    def watch(self, z: Tensor) -> None:
        """Follow the mean of the training features.

        Args:
            z: (N, D), or (T, N, D).
        """
        weight = (1 / (self.n_seen + 1)).clamp(min=_SLOWEST)
        self.mean = torch.lerp(self.mean, z.flatten(0, -2).mean(0), weight)
        self.n_seen = self.n_seen + 1


def labelled(z: Tensor, split: Split) -> Labelled:
    """Put the targets of a split beside its embeddings.

    Args:
        z: (N, D).
        split: the examples that were embedded.

    Returns:
        Both.
    """
    return Labelled(z, split.y, 0 if split.y.is_floating_point() else split.ways())


def embed_support(backbone: nn.Module, x: Tree) -> tuple[Tensor, Named]:
    """Embed a support set, taking from it the statistics of layers in mode "support".

    Args:
        backbone: the network; left as it was.
        x: inputs (S, ...).

    Returns:
        (S, D), and the buffers to embed queries with.
    """
    with collecting(backbone):
        z, weights = call(backbone, weights_of(backbone), x)
    return z, weights.buffers


def embed_queries(backbone: nn.Module, buffers: Named, x: Tree) -> Tensor:
    """Embed queries.

    Args:
        backbone: the network; left as it was.
        buffers: from ``embed_support``.
        x: inputs (Q, ...).

    Returns:
        (Q, D).
    """
    return call(backbone, Weights(weights_of(backbone).params, buffers), x)[0]
