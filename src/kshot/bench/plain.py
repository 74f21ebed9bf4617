"""The plain loops that everybody writes: one task after the other, ``torch.autograd.grad`` and functional weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Episode
from kshot.core.episode import unbind
from kshot.nn.native import Design

#: Conv4-64 on images of 28 x 28, and the Conv4-32 that MAML's paper has for mini-ImageNet.
OMNIGLOT, MINI_IMAGENET = Design(), Design(inputs=3, side=84, filters=32)


def maml_step(model: nn.Module, episodes: Episode, inner_lr: float, n_inner_steps: int) -> dict[str, Tensor]:
    """Take the second-order MAML gradient of a batch of tasks, the plain way.

    Args:
        model: maps inputs to logits, or to means.
        episodes: T episodes.
        inner_lr: alpha.
        n_inner_steps: inner steps.

    Returns:
        Name -> gradient of the mean query loss.
    """
    names = [name for name, _ in model.named_parameters()]
    start = list(model.parameters())
    total = [torch.zeros_like(p) for p in start]
    n = episodes.support.y.shape[0]
    for episode in unbind(episodes):
        params = start
        for _ in range(n_inner_steps):
            loss = task_loss(_call(model, names, params, episode.support.x), episode.support.y)
            grads = torch.autograd.grad(loss, params, create_graph=True)
            params = [p - inner_lr * g for p, g in zip(params, grads, strict=True)]
        loss = task_loss(_call(model, names, params, episode.query.x), episode.query.y)
        for sum_, g in zip(total, torch.autograd.grad(loss / n, start), strict=True):
            sum_ += g
    return dict(zip(names, total, strict=True))


def cloning_maml_step(model: nn.Module, episodes: Episode, inner_lr: float, n_inner_steps: int) -> dict[str, Tensor]:
    """Take the same gradient as learn2learn does: clone the module for each task, and put new tensors into the clone.

    Args:
        model: maps inputs to logits, or to means; gradients gather in its parameters.
        episodes: T episodes.
        inner_lr: alpha.
        n_inner_steps: inner steps.

    Returns:
        Name -> gradient of the mean query loss.
    """
    model.zero_grad()
    n = episodes.support.y.shape[0]
    for episode in unbind(episodes):
        clone = copy.deepcopy(model, {id(p): p.clone() for p in model.parameters()})
        for _ in range(n_inner_steps):
            loss = task_loss(clone(episode.support.x), episode.support.y)
            grads = iter(torch.autograd.grad(loss, list(clone.parameters()), create_graph=True))
            places = [
                (m._parameters, name) for m in clone.modules() for name, p in m._parameters.items() if p is not None
            ]
            for own, name in places:
                own[name] = own[name] - inner_lr * next(grads)  # pyright: ignore
        (task_loss(clone(episode.query.x), episode.query.y) / n).backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def task_loss(prediction: Tensor, y: Tensor) -> Tensor:
    """Mean squared error for floats, else cross-entropy.

    Args:
        prediction: means or logits.
        y: targets.

    Returns:
        A scalar.
    """
    return F.mse_loss(prediction, y) if y.is_floating_point() else F.cross_entropy(prediction, y)


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Tell how far two gradients are apart.

    Args:
        a: name -> gradient.
        b: the same names.

    Returns:
        Relative to the second, over all parameters together: a bias before a batch norm has no gradient of its own to
        compare.
    """
    x, y = (torch.cat([g[k].double().reshape(-1) for k in sorted(b)]) for g in (a, b))
    return float((x - y).norm() / y.norm())


def _call(model: nn.Module, names: list[str], params: Sequence[Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(model, dict(zip(names, params, strict=True)), (x,))


def conv4(n_way: int = 0, design: Design = OMNIGLOT) -> nn.Sequential:
    """Build Conv4 of PyTorch's own layers, with batch statistics only when there is a head (as MAML uses it).

    Args:
        n_way: outputs of a linear head; 0 for none.
        design: images and filters.

    Returns:
        The network; its parameters come in the order of ``kshot.nn.conv.Conv4`` (and a linear head).
    """
    layers: list[nn.Module] = []
    for channels in (design.inputs, *[design.filters] * 3):
        norm = nn.BatchNorm2d(design.filters, track_running_stats=not n_way)
        layers += [nn.Conv2d(channels, design.filters, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), *([nn.Linear(design.n_features, n_way)] if n_way else []))


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters in order.

    Args:
        source: where from.
        target: where to; of the same parameters in the same order.
    """
    with torch.no_grad():
        for a, b in zip(source.parameters(), target.parameters(), strict=True):
            b.copy_(a)
