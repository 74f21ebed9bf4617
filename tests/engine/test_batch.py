"""Batching of tasks: whatever the way, the same losses, gradients and buffers as a plain loop over copies."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kshot.algorithms import MAML, ProtoNet
from kshot.core import Episode, Learner, Spec, Split, UserError, tree_map
from kshot.core.episode import select, unbind
from kshot.engine.batch import KINDS, Batching, OuterGradient, OuterStep, combine
from kshot.nn.mlp import MLP
from kshot.testing import synthetic_episode, synthetic_episodes, tiny_backbone
from kshot.testing.gradients import plain_outer_gradient
from kshot.testing.synthetic import SPECS

SPEC = SPECS["classification"]
EPISODES = synthetic_episodes(SPEC, 5)


def protonet(normalisation: str = "running") -> ProtoNet:
    return ProtoNet(tiny_backbone(SPEC, normalisation)).double().train()


def maml(normalisation: str = "episode", **options: object) -> MAML:
    return MAML.from_backbone(tiny_backbone(SPEC, normalisation), SPEC, **options).double().train()


def foreign() -> MAML:
    """A network with PyTorch's own batch norm, which writes its running statistics in place."""
    layers = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))
    return MAML(layers, inner_lr=0.1).double().train()


def agree(got: OuterGradient, expected: OuterGradient) -> None:
    torch.testing.assert_close(got.losses, expected.losses, rtol=1e-10, atol=1e-12)
    for mine, theirs in ((got.grads, expected.grads), (got.buffers, expected.buffers)):
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-8, atol=1e-12)


WAYS = [
    *(("protonet", kind, chunk) for kind, chunk in itertools.product(("loop", "vmap", "native"), (0, 1, 2, 4, 5, 9))),
    *(("maml", kind, chunk) for kind, chunk in itertools.product(("loop", "vmap"), (0, 2))),
]


@pytest.mark.parametrize(("name", "kind", "chunk"), WAYS)
def test_every_way_and_chunk_gives_the_plain_gradient(name: str, kind: str, chunk: int) -> None:
    learner = {"protonet": protonet, "maml": lambda: maml("running")}[name]()
    got = OuterStep(learner, Batching(kind, chunk))(EPISODES)
    agree(got, plain_outer_gradient(learner, EPISODES))
    assert not any(t.requires_grad for part in got[1:] for t in part.values())


@pytest.mark.parametrize("kind", ["loop", "vmap", "native"])
def test_a_call_leaves_the_learner_as_it_was(kind: str) -> None:
    learner = protonet()
    before, held = copy.deepcopy(learner.state_dict()), dict(learner.named_buffers())
    OuterStep(learner, Batching(kind))(EPISODES)
    assert all(torch.equal(t, before[k]) for k, t in learner.state_dict().items())
    assert all(b is held[k] for k, b in learner.named_buffers())
    assert all(p.grad is None for p in learner.parameters())


