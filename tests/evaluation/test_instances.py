"""Accuracy at the 1st, 2nd, ... instance of a class: against a plain count, and for learners with known answers."""

import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms import BDCSPN, FEAT, LSTM, ProtoMAML, ProtoNet
from kshot.core import Episode, Spec, Split, UserError
from kshot.evaluation import accuracy_by_instance
from kshot.nn.flat import Flat
from kshot.nn.norm import Norm


class Recalls(ProtoNet):
    """Knows a class from its second instance on; of the others it says class 0."""

    def follow(self, split: Split) -> Tensor:
        seen = (
            nn.functional.one_hot(split.y, split.ways()).cumsum(0) - nn.functional.one_hot(split.y, split.ways())
        ) > 0
        right = nn.functional.one_hot(split.y, split.ways()).float()
        known = torch.gather(seen, 1, split.y[:, None])
        first = torch.zeros_like(right)
        first[:, 0] = 1.0
        return torch.where(known, right, first)


def test_what_is_known_from_the_second_instance_on(source):
    found = accuracy_by_instance(Recalls(nn.Flatten()), source, n_episodes=40)
    n = source.n_shot + source.n_query
    assert found.per_episode.shape == (40, n)
    # One of three classes is class 0, which is right by chance.
    assert found.per_episode[:, 0].allclose(torch.tensor(1 / 3, dtype=torch.float64))
    assert (found.per_episode[:, 1:] == 1).all()
    assert found.curve.x == tuple(range(1, n + 1))
    assert found.scores(2).estimate.mean == 1


def test_a_learner_without_follow_adapts_before_each_answer(source):
    """Both ways give one result, and a learner that learns gets better from the first instance to the last."""
    learner = LSTM(Flat(source.spec.input_shape), source.spec, n_hidden=4).eval()
    quick = accuracy_by_instance(learner, source, n_episodes=6)
    slow = type("Slow", (LSTM,), {"follow": None})(Flat(source.spec.input_shape), source.spec, n_hidden=4).eval()
    slow.load_state_dict(learner.state_dict())
    plain = accuracy_by_instance(slow, source, n_episodes=6)
    # Before the first example the one guesses and the other answers by its start.
    assert torch.equal(quick.per_episode[:, 1:], plain.per_episode[:, 1:])
    proto = accuracy_by_instance(ProtoNet(nn.Flatten()), source, n_episodes=30).curve.estimates
    assert proto[0].mean < 0.5 < proto[-1].mean
    assert proto[-1].mean > proto[0].mean + 0.2


SPEC = Spec("classification", (6,), 3)


class Apart:
    """Three classes that no method can take for one another, so that every second example of a class is right."""

    spec, varying, sha256, name, n_shot, n_query, n_fixed = SPEC, False, "", "apart", 1, 3, None

    def plan(self, n: int, stream: torch.Generator) -> Tensor:
        return torch.rand(n, 3, 4, 6, generator=stream)

    def episodes(self, plan: Tensor) -> Episode:
        x = (
            9 * torch.eye(3, 6)[:, None] + plan
        )  # (T, 3, 4, 6): three classes, one example of the support and three more
        y = torch.arange(3).expand(len(x), 3)
        three = y[:, :, None].expand(-1, -1, 3).flatten(1)
        return Episode(Split(x[:, :, 0], y, 3), Split(x[:, :, 1:].flatten(1, 2), three, 3))


@pytest.mark.parametrize(
    "learner",
    [
        lambda: ProtoNet(Flat((6,))),
        lambda: FEAT.from_backbone(Flat((6,)), SPEC),
        lambda: ProtoMAML.from_backbone(Flat((6,)), SPEC, inner_lr=1e-9, n_inner_steps=1),
        lambda: BDCSPN(Flat((6,))),
    ],
    ids=["protonet", "feat", "protomaml", "bd_cspn"],
)
def test_classes_not_seen_yet_do_not_spoil_those_that_were(learner):
    """What has no example has no prototype; of the others the answers stay numbers."""
    torch.manual_seed(0)
    found = accuracy_by_instance(learner().eval(), Apart(), n_episodes=20)
    assert (found.per_episode[:, 1:] == 1).all()


def test_bad_input(source, slopes):
    with pytest.raises(UserError, match="expected classes with equal numbers"):
        accuracy_by_instance(ProtoNet(nn.Flatten()), slopes)
    found = accuracy_by_instance(Recalls(nn.Flatten()), source, n_episodes=2)
    with pytest.raises(UserError, match="expected an instance between 1 and"):
        found.scores(0)


def test_statistics_of_the_support_are_of_what_came_before(source):
    """In one pass they would be of the whole sequence: so each answer is an adaptation of its own."""

    class Watched(LSTM):
        def follow(self, split: Split) -> Tensor:
            pytest.fail("the whole sequence was normalised at once")

    flat = Flat(source.spec.input_shape)
    body = nn.Sequential(flat, Norm(flat.n_features, "support"))
    body.n_features = flat.n_features
    found = accuracy_by_instance(Watched(body, source.spec, n_hidden=4).eval(), source, n_episodes=2)
    assert found.per_episode.isfinite().all()
