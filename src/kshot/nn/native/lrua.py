"""The least recently used access memory along a batch of sequences as one operation: the loop, and the way back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kshot.nn.native.build import library
from kshot.nn.native.kernels import Pool, check_scan

#: h (B, H), c (B, H), memory (B, N, M), read weights (B, R, N), usage (B, N), read (B, R M) of B sequences.
State = tuple[Tensor, ...]

_pool = Pool("lrua")


class Shape(NamedTuple):
    """The shape of the cell.

    Attributes:
        hidden: units of the controller H.
        heads: reads, and writes, of each step R.
        slots: rows N of the memory.
        width: columns M of the memory.
    """

    hidden: int
    heads: int
    slots: int
    width: int


class Weights(NamedTuple):
    """Weights of the cell, but for those of its input.

    Attributes:
        recurs: of what was put out before the step, (4 H, H + R M); gates in the order i, f, o, g.
        asks: of key, gate and strength, head after head, (R (M + 2), H).
        b_asks: their bias, (R (M + 2),).
    """

    recurs: Tensor
    asks: Tensor
    b_asks: Tensor


def lrua_scan(shape: Shape, sums: Tensor, weights: Weights, start: State, usage_decay: float) -> tuple[Tensor, State]:
    """Run the cell along B sequences of L steps.

    Memory that waits for the gradient is about 4 (M + 3 R) N bytes for each step and sequence (float32).

    Args:
        shape: of the cell.
        sums: the input's part in the sums of the controller, bias included, (L, B, 4 H).
        weights: all others.
        start: the state before.
        usage_decay: gamma of Eq. 5.

    Returns:
        What each step put out, (L, B, H + R M), and the state after the last; differentiable once.

    Raises:
        ValueError: shapes or types do not fit together, or the sequences have no step.
    """
    tensors = (sums, *weights, *start)
    check_scan(_NAMES, tensors, lambda steps, sequences: _shapes(shape, steps, sequences))
    features, *end = _Scan.apply(shape, usage_decay, *tensors)  # pyright: ignore[reportGeneralTypeIssues]
    h, read = features[-1].split([shape.hidden, shape.heads * shape.width], -1)
    c, memory, reading, usage = end
    return features, (h, c, memory, reading, usage, read)


_NAMES = ("sums", *Weights._fields, "h", "c", "memory", "reading", "usage", "read")


def _shapes(s: Shape, steps: int, sequences: int) -> list[tuple[int, ...]]:
    read, asked = s.heads * s.width, s.heads * (s.width + 2)
    weights = [(4 * s.hidden, s.hidden + read), (asked, s.hidden), (asked,)]
    state = [(s.hidden,), (s.hidden,), (s.slots, s.width), (s.heads, s.slots), (s.slots,), (read,)]
    return [(steps, sequences, 4 * s.hidden), *weights, *((sequences, *rest) for rest in state)]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: Shape, usage_decay: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        sums, *rest = (t.contiguous() for t in tensors)
        weights, start = rest[:3], rest[3:]
        steps, sequences = sums.shape[:2]
        kernel = _pool.take(library(sums.dtype))
        features = sums.new_empty(steps, sequences, shape.hidden + shape.heads * shape.width)
        end = [torch.empty_like(t) for t in start[1:5]]
        keep = any(ctx.needs_input_grad)
        sizes = (*shape, steps, sequences, float(usage_decay))
        kernel("forward", *sizes, sums, *weights, *start, features, *end, int(keep), torch.get_num_threads())
        if keep:
            ctx.kernel, ctx.shape = kernel, shape
            ctx.save_for_backward(features, *start)
        else:
            _pool.put_back(kernel)
        return features, *end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, *start = ctx.saved_tensors
        shape = ctx.shape
        d_sums = features.new_empty(*features.shape[:2], 4 * shape.hidden)
        d_asked = features.new_empty(*features.shape[:2], shape.heads * (shape.width + 2))
        d_start = [torch.empty_like(t) for t in start]
        with _pool.resumed(ctx) as kernel:
            kernel("backward", *(g.contiguous() for g in grad_outputs), d_sums, d_asked, *d_start)
        first = torch.cat([start[0], start[5]], -1)
        before = torch.cat([first.unsqueeze(0), features[:-1]]).flatten(0, 1)
        h, by_asked = features[..., : shape.hidden].flatten(0, 1), d_asked.flatten(0, 1)
        d_weights = (d_sums.flatten(0, 1).mT @ before, by_asked.mT @ h, by_asked.sum(0))
        return None, None, d_sums, *d_weights, *d_start
