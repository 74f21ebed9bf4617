"""Every image embedded once: the same answers as when each task embeds its own; views and ensembles."""

import pytest
import torch

from kshot.algorithms import FineTune, MatchingNet, ProtoNet, RelationNet
from kshot.core import Spec, UserError
from kshot.data.challenge import ChallengeTasks
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.evaluation import compare, evaluate
from kshot.experiment import embedded
from kshot.experiment.embedded import embeds_alone, evaluate_embedded
from kshot.experiment.ensemble import Ensemble, with_views
from kshot.nn.conv import Conv4
from kshot.nn.views import MOVES, Views

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def images() -> ImageSet:
    g = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 256, (8, 1, 1, 16, 16), generator=g)
    pixels = (classes + torch.randint(-90, 91, (8, 5, 1, 16, 16), generator=g)).clamp(0, 255).to(torch.uint8)
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    return ImageSet(
        pixels.flatten(0, 1), torch.arange(8).repeat_interleave(5), tuple("abcdefgh"), groups, ("x", "y"), True
    )


def _tasks(images: ImageSet, **options: object) -> ImageTasks:
    return ImageTasks(images, name="letters", n_way=3, n_shot=2, n_query=2, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("method", [ProtoNet, MatchingNet, RelationNet])
@pytest.mark.parametrize("turns_apart", [False, True])
def test_the_same_scores_on_the_same_tasks(images: ImageSet, method: type, turns_apart: bool) -> None:
    learner = method.from_backbone(Conv4(1, 4, 16).eval(), Spec("classification", (1, 16, 16), 3)).eval()
    source = _tasks(images, within_group=0.5, turns_apart=turns_apart)
    assert embeds_alone(learner)
    once, each = evaluate_embedded(learner, source, n_episodes=70), evaluate(learner, source, n_episodes=70)
    torch.testing.assert_close(once.per_episode["nll"], each.per_episode["nll"], rtol=1e-4, atol=1e-5)
    assert compare(once, each).difference.mean == pytest.approx(0, abs=1e-3)  # raises unless the tasks are the same
    assert isinstance(learner.backbone, Conv4), "the learner is as it was"


def test_each_image_is_embedded_once(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    backbone = Conv4(1, 4, 16).eval()
    backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    monkeypatch.setattr(embedded, "_KEPT", 0)
    evaluate_embedded(ProtoNet(backbone).eval(), _tasks(images), n_episodes=100)
    assert sum(seen) == images.n_examples


def test_what_looks_at_a_task_is_left_alone(images: ImageSet) -> None:
    assert not embeds_alone(ProtoNet(Conv4(1, 4, 16, "episode")))
    assert not embeds_alone(ProtoNet(Conv4(1, 4, 16, "support")))
    assert not embeds_alone(FineTune.from_backbone(Conv4(1, 4, 16), Spec("classification", (1, 16, 16), 3)))
    source = _tasks(images)
    learner = ProtoNet(Conv4(1, 4, 16, "episode")).eval()
    assert (
        evaluate_embedded(learner, source, n_episodes=60).estimate == evaluate(learner, source, n_episodes=60).estimate
    )


def test_images_of_another_size_are_refused(images: ImageSet) -> None:
    learner = ProtoNet(Conv4(1, 4, 28)).eval()
    learner.spec = Spec("classification", (1, 28, 28), 3)
    with pytest.raises(UserError, match=r"built for inputs \(1, 28, 28\), got \(1, 16, 16\)"):
        evaluate_embedded(learner, _tasks(images), n_episodes=100)


def test_the_images_of_the_challenge_are_embedded_once() -> None:
    g = torch.Generator().manual_seed(0)
    source = ChallengeTasks.__new__(ChallengeTasks)
    source.name, source._sha256 = "omniglot_challenge", "of these"
    source.images = torch.randint(0, 256, (20, 2, 20, 1, 16, 16), generator=g).to(torch.uint8)
    source.answers = torch.stack([torch.randperm(20, generator=g) for _ in range(20)])
    source.spec, source.n_shot, source.n_query = Spec("classification", (1, 16, 16), 20), 1, 1
    members = [ProtoNet(Conv4(1, 4 + i, 16).eval()).eval() for i in range(2)]
    for learner in (members[0], with_views(members[1], 2), Ensemble(members)):
        learner.spec = source.spec
        once, each = evaluate_embedded(learner, source), evaluate(learner, source)
        torch.testing.assert_close(once.per_episode["nll"], each.per_episode["nll"], rtol=1e-4, atol=1e-4)
        assert compare(once, each).difference.n == 10, "of the same trials, and of ten alphabets"
    seen: list[int] = []
    members[0].backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    evaluate_embedded(members[0], source)
    assert sum(seen) == 800
    members[0].spec = Spec("classification", (1, 28, 28), 20)
    with pytest.raises(UserError, match="built for inputs"):
        evaluate_embedded(members[0], source)


def test_views_average_the_embeddings_of_moved_images() -> None:
    backbone = Conv4(1, 4, 16).eval()
    x = torch.zeros(2, 1, 16, 16)
    x[:, :, 7:9, 2:14] = 1
    assert torch.equal(Views(backbone, 1)(x), backbone(x))
    turned = 2 * Views(backbone, 2)(x) - backbone(x)
    assert not torch.allclose(turned, backbone(x), atol=1e-4)
    with pytest.raises(UserError, match=f"expected 1 to {len(MOVES)} views, got 0"):
        Views(backbone, 0)


def test_views_move_by_what_they_say() -> None:
    class Pixels(torch.nn.Module):
        n_features = 256

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    x = torch.zeros(1, 1, 16, 16)
    x[:, :, 4:12, 4:12] = 1
    for i in (5, 6, 7):
        views = Views(Pixels(), i + 1)
        views.moves = views.moves[[0, i]]
        seen = (2 * views(x) - x.flatten(1)).view(16, 16)
        assert seen[8].sum().item() / 8 == pytest.approx(MOVES[i][2], abs=0.02)
        assert seen[:, 8].sum().item() / 8 == pytest.approx(MOVES[i][3], abs=0.02)


def test_an_ensemble_averages_log_probabilities(images: ImageSet) -> None:
    members = [ProtoNet(Conv4(1, 4, 16).eval()).eval() for _ in range(2)]
    both = Ensemble(members)
    episode = _tasks(images).episodes(_tasks(images).plan(1, torch.Generator().manual_seed(0)))
    support, query = episode.support, episode.query
    one = support._replace(x=support.x[0], y=support.y[0])
    told = [m.predict(m.adapt(one), query.x[0]).log_softmax(-1) for m in members]
    torch.testing.assert_close(both.predict(both.adapt(one), query.x[0]), (told[0] + told[1]) / 2)
    assert not both.transductive
    both.spec = Spec("regression", (1, 16, 16), 5)
    raw = [m.predict(m.adapt(one), query.x[0]) for m in members]
    torch.testing.assert_close(both.predict(both.adapt(one), query.x[0]), (raw[0] + raw[1]) / 2)
    with pytest.raises(UserError, match="at least one learner"):
        Ensemble([])


def test_views_take_a_backbone() -> None:
    learner = ProtoNet(Conv4(1, 4, 16))
    assert with_views(learner, 1) is learner
    twin = with_views(learner, 3)
    assert isinstance(twin.backbone, Views)
    assert isinstance(learner.backbone, Conv4)
    with pytest.raises(UserError, match="a backbone for several views"):
        with_views(Ensemble([learner]), 2)
