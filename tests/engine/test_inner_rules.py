"""Inner optimisers against PyTorch's own, adapted groups, recomputed steps, other paths of layers, and divergence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms import IMAML, MAML, MAMLpp, MetaSGD
from kshot.core import DivergedError, Episode, Spec, Split, UserError, task_loss
from kshot.core.episode import to, unbind
from kshot.data.loader import EpisodeLoader
from kshot.data.sinusoid import Sinusoid
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.inner import (
    Inner,
    OtherPathWarning,
    Rule,
    Weights,
    adam,
    call,
    clipped,
    first_divergence,
    matching,
    momentum,
    preconditioned,
    recomputing,
    sgd,
    unrolled,
    weights,
    weights_of,
)
from kshot.engine.train import TrainConfig, Trainer
from kshot.nn.mlp import MLP
from kshot.testing import synthetic_episode, synthetic_episodes

SPEC = Spec("regression", (2,), 2)
LR, STEPS = 0.07, 5


def network() -> nn.Sequential:
    return nn.Sequential(MLP(2, (6, 5)), nn.Linear(5, 2)).double()


def loss_of(model: nn.Module) -> Callable[[Weights, Split, int], tuple[Tensor, Weights]]:
    def loss(now: Weights, support: Split, step: int) -> tuple[Tensor, Weights]:
        prediction, after = call(model, now, support.x)
        return task_loss(prediction, support.y), after

    return loss


def adapted(model: nn.Module, support: Split, **settings: object) -> Weights:
    inner = Inner(**{"lr": LR, "n_steps": STEPS, **settings})  # pyright: ignore[reportArgumentType]
    (last,) = unrolled(loss_of(model), weights_of(model), support, inner)
    return last


RULES = {
    "sgd": (sgd(), lambda p: torch.optim.SGD(p, LR), 0.0),
    "momentum": (momentum(0.8), lambda p: torch.optim.SGD(p, LR, momentum=0.8), 0.0),
    "adam": (adam(), lambda p: torch.optim.Adam(p, LR), 0.0),
    "adam without its first moment": (adam(0.0, 0.9), lambda p: torch.optim.Adam(p, LR, betas=(0.0, 0.9)), 0.0),
    "clipped": (clipped(momentum(0.8), 0.1), lambda p: torch.optim.SGD(p, LR, momentum=0.8), 0.1),
    "clipped by a bound that is never met": (clipped(sgd(), 1e6), lambda p: torch.optim.SGD(p, LR), 1e6),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_goes_where_pytorchs_optimiser_goes(name: str) -> None:
    rule, make, bound = RULES[name]
    model, support = network(), synthetic_episode(SPEC).support
    got = adapted(model, support, rule=rule)
    optimiser = make(model.parameters())
    for _ in range(STEPS):
        optimiser.zero_grad()
        task_loss(model(support.x), support.y).backward()
        if bound:
            nn.utils.clip_grad_norm_(model.parameters(), bound)
        optimiser.step()
    for name_, p in model.named_parameters():
        # PyTorch adds 1e-6 to the norm that it clips by.
        torch.testing.assert_close(got.params[name_], p, rtol=1e-4 if bound == 0.1 else 1e-9, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_the_outer_gradient_runs_through_every_rule(name: str) -> None:
    rule = RULES[name][0]
    support = synthetic_episode(SPEC).support
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()

    def end(*params: Tensor) -> Tensor:
        start = Weights(dict(zip(dict(model.named_parameters()), params, strict=True)), {})
        (last,) = unrolled(loss_of(model), start, support, Inner(LR, 3, rule))
        return torch.stack([(p**2).sum() for p in last.params.values()]).sum()

    assert torch.autograd.gradcheck(end, tuple(model.parameters()), fast_mode=True)


def test_adam_is_differentiable_where_a_gradient_is_zero() -> None:
    def flat(now: Weights, support: Split, step: int) -> tuple[Tensor, Weights]:
        return (now.params["x"] ** 2 * torch.tensor([1.0, 0.0])).sum(), now

    x = torch.ones(2, requires_grad=True)
    (last,) = unrolled(flat, Weights({"x": x}, {}), Split(torch.zeros(1), torch.zeros(1)), Inner(0.1, 2, adam()))
    (got,) = torch.autograd.grad(last.params["x"].sum(), x)
    assert bool(torch.isfinite(got).all())
    assert float(got[1]) == 1.0


def test_rates_by_name_by_element_and_by_step() -> None:
    support = synthetic_episode(SPEC).support
    model = nn.Linear(2, 2).double()
    slopes = torch.autograd.grad(task_loss(model(support.x), support.y), [*model.parameters()])
    g = dict(zip(("weight", "bias"), slopes, strict=True))
    rates = {"weight": torch.tensor([[0.0, 0.1], [0.2, 0.3]], dtype=torch.float64), "bias": 0.5}
    got = adapted(model, support, lr=rates, n_steps=1)
    for name, p in model.named_parameters():
        torch.testing.assert_close(got.params[name], p - rates[name] * g[name])
    # One for each step, the last for all that come after it.
    by_step = adapted(model, support, lr=[0.1, 0.2], n_steps=3)
    again = model
    for lr in (0.1, 0.2, 0.2):
        step = adapted(again, support, lr=lr, n_steps=1)
        again = nn.Linear(2, 2).double()
        again.load_state_dict(step.params)
    torch.testing.assert_close(by_step.params, dict(again.named_parameters()))


def test_tensors_of_a_rule_get_a_gradient() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    rule = preconditioned(lambda grads, s: {k: s * g for k, g in grads.items()}, scale, momentum(0.5))
    model, support = network(), synthetic_episode(SPEC).support
    for recompute in (False, True):
        with recomputing(recompute):
            last = adapted(model, support, rule=rule)
            (got,) = torch.autograd.grad(last.params["1.bias"].sum(), scale)
        assert float(got) != 0


def test_patterns_say_what_adapts() -> None:
    model, support = network(), synthetic_episode(SPEC).support
    for patterns, moved in (
        (("1.*",), {"1.weight", "1.bias"}),
        (("*.bias",), {"0.layers.0.bias", "0.layers.2.bias", "1.bias"}),
        (("0.layers.0.weight", "1.b?as"), {"0.layers.0.weight", "1.bias"}),
    ):
        got = adapted(model, support, adapted=patterns)
        assert {k for k, p in model.named_parameters() if not torch.equal(got.params[k], p)} == moved
        assert list(got.params) == list(dict(model.named_parameters()))


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"that fit 'head\.\*', found none; the names are 0.layers.0.weight, "):
        matching(dict(network().named_parameters()), ["1.*", "head.*"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: momentum(1.0), "momentum from 0 to below 1, got 1.0"),
        (lambda: adam(beta1=1.0), "0 <= beta < 1 and eps > 0, got 1.0"),
        (lambda: adam(eps=0.0), "eps > 0"),
        (lambda: clipped(sgd(), 0.0), "max_norm > 0, got 0.0"),
    ],
)
def test_rules_that_make_no_sense(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# Recomputed steps.


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
@pytest.mark.parametrize("kind", ["loop", "vmap"])
def test_recomputed_steps_give_the_same_outer_gradient(steps: int, kind: str) -> None:
    model = nn.Sequential(MLP(2, (6, 5), "running"), nn.Linear(5, 2)).double()
    learner = MAML(model, inner_lr=LR, n_inner_steps=steps).train()
    episodes = synthetic_episodes(SPEC, 3, n_shot=4)
    plain, again = (OuterStep(learner, Batching(kind, recompute=r))(episodes) for r in (False, True))
    torch.testing.assert_close(again.losses, plain.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(again.grads, plain.grads, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(again.buffers, plain.buffers, rtol=1e-12, atol=1e-14)


def test_dropout_draws_the_same_numbers_when_steps_are_recomputed() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    learner, episodes = MAML(model, inner_lr=LR, n_inner_steps=4).train(), synthetic_episodes(SPEC, 2)
    found = []
    for recompute in (False, True):
        torch.manual_seed(3)
        found.append(OuterStep(learner, Batching("loop", recompute=recompute))(episodes).grads)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


# Layers whose fastest path has no second derivative.


class Attends(nn.Module):
    """A transformer layer over the pixels of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class AttendsByFunction(nn.Module):
    """Attention as a function, in a layer that nobody knows by its type."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).unsqueeze(1).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def rows() -> Episode:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 5, 4, generator=g), torch.randn(2, 3, 2, generator=g)
    return Episode(Split(x[0].double(), y[0].double()), Split(x[1].double(), y[1].double()))


@pytest.mark.filterwarnings("ignore::kshot.engine.inner.OtherPathWarning")
@pytest.mark.parametrize("network", [Attends, AttendsByFunction, Recurs])
@pytest.mark.parametrize("make", [MAML, MAMLpp, IMAML])
def test_any_module_can_be_the_backbone(network: type[nn.Module], make: type[MAML]) -> None:
    """Transformers and recurrent networks are differentiated through the inner steps: against differences."""
    learner = make(network(), inner_lr=0.2, n_inner_steps=2).double().train()
    params = dict(learner.named_parameters())

    def loss(*values: Tensor) -> Tensor:
        named = {**dict(zip(params, values, strict=True)), **{k: b.clone() for k, b in learner.named_buffers()}}
        return torch.func.functional_call(learner, named, (rows(),))

    values = tuple(p.detach().requires_grad_() for p in params.values())
    if learner.exact_gradient:
        assert torch.autograd.gradcheck(loss, values, fast_mode=True)
    else:
        grads = torch.autograd.grad(loss(*values), values, materialize_grads=True)
        assert all(bool(torch.isfinite(g).all()) for g in grads)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("make", [MAML, MetaSGD, IMAML])
def test_an_lstm_in_float32_is_differentiated_as_in_float64(
    make: type[MAML], recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, as above, oneDNN's LSTM takes no part; it has no second derivative."""
    monkeypatch.setattr(weights, "_told", set())
    episodes = Episode(*(Split(s.x.unsqueeze(0), s.y.unsqueeze(0)) for s in rows()))
    found = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        learner = make(Recurs(), inner_lr=0.2, n_inner_steps=3).to(dtype).train()
        step = OuterStep(learner, Batching("loop", recompute=recompute))
        if dtype == torch.float32:
            with pytest.warns(OtherPathWarning, match="LSTM layers run by PyTorch's own kernels"):
                step(to(episodes, "cpu", dtype))
        found.append(step(to(episodes, "cpu", dtype)).grads)  # once told, a second warning would be an error here
    for name, exact in found[0].items():
        torch.testing.assert_close(found[1][name].double(), exact, rtol=1e-3, atol=1e-6, msg=name)  # float32, 3 steps
    assert torch.backends.mkldnn.enabled  # as it was


