"""ProtoNet against Algorithm 1 of the paper, by plain loops, written from the paper alone (float64)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.algorithms import ProtoNet
from kshot.core import Episode, Spec
from kshot.core.episode import unbind
from kshot.engine.batch import Batching, OuterStep
from kshot.nn.conv import Conv4
from kshot.testing import synthetic_episode, synthetic_episodes

SPEC = Spec("classification", (1, 16, 16), 4)


def network(normalisation: str) -> Conv4:
    conv = Conv4(1, 5, 16, normalisation).double()
    with torch.no_grad():  # scales and shifts that are not one and zero
        for p in conv.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return conv


def embed(weights: dict[str, Tensor], x: Tensor, normalised: bool) -> Tensor:
    """Four times convolution, batch norm, ReLU, 2x2 max-pooling, in the order of the papers."""
    for i in range(4):
        x = F.conv2d(x, weights[f"blocks.{i}.conv.weight"], weights[f"blocks.{i}.conv.bias"], padding=1)
        if normalised:
            scale, shift = weights[f"blocks.{i}.norm.weight"], weights[f"blocks.{i}.norm.bias"]
            x = F.batch_norm(x, None, None, scale, shift, training=True)
        x = F.max_pool2d(F.relu(x), 2)
    return x.flatten(1)


def algorithm_1(weights: dict[str, Tensor], episode: Episode, normalised: bool) -> Tensor:
    """J of one training episode: support and queries are embedded as one batch, as in the authors' code."""
    support, query = episode
    n_way, n_support = SPEC.n_outputs, len(support.y)
    z = embed(weights, torch.cat([support.x, query.x]), normalised)
    prototypes = []
    for k in range(n_way):
        total, count = torch.zeros_like(z[0]), 0
        for i in range(n_support):
            if int(support.y[i]) == k:
                total, count = total + z[i], count + 1
        prototypes.append(total / count)
    loss = torch.zeros((), dtype=torch.float64)
    for k in range(n_way):
        mine = [i for i in range(len(query.y)) if int(query.y[i]) == k]
        for i in mine:
            d = [((z[n_support + i] - c) ** 2).sum() for c in prototypes]
            log_sum = torch.log(sum((torch.exp(-each) for each in d), torch.zeros(())))
            loss = loss + (d[k] + log_sum) / (n_way * len(mine))
    return loss


@pytest.mark.parametrize("normalisation", ["none", "running"])
@pytest.mark.parametrize("batching", ["loop", "vmap", "native"])
def test_loss_and_gradient_are_those_of_algorithm_1(normalisation: str, batching: str) -> None:
    conv = network(normalisation)
    episodes = synthetic_episodes(SPEC, 3, n_shot=2, n_query=3)
    weights = {k: p.detach().clone().requires_grad_() for k, p in conv.named_parameters()}
    losses = torch.stack([algorithm_1(weights, e, normalisation != "none") for e in unbind(episodes)])
    expected = dict(zip(weights, torch.autograd.grad(losses.mean(), list(weights.values())), strict=True))

    got = OuterStep(ProtoNet(conv).train(), Batching(batching))(episodes)

    torch.testing.assert_close(got.losses, losses.detach(), rtol=1e-9, atol=1e-9)
    for name, gradient in expected.items():
        torch.testing.assert_close(got.grads[f"backbone.{name}"], gradient, rtol=1e-8, atol=1e-9)


def test_squared_euclidean_distance_is_a_linear_model() -> None:
    """Section 2.4: the softmax over -|z - c_k|^2 is that over w_k z + b_k with w_k = 2 c_k and b_k = -c_k c_k."""
    learner, (support, query) = ProtoNet(network("none")).eval(), synthetic_episode(SPEC, n_shot=3)
    state = learner.adapt(support)
    z, c = learner.backbone(query.x), state.head
    linear = z @ (2 * c).T - (c * c).sum(1)
    got = learner.predict(state, query.x)
    torch.testing.assert_close(got.softmax(1), linear.softmax(1), rtol=1e-10, atol=1e-12)
    # And what drops out of the softmax is |z|^2 alone.
    torch.testing.assert_close(linear - got, (z * z).sum(1, keepdim=True).expand_as(got), rtol=1e-9, atol=1e-12)


def test_with_one_shot_the_prototype_is_the_example() -> None:
    """Section 2.5: one-shot prototypical and matching networks coincide, here as nearest neighbour."""
    learner, (support, query) = ProtoNet(network("running")).eval(), synthetic_episode(SPEC, n_shot=1)
    z = learner.backbone(torch.cat([support.x, query.x]))
    state = learner.adapt(support)
    torch.testing.assert_close(state.head[support.y], z[: len(support.y)], rtol=1e-9, atol=1e-12)
    nearest = torch.cdist(z[len(support.y) :], state.head).argmin(1)
    assert torch.equal(learner.predict(state, query.x).argmax(1), nearest)


def test_cosine_distance() -> None:
    learner, (support, query) = ProtoNet(network("none"), distance="cosine").eval(), synthetic_episode(SPEC)
    z, means = learner.backbone(query.x), learner.adapt(support).head
    expected = F.cosine_similarity(z[:, None], means, dim=-1) - 1
    # Squared lengths have 1e-12 added, so that a zero vector has a gradient of a sensible size.
    torch.testing.assert_close(learner.predict(learner.adapt(support), query.x), expected, rtol=1e-6, atol=1e-10)
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(learner.apply_head(torch.ones(4, 3, dtype=torch.float64), zero).sum(), zero)
    assert float(gradient.abs().max()) < 1e7
