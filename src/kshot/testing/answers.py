"""Clauses about what a learner answers: shapes, use of the support, repetition, symmetries, leaks, class counts."""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core import Episode, Learner, Split, UserError, tree_map
from kshot.core.learner import options_of
from kshot.nn.norm import NORMALISATIONS
from kshot.testing.case import TOLERANCE, Case, Skipped, difference, seeded
from kshot.testing.synthetic import SPECS, synthetic_episode


def answer(learner: Learner, episode: Episode) -> Tensor:
    """Answer the queries of an episode as an evaluation does: without a gradient.

    Args:
        learner: the learner.
        episode: one episode.

    Returns:
        What ``predict`` returns.
    """
    with torch.no_grad():
        return learner.predict(learner.adapt(episode.support), episode.query.x)


def declares(case: Case) -> str:
    """Check what a learner says of itself: kinds of task, normalisation, options.

    Returns:
        What was checked.
    """
    learner = case.learner()
    if case.spec.kind not in learner.kinds or not set(learner.kinds) <= SPECS.keys():
        case.fail(
            f"`kinds` to name {case.spec.kind!r}, of {sorted(SPECS)}",
            f"{learner.kinds}",
            "set the class attribute `kinds`, or check it on a task of its own kind",
        )
    if learner.default_normalisation not in NORMALISATIONS:
        case.fail(f"`default_normalisation` of {NORMALISATIONS}", repr(learner.default_normalisation), "choose one")
    for name in ("transductive", "native", "fused", "exact_gradient"):
        if not isinstance(getattr(learner, name), bool):
            case.fail(f"`{name}` to be True or False", repr(getattr(learner, name)), "return a bool")
    try:
        options = options_of(type(learner))
    except UserError as error:
        case.fail("options that a command line can offer", str(error), "annotate every keyword option, give a default")
    return f"kind {case.spec.kind}, options {', '.join(options) or 'none'}"


def shapes(case: Case) -> str:
    """Check shapes and dtypes of answers and losses: one shot, unequal shots, one query, float32 and float64.

    Returns:
        What was checked.
    """
    tasks = {
        "2 shots": {"n_shot": 2},
        "1 shot": {"n_shot": 1},
        "1 query per class": {"n_query": 1},
        "unequal shots": {"n_shot": [1 + c % 3 for c in range(case.spec.n_outputs)]},
    }
    for dtype in (torch.float32, torch.float64):
        learner = case.learner(dtype)
        for what, options in tasks.items():
            episode = synthetic_episode(case.spec, seed=case.seed, dtype=dtype, **options)
            _check_answer(case, answer(learner, episode), episode, f"{what}, {dtype}")
            _check_answer(
                case, answer(learner, _first_query(episode)), _first_query(episode), f"a single query, {dtype}"
            )
            _check_loss(case, learner.outer_loss(episode), dtype)
    return f"{', '.join(tasks)}, a single query; float32 and float64"


def _first_query(episode: Episode) -> Episode:
    query = episode.query
    return Episode(episode.support, Split(tree_map(lambda t: t[:1], query.x), query.y[:1], query.n_way))


def _check_answer(case: Case, got: Tensor, episode: Episode, what: str) -> None:
    expected = (len(episode.query.y), case.spec.n_outputs)
    if tuple(got.shape) != expected:
        case.fail(
            f"answers of shape {expected} (queries, outputs) for {what}",
            f"{tuple(got.shape)}",
            "return one row for each query and one column for each class, known from support.ways()",
        )
    if got.dtype != episode.support.x.dtype:
        case.fail(f"answers of {episode.support.x.dtype} for {what}", f"{got.dtype}", "follow the dtype of the input")
    if not bool(torch.isfinite(got).all()):
        case.fail(f"finite answers for {what}", "NaN or infinity", "look for a division by zero or a logarithm of zero")


def _check_loss(case: Case, loss: Tensor, dtype: torch.dtype) -> None:
    if loss.ndim or loss.dtype != dtype or not bool(torch.isfinite(loss)):
        case.fail(
            f"`outer_loss` to be a finite scalar of {dtype}",
            f"{loss.dtype} of shape {tuple(loss.shape)}",
            "return the mean loss of the queries",
        )


def repeats(case: Case) -> str:
    """Check that equal inputs give equal answers, and that nothing seeds the global generator.

    Returns:
        What was checked.
    """
    episode = synthetic_episode(case.spec, seed=case.seed)
    advice = "take random numbers from a generator that is made from a seed within the call, and keep no counter"
    learner = case.learner()
    state = learner.adapt(episode.support)
    with seeded(1):
        first = answer(learner, episode)
    with seeded(2):
        case.same(answer(learner, episode), first, "two answers in evaluation mode", advice, tolerance=0)
    with torch.no_grad():
        once, again = learner.predict(state, episode.query.x), learner.predict(state, episode.query.x)
    case.same(again, once, "two predictions from one state", advice, tolerance=0)
    learner = case.learner(training=True)
    losses = []
    for _ in range(2):
        with seeded(3):
            losses.append(learner.outer_loss(episode).detach())
    case.same(losses[1], losses[0], "two training losses from equal random numbers", advice, tolerance=0)
    _check_generator(case, learner, episode)
    return "answers in evaluation mode; training losses from equal random numbers"


def _check_generator(case: Case, learner: Learner, episode: Episode) -> None:
    left = []
    for seed in (4, 5):
        with seeded(seed):
            learner.outer_loss(episode)
            left.append(torch.get_rng_state())
    if torch.equal(*left):
        case.fail("the global generator not to be seeded", "a fixed state of it after a call", "remove manual_seed")


