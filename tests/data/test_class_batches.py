"""Batches of all training classes, and sets of features in the place of images."""

import pytest
import torch

from kshot.core import UserError, generator
from kshot.data.class_batches import ClassBatches
from kshot.data.features import FeatureSet
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.data.sinusoid import Sinusoid

N_CLASSES, N_EACH = 6, 5


def images(rotations: bool = False) -> ImageSet:
    pixels = torch.arange(N_CLASSES * N_EACH, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    labels = torch.arange(N_CLASSES).repeat_interleave(N_EACH)
    return ImageSet(pixels, labels, tuple("abcdef"), torch.zeros(N_CLASSES, dtype=torch.int64), ("all",), rotations)


def test_labels_are_those_of_the_whole_set() -> None:
    source = ClassBatches(ImageTasks(images(True), name="letters", n_way=3, n_shot=2, n_query=3))
    assert source.spec.n_outputs == 4 * N_CLASSES == len(source.classes or ())
    plan = source.plan(4, generator(0, "train"))
    batch = source.episodes(plan)
    assert batch.support.x.shape == (4, 6, 1, 4, 4)
    assert batch.query.y.shape == (4, 9)
    assert batch.support.n_way == 24
    # The grey of an image tells its stored class; turned ones are classes of their own.
    grey = (batch.query.x[..., 0, 0, 0] * 255).round().long()
    turn = torch.div(plan["query"], N_CLASSES * N_EACH, rounding_mode="floor")
    assert torch.equal(batch.query.y, torch.div(grey, N_EACH, rounding_mode="floor") + turn * N_CLASSES)


def test_all_classes_are_drawn_alike() -> None:
    source = ClassBatches(ImageTasks(images(), name="letters", n_way=3, n_shot=2, n_query=3))
    y = source.episodes(source.plan(400, generator(0, "train"))).query.y.flatten()
    shares = torch.bincount(y, minlength=N_CLASSES) / len(y)
    # 3,600 draws: the share of a class has a standard deviation of 0.006.
    assert float((shares - 1 / N_CLASSES).abs().max()) < 0.03


def test_what_has_no_classes_is_refused() -> None:
    with pytest.raises(UserError, match="expected images of fixed classes"):
        ClassBatches(Sinusoid(n_shot=5, n_query=5))


def test_features_give_the_episodes_that_images_give() -> None:
    pictures = images()
    features = FeatureSet(pictures.images.flatten(1).float(), pictures.labels, pictures.class_names, pictures.groups)
    plans, drawn = [], []
    for kind in (pictures, features):
        source = ImageTasks(kind, name="letters", n_way=3, n_shot=1, n_query=2)
        plans.append(source.plan(5, generator(0, "evaluate")))
        drawn.append(source.episodes(plans[-1]))
    assert all(torch.equal(plans[0][k], plans[1][k]) for k in plans[0])
    torch.testing.assert_close(drawn[0].query.x.flatten(2) * 255, drawn[1].query.x)
    assert drawn[1].support.x.shape == (5, 3, 16)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"expected features \(N, D\), N labels"):
        FeatureSet(torch.rand(3, 2), torch.arange(2), ("a", "b"), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match="expected finite numbers in features"):
        FeatureSet(torch.full((2, 2), torch.nan), torch.arange(2), ("a", "b"), torch.zeros(2, dtype=torch.int64))
