"""Optimisers and learning-rate schedules of the outer loop, by name; a schedule is a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kshot.core import UserError
from kshot.engine.inner import matching
from kshot.engine.rmsprop import RMSprop

OPTIMISERS = ("adam", "adamw", "sgd", "rmsprop")
SCHEDULES = ("constant", "step", "cosine")


def make_optimiser(
    params: Iterable[nn.Parameter], name: str, lr: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """Make an outer optimiser.

    Args:
        params: what it updates.
        name: one of ``OPTIMISERS``.
        lr: outer learning rate.
        weight_decay: added to the gradient (decoupled for adamw).
        momentum: Nesterov momentum of sgd, plain momentum of rmsprop; the others ignore it.

    Returns:
        The optimiser.

    Raises:
        UserError: unknown name, or a rate that is not positive.
    """
    params = list(params)
    if not lr > 0:
        raise UserError(f"expected outer_lr > 0, got {lr}")
    if name in ("adam", "adamw"):
        made = (torch.optim.Adam if name == "adam" else torch.optim.AdamW)(
            params, lr=lr, weight_decay=weight_decay, fused=True
        )
        if all(p.device.type == "cpu" for p in params):
            # PyTorch looks for a GPU in every step, to see whether a graph is captured there: as slow as Adam itself.
            made._accelerator_graph_capture_health_check = lambda: None
        return made
    if name == "sgd":
        return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=momentum > 0)
    if name == "rmsprop":
        return RMSprop(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
    raise UserError(f"optimiser must be one of {', '.join(OPTIMISERS)}, got {name!r}")


def rate_groups(module: nn.Module, factors: Mapping[str, float]) -> dict[float, list[str]]:
    """Sort parameters by the factor on their outer learning rate.

    Args:
        module: whose parameters.
        factors: pattern of names, such as "model.0.*" -> factor, 0 for parameters that the outer loop leaves alone.
            Where several patterns fit a name the last one counts; where none does, the factor is 1.

    Returns:
        Factor -> names, factors in the order of their first parameter.

    Raises:
        UserError: a pattern fits no name, a factor is negative or not finite, or nothing is left to train.
    """
    named: dict[str, Tensor] = dict(module.named_parameters())
    factor_of = dict.fromkeys(named, 1.0)
    for pattern, factor in factors.items():
        if not (math.isfinite(factor) and factor >= 0):
            raise UserError(
                f"expected a factor >= 0 on the rate of {pattern!r}, got {factor}; 0 freezes, 1 is outer_lr"
            )
        factor_of |= dict.fromkeys(matching(named, [pattern]), float(factor))
    if factors and not any(factor_of.values()):
        raise UserError(f"expected something left to train, got a factor of 0 for all {len(named)} parameters")
    found: dict[float, list[str]] = {}
    for name, factor in factor_of.items():
        found.setdefault(factor, []).append(name)
    return found


def rate_factor(step: int, n_steps: int, name: str, *, warmup: int = 0, every: int = 0, gamma: float = 0.5) -> float:
    """Give the factor on the outer learning rate at a step.

    Args:
        step: 0-based outer step.
        n_steps: planned number of steps.
        name: "constant"; "step" (times ``gamma`` each ``every`` steps, ProtoNet: 0.5, 2000); "cosine" (to zero, and
            with ``every`` again and again, Loshchilov & Hutter 2017, arXiv:1608.03983, from ``gamma`` times the rate
            before).
        warmup: steps of linear rise from zero; the schedule begins after them.
        every: steps of a decay, or of a cosine.
        gamma: see above.

    Returns:
        A number from 0 to 1.

    Raises:
        UserError: unknown name, or "step" without ``every``.
    """
    if step < warmup:
        return (step + 1) / warmup
    if name == "constant":
        return 1.0
    if name == "step":
        if every < 1:
            raise UserError(f"expected lr_every >= 1 for the step schedule, got {every}")
        return gamma ** ((step - warmup) // every)
    if name == "cosine":
        # A run that was made longer by hand stays at zero, or begins once more.
        again, done = divmod(step - warmup, every) if every else (0, step - warmup)
        length = every or max(n_steps - warmup, 1)
        return gamma**again * 0.5 * (1 + math.cos(math.pi * min(done / length, 1.0)))
    raise UserError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")


@contextmanager
def frozen(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Take no gradient of what the outer loop leaves alone; the inner loop may still move a copy of it.

    Args:
        module: whose parameters.
        names: of those.

    Yields:
        Nothing; afterwards they are as before.
    """
    held = {k: p.requires_grad for k, p in module.named_parameters() if k in names}
    for name in held:
        module.get_parameter(name).requires_grad_(False)
    try:
        yield
    finally:
        for name, before in held.items():
            module.get_parameter(name).requires_grad_(before)


def clip(grads: dict[str, Tensor], max_norm: float, max_value: float = 0.0) -> tuple[dict[str, Tensor], Tensor]:
    """Bound the entries of gradients by ``max_value``, then scale all down so that their norm is at most ``max_norm``.

    Args:
        grads: name -> gradient.
        max_norm: bound on the common norm; 0 for none.
        max_value: bound on the size of each entry; 0 for none.

    Returns:
        The gradients, and their norm before (a scalar, not finite if any gradient is not).
    """
    norm = _norm(grads)
    if max_value > 0:
        grads = {k: g.clamp(-max_value, max_value) for k, g in grads.items()}
    if max_norm > 0:
        held = _norm(grads) if max_value > 0 else norm
        scale = (max_norm / (held + 1e-6)).clamp(max=1.0)
        grads = {k: g * scale for k, g in grads.items()}
    return grads, norm


def _norm(grads: dict[str, Tensor]) -> Tensor:
    norm = torch.nn.utils.get_total_norm(grads.values())
    if bool(torch.isfinite(norm)):
        return norm
    # Squares may be too large for a type that holds the numbers themselves, which clipping brings back.
    largest = torch.nn.utils.get_total_norm(grads.values(), norm_type=float("inf"))
    return largest * torch.nn.utils.get_total_norm([g / largest for g in grads.values()])