@pytest.mark.parametrize("network", [Attends, AttendsByFunction])  # a layer that is known by its type, and a function
def test_another_path_is_told_once(network: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_told", set())
    learner = MAML(network(), inner_lr=0.1).double().train()
    with pytest.warns(OtherPathWarning, match="attention run by matrix products"):
        learner.outer_loss(rows())
    learner.outer_loss(rows())  # a second warning would be an error here
    # First order, and adapting without a gradient, keep the faster path; nothing is said.
    monkeypatch.setattr(weights, "_told", set())
    MAML(network(), inner_lr=0.1, first_order=True).double().train().outer_loss(rows()).backward()
    with torch.no_grad():
        learner.adapt(rows().support)


@pytest.mark.parametrize("training", [False, True])
def test_cudnn_rests_where_it_has_no_gradient(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of recurrent layers that do not train: as they are on a GPU, told of a layer that is not."""
    monkeypatch.setattr(weights, "_kind_without", lambda m: weights.RECURRENT * isinstance(m, nn.RNNBase))
    learner, used = MAML(Recurs(), inner_lr=0.1, n_inner_steps=2).double().train(training), []
    layer = next(m for m in learner.modules() if isinstance(m, nn.RNNBase))
    layer.register_forward_hook(lambda *_: used.append(torch.backends.cudnn.enabled))
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    with torch.no_grad():
        state = learner.adapt(rows().support)
        learner.predict(state, rows().query.x)
    assert used == [training, training, True]  # two steps that need a gradient, and an answer that does not
    assert torch.backends.cudnn.enabled


# Adapting without an outer gradient.


def test_adapting_without_a_gradient_builds_no_graph_at_all() -> None:
    learner, saved = MAML(network(), inner_lr=LR, n_inner_steps=3).eval(), []

    def count(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    def graph_of(adapt: Callable[[Split], Weights]) -> int:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            adapt(synthetic_episode(SPEC).support)
        return len(saved)

    def fine_tune(support: Split) -> Weights:
        model = network()
        for _ in range(3):
            torch.autograd.grad(task_loss(model(support.x), support.y), list(model.parameters()))
        return weights_of(model)

    with torch.no_grad():
        state = learner.adapt(synthetic_episode(SPEC).support)
        kept = graph_of(learner.adapt)
    assert not any(p.requires_grad for p in state.params.values())
    # What plain fine-tuning keeps for its first derivatives, and nothing for second ones.
    assert kept == graph_of(fine_tune)


# Divergence.


def test_an_inner_rate_that_diverges_is_named() -> None:
    learner = MAML(nn.Linear(2, 2).double(), inner_lr=1e80, n_inner_steps=9).train()
    found = first_divergence(learner, synthetic_episode(SPEC))
    assert found is not None
    name, _, step = found.rpartition(" in inner step ")
    assert name in ("the gradient of weight", "weight")
    assert 2 <= int(step) <= 5  # each step multiplies by about 1e80, and 1e308 is the end
    assert first_divergence(MAML(nn.Linear(2, 2).double(), inner_lr=0.1), synthetic_episode(SPEC)) is None
    step = OuterStep(learner, Batching("vmap"))
    assert not math.isfinite(float(step(synthetic_episodes(SPEC, 2)).losses.sum()))
    assert step.first_divergence() == found or "inner step" in (step.first_divergence() or "")


def test_of_several_batches_the_first_that_diverges_is_looked_at() -> None:
    learner = MAML(nn.Linear(2, 2).double(), inner_lr=0.1, n_inner_steps=3).train()
    bad, good = (synthetic_episodes(SPEC, 2, seed=seed) for seed in (0, 1))
    bad.support.x[1] *= 1e200
    step = OuterStep(learner, Batching("loop"))
    step(bad)
    step(good)
    found = step.first_divergence()
    assert found is not None
    assert "inner step" in found
    step(good)  # it was told, and is over
    assert step.first_divergence() is None


def test_training_names_the_inner_step() -> None:
    learner = MAML.from_backbone(MLP(1, (8,)), Sinusoid.spec, inner_lr=1e30, n_inner_steps=5)
    loader = EpisodeLoader(Sinusoid(n_shot=4, n_query=4), 3, seed=0)
    with pytest.raises(DivergedError, match=r"outer loss is not finite at step 1; .*with .* in inner step \d"):
        Trainer(learner, loader, TrainConfig(steps=2, batching="vmap")).fit()


def test_pytorchs_batch_norm_keeps_statistics_that_are_the_mean_over_tasks() -> None:
    """A backbone with running statistics of its own: one task after the other, each from the same start."""
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    learner, episodes = MAML(model, inner_lr=LR).train(), synthetic_episodes(SPEC, 3)
    for recompute in (False, True):
        got = OuterStep(learner, Batching("loop", recompute=recompute))(episodes)
        each = [OuterStep(learner, Batching("loop"))([e]).buffers for e in unbind(episodes)]
        mean = torch.stack([b["model.1.running_mean"] for b in each]).mean(0)
        torch.testing.assert_close(got.buffers["model.1.running_mean"], mean, rtol=1e-10, atol=1e-12)
        assert int(got.buffers["model.1.num_batches_tracked"]) == 2  # the support, and the queries
    assert not model[1].running_mean.any()  # pyright: ignore
