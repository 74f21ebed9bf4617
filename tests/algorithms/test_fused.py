import pytest
import torch
from torch import nn

from kshot.algorithms import (
    ANIL,
    BOIL,
    DNC,
    FEAT,
    LSTM,
    MAML,
    NTM,
    DeepEMD,
    MAMLpp,
    MetaSGD,
    ProtoMAML,
    ProtoNet,
    RelationNet,
    Reptile,
)
from kshot.core import Episode, Spec, Split, UserError
from kshot.core.episode import to
from kshot.engine.auto import candidates
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.inner import adam, clipped, momentum, sgd
from kshot.nn import native
from kshot.nn.conv import Conv4

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")


def _episodes(n_tasks, n_way=3, n_shot=1, n_query=2, image=(1, 28, 28)):
    g = torch.Generator().manual_seed(0)
    centre = torch.rand(n_tasks, n_way, 1, *image, generator=g, dtype=torch.float64)

    def draw(n):
        noise = torch.rand(n_tasks, n_way, n, *image, generator=g, dtype=torch.float64)
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
    with native.switched_off():
        loop = OuterStep(learner, Batching("loop"))(episodes)
    _same(fused, loop)


def _same(fused, plain):
    torch.testing.assert_close(fused.losses, plain.losses, rtol=1e-9, atol=1e-10)
    for name, expected in plain.grads.items():
        torch.testing.assert_close(fused.grads[name], expected, rtol=1e-6, atol=1e-8, msg=name)
    for name, expected in plain.buffers.items():
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


def _jittered(learner):
    # Rates and normalisations that are alike for all steps and layers would hide which belongs to which.
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in learner.named_parameters():
            if "rates" in name or "norm" in name:
                p.mul_(1 + 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return learner


def _relative(kind, n_inner_steps, **options):
    body, head = _maml().model
    options = {"inner_lr": 0.1, "n_inner_steps": n_inner_steps, **options}
    learner = BOIL(body, head, **options) if kind is BOIL else kind(nn.Sequential(body, head), **options)
    return _jittered(learner.double().train())


@pytest.mark.parametrize("n_inner_steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", [BOIL, MetaSGD])
def test_relatives_of_maml_fused_are_the_loop(kind, n_inner_steps, first_order):
    _agree(_relative(kind, n_inner_steps, first_order=first_order), _episodes(2))


@pytest.mark.parametrize("n_inner_steps", [1, 3])
@pytest.mark.parametrize("annealing", [{}, {"multi_step_steps": 10}, {"multi_step_steps": 10, "first_order_steps": 5}])
def test_mamlpp_fused_is_the_loop(n_inner_steps, annealing):
    learner = _relative(MAMLpp, n_inner_steps, **annealing)
    for done in (0, 7, 12):
        learner.outer_steps.fill_(done)
        _agree(learner, _episodes(2))


@pytest.mark.parametrize("kind", [MAML, MetaSGD, MAMLpp])
def test_colour_images_of_another_size(kind):
    # 2 x 2 pixels are left at the end, which PyTorch flattens in another order than the kernels keep them.
    torch.manual_seed(1)
    model = nn.Sequential(Conv4(3, 32, 33, "episode"), nn.Linear(128, 3))
    learner = _jittered(kind(model, inner_lr=0.1, n_inner_steps=2).double().train())
    assert learner.fused
    _agree(learner, _episodes(2, image=(3, 33, 33)))


@pytest.mark.parametrize("kind", [RelationNet, DeepEMD, ProtoNet])
def test_maps_that_are_left_to_look_at(kind):
    torch.manual_seed(1)
    learner = kind.from_backbone(Conv4(downsample="first2"), Spec("classification", (1, 28, 28), 3)).double().train()
    assert learner.fused
    _agree(learner, _episodes(2, n_shot=2))


@pytest.mark.parametrize("downsample", ["pool", "first2"])
@pytest.mark.parametrize("inner", [{"inner_optimiser": "adam", "inner_lr": 0.001}, {"inner_batch": 4}])
def test_reptile_fused_is_the_loop(downsample, inner):
    torch.manual_seed(1)
    body = Conv4(normalisation="episode", downsample=downsample)
    learner = Reptile(nn.Sequential(body, nn.Linear(body.n_features, 3)), n_inner_steps=2, **inner).double().train()
    assert learner.fused
    _agree(learner, _episodes(2, n_shot=2))


@pytest.mark.parametrize("mode", ["running", "episode"])
@pytest.mark.parametrize("inner", [{"n_inner_steps": 3}, {"n_inner_steps": 3, "truncate": 1}, {"first_order": True}])
def test_anil_fused_is_the_loop(mode, inner):
    torch.manual_seed(1)
    learner = ANIL(Conv4(normalisation=mode), nn.Linear(64, 3), inner_lr=0.3, **inner).double().train()
    assert learner.fused
    _agree(learner, _episodes(2, n_shot=2))


def test_heads_that_keep_statistics_are_left_to_the_loop():
    head = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 3))
    assert not ANIL(Conv4(normalisation="episode"), head).train().fused


