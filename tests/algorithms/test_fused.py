import pytest
import torch
from torch import nn

from kshot.algorithms import MAML, ProtoNet
from kshot.core import Episode, Split, UserError
from kshot.core.episode import to
from kshot.engine.auto import candidates
from kshot.engine.batch import Batching, OuterStep
from kshot.nn import native
from kshot.nn.conv import Conv4

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")


def _episodes(n_tasks, n_way=3, n_shot=1, n_query=2):
    g = torch.Generator().manual_seed(0)
    centre = torch.rand(n_tasks, n_way, 1, 1, 28, 28, generator=g, dtype=torch.float64)

    def draw(n):
        noise = torch.rand(n_tasks, n_way, n, 1, 28, 28, generator=g, dtype=torch.float64)
        y = torch.arange(n_way).repeat_interleave(n).expand(n_tasks, -1).contiguous()
        return Split((centre + 0.5 * noise).flatten(1, 2), y, n_way)

    return Episode(draw(n_shot), draw(n_query))


def _maml(n_way=3, **options):
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        model = nn.Sequential(Conv4(normalisation="episode"), nn.Linear(64, n_way))
    return MAML(model, **{"inner_lr": 0.1, **options}).double().train()


def _protonet(mode="running", **options):
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return ProtoNet(Conv4(normalisation=mode), **options).double().train()


def _agree(learner, episodes, kind="fused", **batching):
    fused = OuterStep(learner, Batching(kind, **batching))(episodes)
    loop = OuterStep(learner, Batching("loop"))(episodes)
    torch.testing.assert_close(fused.losses, loop.losses, rtol=1e-9, atol=1e-10)
    for name, expected in loop.grads.items():
        torch.testing.assert_close(fused.grads[name], expected, rtol=1e-6, atol=1e-8, msg=name)
    for name, expected in loop.buffers.items():
        torch.testing.assert_close(fused.buffers[name], expected, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("mode", ["running", "episode"])
@pytest.mark.parametrize("distance", ["squared_euclidean", "cosine"])
def test_protonet_fused_is_the_loop(mode, distance):
    _agree(_protonet(mode, distance=distance), _episodes(2, n_shot=2))


@pytest.mark.parametrize("n_inner_steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_fused_is_the_loop(n_inner_steps, first_order):
    _agree(_maml(n_inner_steps=n_inner_steps, first_order=first_order), _episodes(2))


def test_other_ways_and_chunks():
    _agree(_maml(n_way=7), _episodes(1, n_way=7))
    _agree(_maml(), _episodes(3), chunk=2)


def test_second_order_matters():
    # If the kernel left the second derivatives out, the two gradients would be equal.
    second, first = (
        OuterStep(_maml(first_order=f), Batching("fused"))(_episodes(2)).grads["model.1.weight"] for f in (False, True)
    )
    assert float((second - first).norm()) > 1e-3 * float(first.norm())


def test_auto_offers_the_kernels_only_where_they_serve():
    episodes = _episodes(2)
    assert Batching("fused") in candidates(_maml(), episodes)
    assert Batching("fused") in candidates(_protonet(), episodes)
    for other in (_protonet("layer"), MAML(nn.Sequential(Conv4(normalisation="support"), nn.Linear(64, 3))).train()):
        assert Batching("fused") not in candidates(other, episodes)
        with pytest.raises(UserError, match="no fused batching"):
            OuterStep(other, Batching("fused"))


def test_kernels_are_compiled_already():
    with pytest.raises(UserError, match="compile"):
        Batching("fused", compiled=True)


def test_the_same_bits_every_time():
    episodes = to(_episodes(4), "cpu", torch.float32)
    step = OuterStep(_maml().float(), Batching("fused"))
    first = step(episodes)
    for _ in range(5):
        again = step(episodes)
        assert torch.equal(first.losses, again.losses)
        assert all(torch.equal(g, again.grads[name]) for name, g in first.grads.items())
