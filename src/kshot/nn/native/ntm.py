"""A Neural Turing Machine along a batch of sequences as one operation: the loop, and back-propagation through it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kshot.nn.native.build import library
from kshot.nn.native.kernels import Kernel, Pool

_pool = Pool("ntm")


class Shape(NamedTuple):
    """The shape of the machine.

    Attributes:
        hidden: hidden units H of the controller.
        lstm: 1 for an LSTM, 0 for a feed-forward controller.
        reads: read heads R.
        writes: write heads W.
        slots: rows N of the memory.
        width: columns M of the memory.
        shifts: width of the shift weighting, odd.
    """

    hidden: int
    lstm: int
    reads: int
    writes: int
    slots: int
    width: int
    shifts: int


class Start(NamedTuple):
    """The state of B sequences before their first step.

    Attributes:
        hidden: (B, H); (B, 0) without an LSTM.
        cell: (B, H); (B, 0) without an LSTM.
        reads: (B, R * M).
        weights: (B, R + W, N).
        memory: (B, N, M).
    """

    hidden: Tensor
    cell: Tensor
    reads: Tensor
    weights: Tensor
    memory: Tensor


class Scanned(NamedTuple):
    """What a scan gives.

    Attributes:
        features: hidden units and reads of each step, (L, B, H + R * M).
        cell: after the last step, (B, H) or (B, 0).
        weights: after the last step, (B, R + W, N).
        memory: after the last step, (B, N, M).
    """

    features: Tensor
    cell: Tensor
    weights: Tensor
    memory: Tensor


def ntm_scan(
    shape: Shape, sums: Tensor, w_controller: Tensor, w_heads: Tensor, b_heads: Tensor, start: Start
) -> Scanned:
    """Run the machine along B sequences of L steps.

    Memory that waits for the gradient is about 4 (M + 6 (R + W)) N bytes for each step and sequence (float32).

    Args:
        shape: of the machine.
        sums: the input's part in the sums of the controller, bias included, (L, B, 4H), or (L, B, H) without an LSTM.
        w_controller: weights of reads and hidden units before the step, (4H, R * M + H), or (H, R * M).
        w_heads: weights of what the controller emits to the heads, (P, H).
        b_heads: its bias, (P,).
        start: the state.

    Returns:
        What each step put out, and the state after; differentiable once.

    Raises:
        ValueError: shapes or types do not fit together, or the sequences have no step.
    """
    tensors = (sums, w_controller, w_heads, b_heads, *start)
    if sums.ndim != 3 or not sums.shape[0]:
        raise ValueError(f"expected sums of at least one step, (L, B, ...), got shape {tuple(sums.shape)}")
    for name, t, expected in zip(_NAMES, tensors, _shapes(shape, *sums.shape[:2]), strict=True):
        if tuple(t.shape) != expected or t.dtype != sums.dtype or t.device.type != "cpu":
            raise ValueError(
                f"expected {name} of shape {expected} and {sums.dtype} on the CPU, got {tuple(t.shape)}, {t.dtype} on "
                f"{t.device}"
            )
    return Scanned(*_Scan.apply(shape, *tensors))  # pyright: ignore[reportGeneralTypeIssues]


_NAMES = ("sums", "w_controller", "w_heads", "b_heads", *Start._fields)


def _shapes(s: Shape, steps: int, sequences: int) -> list[tuple[int, ...]]:
    gates, held = (4 * s.hidden, s.hidden) if s.lstm else (s.hidden, 0)
    emitted = (s.reads + s.writes) * (s.width + 3 + s.shifts) + 2 * s.writes * s.width
    weights = [(gates, s.reads * s.width + held), (emitted, s.hidden), (emitted,)]
    start = [(held,), (held,), (s.reads * s.width,), (s.reads + s.writes, s.slots), (s.slots, s.width)]
    return [(steps, sequences, gates), *weights, *((sequences, *rest) for rest in start)]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: Shape, *tensors: Tensor) -> tuple[Tensor, ...]:
        sums, w_controller, w_heads, b_heads, *start = (t.contiguous() for t in tensors)
        steps, sequences = sums.shape[:2]
        kernel = _pool.take(library(sums.dtype))
        features = sums.new_empty(steps, sequences, shape.hidden + shape.reads * shape.width)
        end = [torch.empty_like(t) for t in (start[1], start[3], start[4])]
        keep = any(ctx.needs_input_grad)
        kernel(
            "forward",
            *(*shape, steps, sequences, sums, w_controller, w_heads, b_heads, *start, features, *end),
            *(int(keep), torch.get_num_threads()),
        )
        if keep:
            ctx.kernel, ctx.shape = kernel, shape
            ctx.save_for_backward(w_controller, w_heads, features, *start)
        else:
            _pool.put_back(kernel)
        return features, *end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        w_controller, w_heads, features, *start = ctx.saved_tensors
        kernel: Kernel | None = ctx.kernel
        if kernel is None:
            raise RuntimeError("the gradient of a scan was taken already, and what it needs was let go")
        ctx.kernel, shape = None, ctx.shape
        steps, sequences = features.shape[:2]
        d_sums = features.new_empty(steps, sequences, w_controller.shape[0])
        d_emitted = features.new_empty(steps, sequences, w_heads.shape[0])
        d_start = [torch.empty_like(t) for t in start]
        kernel("backward", *(g.contiguous() for g in grad_outputs), d_sums, d_emitted, *d_start)
        _pool.put_back(kernel)
        hidden, reads = features.split([shape.hidden, shape.reads * shape.width], -1)
        before = torch.cat([start[2][None], reads[:-1]])
        if shape.lstm:
            before = torch.cat([before, torch.cat([start[0][None], hidden[:-1]])], -1)
        flat_sums, flat_emitted = d_sums.flatten(0, 1), d_emitted.flatten(0, 1)
        d_controller = flat_sums.mT @ before.flatten(0, 1)
        d_heads = flat_emitted.mT @ hidden.flatten(0, 1)
        return None, d_sums, d_controller, d_heads, flat_emitted.sum(0), *d_start