@pytest.mark.parametrize("downsample", ["pool", "first2"])
@pytest.mark.parametrize("first_order", [False, True])
def test_protomaml_fused_is_the_loop(downsample, first_order):
    torch.manual_seed(1)
    body = Conv4(normalisation="episode", downsample=downsample)
    learner = ProtoMAML(body, inner_lr=0.05, n_inner_steps=2, first_order=first_order).double().train()
    assert learner.fused
    _agree(learner, _episodes(2, n_shot=2))


@pytest.mark.parametrize("mode", ["running", "episode"])
@pytest.mark.parametrize("kind", [LSTM, NTM, DNC])
def test_readers_embed_by_kernels_as_without(kind, mode):
    torch.manual_seed(1)
    learner = kind.from_backbone(Conv4(normalisation=mode), Spec("classification", (1, 28, 28), 3), n_hidden=6)
    learner.double().train()
    assert learner.fused
    episodes, found = _episodes(2, n_shot=2), {}
    for how in ("native", "fused"):
        torch.manual_seed(2)  # The order of the examples.
        found[how] = OuterStep(learner, Batching(how))(episodes)
    _same(found["fused"], found["native"])


def test_a_rate_of_zero_holds_a_tensor_still():
    # Of a head that does not move, the loss is that of a head that never could.
    learner = _relative(MetaSGD, 2)
    for name, rates in zip((n for n, _ in learner.model.named_parameters()), learner.rates, strict=True):
        rates.data.fill_(0.0 if name.startswith("1.") else 0.1)
    body, head = learner.model
    still = BOIL(body, head, inner_lr=0.1, n_inner_steps=2).train()
    episodes = _episodes(2)
    torch.testing.assert_close(learner.fused_losses(episodes), still.fused_losses(episodes))


def test_regression_counts_one_outer_step_and_not_one_a_task():
    learner = _relative(MAMLpp, 2, multi_step_steps=10)
    (sx, sy, _), (qx, qy, _) = _episodes(3)
    as_floats = Episode(*(Split(x, nn.functional.one_hot(y, 3).double()) for x, y in ((sx, sy), (qx, qy))))
    _agree(learner, as_floats)
    learner.fused_losses(as_floats)
    assert int(learner.outer_steps) == 1


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
    for kind in (BOIL, MetaSGD, MAMLpp):
        assert Batching("fused") in candidates(_relative(kind, 2), episodes)
    for other in (_protonet("layer"), MAML(nn.Sequential(Conv4(normalisation="support"), nn.Linear(64, 3))).train()):
        assert Batching("fused") not in candidates(other, episodes)
        with pytest.raises(UserError, match="no fused batching"):
            OuterStep(other, Batching("fused"))


def _by_another_rule(rule):
    class Steps(MAML):
        def inner(self, n_steps):
            return super().inner(n_steps)._replace(rule=rule)

    return Steps


class _Scaled(MAML):
    def support_loss(self, weights, support, step):
        loss, weights = super().support_loss(weights, support, step)
        return 0.5 * loss, weights


class _Mixin:
    def outer_loss(self, episode):
        return 3 * super().outer_loss(episode)


class _Tripled(_Mixin, MAML):
    pass


