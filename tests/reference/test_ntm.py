"""Steps of a Neural Turing Machine by the paper's equations, one number at a time (float64)."""

import math

import pytest
import torch

from kshot.nn.memory.ntm import NTMCell, NTMState


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def softplus(v: float) -> float:
    return math.log(1 + math.exp(v))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


Rows = list[list[float]]


def place(emitted: list[float], memory: Rows, before: list[float], width: int, n_shifts: int) -> list[float]:
    """Where a head stands after a step."""
    n, key, half = len(memory), emitted[:width], n_shifts // 2
    strength, gate = softplus(emitted[width]), sigmoid(emitted[width + 1])
    shift, sharpness = softmax(emitted[width + 2 : width + 2 + n_shifts]), 1 + softplus(emitted[width + 2 + n_shifts])

    def norm(v: list[float]) -> float:
        return math.sqrt(sum(a * a for a in v) + 1e-6)

    cosine = [sum(k * m for k, m in zip(key, row, strict=True)) / (norm(key) * norm(row)) for row in memory]  # Eq. 6
    content = softmax([strength * c for c in cosine])  # Eq. 5
    gated = [gate * c + (1 - gate) * b for c, b in zip(content, before, strict=True)]  # Eq. 7
    shifted = [sum(gated[(i - j) % n] * shift[j + half] for j in range(-half, half + 1)) for i in range(n)]  # Eq. 8
    powers = [s**sharpness for s in shifted]
    return [p / sum(powers) for p in powers]  # Eq. 9


def step(
    cell: NTMCell, x: list[float], reads: list[float], before: Rows, memory: Rows
) -> tuple[list[float], list[float], Rows, Rows]:
    """One step of a machine with a feed-forward controller: hidden units, reads, weightings and memory after it."""
    s = cell.shape
    inputs, rows = x + reads, torch.cat([cell.input.weight, cell.recurrent.weight], 1).tolist()
    hidden = [math.tanh(dot(row, inputs) + b) for row, b in zip(rows, cell.input.bias.tolist(), strict=True)]
    emitted = [
        dot(row, hidden) + b for row, b in zip(cell.heads.weight.tolist(), cell.heads.bias.tolist(), strict=True)
    ]
    address, at = s.width + 3 + s.shifts, 0
    weights: Rows = []
    erase: Rows = []
    add: Rows = []
    for head in range(s.reads + s.writes):
        weights.append(place(emitted[at : at + address], memory, before[head], s.width, s.shifts))
        at += address
        if head >= s.reads:
            erase.append([sigmoid(v) for v in emitted[at : at + s.width]])
            add.append(emitted[at + s.width : at + 2 * s.width])
            at += 2 * s.width
    assert at == len(emitted)
    before_writes = memory
    writers = list(zip(weights[s.reads :], erase, add, strict=True))
    for w, e, _ in writers:  # Eq. 3, of all writers, and then Eq. 4
        memory = [[memory[i][m] * (1 - w[i] * e[m]) for m in range(s.width)] for i in range(s.slots)]
    for w, _, a in writers:
        memory = [[memory[i][m] + w[i] * a[m] for m in range(s.width)] for i in range(s.slots)]
    seen = memory if s.late else before_writes
    read = [dot(w, [row[m] for row in seen]) for w in weights[: s.reads] for m in range(s.width)]  # Eq. 2
    return hidden, read, weights, memory


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(("n_heads", "n_shifts", "n_slots"), [(1, 3, 5), (2, 5, 7), (2, 3, 5), (3, 5, 5)])
def test_steps_by_plain_loops(n_heads: int, n_shifts: int, n_slots: int, order: str) -> None:
    """Several writers erase first and add then; what one step left is where the next begins."""
    width, n_steps = 3, 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        cell = NTMCell(
            2,
            controller="feedforward",
            n_hidden=4,
            n_heads=n_heads,
            n_slots=n_slots,
            slot_width=width,
            n_shifts=n_shifts,
            reads=order,
        ).double()
        for p in cell.parameters():
            p.data += 0.7 * torch.randn_like(p)
        memory = torch.randn(n_slots, width, dtype=torch.float64)
        weights = torch.randn(2 * n_heads, n_slots, dtype=torch.float64).softmax(-1)
        xs = torch.randn(n_steps, 2, dtype=torch.float64)
        reads = torch.randn(n_heads * width, dtype=torch.float64)
    nothing = torch.zeros(0, dtype=torch.float64)
    state = NTMState(nothing, nothing, reads, weights, memory)
    read, placed, kept = reads.tolist(), weights.tolist(), memory.tolist()
    with torch.no_grad():
        scanned, end = cell.scan(xs, state)
        for x, of_scan in zip(xs, scanned, strict=True):
            out, state = cell(x, state)
            hidden, read, placed, kept = step(cell, x.tolist(), read, placed, kept)
            close(out, hidden + read)
            close(of_scan, hidden + read)
            close(state.weights, placed)
            close(state.memory, kept)
    close(end.memory, kept)


def close(got: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


def test_layers_of_lstm_by_plain_loops() -> None:
    """Each layer reads the one below and itself before the step, the first the input and what was read."""
    n = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        cell = NTMCell(2, n_hidden=n, n_layers=2, n_slots=5, slot_width=2).double()
        for p in cell.parameters():
            p.data += 0.5 * torch.randn_like(p)
        x, state = torch.randn(2, dtype=torch.float64), cell.start()
        state = state._replace(hidden=torch.randn(2 * n).double(), cell=torch.randn(2 * n).double())
    with torch.no_grad():
        out, after = cell(x, state)
    below, (upper,) = x.tolist(), cell.upper
    rows, bias = torch.cat([cell.input.weight, cell.recurrent.weight], 1).tolist(), cell.input.bias.tolist()
    own = [state.reads.tolist() + state.hidden[:n].tolist(), state.hidden[n:].tolist()]
    for layer in range(2):
        inputs = below + own[layer]
        z = [sum(w * v for w, v in zip(row, inputs, strict=True)) + b for row, b in zip(rows, bias, strict=True)]
        i, f, g, o = (z[k * n : (k + 1) * n] for k in range(4))
        at = slice(layer * n, (layer + 1) * n)
        c = [sigmoid(f[k]) * float(state.cell[at][k]) + sigmoid(i[k]) * math.tanh(g[k]) for k in range(n)]
        below = [sigmoid(o[k]) * math.tanh(c[k]) for k in range(n)]
        torch.testing.assert_close(after.cell[at], torch.tensor(c, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(out[at], torch.tensor(below, dtype=torch.float64), rtol=0, atol=1e-12)
        rows, bias = upper.weight.tolist(), upper.bias.tolist()  # pyright: ignore[reportCallIssue, reportAssignmentType]
