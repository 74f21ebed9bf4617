"""Methods that adapt by gradient steps: closed forms on parabolas, what they become at their limits, bad options."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.engine.test_inner_rules import Attends
from torch import Tensor, nn
from torch.func import functional_call

from kshot.algorithms import (
    ANIL,
    BOIL,
    CAVIA,
    IMAML,
    MAML,
    FineTune,
    MetaCurvature,
    MetaSGD,
    ProtoMAML,
    ProtoNet,
    Reptile,
)
from kshot.core import Episode, Learner, Spec, Split, UserError, methods
from kshot.nn.conv import Conv4
from kshot.nn.mlp import MLP
from kshot.nn.norm import Norm
from kshot.testing import synthetic_episode

ALPHA, START, STEPS = 0.05, 1.7, 3
VECTORS, CLASSES = Spec("regression", (2,), 2), Spec("classification", (2,), 3)


def task() -> Episode:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 6, 1, generator=g, dtype=torch.float64) for _ in range(2))
    return Episode(Split(x[0], y[0]), Split(x[1], y[1]))


def line(start: float = START) -> nn.Linear:
    made = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(made.weight, start)
    return made


def parabola(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """mean (w x - y)^2 = a (w - best)^2 + constant: returns a and best."""
    a = (x**2).mean()
    return a, (x * y).mean() / a


def outer_gradients(learner: Learner, episode: Episode) -> list[Tensor]:
    return [g.squeeze() for g in torch.autograd.grad(learner.train().outer_loss(episode), list(learner.parameters()))]


def close(got: Tensor, expected: Tensor | float, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance)


def test_anil_and_boil_move_one_factor_of_a_product() -> None:
    """The network is u v x: one factor moves, and the outer gradient of both has a closed form."""
    episode = task()
    (a, best), (b, best_query) = parabola(*episode.support[:2]), parabola(*episode.query[:2])
    u, v = 0.8, 1.3  # body, head
    # L = a (u v - best)^2; one step of the head: v' = v - 2 ALPHA a u (u v - best).
    moved = v - 2 * ALPHA * a * u * (u * v - best)
    outer = 2 * b * (u * moved - best_query)
    by_u = outer * (moved - 2 * ALPHA * a * u * (2 * u * v - best))
    by_v = outer * u * (1 - 2 * ALPHA * a * u * u)
    got = outer_gradients(ANIL(line(u), line(v), inner_lr=ALPHA), episode)
    close(got[0], by_u)
    close(got[1], by_v)
    # The same with body and head exchanged: the product does not tell them apart.
    got = outer_gradients(BOIL(line(v), line(u), inner_lr=ALPHA), episode)
    close(got[1], by_u)
    close(got[0], by_v)


def test_anil_normalises_its_head_by_the_support_as_maml_does_a_frozen_body() -> None:
    """Statistics of the support, taken anew after the last step: the queries are answered as by hand."""
    body, head = nn.Identity(), nn.Sequential(nn.Linear(2, 3), Norm(3, "support"), nn.Linear(3, 3))
    learner = ANIL(body, head, inner_lr=0.3, n_inner_steps=2).eval()
    support, query = synthetic_episode(Spec("classification", (2,), 3), n_shot=4)
    support, query = (part._replace(x=part.x.float()) for part in (support, query))
    state = learner.adapt(support)
    with torch.no_grad():
        hidden = functional_call(
            head[0], {k[4:]: t for k, t in state.params.items() if k.startswith("1.0.")}, support.x
        )
    torch.testing.assert_close(state.buffers["1.1.running_mean"], hidden.mean(0))
    together = learner.predict(state, query.x)
    torch.testing.assert_close(torch.cat([learner.predict(state, x[None]) for x in query.x]), together)


def test_meta_sgd_knows_the_slope_of_its_rate() -> None:
    episode = task()
    (a, best), (b, best_query) = parabola(*episode.support[:2]), parabola(*episode.query[:2])
    slope = 2 * a * (START - best)
    outer = 2 * b * (START - ALPHA * slope - best_query)
    by_start, by_rate = outer_gradients(MetaSGD(line(), inner_lr=ALPHA), episode)
    close(by_start, outer * (1 - 2 * ALPHA * a))
    close(by_rate, -outer * slope)


def test_meta_sgd_starts_its_rates_where_it_was_told() -> None:
    drawn = MetaSGD(nn.Linear(30, 30), inner_lr=0.005, rate_spread=19.0).rates
    rates = torch.cat([r.detach().flatten() for r in drawn])
    assert 0.005 <= float(rates.min()) < 0.01
    assert 0.09 < float(rates.max()) <= 0.1
    assert MetaSGD(nn.Linear(2, 1), inner_lr=0.25).rates[0].tolist() == [[0.25, 0.25]]


def test_reptile_points_from_where_training_ends_to_the_start() -> None:
    episode = task()
    x, y = (torch.cat([getattr(s, k) for s in episode]) for k in "xy")
    a, best = parabola(x, y)
    ended = best + (1 - 2 * ALPHA * a) ** STEPS * (START - best)
    learner = Reptile(line(), inner_lr=ALPHA, n_inner_steps=STEPS)
    (got,) = outer_gradients(learner, episode)
    close(got, START - ended)
    # What it reports is the loss of the trained weight.
    b, best_query = parabola(*episode.query[:2])
    least = ((best_query * episode.query.x - episode.query.y) ** 2).mean()
    close(learner.outer_loss(episode).detach(), b * (ended - best_query) ** 2 + least)


def test_imaml_on_a_parabola_is_the_gradient_of_the_minimum() -> None:
    """phi* = (2 a best + lambda theta) / (2 a + lambda), so d phi* / d theta = lambda / (2 a + lambda)."""
    episode, strength = task(), 0.7
    (a, best), (b, best_query) = parabola(*episode.support[:2]), parabola(*episode.query[:2])
    minimum = (2 * a * best + strength * START) / (2 * a + strength)
    learner = IMAML(line(), strength=strength, inner_lr=0.2, n_inner_steps=200, n_cg_steps=1)
    close(learner.train().adapt(episode.support).params["weight"].detach().squeeze(), minimum)
    (got,) = outer_gradients(learner, episode)
    close(got, 2 * b * (minimum - best_query) * strength / (2 * a + strength))


def test_imaml_comes_to_mamls_gradient_of_a_minimum_that_both_reach() -> None:
    """Differentiating through many steps of the pulled loss and the implicit function theorem agree."""
    episode = synthetic_episode(VECTORS, n_shot=6)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    learner = IMAML(model, strength=2.0, inner_lr=0.2, n_inner_steps=300, n_cg_steps=40).train()
    got = torch.cat([g.flatten() for g in torch.autograd.grad(learner.outer_loss(episode), list(model.parameters()))])

    theta = dict(model.named_parameters())
    phi = dict(theta)
    for _ in range(300):
        loss = ((torch.func.functional_call(model, phi, (episode.support.x,)) - episode.support.y) ** 2).mean()
        loss = loss + sum((((phi[k] - theta[k]) ** 2).sum() for k in phi), torch.zeros(()))
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        phi = {k: p - 0.2 * g for (k, p), g in zip(phi.items(), grads, strict=True)}
    outer = ((torch.func.functional_call(model, phi, (episode.query.x,)) - episode.query.y) ** 2).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(outer, list(theta.values()))])
    close(got, expected, 1e-8)


def test_meta_curvature_with_identities_is_maml_and_with_a_number_another_rate() -> None:
    episode, model = synthetic_episode(VECTORS), nn.Sequential(MLP(2, (6, 5)), nn.Linear(5, 2)).double()
    maml = MAML(model, inner_lr=ALPHA, n_inner_steps=STEPS).train()
    curved = MetaCurvature(copy.deepcopy(model), inner_lr=ALPHA, n_inner_steps=STEPS).double().train()
    close(curved.outer_loss(episode).detach(), maml.outer_loss(episode).detach())
    with torch.no_grad():
        for several in curved.matrices:
            next(iter(several)).mul_(2.0)  # pyright: ignore[reportCallIssue, reportArgumentType]
    maml.inner_lr = 2 * ALPHA
    close(curved.outer_loss(episode).detach(), maml.outer_loss(episode).detach())


def test_proto_maml_begins_as_a_prototypical_network() -> None:
    """The logits differ by |z|^2, which drops out of the softmax; and more classes than in training are welcome."""
    network = MLP(2, (6, 5)).double()
    learner, protonet = ProtoMAML(network).eval(), ProtoNet(network).eval()
    for ways in (2, 5):
        support, query = synthetic_episode(CLASSES._replace(n_outputs=ways), n_shot=3)
        begun = learner.states(support, n_steps=0)[0]
        expected = protonet.predict(protonet.adapt(support), query.x)
        close(learner.predict(begun, query.x).softmax(1), expected.softmax(1))
        assert learner.predict(learner.adapt(support), query.x).shape == (len(query.y), ways)


def test_cavia_moves_its_context_alone() -> None:
    learner = CAVIA(nn.Sequential(MLP(2, (6, 5)), nn.Linear(5, 2)), n_context=4, n_inner_steps=2).double().train()
    before, after = learner.states(synthetic_episode(VECTORS).support)[::2]
    assert {k for k, p in before.params.items() if not torch.equal(p, after.params[k])} == {"context"}
    assert not before.params["context"].any()
    # The context of one task says nothing about another, and leaves the network as it was.
    assert not learner.model[0].layers[0]._forward_hooks  # pyright: ignore


@pytest.mark.parametrize(
    ("model", "layer", "place"),
    [
        (nn.Sequential(MLP(2, (6, 5)), nn.Linear(5, 2)), "", ("0.layers.0", 6, False, "")),
        (nn.Sequential(MLP(2, (6, 5), "running"), nn.Linear(5, 2)), "", ("0.layers.0", 6, False, "0.layers.1")),
        (nn.Sequential(MLP(2, (6, 5)), nn.Linear(5, 2)), "1", ("1", 2, False, "")),
        (Conv4(), "", ("blocks.2.conv", 64, True, "blocks.2.norm")),
        (nn.Sequential(nn.Conv2d(1, 7, 3), nn.Flatten(), nn.LazyLinear(2)), "", ("0", 7, True, "")),
    ],
)
def test_where_the_context_of_cavia_enters(model: nn.Module, layer: str, place: tuple[str, int, bool, str]) -> None:
    assert tuple(CAVIA(model, layer=layer).place) == place


class Aside(nn.Module):
    """Has a linear layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.busy = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.busy(x)


