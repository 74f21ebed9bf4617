"""Methods that adapt by gradient steps against plain loops of ``torch.autograd.grad``, from their papers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.algorithms import ANIL, BOIL, CAVIA, IMAML, MAMLpp, MetaCurvature, MetaSGD, ProtoMAML, Reptile
from kshot.core import Episode, Learner, Spec
from kshot.core.episode import unbind
from kshot.engine.batch import Batching, OuterStep
from kshot.nn.mlp import MLP
from kshot.testing import synthetic_episodes
from kshot.testing.synthetic import TinyConv

ALPHA, STEPS = 0.2, 3
VECTORS = Spec("regression", (2,), 2)
CLASSES = Spec("classification", (2,), 3)
IMAGES = Spec("classification", (1, 8, 8), 3)

Theta = list[Tensor]
Loss = Callable[[Theta, Episode], Tensor]


def mlp(theta: Theta, x: Tensor) -> Tensor:
    """Two hidden layers with ReLU, and a linear head."""
    w1, b1, w2, b2, w3, b3 = theta
    return ((x @ w1.T + b1).clamp(min=0) @ w2.T + b2).clamp(min=0) @ w3.T + b3


def loss_of(prediction: Tensor, y: Tensor) -> Tensor:
    if y.is_floating_point():
        return ((prediction - y) ** 2).mean()
    return -torch.log_softmax(prediction, 1)[torch.arange(len(y)), y].mean()


def network(spec: Spec) -> tuple[MLP, nn.Linear]:
    return MLP(2, (6, 5)).double(), nn.Linear(5, spec.n_outputs).double()


def agree(learner: Learner, spec: Spec, reference: Loss) -> None:
    """Compare loss and outer gradient of a batch with a reference, for each way to batch."""
    learner.double().train()
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.05 * torch.randn_like(p))
    episodes = synthetic_episodes(spec, 3, n_shot=3, n_query=4)
    named = dict(learner.named_parameters())
    theta = [p.detach().clone().requires_grad_() for p in named.values()]
    losses = torch.stack([reference(theta, e) for e in unbind(episodes)])
    expected = torch.autograd.grad(losses.mean(), theta)
    for batching in (
        Batching("loop"),
        Batching("vmap"),
        Batching("loop", recompute=True),
        Batching("vmap", 2, recompute=True),
    ):
        got = OuterStep(learner, batching)(episodes)
        torch.testing.assert_close(got.losses, losses.detach(), rtol=1e-9, atol=1e-9)
        for name, theirs in zip(named, expected, strict=True):
            assert float(theirs.abs().max()) > 1e-7, f"{name}: a test that sees nothing"
            torch.testing.assert_close(got.grads[name], theirs, rtol=1e-6, atol=1e-9)


def descended(theta: Theta, moving: Sequence[int], loss: Callable[[Theta], Tensor], first_order: bool) -> Theta:
    for _ in range(STEPS):
        grads = torch.autograd.grad(loss(theta), [theta[i] for i in moving], create_graph=not first_order)
        theta = list(theta)
        for i, g in zip(moving, grads, strict=True):
            theta[i] = theta[i] - ALPHA * g
    return theta


@pytest.mark.parametrize(("cls", "moving"), [(ANIL, (4, 5)), (BOIL, (0, 1, 2, 3))])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("spec", [VECTORS, CLASSES], ids=["regression", "classification"])
def test_anil_and_boil(cls: type[ANIL | BOIL], moving: tuple[int, ...], first_order: bool, spec: Spec) -> None:
    def reference(theta: Theta, episode: Episode) -> Tensor:
        (x, y, _), query = episode
        adapted = descended(theta, moving, lambda t: loss_of(mlp(t, x), y), first_order)
        return loss_of(mlp(adapted, query.x), query.y)

    learner = cls(*network(spec), inner_lr=ALPHA, n_inner_steps=STEPS, first_order=first_order)
    agree(learner, spec, reference)


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_sgd(first_order: bool) -> None:
    def reference(theta: Theta, episode: Episode) -> Tensor:
        (x, y, _), query = episode
        now, rates = theta[:6], theta[6:]
        for _ in range(STEPS):
            grads = torch.autograd.grad(loss_of(mlp(now, x), y), now, create_graph=not first_order)
            now = [t - a * g for t, a, g in zip(now, rates, grads, strict=True)]
        return loss_of(mlp(now, query.x), query.y)

    learner = MetaSGD(nn.Sequential(*network(VECTORS)), inner_lr=ALPHA, n_inner_steps=STEPS, first_order=first_order)
    agree(learner, VECTORS, reference)


def test_meta_curvature() -> None:
    def kronecker(matrices: Theta, g: Tensor) -> Tensor:
        whole = matrices[0]
        for m in matrices[1:]:
            whole = torch.kron(whole, m)
        return (whole @ g.flatten()).view(g.shape)

    def reference(theta: Theta, episode: Episode) -> Tensor:
        (x, y, _), query = episode
        now, rest = theta[:6], iter(theta[6:])
        matrices = [[next(rest) for _ in range(t.ndim)] for t in now]
        for _ in range(STEPS):
            grads = torch.autograd.grad(loss_of(mlp(now, x), y), now, create_graph=True)
            now = [t - ALPHA * kronecker(m, g) for t, m, g in zip(now, matrices, grads, strict=True)]
        return loss_of(mlp(now, query.x), query.y)

    agree(MetaCurvature(nn.Sequential(*network(VECTORS)), inner_lr=ALPHA, n_inner_steps=STEPS), VECTORS, reference)


def test_reptile_takes_the_step_of_its_paper() -> None:
    """The gradient is phi - W: W by k steps on mini-batches of the whole task."""
    learner = Reptile(nn.Sequential(*network(VECTORS)), inner_lr=ALPHA, n_inner_steps=STEPS, inner_batch=3).double()
    episodes = synthetic_episodes(VECTORS, 2, n_shot=3, n_query=3)
    turns = ([0, 2, 4], [1, 3, 5], [0, 2, 4])  # strides of two over six examples
    moves = []
    for (x, y, _), query in unbind(episodes):
        both_x, both_y = torch.cat([x, query.x]), torch.cat([y, query.y])
        w = [p.detach().clone().requires_grad_() for p in learner.parameters()]
        for turn in turns:
            grads = torch.autograd.grad(loss_of(mlp(w, both_x[turn]), both_y[turn]), w)
            w = [(t - ALPHA * g).detach().requires_grad_() for t, g in zip(w, grads, strict=True)]
        moves.append([p.detach() - t.detach() for p, t in zip(learner.parameters(), w, strict=True)])
    for kind in ("loop", "vmap"):
        got = OuterStep(learner.train(), Batching(kind))(episodes)
        for mine, each in zip(got.grads.values(), zip(*moves, strict=True), strict=True):
            torch.testing.assert_close(mine, torch.stack(each).mean(0), rtol=1e-9, atol=1e-11)


def test_reptile_by_adam() -> None:
    learner = Reptile(nn.Sequential(*network(VECTORS)), inner_lr=0.01, n_inner_steps=4, inner_optimiser="adam").double()
    (episode,) = unbind(synthetic_episodes(VECTORS, 1))
    model = nn.Sequential(*network(VECTORS))
    model.load_state_dict(learner.model.state_dict())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.0, 0.999))
    x, y = (torch.cat([getattr(s, k) for s in episode]) for k in "xy")
    for _ in range(4):
        optimiser.zero_grad()
        loss_of(model(x), y).backward()
        optimiser.step()
    got = torch.autograd.grad(learner.train().outer_loss(episode), list(learner.parameters()))
    for mine, start, end in zip(got, learner.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, start.detach() - end.detach(), rtol=1e-6, atol=1e-9)


def test_cavia_is_a_context_concatenated_to_the_input() -> None:
    def reference(theta: Theta, episode: Episode) -> Tensor:
        (x, y, _), query = episode
        w1, *rest, own = theta
        wide = torch.cat([w1, own], 1)  # theta of the first layer, for inputs and for phi

        def forward(phi: Tensor, inputs: Tensor) -> Tensor:
            return mlp([wide, *rest], torch.cat([inputs, phi.expand(len(inputs), -1)], 1))

        phi = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        for _ in range(STEPS):
            (g,) = torch.autograd.grad(loss_of(forward(phi, x), y), phi, create_graph=True)
            phi = phi - ALPHA * g
        return loss_of(forward(phi, query.x), query.y)

    learner = CAVIA(nn.Sequential(*network(VECTORS)), n_context=4, inner_lr=ALPHA, n_inner_steps=STEPS)
    agree(learner, VECTORS, reference)


@pytest.mark.parametrize("first_order", [False, True])
def test_proto_maml(first_order: bool) -> None:
    def embed(theta: Theta, x: Tensor) -> Tensor:
        w1, b1, w2, b2 = theta
        return ((x @ w1.T + b1).clamp(min=0) @ w2.T + b2).clamp(min=0)

    def reference(theta: Theta, episode: Episode) -> Tensor:
        (x, y, n_way), query = episode
        c = torch.stack([embed(theta, x)[y == k].mean(0) for k in range(n_way or 0)])
        # Copies: the steps take the head as given, and do not ask how it came from the embedding.
        now = [*(t.clone() for t in theta), 2 * c, -(c**2).sum(1)]
        predict = lambda t, x: embed(t[:4], x) @ t[4].T + t[5]  # noqa: E731
        now = descended(now, range(6), lambda t: loss_of(predict(t, x), y), first_order)
        return loss_of(predict(now, query.x), query.y)

    learner = ProtoMAML(network(CLASSES)[0], inner_lr=ALPHA, n_inner_steps=STEPS, first_order=first_order)
    agree(learner, CLASSES, reference)


def test_imaml_solves_the_linear_system_of_lemma_1() -> None:
    """Any phi, not the minimum only: (I + H / lambda) v = grad, with H from all second derivatives, solved densely."""
    strength = 3.0
    learner = IMAML(
        nn.Sequential(*network(VECTORS)), strength=strength, inner_lr=ALPHA, n_inner_steps=STEPS, n_cg_steps=150
    )
    learner.double().train()
    episodes = synthetic_episodes(VECTORS, 3, n_shot=3, n_query=4)
    theta = [p.detach() for p in learner.parameters()]
    sizes, shapes = [t.numel() for t in theta], [t.shape for t in theta]

    def from_flat(flat: Tensor) -> Theta:
        return [t.view(s) for t, s in zip(flat.split(sizes), shapes, strict=True)]

    found = []
    for (x, y, _), query in unbind(episodes):
        start = torch.cat([t.flatten() for t in theta])
        phi = start.clone()
        for _ in range(STEPS):
            phi.requires_grad_()
            loss = loss_of(mlp(from_flat(phi), x), y) + strength / 2 * ((phi - start) ** 2).sum()
            phi = (phi - ALPHA * torch.autograd.grad(loss, phi)[0]).detach()
        h = torch.autograd.functional.hessian(lambda p, x=x, y=y: loss_of(mlp(from_flat(p), x), y), phi)
        phi.requires_grad_()
        (g,) = torch.autograd.grad(loss_of(mlp(from_flat(phi), query.x), query.y), phi)
        found.append(torch.linalg.solve(torch.eye(len(phi), dtype=phi.dtype) + h / strength, g))
    expected = torch.stack(found).mean(0)
    for kind in ("loop", "vmap"):
        got = torch.cat([g.flatten() for g in OuterStep(learner, Batching(kind))(episodes).grads.values()])
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("multi_step_steps", [0, 100])
def test_mamlpp(multi_step_steps: int) -> None:
    """Rates, scales and shifts of every step; and the losses of all steps, which weigh alike at the start."""

    def forward(theta: Theta, x: Tensor, step: int) -> Tensor:
        *blocks, w, b = theta
        for i, stride in enumerate((1, 2)):
            kernel, bias, scale, shift = blocks[4 * i : 4 * i + 4]
            x = F.conv2d(x, kernel, bias, stride=stride, padding=1)
            x = F.batch_norm(x, None, None, scale[step], shift[step], training=True)
            x = F.relu(x) if stride == 2 else F.max_pool2d(F.relu(x), 2)
        return x.flatten(1) @ w.T + b

    moving = (0, 1, 4, 5, 8, 9)

    def reference(theta: Theta, episode: Episode) -> Tensor:
        (x, y, _), query = episode
        now, rates, losses = theta[:10], theta[10:], []
        for step in range(STEPS):
            grads = torch.autograd.grad(loss_of(forward(now, x, step), y), [now[i] for i in moving], create_graph=True)
            for i, rate, g in zip(moving, rates, grads, strict=True):
                now = [t - rate[step] * g if j == i else t for j, t in enumerate(now)]
            losses.append(loss_of(forward(now, query.x, step), query.y))
        return sum(losses, torch.zeros(())) / STEPS if multi_step_steps else losses[-1]

    body = TinyConv(1, 8, "episode")
    learner = MAMLpp(
        nn.Sequential(body, nn.Linear(body.n_features, 3)),
        inner_lr=ALPHA,
        n_inner_steps=STEPS,
        multi_step_steps=multi_step_steps,
    )
    learner.double().train()
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.05 * torch.randn_like(p))
    episodes = synthetic_episodes(IMAGES, 2, n_shot=3, n_query=4)
    theta = [p.detach().clone().requires_grad_() for p in learner.parameters()]
    losses = torch.stack([reference(theta, e) for e in unbind(episodes)])
    expected = torch.autograd.grad(losses.mean(), theta)
    for batching in (Batching("loop"), Batching("vmap"), Batching("vmap", recompute=True)):
        got = OuterStep(learner, batching)(episodes)
        torch.testing.assert_close(got.losses, losses.detach(), rtol=1e-8, atol=1e-9)
        for mine, theirs in zip(got.grads.values(), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
        assert int(got.buffers["outer_steps"]) == 1
