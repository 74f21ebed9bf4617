"""Baselines against PyTorch's own optimisers (float64)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.algorithms import Baseline, BaselinePP, FineTune, TransductiveFineTuning
from kshot.core import Episode, Learner, Spec
from kshot.core.episode import unbind
from kshot.nn.flat import Flat
from kshot.nn.mlp import MLP
from kshot.testing import synthetic_episode, synthetic_episodes

SPEC = Spec("classification", (6,), 3)


def answers(learner: Learner, one: Episode) -> Tensor:
    with torch.no_grad():
        return learner.predict(learner.adapt(one.support), one.query.x)


def trained(parameters: list[Tensor], loss, n_steps: int) -> None:
    optimiser = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001)
    for _ in range(n_steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()


def test_baseline() -> None:
    # PyTorch does not dampen its very first gradient: so it starts one step later here, from the step that we take.
    one = synthetic_episode(SPEC)
    x, y = one.support.x, one.support.y
    weight, bias = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    velocity: list[Tensor] = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(30):
        p = torch.softmax(x @ weight.T + bias, 1) - F.one_hot(y, 3)
        slopes = [p.T @ x / len(y) + 0.001 * weight, p.mean(0) + 0.001 * bias]
        velocity = [0.9 * v + 0.1 * s for v, s in zip(velocity, slopes, strict=True)]
        weight, bias = weight - 0.01 * velocity[0], bias - 0.01 * velocity[1]
    got = answers(Baseline(Flat((6,)), n_inner_steps=30).double().eval(), one)
    torch.testing.assert_close(got, one.query.x @ weight.T + bias, rtol=1e-9, atol=1e-11)


def test_baseline_is_nearly_what_pytorch_trains() -> None:
    one, layer = synthetic_episode(SPEC), nn.Linear(6, 3).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    trained(list(layer.parameters()), lambda: F.cross_entropy(layer(one.support.x), one.support.y), 300)
    got = answers(Baseline(Flat((6,)), n_inner_steps=300).double().eval(), one)
    torch.testing.assert_close(got, layer(one.query.x).detach(), rtol=0, atol=0.05 * float(got.abs().max()))


def test_baselinepp_falls_as_pytorch_says() -> None:
    one, learner = synthetic_episode(SPEC), BaselinePP(Flat((6,)), n_inner_steps=40).double().eval()
    x, y = one.support.x, one.support.y
    weight = torch.stack([x[y == c].mean(0) for c in range(3)]).requires_grad_()
    velocity = torch.zeros_like(weight)
    for _ in range(40):
        cosines = F.cosine_similarity(x[:, None], weight, dim=-1)
        loss = F.cross_entropy(10 * cosines, y) + 0.0005 * (weight**2).sum()
        (slope,) = torch.autograd.grad(loss, weight)
        velocity = 0.9 * velocity + 0.1 * slope
        weight = (weight - 0.01 * velocity).detach().requires_grad_()
    expected = 10 * F.cosine_similarity(one.query.x[:, None], weight, dim=-1)
    torch.testing.assert_close(answers(learner, one), expected.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("transductive", [False, True])
def test_fine_tuning_is_adam_on_the_whole_network(transductive: bool) -> None:
    one = synthetic_episode(SPEC)
    cls = TransductiveFineTuning if transductive else FineTune
    learner = cls(MLP(6, (5,)), inner_lr=0.01, n_inner_steps=7).double().eval()
    got = answers(learner, one)

    network, x, xq = learner.backbone, one.support.x, one.query.x
    with torch.no_grad():
        z = network(x)
        weight = torch.stack([z[one.support.y == c].mean(0) for c in range(3)])
        weight = weight / weight.norm(dim=1, keepdim=True)
    weight, bias = weight.requires_grad_(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([*network.parameters(), weight, bias], lr=0.01)
    for _ in range(7):
        loss = F.cross_entropy(network(x) @ weight.T + bias, one.support.y)
        if transductive:
            p = torch.softmax(network(xq) @ weight.T + bias, 1)
            loss = loss - (p * p.log()).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(got, (network(xq) @ weight.T + bias).detach(), rtol=1e-7, atol=1e-7)


def test_the_outer_loss_is_plain_classification() -> None:
    """Support and queries alike, by the classifier of all training classes; a task's own head has no part in it."""
    learner = Baseline.from_backbone(MLP(6, (5,)), SPEC).double().train()
    for one in unbind(synthetic_episodes(SPEC)):
        x, y = torch.cat([one.support.x, one.query.x]), torch.cat([one.support.y, one.query.y])
        torch.testing.assert_close(learner.outer_loss(one), F.cross_entropy(learner.classifier(learner.backbone(x)), y))
