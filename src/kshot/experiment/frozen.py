"""The frozen-feature path: embed a data set once by a trained run's network, then test any head in seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Learner, Spec, UserError, generator, method
from kshot.core.learner import module_is_transductive
from kshot.core.registry import unknown
from kshot.data.cache import Decoded, cached
from kshot.data.features import FeatureSet
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.engine.embedding import CentredLearner
from kshot.evaluation.evaluate import evaluate, evaluating
from kshot.evaluation.scores import Scores
from kshot.experiment.build import open_split
from kshot.experiment.run import load_run
from kshot.nn.flat import Flat
from kshot.nn.norm import uses_support_statistics

#: Methods whose head is fitted to each task alone: what they learn over tasks is at most a scalar or two.
HEADS = (
    "protonet",
    "nearest",
    "simpleshot",
    "linear_probe",
    "baseline",
    "baselinepp",
    "matching",
    "r2d2",
    "lrd2",
    "metaoptnet",
    "bd_cspn",
    "tim",
    "laplacianshot",
    "pt_map",
)
#: Training images whose mean centres features, and images that are embedded at once; by block of drawn episodes.
_FOR_CENTRE, _AT_ONCE, _BLOCK = 4096, 512, 64


class HeadScore(NamedTuple):
    """How good one head is.

    Attributes:
        name: the method.
        transductive: True if one query's answer depends on the others.
        scores: of the episodes, which are the same for every head.
    """

    name: str
    transductive: bool
    scores: Scores


def embed_images(
    backbone: nn.Module, images: ImageSet, on_progress: Callable[[int, int], None] | None = None
) -> FeatureSet:
    """Embed every image of a set; where the same network embedded it before, read the cache.

    Args:
        backbone: the network, whose answer to one image must not depend on others.
        images: N of them, rotations included.
        on_progress: told (done, all) images.

    Returns:
        The features, float32, on the CPU.

    Raises:
        UserError: the network normalises by the statistics of a batch or of a support.
    """
    if any(module_is_transductive(m) for m in backbone.modules()) or uses_support_statistics(backbone):
        raise UserError(
            "expected a network that embeds one image whatever the others are, got one that normalises by the "
            "statistics of a task; train with --normalisation running or layer"
        )
    key = f"features-{images.sha256[:16]}-{_fingerprint(backbone)[:16]}-{'turned' if images.rotations else 'plain'}"
    build = lambda: Decoded({"features": _embedded(backbone, images, on_progress)}, {})  # noqa: E731
    features = cached(key, build).tensors["features"]
    return FeatureSet(features, images.all_labels(), images.all_class_names(), images.all_groups())


def _fingerprint(backbone: nn.Module) -> str:
    digest = hashlib.sha256(repr(backbone).encode())
    for name, t in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(t.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _embedded(backbone: nn.Module, images: ImageSet, on_progress: Callable[[int, int], None] | None) -> Tensor:
    parts, n = [], images.n_examples
    with evaluating(backbone):
        for index in torch.arange(n).split(_AT_ONCE):
            parts.append(backbone(images.gather(index)).flatten(1).float().cpu())
            if on_progress is not None:
                on_progress(int(index[-1]) + 1, n)
    return torch.cat(parts)


def make_head(name: str, n_features: int, n_way: int, centre: Tensor | None = None, **options: Any) -> Learner:
    """Make a method that works on features as they are.

    Args:
        name: one of ``HEADS``.
        n_features: D.
        n_way: W of the tasks.
        centre: mean of the training features (D,), for the methods that centre by it.
        **options: the method's own.

    Returns:
        The learner, in evaluation mode.

    Raises:
        UserError: the method is none that works on frozen features.
    """
    if name not in HEADS:
        raise UserError(unknown("head", name, list(HEADS)))
    spec = Spec("classification", (n_features,), n_way)
    with torch.random.fork_rng([]):
        # Classifiers of training classes are made, and not used: they must not touch the generator.
        learner = method(name).learner.from_backbone(Flat((n_features,)), spec, **options)
    if centre is not None and isinstance(learner, CentredLearner):
        learner.mean = centre
    return learner.eval()


def score_heads(
    names: Sequence[str],
    features: FeatureSet,
    *,
    n_way: int = 5,
    n_shot: int = 1,
    n_query: int = 15,
    n_episodes: int = 600,
    seed: int = 0,
    centre: Tensor | None = None,
    name: str = "features",
    on_head: Callable[[HeadScore], None] | None = None,
) -> list[HeadScore]:
    """Score heads on the same episodes of frozen features.

    Args:
        names: of ``HEADS``.
        features: what episodes are drawn from.
        n_way: W.
        n_shot: K.
        n_query: Q, queries of each class.
        n_episodes: E.
        seed: of the episodes.
        centre: mean of the training features (D,), for the methods that centre by it.
        name: of the data.
        on_head: told each as it is done.

    Returns:
        A score for each head.
    """
    source = ImageTasks(features, name=name, n_way=n_way, n_shot=n_shot, n_query=n_query)
    found = []
    for head in names:
        learner = make_head(head, features.features.shape[1], n_way, centre)
        scores = evaluate(learner, source, n_episodes=n_episodes, seed=seed, chunk=_BLOCK)
        found.append(HeadScore(head, learner.transductive, scores))
        if on_head is not None:
            on_head(found[-1])
    return found


class Frozen(NamedTuple):
    """A data set as a trained run's network sees it.

    Attributes:
        features: of one split.
        centre: mean of some training features (D,).
        data: name of the data set.
    """

    features: FeatureSet
    centre: Tensor
    data: str


def freeze_run(
    run: Path,
    *,
    split: str = "meta_test",
    root: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **data_options: Any,
) -> Frozen:
    """Embed one split of a run's data by its network.

    Args:
        run: the run folder.
        split: meta_train, meta_val or meta_test.
        root: the data root.
        on_progress: told (done, all) images.
        **data_options: the data set's own, in the place of the run's.

    Returns:
        The features, and the centre that some methods need.

    Raises:
        UserError: the run has no network to embed by, or its data are no images.
    """
    config, learner, _ = load_run(run, root=root)
    backbone = getattr(learner, "backbone", None)
    sources = [open_split(config, s, root=root, **data_options) for s in (split, "meta_train")]
    if not isinstance(backbone, nn.Module) or not all(isinstance(s, ImageTasks) for s in sources):
        raise UserError(
            f"expected a run on images with a backbone, got {config.algorithm} on {config.data}; take another"
        )
    features = embed_images(backbone, sources[0].images, on_progress)  # pyright: ignore[reportAttributeAccessIssue]
    return Frozen(features, _centre(backbone, sources[1].images), config.data)  # pyright: ignore[reportAttributeAccessIssue]


def _centre(backbone: nn.Module, images: ImageSet) -> Tensor:
    some = torch.randperm(images.n_examples, generator=generator(0, "centre"))[:_FOR_CENTRE]
    with evaluating(backbone):
        return torch.cat([backbone(images.gather(i)).flatten(1).float() for i in some.split(_AT_ONCE)]).mean(0)
