"""The small network of the sinusoids: what a step costs where dispatch costs more than arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kshot.algorithms import MAML
from kshot.bench import equal, peers, plain
from kshot.bench.result import Result, lines_of
from kshot.bench.timing import take_turns
from kshot.core import Episode, UserError
from kshot.data.loader import EpisodeLoader
from kshot.data.sinusoid import Sinusoid
from kshot.engine.auto import choose
from kshot.engine.batch import Batching, OuterStep
from kshot.nn.mlp import MLP

#: The inner rate of the paper.
INNER_LR = 0.01
#: Peers that take any loss; parallel-metalearn's takes classes alone.
PEERS = ("higher", "torchopt", "learn2learn")
CLONING = "plain loop, module cloned"


def sinusoid_step(
    rounds: int, n_tasks: int = 25, n_inner_steps: int = 1, per: int = 20, compiled: str = "on"
) -> Result:
    """Time MAML's second-order outer gradient on sinusoids: an MLP of 40 and 40 units, 10 points and 10 queries a task.

    Args:
        rounds: measured rounds.
        n_tasks: T; 25 in the paper.
        n_inner_steps: inner steps; 1 in the paper.
        per: outer gradients in a row that are timed together.
        compiled: "on" to time kshot's compiled step as its first, where a compiler works.

    Returns:
        Seconds of an outer gradient.

    Raises:
        UserError: kshot's gradient is not the plain loop's.
    """
    episodes = batch(n_tasks)
    learner, net = networks(n_inner_steps)
    eager, _ = choose(learner, episodes)
    chosen = _compiled(learner, episodes) if compiled == "on" else eager
    fast, loop = OuterStep(learner, chosen), OuterStep(learner, Batching("loop"))
    same = (episodes, INNER_LR, n_inner_steps)
    others: dict[str, Callable[[], Any]] = {
        CLONING: lambda: plain.cloning_maml_step(net, *same),
        "plain eager loop": lambda: plain.maml_step(net, *same),
    }
    others |= {name: peers.maml_step(name, net, *same) for name in filter(peers.installed, PEERS)}
    ours = fast(episodes).grads
    gaps = {name: plain.gap(dict(zip(ours, step().values(), strict=True)), ours) for name, step in others.items()}
    equal.refuse_unequal("sinusoid-step", gaps["plain eager loop"])
    contenders: dict[str, Callable[[], Any]] = {"kshot": lambda: fast(episodes), **others}
    if chosen != eager:
        by_eager = OuterStep(learner, eager)
        contenders["kshot, not compiled"] = lambda: by_eager(episodes)
    if eager.kind != "loop":
        contenders["kshot, loop"] = lambda: loop(episodes)
    timings = take_turns({name: peers.several(step, per) for name, step in contenders.items()}, rounds)
    notes = {"kshot": f"batching: {chosen}", CLONING: "learn2learn's way, written without it", **equal.unequal(gaps)}
    return Result(
        "sinusoid-step",
        f"MAML, second order, sinusoids, MLP 40-40, 10 points and 10 queries, {n_tasks} tasks, {n_inner_steps} inner "
        "steps: one outer gradient",
        lines_of(timings, "kshot", per, notes),
        "gradients against kshot's, relative: " + ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items()),
        10.0,
        "learn2learn" if "learn2learn" in timings else CLONING,
    )


def _compiled(learner: MAML, episodes: Episode) -> Batching:
    try:
        return choose(learner, episodes, compiled="on")[0]
    except UserError:  # no compiler works here
        return choose(learner, episodes)[0]


def batch(n_tasks: int) -> Episode:
    """Draw sinusoids.

    Args:
        n_tasks: T.

    Returns:
        T episodes of 10 points and 10 queries.

    Raises:
        UserError: the loader gave them one by one.
    """
    drawn = next(EpisodeLoader(Sinusoid(n_shot=10, n_query=10), n_tasks, seed=0))
    if not isinstance(drawn, Episode):
        raise UserError("expected sinusoids of one size, got a list of episodes; give no range of shots")
    return drawn


def networks(n_inner_steps: int, width: int = 40) -> tuple[MAML, nn.Sequential]:
    """Build MAML on the paper's network, and the same network of PyTorch's own layers.

    Args:
        n_inner_steps: inner steps.
        width: units of each of the two layers.

    Returns:
        The learner and the network, of the same weights.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = [nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)]
    net = nn.Sequential(*layers)
    model = nn.Sequential(MLP(1, (width, width)), nn.Linear(width, 1))
    plain.copy_weights(net, model)
    return MAML(model, inner_lr=INNER_LR, n_inner_steps=n_inner_steps).train(), net