class _Moved(MAML):
    def start(self, support):
        weights = super().start(support)
        return weights._replace(params={k: 0.9 * p for k, p in weights.params.items()})


class _Cut(MAML):
    def inner(self, n_steps):
        return super().inner(n_steps)._replace(truncate=1)


class _Prior(ProtoMAML):
    def start(self, support):
        weights = super().start(support)
        return weights._replace(params={k: 0.9 * p for k, p in weights.params.items()})


class _Once(MAMLpp):
    def path(self, support, n_steps, *, every):
        yield from super().path(support, 1, every=every)


class _TripledANIL(_Mixin, ANIL):
    pass


def _published(kind):
    return next(c for c in kind.__mro__ if c.__module__.startswith("kshot"))


def _gradient_learner(kind):
    body, head = _maml().model
    if issubclass(kind, ANIL):
        return kind(body, head, inner_lr=0.1, n_inner_steps=3).double().train()
    model = body if issubclass(kind, ProtoMAML) else nn.Sequential(body, head)
    return kind(model, inner_lr=0.1, n_inner_steps=3).double().train()


RULES = {"momentum": momentum(0.9), "adam": adam(), "clipped": clipped(sgd(), 0.1)}


@pytest.mark.parametrize(
    "kind",
    [*map(_by_another_rule, RULES.values()), _Scaled, _Tripled, _Moved, _Cut, _Prior, _Once, _TripledANIL],
    ids=[*RULES, "support loss", "outer loss", "start", "truncated", "start of ProtoMAML", "path", "ANIL"],
)
def test_a_subclass_that_steps_otherwise_is_not_left_to_the_kernels(kind):
    learner = _gradient_learner(kind)
    assert _gradient_learner(_published(kind)).fused
    assert not learner.fused
    assert Batching("fused") not in candidates(learner, _episodes(2))


def test_a_method_that_is_replaced_on_the_object_is_not_left_to_the_kernels():
    learner = _maml()
    learner.support_loss = lambda weights, support, step: MAML.support_loss(learner, weights, support, 0)
    assert not learner.fused


def test_a_subclass_whose_settings_alone_differ_is_still_computed_by_kernels():
    class Slower(MAML):
        def inner(self, n_steps):
            return super().inner(n_steps)._replace(lr=[0.1, 0.05, 0.025], adapted=("1.*",), rule=sgd())

    learner = _gradient_learner(Slower)
    assert learner.fused
    _agree(learner, _episodes(2))


def test_a_subclass_that_brings_its_own_kernels_speaks_for_itself():
    class Both(_Tripled):
        def fused_losses(self, episodes):
            return 3 * super().fused_losses(episodes)

    learner = _gradient_learner(Both)
    assert learner.fused
    _agree(learner, _episodes(2))


class _TripledProtoNet(_Mixin, ProtoNet):
    pass


class _Shrunk(ProtoNet):
    def fit_head(self, support):
        return 0.5 * super().fit_head(support)


class _TripledNTM(_Mixin, NTM):
    pass


class _TripledLSTM(_Mixin, LSTM):
    pass


class _TripledFEAT(_Mixin, FEAT):
    pass


@pytest.mark.parametrize("kind", [_TripledProtoNet, _Shrunk, _TripledFEAT, _TripledNTM, _TripledLSTM])
def test_a_subclass_of_another_loss_is_taken_task_by_task(kind):
    spec = Spec("classification", (1, 28, 28), 3)
    for cls, known in ((kind, False), (_published(kind), True)):
        learner = cls.from_backbone(Conv4(normalisation="running"), spec).double().train()
        assert (learner.fused, learner.native) == (known, known), cls


def test_a_conv4_of_another_forward_is_not_left_to_the_kernels():
    class Doubled(Conv4):
        def forward(self, x):
            return 2 * super().forward(x)

    assert not MAML(nn.Sequential(Doubled(normalisation="episode"), nn.Linear(64, 3))).train().fused
    assert not ProtoNet(Doubled()).train().fused
    hooked = _protonet()
    hooked.backbone.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not hooked.fused
    learner = _maml()
    learner.model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not learner.fused


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
