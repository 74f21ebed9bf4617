"""The least recently used access memory along a batch of sequences as one operation, with its gradient by hand.

Equations by their numbers in Santoro et al. 2016, section 3.2, as in ``kshot.nn.memory.lrua``. In the place of a graph
of some hundred operations a step, the way back is written down: fewer of them, in place where they are large, and the
gradients by the weights are one product for all steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kshot.nn.memory.similarity import inverse_length

#: h, c, memory, reading, usage, read: as ``kshot.nn.memory.lrua.LRUAState``, with one batch axis.
State = tuple[Tensor, ...]


class Weights(NamedTuple):
    """Weights of the cell, but for those of its input.

    Attributes:
        recurs: of the controller's output and what was read before the step, (4 H, H + R M).
        asks: of keys, gates and strengths, (R (M + 2), H).
        b_asks: their bias.
    """

    recurs: Tensor
    asks: Tensor
    b_asks: Tensor


class _Step(NamedTuple):
    """What a step keeps: B sequences, R heads, N rows, M columns."""

    before: State
    gates: Tensor  # i, f, o, g (B, 4 H), squashed
    tanh_c: Tensor
    asked: Tensor  # (B, R, M + 2), before squashing
    keys: Tensor
    gate: Tensor  # (B, R, 1)
    strength: Tensor
    least: Tensor  # (B, R, N)
    stays: Tensor  # (B, N, 1): 0 in rows that are emptied
    key_scale: Tensor  # 1 / |k| (B, R, 1)
    row_scale: Tensor  # 1 / |M(i)| (B, 1, N)
    products: Tensor  # k M(i) / |k| (B, R, N)
    writing: Tensor


def scanned(sums: Tensor, weights: Weights, start: State, usage_decay: float) -> tuple[Tensor, State]:
    """Read a batch of sequences.

    Args:
        sums: the input's part in the sums of the controller, (L, B, 4 H), at least one step.
        weights: all others.
        start: the state before.
        usage_decay: gamma of Eq. 5.

    Returns:
        What each step puts out, (L, B, H + R M), and the state after the last; differentiable once.
    """
    features, *after = _Scan.apply(usage_decay, sums, *weights, *start)  # pyright: ignore[reportGeneralTypeIssues]
    return features, tuple(after)


def least_used(usage: Tensor, n: int) -> Tensor:
    """Mark the n least used rows (Eq. 6), one for each head.

    Args:
        usage: w^u (..., N).
        n: how many.

    Returns:
        (..., n, N) of zeros and ones; each row marks another place. Without gradient.
    """
    # Rows of equal usage are alike in all else too while they are unused, so any of them will do.
    places = usage.detach().topk(n, -1, largest=False).indices
    return (places.unsqueeze(-1) == torch.arange(usage.shape[-1], device=usage.device)).to(usage.dtype)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, usage_decay: float, sums: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, state, kept, outputs = Weights(*tensors[:3]), tensors[3:], [], []
        for one in sums.unbind(0):
            step, state = _forward(one, weights, state, usage_decay)
            outputs.append(torch.cat([state[0], state[5]], -1))
            if any(ctx.needs_input_grad):
                kept.append(step)
        ctx.kept, ctx.usage_decay, ctx.end = kept, usage_decay, tuple(t.detach() for t in state)
        ctx.save_for_backward(*weights)
        return torch.stack(outputs), *state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weights, kept = Weights(*ctx.saved_tensors), ctx.kept
        if not kept:
            raise RuntimeError("the gradient of a scan was taken already, and what it needs was let go")
        after, flow = ctx.end, (*grads[1:3], grads[3].clone(), *grads[4:])
        by_outputs, by_sums, by_asked = grads[0].unbind(0), [], []
        while kept:
            step: _Step = kept.pop()
            d_sums, d_asked, flow = _backward(step, after, by_outputs[len(kept)], flow, weights, ctx.usage_decay)
            by_sums.append(d_sums)
            by_asked.append((d_asked, after[0], step.before[0], step.before[5]))
            after = step.before
        d_asked, h, *before = (torch.cat(each) for each in zip(*by_asked, strict=True))
        d_recurs = torch.cat(by_sums).mT @ torch.cat(before, -1)
        d_weights = (d_recurs, d_asked.mT @ h, d_asked.sum(0))
        return None, torch.stack(by_sums[::-1]), *d_weights, *flow


def _forward(sums: Tensor, weights: Weights, state: State, usage_decay: float) -> tuple[_Step, State]:
    h, c, memory, reading, usage, read = state
    n, heads = c.shape[-1], reading.shape[-2]
    z = torch.addmm(sums, torch.cat([h, read], -1), weights.recurs.mT)
    gates = torch.cat([torch.sigmoid(z[:, : 3 * n]), torch.tanh(z[:, 3 * n :])], -1)
    i, f, o, g = gates.chunk(4, -1)
    c = torch.addcmul(f * c, i, g)
    tanh_c = torch.tanh(c)
    h = o * tanh_c
    asked = torch.addmm(weights.b_asks, h, weights.asks.mT).unflatten(-1, (heads, -1))
    keys, gate, strength = (
        torch.tanh(asked[..., :-2]),
        torch.sigmoid(asked[..., -2:-1]),
        1 + F.softplus(asked[..., -1:]),
    )
    least = least_used(usage, heads)
    writing = torch.lerp(least, reading, gate)  # Eq. 7
    stays = (1 - least.sum(-2)).unsqueeze(-1)
    memory = (memory * stays).baddbmm_(writing.mT, keys)  # Eq. 8
    key_scale, row_scale = inverse_length(keys), inverse_length(memory).mT
    products = (keys * key_scale) @ memory.mT
    reading = torch.softmax(strength * products * row_scale, -1)  # Eq. 2, 3
    usage = usage_decay * usage + (reading + writing).sum(-2)  # Eq. 5
    after = (h, c, memory, reading, usage, (reading @ memory).flatten(-2))  # Eq. 4
    kept = (keys, gate, strength, least, stays, key_scale, row_scale, products, writing)
    return _Step(state, gates, tanh_c, asked, *kept), after


def _backward(
    step: _Step, after: State, d_out: Tensor, flow: State, weights: Weights, usage_decay: float
) -> tuple[Tensor, Tensor, State]:
    # `flow` are the gradients by the state after the step; that by the memory is written to. Returned: gradients by the
    # sums, by what was asked, by the state before.
    d_h, d_c, d_memory, d_reading, d_usage, d_read = flow
    d_writing, d_keys, d_strength = _through_reading(step, after, d_out, (d_memory, d_reading, d_usage, d_read))
    n = d_h.shape[-1]
    # Eq. 8, and Eq. 7.
    d_keys = torch.baddbmm(d_keys, step.writing, d_memory)
    d_writing = torch.baddbmm(d_writing, step.keys, d_memory.mT)
    d_gate = (d_writing * (step.before[3] - step.least)).sum(-1, keepdim=True)
    d_asked = torch.cat(
        [
            torch.ops.aten.tanh_backward(d_keys, step.keys),
            torch.ops.aten.sigmoid_backward(d_gate, step.gate),
            d_strength * torch.sigmoid(step.asked[..., -1:]),
        ],
        -1,
    ).flatten(-2)
    # The controller.
    d_h = torch.addmm(d_h + d_out[:, :n], d_asked, weights.asks)
    i, f, o, g = step.gates.chunk(4, -1)
    d_c = torch.addcmul(d_c, d_h * o, 1 - step.tanh_c**2)
    d_gates = torch.cat([d_c * g, d_c * step.before[1], d_h * step.tanh_c], -1)
    d_sums = torch.cat(
        [
            torch.ops.aten.sigmoid_backward(d_gates, step.gates[:, : 3 * n]),
            torch.ops.aten.tanh_backward(d_c * i, g),
        ],
        -1,
    )
    d_before, d_read = (d_sums @ weights.recurs).split([n, d_out.shape[-1] - n], -1)
    state = (d_before, d_c * f, d_memory.mul_(step.stays), d_writing * step.gate, usage_decay * d_usage, d_read)
    return d_sums, d_asked, state


def _through_reading(step: _Step, after: State, d_out: Tensor, flow: State) -> tuple[Tensor, Tensor, Tensor]:
    # Gradients by the write weights (their share in usage), by keys and by strengths; that by the memory is added to.
    d_memory, d_reading, d_usage, d_read = flow
    memory, reading = after[2], after[3]
    d_read = (d_read + d_out[:, -d_read.shape[-1] :]).unflatten(-1, (reading.shape[-2], -1))
    d_shared = d_usage.unsqueeze(-2).expand_as(reading)
    d_reading = torch.baddbmm(d_reading + d_shared, d_read, memory.mT)
    d_scaled = torch.ops.aten._softmax_backward_data(d_reading, reading, -1, reading.dtype)
    by_products = d_scaled * step.products
    d_strength = (by_products * step.row_scale).sum(-1, keepdim=True)
    d_products = d_scaled * (step.strength * step.row_scale)
    d_row_scale = (by_products * step.strength).sum(-2, keepdim=True)
    unit_keys = step.keys * step.key_scale
    # By the memory from reading, from the products, and from the lengths of its rows.
    d_memory.baddbmm_(torch.cat([reading, d_products], -2).mT, torch.cat([d_read, unit_keys], -2))
    d_memory.addcmul_(memory, (d_row_scale * step.row_scale**3).mT, value=-1)
    d_units = d_products @ memory
    along = (d_units * step.keys).sum(-1, keepdim=True)
    d_keys = step.key_scale * d_units - step.keys * (step.key_scale**3 * along)
    return d_shared, d_keys, d_strength
