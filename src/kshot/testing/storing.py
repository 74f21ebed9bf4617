"""Clauses about what is kept: nothing on the learner by a call, all that counts in a state and in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor

from kshot.core import Learner, Tree, UserError, tree_map
from kshot.core.tree import leaves
from kshot.engine.checkpoint import flatten, unflatten
from kshot.testing.answers import answer
from kshot.testing.case import Case, Skipped, seeded
from kshot.testing.synthetic import synthetic_episode
from kshot.testing.traces import changes, snapshot


def pure(case: Case) -> str:
    """Check that ``adapt`` and ``predict`` leave no trace, and that ``outer_loss`` changes buffers only, in training.

    Returns:
        What was checked.
    """
    episode = synthetic_episode(case.spec, seed=case.seed)
    for training in (False, True):
        learner = case.learner(training=training)
        mode = "training" if training else "evaluation"
        before = snapshot(learner)
        state = learner.adapt(episode.support)
        _refuse(case, before, snapshot(learner), f"`adapt` in {mode} mode")
        learner.predict(state, episode.query.x)
        _refuse(case, before, snapshot(learner), f"`predict` in {mode} mode")
        with seeded(0):
            learner.outer_loss(episode)
        after = snapshot(learner)
        if training:
            buffers = tuple(path_of(name) for name, _ in learner.named_buffers())
            before, after = ({k: v for k, v in s.items() if not k.startswith(buffers)} for s in (before, after))
        _refuse(case, before, after, f"`outer_loss` in {mode} mode")
    return "parameters, buffers, gradients and attributes, in training and evaluation mode"


def path_of(buffer: str) -> str:
    """Turn the name of a buffer into its path in a snapshot.

    Args:
        buffer: such as "backbone.norm.running_mean".

    Returns:
        Such as "backbone.norm._buffers.running_mean".
    """
    module, _, leaf = buffer.rpartition(".")
    return f"{module}._buffers.{leaf}".lstrip(".")


def _refuse(case: Case, before: dict[str, object], after: dict[str, object], what: str) -> None:
    changed = changes(before, after)
    if changed:
        case.fail(
            f"{what} to store nothing on the learner",
            f"changes of {', '.join(changed[:4])}{' and more' if len(changed) > 4 else ''}",
            "return what is learned as the state; run networks by kshot.engine.inner.call",
        )


def states(case: Case) -> str:
    """Check that a state is a tree of tensors that can be written down, read back, and predicted from.

    Returns:
        What was checked.
    """
    learner, episode = case.learner(), synthetic_episode(case.spec, seed=case.seed)
    advice = "return a tensor, a dict or a NamedTuple of such, with numbers and texts beside them"
    with torch.no_grad():
        state = learner.adapt(episode.support)
        try:
            read = written(state)
        except (UserError, TypeError, ValueError) as error:
            case.fail("a state of tensors, dicts and tuples", str(error), advice)
        got, expected = (learner.predict(s, episode.query.x) for s in (read, state))
    if not leaves(state):
        case.fail("a state with a tensor in it", f"{type(state).__name__} without one", advice)
    case.same(got, expected, "answers from a state that was stored and read", advice, tolerance=0)
    return f"{type(state).__name__} of {len(leaves(state))} tensors, stored and read"


def written(tree: Tree) -> Tree:
    """Send a tree through the form that checkpoints have.

    Args:
        tree: tensors, dicts, lists, tuples, numbers, texts.

    Returns:
        A copy of it with the types of the original's containers.
    """
    tensors, value = flatten(tree)
    back = unflatten({k: t.detach().clone() for k, t in tensors.items()}, json.loads(json.dumps(value)))
    copies: Iterator[Tensor] = iter(leaves(back))
    return tree_map(lambda _: next(copies), tree)


def checkpoints(case: Case) -> str:
    """Check that ``state_dict`` holds all that the answers depend on.

    Returns:
        What was checked.

    Raises:
        Skipped: the learner says that there is nothing to train.
    """
    learner, episode = case.learner(), synthetic_episode(case.spec, seed=case.seed)
    if learner.trained_on == "nothing":
        raise Skipped("the learner says that there is nothing to train")
    other = case.new(case.seed + 1).to(dtype=torch.float64).eval()
    _disturb(other)
    if torch.equal(answer(other, episode), answer(learner, episode)):
        case.fail("answers that depend on the weights", "the same answers from other weights", "register parameters")
    other.load_state_dict(written(learner.state_dict()))
    case.same(
        answer(other, episode),
        answer(learner, episode),
        "answers of another learner after loading the state_dict",
        "register what matters as a parameter or a persistent buffer",
        tolerance=0,
    )
    return "another learner answers alike after load_state_dict"


def _disturb(learner: Learner) -> None:
    with torch.no_grad(), seeded(0):
        for t in (*learner.parameters(), *learner.buffers()):
            if t.is_floating_point():
                t.add_(torch.rand_like(t), alpha=0.5)
