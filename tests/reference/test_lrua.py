"""The memory of MANN against Eq. 2 to 8 of its paper by plain loops, one row and one number at a time (float64)."""

import math

import torch
from torch import Tensor

from kshot.nn.memory.lrua import START, LRUACell, least_used
from kshot.nn.memory.similarity import EPS


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


class Loops:
    """A memory of lists; the controller's sums are products of PyTorch's, all else is written out."""

    def __init__(self, cell: LRUACell) -> None:
        n, r = cell.n_slots, cell.n_heads
        self.cell = cell
        self.h, self.c = [0.0] * cell.n_hidden, [0.0] * cell.n_hidden
        self.memory = [[START] * cell.slot_width for _ in range(n)]
        self.reading = [[0.0] * n for _ in range(r)]
        self.usage = [0.0] * n
        self.read = [[0.0] * cell.slot_width for _ in range(r)]

    def controller(self, x: Tensor) -> list[list[float]]:
        cell, n = self.cell, self.cell.n_hidden
        before = torch.tensor(self.h + [v for row in self.read for v in row], dtype=torch.float64)
        sums = (cell.reads.weight @ x + cell.reads.bias + cell.recurs.weight @ before).tolist()
        i, f, o = ([1 / (1 + math.exp(-v)) for v in sums[k * n : (k + 1) * n]] for k in range(3))
        self.c = [f[u] * self.c[u] + i[u] * math.tanh(sums[3 * n + u]) for u in range(n)]
        self.h = [o[u] * math.tanh(self.c[u]) for u in range(n)]
        return (
            (cell.asks.weight @ torch.tensor(self.h, dtype=torch.float64) + cell.asks.bias)
            .view(cell.n_heads, -1)
            .tolist()
        )

    def step(self, x: Tensor) -> list[float]:
        cell = self.cell
        asked = self.controller(x)
        order = sorted(range(cell.n_slots), key=lambda i: self.usage[i])
        writing = []
        for head, row in enumerate(asked):
            gate = 1 / (1 + math.exp(-row[-2]))
            least = [float(i == order[head]) for i in range(cell.n_slots)]  # Eq. 6
            writing.append([gate * w + (1 - gate) * u for w, u in zip(self.reading[head], least, strict=True)])  # Eq. 7
        for i in order[: cell.n_heads]:
            self.memory[i] = [0.0] * cell.slot_width
        keys = [[math.tanh(v) for v in row[:-2]] for row in asked]
        for i in range(cell.n_slots):  # Eq. 8
            for key, weights in zip(keys, writing, strict=True):
                self.memory[i] = [m + weights[i] * k for m, k in zip(self.memory[i], key, strict=True)]
        self.reading = []
        for key, row in zip(keys, asked, strict=True):
            strength = 1 + math.log1p(math.exp(row[-1]))
            alike = [dot(key, m) / math.sqrt((dot(key, key) + EPS) * (dot(m, m) + EPS)) for m in self.memory]  # Eq. 2
            self.reading.append(softmax([strength * a for a in alike]))  # Eq. 3
        self.read = [
            [sum(w * m[j] for w, m in zip(weights, self.memory, strict=True)) for j in range(cell.slot_width)]
            for weights in self.reading
        ]  # Eq. 4
        self.usage = [
            cell.usage_decay * u + sum(w[i] for w in self.reading) + sum(w[i] for w in writing)
            for i, u in enumerate(self.usage)
        ]  # Eq. 5
        return self.h + [v for row in self.read for v in row]


def test_steps_by_plain_loops() -> None:
    # As many rows as are written while there are no ties between rows that differ.
    cell = LRUACell(3, 4, n_slots=7, slot_width=3, n_heads=2, usage_decay=0.8).double()
    with torch.no_grad():
        cell.asks.weight.mul_(5)
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    loops = Loops(cell)
    expected = torch.tensor([loops.step(step) for step in x], dtype=torch.float64)
    got, state = cell.scan(x, cell.start())
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    usage = torch.tensor(loops.usage, dtype=torch.float64)
    torch.testing.assert_close(state.usage.sort()[0], usage.sort()[0], rtol=1e-9, atol=1e-11)


def test_what_is_written_goes_to_the_least_used_rows_and_replaces_them() -> None:
    """With the gate shut (sigma(alpha) = 0) a key is found in a row of its own, and the old content is gone."""
    cell = LRUACell(2, 3, n_slots=4, slot_width=2, n_heads=1).double()
    with torch.no_grad():
        cell.asks.bias[2] = -1e3
    usage = torch.tensor([3.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    filled = torch.full((4, 2), 7.0, dtype=torch.float64)
    start = cell.start()
    _, state = cell(torch.randn(2, dtype=torch.float64), start._replace(memory=filled, usage=usage))
    key = torch.tanh(cell.asks(state.h)[:2])
    assert torch.equal(state.memory[[0, 2, 3]], filled[[0, 2, 3]])
    torch.testing.assert_close(state.memory[1], key)


def test_least_used_marks_as_many_rows_as_there_are_heads() -> None:
    marks = least_used(torch.tensor([0.3, 0.1, 0.9, 0.2]), 2)
    assert marks.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_of_rows_used_alike_the_first_is_taken() -> None:
    assert least_used(torch.zeros(90), 4).argmax(-1).tolist() == [0, 1, 2, 3]
    marks = least_used(torch.tensor([[0.5, 0.1, 0.1, 0.1], [0.1, 0.5, 0.1, 0.5]]), 2)
    assert marks.argmax(-1).tolist() == [[1, 2], [0, 2]]
    assert marks.sum(-1).tolist() == [[1, 1], [1, 1]]
