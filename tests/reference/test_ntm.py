"""One step of a Neural Turing Machine by the paper's equations, one number at a time (float64)."""

import math

import torch

from kshot.nn.memory.ntm import NTMCell, NTMState


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def softplus(v: float) -> float:
    return math.log(1 + math.exp(v))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


def place(emitted: list[float], memory: list[list[float]], before: list[float], width: int) -> list[float]:
    n, key = len(memory), emitted[:width]
    strength, gate = softplus(emitted[width]), sigmoid(emitted[width + 1])
    shift, sharpness = softmax(emitted[width + 2 : width + 5]), 1 + softplus(emitted[width + 5])

    def norm(v: list[float]) -> float:
        return math.sqrt(sum(a * a for a in v) + 1e-6)

    cosine = [sum(k * m for k, m in zip(key, row, strict=True)) / (norm(key) * norm(row)) for row in memory]  # Eq. 6
    content = softmax([strength * c for c in cosine])  # Eq. 5
    gated = [gate * c + (1 - gate) * b for c, b in zip(content, before, strict=True)]  # Eq. 7
    shifted = [sum(gated[(i - j) % n] * shift[j + 1] for j in (-1, 0, 1)) for i in range(n)]  # Eq. 8
    powers = [s**sharpness for s in shifted]
    return [p / sum(powers) for p in powers]  # Eq. 9


def test_a_step_by_plain_loops() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        cell = NTMCell(2, controller="feedforward", n_hidden=4, n_slots=5, slot_width=3).double()
        for p in cell.parameters():
            p.data += 0.5 * torch.randn_like(p)
        memory = torch.randn(5, 3, dtype=torch.float64)
        before = torch.randn(2, 5, dtype=torch.float64).softmax(-1)
        x, reads = torch.randn(2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    nothing = torch.zeros(0, dtype=torch.float64)
    with torch.no_grad():
        out, after = cell(x, NTMState(nothing, nothing, reads, before, memory))
        sums = cell.input.weight @ x + cell.input.bias + cell.recurrent.weight @ reads
        hidden = [math.tanh(float(v)) for v in sums]
        emitted = (cell.heads.weight @ torch.tensor(hidden, dtype=torch.float64) + cell.heads.bias).tolist()
    rows = memory.tolist()
    read, write = (place(emitted[a : a + 9], rows, before[h].tolist(), 3) for h, a in ((0, 0), (1, 9)))
    erase, add = [sigmoid(v) for v in emitted[18:21]], emitted[21:24]
    r = [sum(read[i] * rows[i][m] for i in range(5)) for m in range(3)]  # Eq. 2
    written = [
        [rows[i][m] * (1 - write[i] * erase[m]) + write[i] * add[m] for m in range(3)] for i in range(5)
    ]  # Eq. 3 and 4
    torch.testing.assert_close(out, torch.tensor(hidden + r, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(after.memory, torch.tensor(written, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(after.weights, torch.tensor([read, write], dtype=torch.float64), rtol=0, atol=1e-10)


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