def uses_support(case: Case) -> str:
    """Check that the support of every class has a say in the answers.

    Returns:
        What was checked.
    """
    learner, episode = case.learner(), synthetic_episode(case.spec, seed=case.seed)
    before = answer(learner, episode)
    x, y, n_way = episode.support
    classes = list(range(case.spec.n_outputs)) if case.spec.kind == "classification" else [None]
    for c in classes:
        mine = torch.ones(len(y), dtype=torch.bool) if c is None else y == c
        other = x.clone()
        other[mine] = synthetic_episode(case.spec, seed=case.seed + 1).support.x[mine]
        if torch.equal(answer(learner, Episode(Split(other, y, n_way), episode.query)), before):
            case.fail(
                "the answers to change with the support examples" + ("" if c is None else f" of class {c}"),
                "the same answers",
                "look for a class left out, an input that is ignored, or a state that is not used",
            )
    return "the answers depend on the support" + ("" if classes == [None] else " of every class")


def ignores_order(case: Case) -> str:
    """Check that the order of the support does not matter, where the learner does not say so, nor that of the queries.

    Returns:
        What was checked.

    Raises:
        Skipped: the task is a sequence, or the learner says that order matters.
    """
    if case.spec.kind == "sequence":
        raise Skipped("the steps of a sequence have an order")
    learner, (support, query) = case.learner(), synthetic_episode(case.spec, seed=case.seed)
    before = answer(learner, Episode(support, query))
    p = _rotated(len(query.y))
    case.same(
        answer(learner, Episode(support, _take(query, p))),
        before[p],
        "answers to reordered queries",
        "answer each query by its own input, not by its place",
    )
    if learner.order_matters:
        raise Skipped("the learner says that the order of the support matters; that of the queries does not")
    p = _rotated(len(support.y))
    case.same(
        answer(learner, Episode(_take(support, p), query)),
        before,
        "answers after reordering the support",
        "do not assume sorted labels; or, if the method reads a sequence, set order_matters = True",
    )
    return "support and queries in another order"


def _rotated(n: int) -> Tensor:
    return torch.roll(torch.arange(n), 1)


def _take(split: Split, index: Tensor) -> Split:
    return Split(tree_map(lambda t: t[index], split.x), split.y[index], split.n_way)


def permutes_labels(case: Case) -> str:
    """Check that relabelling the classes permutes the logits, where the method holds no class apart.

    Returns:
        What was checked.

    Raises:
        Skipped: there are no classes, or the learner says that it has a head with fixed columns.
    """
    learner, (support, query) = case.learner(), synthetic_episode(case.spec, seed=case.seed)
    if case.spec.kind != "classification":
        raise Skipped(f"a {case.spec.kind} has no classes")
    if not learner.label_equivariant:
        raise Skipped("the learner says label_equivariant = False: its head has a column of its own for each class")
    before = answer(learner, Episode(support, query))
    renamed = torch.roll(torch.arange(case.spec.n_outputs), 1)
    after = answer(learner, Episode(Split(support.x, renamed[support.y], support.n_way), query))
    case.same(
        after[:, renamed],
        before,
        "logits of relabelled classes",
        "treat all classes alike; or, if a learned head cannot, set label_equivariant = False",
    )
    return "logits move with the labels"


def leaks(case: Case) -> str:
    """Check that an inductive learner answers each query as alone, and a step of a sequence as without later ones.

    Returns:
        What was checked.
    """
    learner, episode = case.learner(), synthetic_episode(case.spec, seed=case.seed)
    in_order, steps = case.spec.kind == "sequence", range(len(episode.query.y))
    with torch.no_grad():
        state = learner.adapt(episode.support)
        together = learner.predict(state, episode.query.x)
        alone = [learner.predict(state, episode.query.x[0 if in_order else i : i + 1])[-1:] for i in steps]
        after = learner.predict(state, episode.query.x)
    case.same(after, together, "answers from one state", "let no query change the state", tolerance=0)
    gap = difference(torch.cat(alone), together)
    if learner.transductive:
        seen = f"by up to {gap:.2g}" if gap > TOLERANCE else "not at all in this episode"
        return f"declared transductive: answers depend on the other queries {seen}"
    if in_order:
        advice = "read one step after the other; or, if that is the method, say `transductive` is True"
        case.same(torch.cat(alone), together, "answers to a step with and without later steps", advice)
        return "inductive: every step without those after it"
    case.same(
        torch.cat(alone),
        together,
        "answers to each query alone and to all at once",
        "use no statistics of the queries in evaluation mode; or, if that is the method, say `transductive` is True",
    )
    return "inductive: every query alone and all at once"


def any_way(case: Case) -> str:
    """Check that a learner that says so does tasks of more, and of fewer, classes.

    Returns:
        What was checked.

    Raises:
        Skipped: there are no classes, or the learner is bound to its number of classes.
    """
    learner = case.learner()
    if case.spec.kind != "classification":
        raise Skipped(f"a {case.spec.kind} has no classes")
    if not learner.any_way:
        raise Skipped("the learner says any_way = False")
    ways = [w for w in (case.spec.n_outputs + 2, case.spec.n_outputs - 1) if w > 1]
    for way in ways:
        episode = synthetic_episode(case.spec._replace(n_outputs=way), seed=case.seed)
        got = tuple(answer(learner, episode).shape)
        if got != (len(episode.query.y), way):
            case.fail(
                f"answers of shape {(len(episode.query.y), way)} to a {way}-way task",
                f"{got}",
                "take the number of classes from support.ways(), or set any_way = False",
            )
    return f"built for {case.spec.n_outputs} classes, answers tasks of {' and '.join(map(str, ways))}"