def test_buffers_are_the_mean_over_tasks_of_what_each_leaves() -> None:
    learner = protonet()
    left = []
    for episode in unbind(EPISODES):
        own = copy.deepcopy(learner)
        own.outer_loss(episode)
        left.append(own.backbone.first.norm.running_mean)
    got = OuterStep(learner, Batching("native", 2))(EPISODES).buffers["backbone.first.norm.running_mean"]
    torch.testing.assert_close(got, torch.stack(left).mean(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batching", [Batching("loop"), Batching("vmap"), Batching("vmap", 2), Batching("native", 2)])
def test_constants_among_the_buffers_stay_to_the_last_bit(batching: Batching) -> None:
    learner = ProtoNet(tiny_backbone(SPEC)).train()
    constants = torch.tensor([0.1, 1 / 3, -float("inf"), 1e30, 0.0])
    learner.register_buffer("mask", constants.clone())
    learner.register_buffer("count", torch.tensor(7))
    after = OuterStep(learner, batching)(synthetic_episodes(SPEC, 7, dtype=torch.float32)).buffers
    assert torch.equal(after["mask"], constants)
    assert int(after["count"]) == 7


@pytest.mark.parametrize("kind", ["loop", "vmap"])
def test_frozen_parameters_have_no_gradient_and_change_no_other(kind: str) -> None:
    learner = maml()
    free = OuterStep(learner, Batching(kind))(EPISODES)
    for name, p in learner.named_parameters():
        p.requires_grad_("first" not in name)
    frozen = OuterStep(learner, Batching(kind))(EPISODES)
    assert set(frozen.grads) == {k for k in free.grads if "first" not in k}
    agree(frozen._replace(grads={}), free._replace(grads={}))
    for name, gradient in frozen.grads.items():
        torch.testing.assert_close(gradient, free.grads[name], rtol=1e-10, atol=1e-12)


def test_a_parameter_without_influence_has_a_zero_gradient() -> None:
    learner = protonet()
    learner.spare = nn.Parameter(torch.ones(2, dtype=torch.float64))
    assert OuterStep(learner, Batching("loop"))(EPISODES).grads["spare"].tolist() == [0, 0]


def test_foreign_batch_norm_runs_in_a_loop() -> None:
    learner = foreign()
    got = OuterStep(learner, Batching("loop"))(EPISODES)
    agree(got, plain_outer_gradient(learner, EPISODES))
    assert int(got.buffers["model.1.num_batches_tracked"]) > 0
    assert int(learner.get_buffer("model.1.num_batches_tracked")) == 0


def test_foreign_batch_norm_is_refused_by_vmap() -> None:
    with pytest.raises(UserError, match=r"batch norm writes running statistics in place; .* batching loop or auto"):
        OuterStep(foreign(), Batching("vmap"))(EPISODES)


@pytest.mark.parametrize("kind", ["loop", "vmap", "native"])
def test_a_batch_without_tasks(kind: str) -> None:
    with pytest.raises(UserError, match="at least one task"):
        OuterStep(protonet(), Batching(kind))(select(EPISODES, slice(0, 0)))


def unequal() -> list[Episode]:
    shots = ([1, 2, 3], [2, 2, 2], [3, 1, 1])
    return [synthetic_episode(SPEC, n_shot=s, n_query=q, seed=q) for q, s in enumerate(shots, 1)]


def batched(episodes: list[Episode]) -> list[Episode]:
    """With a task axis of one, as sources of varying tasks give them."""
    return [
        Episode(*(Split(tree_map(lambda t: t[None], s.x), s.y[None], s.n_way) for s in episode)) for episode in episodes
    ]


@pytest.mark.parametrize("make", [protonet, maml, foreign])
@pytest.mark.parametrize("kind", ["loop", "vmap"])
def test_a_list_of_unequal_episodes_is_looped_over(make: type[Learner], kind: str) -> None:
    learner = make()
    parts = []
    for episode in unequal():
        own = copy.deepcopy(learner)
        params = dict(own.named_parameters())
        loss = own.outer_loss(episode)
        grads = torch.autograd.grad(loss, list(params.values()))
        parts.append(
            OuterGradient(loss.detach()[None], dict(zip(params, grads, strict=True)), dict(own.named_buffers()))
        )
    for episodes in (unequal(), batched(unequal())):
        agree(OuterStep(learner, Batching(kind))(episodes), combine(parts))


def test_regression_lists_are_looped_over_too() -> None:
    spec = Spec("regression", (2,), 1)
    learner = MAML.from_backbone(MLP(2, (4,)), spec).double()
    single = [synthetic_episode(spec, n_shot=n, seed=n) for n in (2, 3)]
    agree(*(OuterStep(learner, Batching("loop"))(episodes) for episodes in (single, batched(single))))


@pytest.mark.parametrize("kind", ["loop", "vmap", "native"])
def test_autocast_is_entered(kind: str) -> None:
    learner, entered = protonet("none").float(), list[bool]()
    learner.backbone.register_forward_pre_hook(lambda *_: entered.append(torch.is_autocast_enabled("cpu")))
    episodes = synthetic_episodes(SPEC, 3, dtype=torch.float32)
    plain = OuterStep(learner, Batching(kind))(episodes)
    assert entered
    assert not any(entered)
    entered.clear()
    mixed = OuterStep(learner, Batching(kind), lambda: torch.autocast("cpu", torch.bfloat16))(episodes)
    assert entered
    assert all(entered)
    gap = float((plain.losses - mixed.losses.float()).abs().max())
    # PyTorch 2.14 maps layers over tasks in float32 on a CPU, whatever the autocast.
    assert gap < 0.1
    assert kind == "vmap" or gap > 1e-6
    assert all(g.dtype == torch.float32 for g in mixed.grads.values())


def test_random_numbers_differ_from_task_to_task() -> None:
    learner = ProtoNet(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5))).train()
    one = select(synthetic_episodes(SPEC, 1, dtype=torch.float32), 0)
    twice = Episode(*(Split(torch.stack([s.x, s.x]), torch.stack([s.y, s.y]), s.n_way) for s in one))
    for kind in ("loop", "vmap"):
        losses = OuterStep(learner, Batching(kind))(twice).losses
        assert float(losses[0]) != float(losses[1])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=20)