class NormFirst(nn.Module):
    """Normalises before its first layer, though the normalisation is registered behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(2, 8), nn.LayerNorm(2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(self.norm(x)).relu())


class NormAfter(NormFirst):
    """Normalises behind its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.fc(x)).relu())


@pytest.mark.parametrize("network", [NormFirst, NormAfter])
def test_the_context_enters_behind_a_normalisation_only_if_that_is_behind_the_layer(network: type[NormFirst]) -> None:
    learner = CAVIA(network(), n_context=3).double()
    support = synthetic_episode(VECTORS).support
    weights = learner.start(support)
    weights.params["context"] = torch.ones(3, dtype=torch.float64)
    added, model = learner.modulation.weight.sum(1), learner.model
    plain = model.fc(model.norm(support.x)) if network is NormFirst else model.norm(model.fc(support.x))  # pyright: ignore
    close(learner.run(weights, support.x)[0], model.head((plain + added).relu()))  # pyright: ignore


class HasAHead(nn.Module):
    """An embedding whose last layer is called head, as a classifier's often is, or otherwise."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(2, 4)
        self.add_module(name, nn.Linear(4, 5))
        self.last, self.n_features = name, 5

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.last)(self.body(x).relu())


@pytest.mark.parametrize("method", [ProtoMAML, FineTune])
def test_a_layer_called_head_adapts_like_any_other(method: type[ProtoMAML] | type[FineTune]) -> None:
    one = synthetic_episode(CLASSES._replace(input_shape=(2,), n_outputs=2))
    with torch.random.fork_rng(devices=[]):
        learners = [method(HasAHead(name), n_inner_steps=3, inner_lr=0.1).double().eval() for name in ("head", "top")]
    answers = [learner.predict(learner.adapt(one.support), one.query.x) for learner in learners]
    close(answers[0], answers[1])


def test_a_layer_that_is_not_called_is_named() -> None:
    with pytest.raises(UserError, match="call its layer 'idle', it did not"):
        CAVIA(Aside()).double().adapt(synthetic_episode(VECTORS).support)
    CAVIA(Aside(), layer="busy").double().adapt(synthetic_episode(VECTORS).support)


@pytest.mark.filterwarnings("ignore::kshot.engine.inner.OtherPathWarning")
def test_the_context_of_cavia_passes_by_a_layer_of_attention_that_is_never_called() -> None:
    learner = CAVIA(Attends(), n_context=3).double()
    assert learner.place == ("layer.linear1", 8, False, "")
    g = torch.Generator().manual_seed(0)
    support, query = (
        Split(torch.randn(3, 5, 4, generator=g).double(), torch.randn(3, 2, generator=g).double()) for _ in range(2)
    )
    learner.train().outer_loss(Episode(support, query)).backward()
    assert learner.modulation.weight.grad is not None
    assert float(learner.modulation.weight.grad.abs().sum()) > 0
    with torch.no_grad():  # where PyTorch has a faster path, which calls no layer
        state = learner.eval().adapt(support)
    assert float(state.params["context"].abs().sum()) > 0
    with pytest.raises(UserError, match=r"those of this network are layer\.linear1, layer\.linear2, head"):
        CAVIA(Attends(), layer="layer.self_attn.out_proj")


@pytest.mark.parametrize("name", [n for n, m in methods().items() if m.family == "gradient"])
def test_settings_of_the_papers_build_and_make_a_sensible_number_of_steps(name: str) -> None:
    cls = methods()[name].learner
    for spec in (Spec("regression", (2,), 1), CLASSES, CLASSES._replace(n_outputs=20)):
        if spec.kind in cls.kinds:
            learner = cls.from_backbone(MLP(2, (6, 5)), spec, **cls.paper_options(spec))
            assert 1 <= learner.n_inner_steps <= 20  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", [n for n, m in methods().items() if m.family == "gradient"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_inner_steps": 0}, "n_inner_steps >= 1, got 0"),
        ({"n_inner_steps_eval": -1}, "and -1 to evaluate"),
        ({"n_inner_steps": 2.5}, "whole numbers, n_inner_steps >= 1, got 2.5"),
        ({"inner_lr": 0.0}, "inner_lr > 0, and finite, got 0.0"),
        ({"inner_lr": float("nan")}, "inner_lr > 0, and finite, got nan"),
        ({"inner_lr": float("inf")}, "inner_lr > 0, and finite, got inf"),
    ],
)
def test_steps_and_rates_that_make_no_sense(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods()[name].learner.from_backbone(MLP(2, (6, 5)), CLASSES, **options)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (MetaSGD, {"rate_spread": -1.0}, "rate_spread >= 0, got -1.0"),
        (Reptile, {"inner_optimiser": "adan"}, "did you mean 'adam'"),
        (Reptile, {"inner_batch": -1}, "inner_batch >= 0, got -1"),
        (CAVIA, {"n_context": 0}, "n_context >= 1, got 0"),
        (CAVIA, {"layer": "nowhere"}, "got 'nowhere'; those of this network are"),
        (IMAML, {"strength": 0.0}, "strength > 0, got 0.0"),
        (IMAML, {"n_cg_steps": 0}, "n_cg_steps >= 1, got 0"),
        (IMAML, {"inner_optimiser": "sdg"}, "did you mean 'sgd'"),
        (IMAML, {"damping": -1.0}, "damping >= 0, got -1.0"),
    ],
)
def test_other_settings_that_make_no_sense(cls: type[Learner], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cls.from_backbone(MLP(2, (6, 5)), CLASSES, **options)
