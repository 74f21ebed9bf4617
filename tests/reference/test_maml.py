"""MAML against Algorithms 1 and 2 of the paper: plain loops of ``torch.autograd.grad``, from the paper alone."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.algorithms import MAML
from kshot.core import Episode, Spec
from kshot.core.episode import unbind
from kshot.engine.batch import Batching, OuterStep
from kshot.nn.mlp import MLP
from kshot.testing import synthetic_episodes
from kshot.testing.synthetic import TinyConv

ALPHA = 0.3
IMAGES = Spec("classification", (1, 8, 8), 3)
VECTORS = Spec("regression", (2,), 2)

Forward = Callable[[list[Tensor], Tensor, Tensor], Tensor]


def mlp(theta: list[Tensor], x: Tensor, statistics_of: Tensor) -> Tensor:
    """Two hidden layers with ReLU, and a linear head."""
    w1, b1, w2, b2, w3, b3 = theta
    hidden = (x @ w1.T + b1).clamp(min=0)
    return (hidden @ w2.T + b2).clamp(min=0) @ w3.T + b3


def conv(theta: list[Tensor], x: Tensor, statistics_of: Tensor) -> Tensor:
    """Two blocks of convolution, normalisation by the statistics of a given batch, ReLU, halving; a linear head."""
    *blocks, w, b = theta
    both = torch.cat([x, statistics_of])
    for i, stride in enumerate((1, 2)):
        kernel, bias, scale, shift = blocks[4 * i : 4 * i + 4]
        both = F.conv2d(both, kernel, bias, stride=stride, padding=1)
        other = both[len(x) :]
        mean = other.mean((0, 2, 3), keepdim=True)
        var = ((other - mean) ** 2).mean((0, 2, 3), keepdim=True)
        both = (both - mean) / (var + 1e-5) ** 0.5 * scale[:, None, None] + shift[:, None, None]
        both = F.relu(both) if stride == 2 else F.max_pool2d(F.relu(both), 2)
    return both[: len(x)].flatten(1) @ w.T + b


def algorithm(
    theta: list[Tensor], episode: Episode, forward: Forward, steps: int, first_order: bool, inductive: bool
) -> Tensor:
    """Outer loss of one task: theta' by ``steps`` steps on the support, its loss on the queries."""
    support, query = episode

    def loss_of(prediction: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(prediction, y) if y.is_floating_point() else F.cross_entropy(prediction, y)

    adapted = theta
    for _ in range(steps):
        loss = loss_of(forward(adapted, support.x, support.x), support.y)
        grads = torch.autograd.grad(loss, adapted, create_graph=not first_order)
        adapted = [t - ALPHA * g for t, g in zip(adapted, grads, strict=True)]
    return loss_of(forward(adapted, query.x, support.x if inductive else query.x), query.y)


NETWORKS = {
    "sinusoid network": (VECTORS, mlp, lambda: MLP(2, (6, 5)), False),
    "statistics of the queries": (IMAGES, conv, lambda: TinyConv(1, 8, "episode"), False),
    "statistics of the support": (IMAGES, conv, lambda: TinyConv(1, 8, "support"), True),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("first_order", [False, True])
def test_loss_and_gradient_are_those_of_the_paper(network: str, steps: int, first_order: bool) -> None:
    spec, forward, backbone, inductive = NETWORKS[network]
    made = backbone()
    model = nn.Sequential(made, nn.Linear(made.n_features, spec.n_outputs)).double()
    learner = MAML(model, inner_lr=ALPHA, n_inner_steps=steps, first_order=first_order).train()
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.1 * torch.randn_like(p))
    episodes = synthetic_episodes(spec, 3, n_shot=3, n_query=4)
    theta = [p.detach().clone().requires_grad_() for p in learner.parameters()]
    losses = torch.stack([algorithm(theta, e, forward, steps, first_order, inductive) for e in unbind(episodes)])
    expected = torch.autograd.grad(losses.mean(), theta)

    for batching in (Batching("loop"), Batching("vmap"), Batching("vmap", chunk=2)):
        got = OuterStep(learner, batching)(episodes)
        torch.testing.assert_close(got.losses, losses.detach(), rtol=1e-9, atol=1e-9)
        for mine, theirs in zip(got.grads.values(), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def test_first_order_is_another_gradient() -> None:
    """If it were not, the test above could not tell them apart."""
    episodes = synthetic_episodes(VECTORS, 2)
    model = nn.Sequential(MLP(2, (6, 5)), nn.Linear(5, 2)).double()
    first, second = (
        OuterStep(MAML(model, inner_lr=ALPHA, first_order=f), Batching("loop"))(episodes).grads for f in (True, False)
    )
    assert all(float((first[k] - second[k]).abs().max()) > 1e-4 for k in first)