def test_combine_is_the_mean_over_tasks(sizes: list[int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    each = torch.randn(sum(sizes), 2, generator=g, dtype=torch.float64)  # a gradient and a buffer for each task
    parts = [OuterGradient(t[:, 0], {"w": t[:, 0].mean()}, {"b": t[:, 1].mean()}) for t in each.split(sizes)]
    got = combine(iter(parts))
    torch.testing.assert_close(got.losses, each[:, 0])
    torch.testing.assert_close(got.grads["w"], each[:, 0].mean())
    torch.testing.assert_close(got.buffers["b"], each[:, 1].mean())


def test_how_tasks_are_shared_out_changes_no_bit() -> None:
    g = torch.Generator().manual_seed(0)
    scale = torch.logspace(-6, 6, 8)[:, None]  # sums of such numbers in float32 depend on their order
    parts = [OuterGradient(torch.zeros(1), {"w": w}, {}) for w in scale * torch.randn(8, 1000, generator=g)]
    alone = combine(parts).grads["w"]
    assert alone.dtype == torch.float32
    assert torch.equal(alone, combine(parts[::-1]).grads["w"])
    shares = [combine(parts[rank::2], wide=True) for rank in range(2)]
    assert torch.equal(alone, combine(shares, wide=True).grads["w"].float())


def test_nothing_to_combine() -> None:
    with pytest.raises(UserError, match="at least one task"):
        combine([])


def test_a_way_to_batch_has_a_name() -> None:
    assert str(Batching("vmap", 8, True)) == "vmap, chunks of 8, compiled"
    assert str(Batching()) == "loop"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "magic"}, f"batching must be one of auto, {', '.join(KINDS)}, got 'magic'"),
        ({"chunk": -1}, "chunk >= 0 tasks, got -1"),
        ({"kind": "fused", "compiled": True}, "compiled already"),
    ],
)
def test_ways_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Batching(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["native", "fused"])
def test_a_way_that_the_learner_has_not(kind: str) -> None:
    with pytest.raises(UserError, match=f"MAML has no {kind} batching"):
        OuterStep(maml("layer"), Batching(kind))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_step_is_made_once_for_each_shape() -> None:
    spec = Spec("regression", (2,), 1)
    learner = MAML.from_backbone(MLP(2, (3,)), spec).double()
    step = OuterStep(learner, Batching("vmap", compiled=True))
    for n_shot, programs in ((2, 1), (2, 1), (3, 2)):
        episodes = synthetic_episodes(spec, 3, n_shot=n_shot, seed=n_shot)
        agree(step(episodes), plain_outer_gradient(learner, episodes))
        assert len(step._programs) == programs
    # New weights go into the program that is there.
    with torch.no_grad():
        for p in learner.parameters():
            p.mul_(0.5)
    agree(step(episodes), plain_outer_gradient(learner, episodes))
    next(learner.parameters()).requires_grad_(False)
    agree(step(episodes), plain_outer_gradient(learner, episodes))
    assert len(step._programs) == 3


def test_tensors_of_the_flat_episode_stay_apart() -> None:
    """Support and query of a nested input reach the learner as they were."""

    class Reads(Learner):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

        def adapt(self, support: Split) -> Tensor:
            return self.w * support.x["a"].sum() + support.x["b"].sum()

        def predict(self, state: Tensor, x: dict[str, Tensor]) -> Tensor:
            return (state * x["a"].sum(1) - x["b"]).unsqueeze(1)

    def split() -> Split:
        x = {"a": torch.rand(3, 4, 2, dtype=torch.float64), "b": torch.rand(3, 4, dtype=torch.float64)}
        return Split(x, torch.rand(3, 4, 1, dtype=torch.float64))

    episodes = Episode(split(), split())
    for kind in ("loop", "vmap"):
        agree(OuterStep(Reads(), Batching(kind))(episodes), plain_outer_gradient(Reads(), episodes))
