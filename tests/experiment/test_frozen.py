"""Frozen features: embedded once, any head, the same episodes as the network itself sees."""

import pytest
import torch

from kshot.algorithms import ProtoNet
from kshot.core import Spec, UserError
from kshot.data.features import FeatureSet
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.evaluation import compare, evaluate
from kshot.experiment.build import build_backbone, open_training, resolve
from kshot.experiment.config import BackboneConfig, RunConfig
from kshot.experiment.frozen import HEADS, embed_images, make_head, score_heads
from kshot.experiment.untrained import evaluate_untrained
from kshot.nn.conv import Conv4
from kshot.nn.resnet import ResNet12, WideResNet

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def images() -> ImageSet:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 1, 16, 16), generator=g).to(torch.uint8)
    return ImageSet(
        pixels, torch.arange(8).repeat(5), tuple("abcdefgh"), torch.zeros(8, dtype=torch.int64), ("all",), True
    )


def test_protonet_on_frozen_features_is_protonet(images: ImageSet) -> None:
    backbone = Conv4(1, 8, 16).eval()
    features = embed_images(backbone, images)
    assert features.features.shape == (160, backbone.n_features)
    (head,) = score_heads(["protonet"], features, n_way=3, n_query=2, n_episodes=40, name="letters")
    whole = evaluate(
        ProtoNet(backbone), ImageTasks(images, name="letters", n_way=3, n_shot=1, n_query=2), n_episodes=40
    )
    torch.testing.assert_close(head.scores.per_episode["accuracy"], whole.per_episode["accuracy"])


def test_the_second_time_the_network_is_not_asked(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Conv4(1, 8, 16).eval()
    first = embed_images(backbone, images)
    monkeypatch.setattr(Conv4, "forward", None)
    assert torch.equal(embed_images(backbone, images).features, first.features)
    with torch.no_grad():
        next(backbone.parameters()).add_(1)
    with pytest.raises(TypeError):  # other weights, so it is asked again
        embed_images(backbone, images)


@pytest.mark.parametrize("mode", ["episode", "support"])
def test_networks_that_look_at_the_task_are_refused(images: ImageSet, mode: str) -> None:
    with pytest.raises(UserError, match="normalises by the statistics of a task"):
        embed_images(Conv4(1, 4, 16, mode), images)


def test_every_head_beats_chance_on_clear_classes_and_says_what_it_is() -> None:
    g = torch.Generator().manual_seed(0)
    centres = 3 * torch.rand(10, 12, generator=g)
    x = centres.repeat_interleave(30, 0) + 0.5 * torch.rand(300, 12, generator=g)
    features = FeatureSet(
        x, torch.arange(10).repeat_interleave(30), tuple("abcdefghij"), torch.zeros(10, dtype=torch.int64)
    )
    found = score_heads(HEADS, features, n_way=4, n_query=5, n_episodes=8, centre=x.mean(0))
    assert {h.name for h in found if h.transductive} == {"bd_cspn", "tim", "laplacianshot", "pt_map"}
    assert min(h.scores.estimate.mean for h in found) > 0.9
    compare(found[0].scores, found[-1].scores)  # raises unless the episodes are the same


def test_heads_that_must_be_trained_are_refused() -> None:
    with pytest.raises(UserError, match="unknown head 'relation'"):
        make_head("relation", 8, 5)


@pytest.mark.parametrize("name", ["simpleshot", "laplacianshot"])
def test_a_head_that_centres_takes_the_centre_that_it_is_given(name: str) -> None:
    assert torch.equal(make_head(name, 3, 5, torch.ones(3)).mean, torch.ones(3))  # pyright: ignore[reportArgumentType]


def test_what_has_nothing_to_train_is_not_trained_and_what_has_is_not_evaluated() -> None:
    with pytest.raises(UserError, match="nearest has nothing to train; test it as it is: kshot evaluate nearest"):
        open_training(RunConfig("nearest", "glyphs"))
    with pytest.raises(UserError, match="protonet has to be trained first"):
        evaluate_untrained(RunConfig("protonet", "glyphs"))


def test_networks_by_name() -> None:
    spec = Spec("classification", (1, 16, 16), 5)
    for name, kind in (("wrn28_10", WideResNet), ("resnet12", ResNet12)):
        config = resolve(RunConfig("protonet", "omniglot", network=BackboneConfig(backbone=name)), spec)
        assert config.network.normalisation == "running"
        assert isinstance(build_backbone(config, spec), kind)
    with pytest.raises(UserError, match="resnet12 takes square images"):
        build_backbone(config, spec._replace(input_shape=(7,)))
