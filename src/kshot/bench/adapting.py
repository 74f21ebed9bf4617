"""Adapting at deployment: no outer gradient is wanted, so it should cost what plain fine-tuning does."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kshot.algorithms import MAML
from kshot.bench import plain
from kshot.bench.result import Result, lines_of
from kshot.bench.timing import take_turns
from kshot.core import Split, UserError, generator
from kshot.engine.inner import Weights
from kshot.nn.conv import Conv4

_RATE, _WAYS = 0.01, 5


def adapting(rounds: int, n_inner_steps: int = 10, n_shot: int = 5) -> Result:
    """Time MAML's adaptation to one task, images of 5 classes, against ``torch.optim.SGD`` on a copy of the network.

    Args:
        rounds: measured rounds.
        n_inner_steps: steps of gradient descent on the whole support.
        n_shot: images of each class.

    Returns:
        Seconds of an adaptation.

    Raises:
        UserError: the two ended at different weights.
    """
    net, learner, support = _task(n_inner_steps, n_shot)

    def ours() -> Weights:
        with torch.no_grad():
            return learner.adapt(support)

    def theirs() -> nn.Module:
        return _fine_tuned(net, support, n_inner_steps)

    apart = _apart(ours(), theirs())
    if not apart < 1e-3:
        raise UserError(
            f"expected the weights of plain fine-tuning, got others by {apart:.1e}; this is an error of kshot"
        )
    timings = take_turns({"kshot": ours, "plain fine-tuning": theirs}, rounds)
    return Result(
        "adapt",
        f"MAML without an outer gradient, Conv4-64, 28x28, 5-way {n_shot}-shot, {n_inner_steps} steps: one task",
        lines_of(timings, "kshot", 1, {"plain fine-tuning": "a copy of the network, torch.optim.SGD"}),
        f"adapted weights against fine-tuned ones, relative: {apart:.1e}",
        0.9,
        "plain fine-tuning",
    )


def _task(n_inner_steps: int, n_shot: int) -> tuple[nn.Sequential, MAML, Split]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = plain.conv4(n_way=_WAYS)
    model = nn.Sequential(Conv4(normalisation="episode"), nn.Linear(64, _WAYS))
    plain.copy_weights(net, model)
    learner = MAML(model, inner_lr=_RATE, n_inner_steps=n_inner_steps).eval()
    x = torch.rand(_WAYS * n_shot, 1, 28, 28, generator=generator(0, "bench"))
    return net, learner, Split(x, torch.arange(_WAYS).repeat_interleave(n_shot), _WAYS)


def _fine_tuned(net: nn.Module, support: Split, n_steps: int) -> nn.Module:
    tuned = copy.deepcopy(net)
    rule = torch.optim.SGD(tuned.parameters(), lr=_RATE)
    for _ in range(n_steps):
        rule.zero_grad()
        plain.task_loss(tuned(support.x), support.y).backward()
        rule.step()
    return tuned


def _apart(ours: Weights, theirs: nn.Module) -> float:
    def named(tensors: list[Tensor]) -> dict[str, Tensor]:
        return {str(i): t.detach() for i, t in enumerate(tensors)}

    return plain.gap(named(list(ours.params.values())), named(list(theirs.parameters())))
