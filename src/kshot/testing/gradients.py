"""Clauses about the outer gradient: it reaches every parameter, it is the derivative, and all batchings agree on it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from kshot.core import Episode, Learner, Split, generator
from kshot.core.episode import unbind
from kshot.core.functional import functional_call
from kshot.engine.auto import candidates
from kshot.engine.batch import Batching, OuterGradient, OuterStep, combine
from kshot.testing.case import TOLERANCE, TOLERANCE_FLOAT32, Case, Skipped, difference, seeded
from kshot.testing.synthetic import synthetic_episode, synthetic_episodes

#: Step of central differences in float64, and how near to them a gradient must be, relative to its largest part:
#: the differences themselves are wrong by about EPS^2 (curvature) + 1e-16 / EPS (rounding).
EPS, ATOL, RTOL = 1e-6, 1e-3, 1e-5

Loss = Callable[..., Tensor]


def reaches(case: Case) -> str:
    """Check that every parameter is connected to the outer loss.

    A gradient that is zero by mathematics, such as that of a bias before a normalisation, counts as connected as long
    as moving the parameter does not move the loss; the note names it. What only passes through ``detach`` does not.

    Returns:
        What was checked.

    Raises:
        Skipped: the learner says that there is nothing to train.
    """
    learner = case.learner(training=True)
    if learner.trained_on == "nothing":
        if any(p.requires_grad for p in learner.parameters()):
            case.fail("no parameters where trained_on is 'nothing'", "some", "say what they are trained on")
        raise Skipped("the learner says that there is nothing to train")
    episode = synthetic_episode(case.spec, seed=case.seed)
    params = {k: p for k, p in learner.named_parameters() if p.requires_grad}
    if not params:
        case.fail("at least one parameter to learn", "none", "register parameters, or do not train this learner")
    loss, weights = loss_of_weights(learner, episode)
    value = loss(*weights)
    if not value.requires_grad:
        case.fail("a loss with a gradient", "a constant", "look for detach, no_grad, argmax or numpy on the way")
    grads = torch.autograd.grad(value, weights, allow_unused=True)
    missing = [k for k, g in zip(params, grads, strict=True) if g is None]
    if missing:
        case.fail(
            "a gradient for every parameter",
            f"none for {', '.join(missing)}",
            "use them in the loss without detach, drop them, or set requires_grad to False",
        )
    sizes = [float(g.abs().max()) for g in grads if g is not None]
    if not 0 < max(sizes) < float("inf"):
        case.fail("a finite gradient that is not zero", f"{max(sizes)}", "look for a saturated or constant loss")
    zero = [i for i, size in enumerate(sizes) if size <= 1e-12 * max(sizes)]
    cut = [list(params)[i] for i in zero if _moves(loss, weights, i, value)]
    if cut:
        case.fail(
            "a gradient wherever the loss depends on a parameter",
            f"zero for {', '.join(cut)}, though moving it moves the loss",
            "look for detach, rounding or argmax between it and the loss",
        )
    names = ", ".join(list(params)[i] for i in zero)
    return f"{len(params)} parameters" + (f"; without effect by mathematics: {names}" if zero else "")


def _moves(loss: Loss, weights: list[Tensor], i: int, value: Tensor) -> bool:
    # A small move, so that units which are off stay off.
    moved = [w + 1e-3 if j == i else w for j, w in enumerate(weights)]
    return difference(loss(*moved).detach(), value.detach()) > TOLERANCE


def is_derivative(case: Case) -> str:
    """Check the outer gradient against central differences in float64, parameter by parameter.

    Returns:
        What was checked.

    Raises:
        Skipped: the learner says that its gradient is no derivative, or that there is nothing to train.
    """
    return _check_slopes(case, lambda loss: loss, "the gradient of `outer_loss`")


def has_curvature(case: Case) -> str:
    """Check the second derivatives of the outer loss against central differences of its gradient, in float64.

    Returns:
        What was checked.

    Raises:
        Skipped: the learner says that its gradient is no derivative, or that there is nothing to train.
    """
    return _check_slopes(case, _slope_along_a_direction, "the second derivative of `outer_loss`")


def _check_slopes(case: Case, of: Callable[[Loss], Loss], what: str) -> str:
    learner = case.learner(training=True)
    if learner.trained_on == "nothing":
        raise Skipped("the learner says that there is nothing to train")
    if not learner.exact_gradient:
        raise Skipped("the learner says exact_gradient = False: it leaves terms out on purpose")
    names = [k for k, p in learner.named_parameters() if p.requires_grad]
    wrong: dict[str, str] = {}
    # A kink (ReLU, max-pooling) can spoil the numbers of one episode, a wrong gradient those of all.
    for attempt in range(3):
        loss, weights = loss_of_weights(learner, synthetic_episode(case.spec, seed=case.seed + attempt))
        pairs = slopes(of(loss), weights)
        largest = max(abs(numerical) for _, numerical in pairs)
        wrong = {
            name: f"{got:.6g} for {name}, where differences give {numerical:.6g}"
            for name, (got, numerical) in zip(names, pairs, strict=True)
            if not abs(got - numerical) <= RTOL * max(largest, ATOL)
        }
        if not wrong:
            return f"{what} of {len(names)} parameters, by central differences"
    case.fail(
        f"{what} to be its derivative",
        next(iter(wrong.values())),
        "look for detach or in-place changes; if terms are left out on purpose, say `exact_gradient` is False",
    )


def slopes(loss: Loss, weights: list[Tensor]) -> list[tuple[float, float]]:
    """Compare derivatives of a function with central differences, along one random direction for each weight.

    Args:
        loss: a scalar function of the weights.
        weights: float64.

    Returns:
        For each weight the derivative that ``autograd`` gives, and the numerical one.
    """
    g = generator(0, "directions")
    directions = [torch.randn(w.shape, generator=g, dtype=w.dtype) for w in weights]
    grads = torch.autograd.grad(loss(*weights), weights, materialize_grads=True)
    found = []
    for i, (direction, grad) in enumerate(zip(directions, grads, strict=True)):
        ends = [
            float(loss(*[w + sign * EPS * direction if j == i else w for j, w in enumerate(weights)]).detach())
            for sign in (1, -1)
        ]
        found.append((float((grad * direction).sum()), (ends[0] - ends[1]) / (2 * EPS)))
    return found


def _slope_along_a_direction(loss: Loss) -> Loss:
    def slope(*weights: Tensor) -> Tensor:
        g = generator(1, "directions")
        grads = torch.autograd.grad(loss(*weights), weights, create_graph=True)
        along = [(d * torch.randn(d.shape, generator=g, dtype=d.dtype)).sum() for d in grads]
        return torch.stack(along).sum()

    return slope


def loss_of_weights(learner: Learner, episode: Episode) -> tuple[Loss, list[Tensor]]:
    """Turn a learner into a function of its trainable parameters.

    Args:
        learner: the learner; unchanged by calls of the function.
        episode: one episode.

    Returns:
        The outer loss as a function of the parameters, and the parameters as they are.
    """
    trainable = {k: p.detach().clone().requires_grad_() for k, p in learner.named_parameters() if p.requires_grad}
    fixed = {k: p.detach() for k, p in learner.named_parameters() if not p.requires_grad}

    def loss(*weights: Tensor) -> Tensor:
        buffers = {k: b.clone() for k, b in learner.named_buffers()}
        named = dict(zip(trainable, weights, strict=True))
        with seeded(0):
            return functional_call(learner, {**named, **fixed, **buffers}, (episode,))

    return loss, list(trainable.values())


def batchings_agree(case: Case) -> str:
    """Check that loop, vmap and whatever batching the learner offers give one outer gradient, and equal buffers.

    Returns:
        Which ones were compared.
    """
    if case.learner().trained_on == "nothing":
        return _answers_agree(case)
    notes = {}
    for training in (True, False):
        for dtype, tolerance in ((torch.float64, TOLERANCE), (torch.float32, TOLERANCE_FLOAT32)):
            learner = case.learner(dtype, training=training)
            episodes = synthetic_episodes(case.spec, 3, seed=case.seed, dtype=dtype)
            if draws_random_numbers(learner, episodes):
                notes["in training mode: random numbers, so nothing to compare"] = None
                continue
            reference = plain_outer_gradient(learner, episodes)
            # A compilation takes its time, and one says what all would.
            compiled = case.compiled and training and dtype == torch.float64
            for batching in batchings(learner, episodes, compiled):
                notes[_compare(case, learner, episodes, batching, reference, tolerance)] = None
    return "; ".join(notes)


def _answers_agree(case: Case) -> str:
    learner, episodes = case.learner(), synthetic_episodes(case.spec, 3, seed=case.seed)
    ways = episodes.support.n_way
    loop = torch.stack([learner.predict(learner.adapt(e.support), e.query.x) for e in unbind(episodes)])
    mapped = torch.func.vmap(lambda x, y, q: learner.predict(learner.adapt(Split(x, y, ways)), q))
    try:
        got = mapped(episodes.support.x, episodes.support.y, episodes.query.x)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"vmap cannot run: {(str(error).splitlines() or ['?'])[0]}"
    case.same(got, loop, "answers by vmap and by a plain loop", "carry nothing from task to task")
    return "nothing to train; answers by loop; vmap"


def batchings(learner: Learner, episodes: Episode, compiled: bool = False) -> list[Batching]:
    """List the ways to batch that a learner offers: those that training would measure, also in chunks and compiled.

    Args:
        learner: the learner, in the mode that counts.
        episodes: a batch.
        compiled: list the compiled ones too.

    Returns:
        The batchings.
    """
    whole = [b for b in candidates(learner, episodes) if not b.chunk]
    chunks = [Batching(b.kind, 2) for b in whole if b.kind != "loop"]
    programs = [Batching(b.kind, compiled=True) for b in whole if compiled and b.kind != "fused"]
    return [*whole, *chunks, *programs]


def _compare(
    case: Case, learner: Learner, episodes: Episode, batching: Batching, reference: OuterGradient, tolerance: float
) -> str:
    try:
        got = OuterStep(learner, batching)(episodes)
    except (RuntimeError, TypeError, ValueError) as error:
        if batching.kind != "vmap":
            raise
        return f"vmap cannot run: {(str(error).splitlines() or ['?'])[0]}"
    advice = "compute one and the same thing in outer_loss and outer_losses, and carry nothing from task to task"
    case.same(got.losses, reference.losses, f"losses by {batching} and by a plain loop", advice, tolerance)
    for what in ("grads", "buffers"):
        mine, theirs = getattr(got, what), getattr(reference, what)
        if mine.keys() != theirs.keys():
            case.fail(f"{what} of {', '.join(theirs)} by {batching}", f"{', '.join(mine)}", advice)
        # Relative to the whole gradient: single entries may be zero but for rounding.
        case.same(_flat(mine), _flat(theirs), f"{what} by {batching} and by a plain loop", advice, tolerance)
    return str(batching)


def _flat(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.float64), *(t.double().reshape(-1) for t in named.values())])


def plain_outer_gradient(learner: Learner, episodes: Episode) -> OuterGradient:
    """Take the outer gradient in the most obvious way: a copy of the learner for each task, and the mean.

    Args:
        learner: the learner; unchanged.
        episodes: a batch.

    Returns:
        What every batching must give.
    """
    parts = []
    for episode in unbind(episodes):
        own = copy.deepcopy(learner)
        params = {k: p for k, p in own.named_parameters() if p.requires_grad}
        loss = own.outer_loss(episode)
        grads = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
        buffers = {k: b.detach() for k, b in own.named_buffers()}
        parts.append(OuterGradient(loss.detach().reshape(1), dict(zip(params, grads, strict=True)), buffers))
    return combine(parts)


def draws_random_numbers(learner: Learner, episodes: Episode) -> bool:
    """Tell whether the outer loss takes numbers from the global generator, as dropout does.

    Args:
        learner: the learner; unchanged.
        episodes: a batch.

    Returns:
        True if so.
    """
    with seeded(0):
        before = torch.get_rng_state()
        copy.deepcopy(learner).outer_loss(next(unbind(episodes)))
        return not torch.equal(before, torch.get_rng_state())
