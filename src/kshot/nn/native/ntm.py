"""A Neural Turing Machine along a batch of sequences as one operation: the loop, and back-propagation through it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kshot.nn.native.build import library
from kshot.nn.native.kernels import Pool, check_scan

_pool = Pool("ntm")


class Shape(NamedTuple):
    """The shape of the machine.

    Attributes:
        hidden: hidden units of a layer of the controller.
        layers: its layers; H = hidden * layers.
        lstm: 1 for an LSTM, 0 for a feed-forward controller.
        reads: read heads R.
        writes: write heads W.
        slots: rows N of the memory.
        width: columns M of the memory.
        shifts: width of the shift weighting, odd.
        late: 1 where reads see what the step wrote, else 0.
    """

    hidden: int
    layers: int
    lstm: int
    reads: int
    writes: int
    slots: int
    width: int
    shifts: int
    late: int = 0

    @property
    def units(self) -> int:
        """H, hidden units of all layers."""
        return self.layers * self.hidden

    @property
    def gates(self) -> int:
        """G, sums of one layer of the controller."""
        return (4 if self.lstm else 1) * self.hidden


class Weights(NamedTuple):
    """Weights of the machine, but for those of its input. Heads, and whoever reads what it puts out, see all layers.

    Attributes:
        controller: of the reads and of the first layer's own units before the step, (G, R * M + hidden), or (G, R * M)
            without an LSTM.
        upper: for each layer above, of the layer below and of its own units before, (layers - 1, G, 2 hidden), or
            (layers - 1, G, hidden).
        b_upper: their biases, (layers - 1, G).
        heads: of what the controller emits to the heads, (P, H).
        b_heads: its bias, (P,).
    """

    controller: Tensor
    upper: Tensor
    b_upper: Tensor
    heads: Tensor
    b_heads: Tensor


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


def ntm_scan(shape: Shape, sums: Tensor, weights: Weights, start: Start) -> Scanned:
    """Run the machine along B sequences of L steps.

    Memory that waits for the gradient is about 4 (M + 6 (R + W)) N bytes for each step and sequence (float32).

    Args:
        shape: of the machine.
        sums: the input's part in the sums of the first layer of the controller, bias included, (L, B, G).
        weights: all others.
        start: the state.

    Returns:
        What each step put out, and the state after; differentiable once.

    Raises:
        ValueError: shapes or types do not fit together, or the sequences have no step.
    """
    tensors = (sums, *weights, *start)
    check_scan(_NAMES, tensors, lambda steps, sequences: _shapes(shape, steps, sequences))
    return Scanned(*_Scan.apply(shape, *tensors))  # pyright: ignore[reportGeneralTypeIssues]


_NAMES = ("sums", *Weights._fields, *Start._fields)


def _shapes(s: Shape, steps: int, sequences: int) -> list[tuple[int, ...]]:
    itself, held = (s.hidden, s.units) if s.lstm else (0, 0)
    emitted = (s.reads + s.writes) * (s.width + 3 + s.shifts) + 2 * s.writes * s.width
    upper = [(s.layers - 1, s.gates, s.hidden + itself), (s.layers - 1, s.gates)]
    weights = [(s.gates, s.reads * s.width + itself), *upper, (emitted, s.units), (emitted,)]
    start = [(held,), (held,), (s.reads * s.width,), (s.reads + s.writes, s.slots), (s.slots, s.width)]
    return [(steps, sequences, s.gates), *weights, *((sequences, *rest) for rest in start)]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: Shape, *tensors: Tensor) -> tuple[Tensor, ...]:
        sums, *rest = (t.contiguous() for t in tensors)
        weights, start = Weights(*rest[:5]), rest[5:]
        steps, sequences = sums.shape[:2]
        kernel = _pool.take(library(sums.dtype))
        features = sums.new_empty(steps, sequences, shape.units + shape.reads * shape.width)
        end = [torch.empty_like(t) for t in (start[1], start[3], start[4])]
        keep = any(ctx.needs_input_grad)
        kernel(
            "forward",
            *(*shape, steps, sequences, sums, *weights, *start, features, *end),
            *(int(keep), torch.get_num_threads()),
        )
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
        steps, sequences = features.shape[:2]
        emitted = _shapes(shape, steps, sequences)[5][0]
        d_sums = features.new_empty(steps, sequences, shape.layers * shape.gates)
        d_emitted = features.new_empty(steps, sequences, emitted)
        d_start = [torch.empty_like(t) for t in start]
        with _pool.resumed(ctx) as kernel:
            kernel("backward", *(g.contiguous() for g in grad_outputs), d_sums, d_emitted, *d_start)
        d_weights = _by_weights(shape, d_sums, d_emitted, features, start)
        return None, d_sums[..., : shape.gates], *d_weights, *d_start


def _by_weights(
    shape: Shape, d_sums: Tensor, d_emitted: Tensor, features: Tensor, start: list[Tensor]
) -> tuple[Tensor | None, ...]:
    # From the gradients by the sums of all layers and of the heads.
    hidden, reads = features.split([shape.units, shape.reads * shape.width], -1)
    inputs = [torch.cat([start[2][None], reads[:-1]]), *hidden.split(shape.hidden, -1)[:-1]]
    if shape.lstm:
        before = torch.cat([start[0][None], hidden[:-1]]).split(shape.hidden, -1)
        inputs = [torch.cat(both, -1) for both in zip(inputs, before, strict=True)]
    of_layers = d_sums.split(shape.gates, -1)
    d_controller, *d_upper = (
        d.flatten(0, 1).mT @ given.flatten(0, 1) for d, given in zip(of_layers, inputs, strict=True)
    )
    upper, b_upper = None, None
    if d_upper:
        upper, b_upper = torch.stack(d_upper), torch.stack([d.sum((0, 1)) for d in of_layers[1:]])
    flat = d_emitted.flatten(0, 1)
    return d_controller, upper, b_upper, flat.mT @ hidden.flatten(0, 1), flat.sum(0)
