"""Tasks dealt from the embedded classes of a larger one: what is in them, and what is learned from them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kshot.algorithms import SNAIL, Transformer
from kshot.core import Episode, Spec, Split, UserError
from kshot.core.learner import task_loss
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.dealing import Deal, DealtLearner, dealt
from kshot.engine.embedding import Labelled
from kshot.testing import synthetic_episode, synthetic_episodes, tiny_backbone

SIX = Spec("classification", (1, 8, 8), 6)
SNAIL_SIZES = {"length": 4, "tc_filters": 3, "keys": (3, 4, 5), "values": (2, 3, 4)}
TRANSFORMER_SIZES = {"width": 8, "n_layers": 1, "n_heads": 2}


def examples(n_classes: int, n_shot: int, first: int) -> Labelled:
    """Embeddings that say of which class they are, and which example of it; in mixed order."""
    y = torch.arange(n_classes).repeat(n_shot)
    z = torch.stack([y, first + torch.arange(n_shot).repeat_interleave(n_classes)], 1).float()
    order = torch.randperm(len(y))
    return Labelled(z[order], y[order], n_classes)


def deal_of(n_classes: int, n_shot: int, n_query: int, deal: Deal) -> tuple[Labelled, Labelled]:
    torch.manual_seed(0)
    return dealt(examples(n_classes, n_shot, 0), examples(n_classes, n_query, n_shot), deal)


def test_a_dealt_task_is_one() -> None:
    supports, queries = deal_of(7, 2, 3, Deal(4, 50, 0.5))
    assert supports.z.shape == (50, 8, 2)
    assert queries.z.shape == (50, 12, 2)
    assert (supports.ways, queries.ways) == (4, 4)
    for zs, ys, zq, yq in zip(supports.z, supports.y, queries.z, queries.y, strict=True):
        assert torch.equal(ys.bincount(), torch.full((4,), 2))
        assert torch.equal(yq.bincount(), torch.full((4,), 3))
        names = [set(zs[ys == k, 0].tolist()) | set(zq[yq == k, 0].tolist()) for k in range(4)]
        assert all(len(name) == 1 for name in names), "a label stands for one class"
        assert len(set.union(*names)) == 4, "and each for another"
        assert len({tuple(row) for row in torch.cat([zs, zq]).tolist()}) == 20, "no example stands twice"


def test_numbers_places_and_roles_are_drawn_anew() -> None:
    supports, _ = deal_of(7, 2, 3, Deal(4, 200, 0.5))
    first_class = supports.z[:, 0, 0]
    assert set(first_class.tolist()) == set(range(7))
    assert set(supports.y[:, 0].tolist()) == set(range(4))
    # Of five examples of a class, each is support in two tasks of five.
    share = torch.stack([(supports.z[..., 1] == i).float().mean() for i in range(5)])
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.05, rtol=0)
    # A class has no number of its own.
    of_class_0 = supports.y[supports.z[..., 0] == 0].float()
    assert float(of_class_0.mean()) == pytest.approx(1.5, abs=0.3)


def spreads(near: float) -> Tensor:
    """How far apart on a line the classes of each task stand."""
    supports, _ = deal_of(60, 1, 1, Deal(3, 100, near))
    return supports.z[..., 0].amax(1) - supports.z[..., 0].amin(1)


def test_near_classes_are_near() -> None:
    assert int(spreads(1.0).max()) <= 4  # a class and 2 (W - 1) = 4 next to it, on a line
    assert float(spreads(0.0).median()) > 15
    half = spreads(0.5)
    assert int(half[:50].max()) <= 4
    assert float(half[50:].median()) > 15


def test_near_tasks_are_made_of_every_class() -> None:
    supports, _ = deal_of(60, 1, 1, Deal(3, 400, 1.0))
    assert set(supports.z[..., 0].flatten().tolist()) == set(range(60))


def test_no_gradient_flows_through_the_choice() -> None:
    support, query = examples(6, 1, 0), examples(6, 1, 1)
    z = support.z.requires_grad_()
    supports, _ = dealt(Labelled(z, support.y, 6), query, Deal(3, 4, 1.0))
    supports.z.sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, z.grad.round()), "each example counts as often as it was dealt, and no more"


LEARNERS = [(SNAIL, SNAIL_SIZES), (Transformer, TRANSFORMER_SIZES)]


def built(cls: type[DealtLearner], sizes: dict[str, object], **options: object) -> DealtLearner:
    torch.manual_seed(3)
    made = cls.from_backbone(tiny_backbone(SIX), SIX, **{"deal_ways": 3, "deals": 5, **sizes, **options})
    assert isinstance(made, DealtLearner)
    return made.double()


@pytest.mark.parametrize(("cls", "sizes"), LEARNERS)
def test_the_loss_is_the_mean_over_dealt_tasks(cls: type[DealtLearner], sizes: dict[str, object]) -> None:
    learner = built(cls, sizes)
    support, query = (Labelled(torch.randn(12, 8).double(), torch.arange(6).repeat(2), 6) for _ in range(2))
    width = int(learner.backbone.n_features)  # pyright: ignore[reportArgumentType]
    support, query = (s._replace(z=torch.randn(12, width).double()) for s in (support, query))
    torch.manual_seed(5)
    got = learner.head_loss(support, query)
    torch.manual_seed(5)
    supports, queries = dealt(support, query, learner.deal)
    each = [
        task_loss(learner.apply_head(learner.fit_head(Labelled(zs, ys, 3)), zq), yq)
        for zs, ys, zq, yq in zip(supports.z, supports.y, queries.z, queries.y, strict=True)
    ]
    torch.testing.assert_close(got, torch.stack(each).mean())


@pytest.mark.parametrize(("cls", "sizes"), LEARNERS)
@pytest.mark.parametrize("kind", ["loop", "vmap", "native"])
def test_every_batching_deals_and_reaches_the_backbone(
    cls: type[DealtLearner], sizes: dict[str, object], kind: str
) -> None:
    learner = built(cls, sizes).train()
    episodes = synthetic_episodes(SIX, 2, n_shot=1, n_query=2, dtype=torch.float64)
    found = OuterStep(learner, Batching(kind))(episodes)
    assert found.losses.shape == (2,)
    assert bool(found.losses.isfinite().all())
    grads = found.grads
    assert set(grads) == {name for name, _ in learner.named_parameters()}
    assert all(bool(g.isfinite().all()) for g in grads.values())
    assert all(float(g.abs().max()) > 0 for name, g in grads.items() if name.startswith("backbone"))


@pytest.mark.parametrize(("cls", "sizes"), LEARNERS)
def test_it_answers_tasks_of_its_own_number_of_classes(cls: type[DealtLearner], sizes: dict[str, object]) -> None:
    learner, three = built(cls, sizes).eval(), SIX._replace(n_outputs=3)
    assert learner.spec == three
    support, query = synthetic_episode(three, n_query=2)
    assert learner.predict(learner.adapt(support), query.x).shape == (6, 3)
    # A task of as many classes is its own.
    torch.testing.assert_close(
        learner.outer_loss(Episode(support, query)),
        task_loss(learner.predict(learner.adapt(support), query.x), query.y),
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"deal_ways": 7}, "at least 7 classes.*got 6; raise n_way"),
        ({"deal_ways": 1}, "deal_ways of 0 or at least 2"),
        ({"deals": 0}, "deals of at least 1"),
        ({"near": 1.5}, "near of 0 to 1"),
    ],
)
def test_settings_that_deal_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        built(SNAIL, SNAIL_SIZES, **options)


def test_only_classes_can_be_dealt() -> None:
    numbers = Spec("regression", (1, 8, 8), 1)
    with pytest.raises(UserError, match=r"expected classes to deal tasks of 3 from, got tasks of regression"):
        SNAIL.from_backbone(tiny_backbone(numbers), numbers, deal_ways=3, **SNAIL_SIZES)


def test_classes_of_unequal_size_are_refused() -> None:
    learner = built(SNAIL, SNAIL_SIZES)
    support, query = synthetic_episode(SIX)
    with pytest.raises(UserError, match="equally many examples of each of 6 classes, got 5 in all"):
        learner.outer_loss(Episode(Split(support.x[:5], support.y[:5], 6), query))
