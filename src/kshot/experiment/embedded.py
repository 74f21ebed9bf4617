"""Evaluates on embeddings: every image passes the network once, however many tasks it takes part in."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from kshot.core import Learner, Spec, UserError
from kshot.core.learner import module_is_transductive
from kshot.data.challenge import ChallengeTasks
from kshot.data.features import FeatureSet
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.data.source import TaskSource
from kshot.engine.embedding import EmbeddingLearner
from kshot.evaluation.draw import fingerprint
from kshot.evaluation.evaluate import Progress, evaluate, evaluating
from kshot.evaluation.scores import Scores
from kshot.experiment.ensemble import Ensemble, with_backbone
from kshot.experiment.frozen import embed_images
from kshot.nn.flat import Flat
from kshot.nn.norm import uses_support_statistics

#: Larger embeddings (in numbers) are made anew each time: a cache on disk is for what is small.
_KEPT = 1 << 24
#: Images that are embedded at once, and tasks that are answered at once.
_AT_ONCE, _CHUNK = 512, 64
#: The widest embedding that is one vector, and no map.
_VECTOR = 1024


def embeds_alone(learner: Learner) -> bool:
    """Tell whether a method meets its examples through their embeddings alone, each of which depends on one image.

    Args:
        learner: the method.

    Returns:
        True where tasks of embeddings give the answers that tasks of images give.
    """
    backbone = getattr(learner, "backbone", None)
    kind = type(learner)
    usual = isinstance(learner, EmbeddingLearner) and (
        (kind.adapt, kind.predict) == (EmbeddingLearner.adapt, EmbeddingLearner.predict)
    )
    if not usual or not isinstance(backbone, nn.Module):
        return False
    batched = any(module_is_transductive(m) for m in backbone.modules()) or uses_support_statistics(backbone)
    return not batched and not isinstance(backbone, Flat)


class Part(nn.Module):
    """Takes some columns of embeddings that stand side by side.

    Args:
        first: the first of them.
        n_features: D, how many.

    Attributes:
        takes_tasks: a leading task axis is allowed.
    """

    takes_tasks = True

    def __init__(self, first: int, n_features: int) -> None:
        super().__init__()
        self.first, self.n_features = first, n_features

    def forward(self, x: Tensor) -> Tensor:
        """Take the columns.

        Args:
            x: (..., D of all).

        Returns:
            (..., D).
        """
        return x[..., self.first : self.first + self.n_features]


def on_features(learner: Learner, n_features: int, first: int = 0, n_all: int = 0) -> Learner:
    """Copy a learner, for tasks of the embeddings that its own network makes.

    Args:
        learner: one that ``embeds_alone``.
        n_features: D.
        first: where its embeddings begin, if those of several stand side by side.
        n_all: how wide all of them are together; D if 0.

    Returns:
        The copy, whose network leaves embeddings as they are.
    """
    twin = with_backbone(learner, Part(first, n_features))
    if learner.spec is not None:
        twin.spec = learner.spec._replace(input_shape=(n_all or n_features,))
    return twin


def evaluate_embedded(
    learner: Learner,
    source: TaskSource,
    *,
    n_episodes: int = 600,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Scores:
    """Score a learner on the episodes that ``evaluate`` sees; where it can be, each image is embedded once.

    Embedding all images first pays where the tasks hold more images than there are.

    Args:
        learner: any.
        source: the tasks.
        n_episodes: E.
        seed: of the episodes.
        on_progress: told (done, E) episodes.

    Returns:
        The scores, with the fingerprint of the episodes of images.
    """
    asked: dict[str, Any] = {"n_episodes": n_episodes, "seed": seed, "on_progress": on_progress}
    if isinstance(source, ChallengeTasks):
        return _on_challenge(learner, source, asked)
    images = source.images if isinstance(source, ImageTasks) else None
    if not isinstance(source, ImageTasks) or not isinstance(images, ImageSet) or source.varying:
        return evaluate(learner, source, **asked)
    per_episode = source.spec.n_outputs * (source.n_shot + source.n_query)
    if not embeds_alone(learner) or source.transform is not None or n_episodes * per_episode < images.n_examples:
        return evaluate(learner, source, **asked)
    _check_shape(learner, source.spec)
    features = embedded(learner.backbone, images)  # pyright: ignore[reportArgumentType]
    tasks = feature_tasks(features, source)
    width = features.features.shape[1]
    # Whole maps are for methods that compare them part by part: one task alone fills the memory.
    scores = evaluate(on_features(learner, width), tasks, chunk=_CHUNK if width <= _VECTOR else 1, **asked)
    return renamed(scores, source, n_episodes)


def feature_tasks(features: FeatureSet, source: ImageTasks) -> ImageTasks:
    """Draw from embeddings the episodes that a source draws from images.

    Args:
        features: of all images of the source.
        source: tasks of images.

    Returns:
        Tasks of embeddings.
    """
    return ImageTasks(
        dataclasses.replace(features, groups=source.groups),
        name=source.name,
        n_way=source.spec.n_outputs,
        n_shot=source.n_shot,
        n_query=source.n_query,
        within_group=source.sampler.within_group,
        shuffle=source.shuffle,
    )


def renamed(scores: Scores, source: TaskSource, n_episodes: int) -> Scores:
    """Give scores on embeddings the fingerprint of the tasks of images that they stand for.

    Args:
        scores: on embeddings.
        source: the tasks of images.
        n_episodes: E.

    Returns:
        The scores.
    """
    told = fingerprint(source, n_episodes, scores.seed)
    return dataclasses.replace(scores, fingerprint=told)


def embedded(backbone: nn.Module, images: ImageSet) -> FeatureSet:
    """Embed every image; small embeddings are kept in the cache.

    Args:
        backbone: a network whose answer to one image does not depend on others.
        images: N of them, rotations included.

    Returns:
        The features on the CPU.
    """
    width = int(getattr(backbone, "n_features", 0)) or _width(backbone, images)
    if width * images.n_examples <= _KEPT:
        return embed_images(backbone, images)
    with evaluating(backbone):
        parts = [backbone(images.gather(i)).flatten(1).float().cpu() for i in _blocks(images)]
    return FeatureSet(torch.cat(parts), images.all_labels(), images.all_class_names(), images.all_groups())


def _blocks(images: ImageSet) -> tuple[Tensor, ...]:
    return torch.arange(images.n_examples).split(_AT_ONCE)


def _width(backbone: nn.Module, images: ImageSet) -> int:
    with evaluating(backbone):
        return prod(backbone(images.gather(torch.arange(1))).shape[1:])


def _on_challenge(learner: Learner, source: ChallengeTasks, asked: dict[str, Any]) -> Scores:
    # Its 8,400 images in 400 trials are 800; the members of an ensemble have their embeddings side by side.
    members = list(learner.learners()) if isinstance(learner, Ensemble) else [learner]
    if not all(embeds_alone(member) for member in members):
        return evaluate(learner, source, **asked)
    _check_shape(members[0], source.spec)
    networks = [cast("nn.Module", member.backbone) for member in members]
    widths = [int(network.n_features) for network in networks]  # pyright: ignore[reportArgumentType]
    with evaluating(learner):
        tasks = source.embedded(lambda x: torch.cat([network(x).flatten(1) for network in networks], 1))
    twins = [
        on_features(member, width, sum(widths[:i]), sum(widths))
        for i, (member, width) in enumerate(zip(members, widths, strict=True))
    ]
    scores = evaluate(Ensemble(twins) if len(twins) > 1 else twins[0], tasks, chunk=_CHUNK, **asked)
    return renamed(scores, source, asked["n_episodes"])


def _check_shape(learner: Learner, spec: Spec) -> None:
    # Asked here, since embeddings hide the images' shape from the usual check.
    built = learner.spec
    if built is not None and tuple(built.input_shape) != tuple(spec.input_shape):
        raise UserError(
            f"this {type(learner).__name__} was built for inputs {tuple(built.input_shape)}, got "
            f"{tuple(spec.input_shape)}; evaluate on such data, or train on this"
        )
