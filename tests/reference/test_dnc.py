"""The differentiable neural computer against the equations of its paper by plain loops (float64)."""

import math

import torch
from torch import Tensor

from kshot.nn.memory.dnc import MARGIN, DNCCell, allocation
from kshot.nn.memory.similarity import EPS

Vector = list[float]


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def oneplus(v: float) -> float:
    return 1 + math.log1p(math.exp(v))


def softmax(values: Vector) -> Vector:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def content(memory: list[Vector], key: Vector, strength: float) -> Vector:
    def dot(a: Vector, b: Vector) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    return softmax([strength * dot(key, m) / math.sqrt((dot(key, key) + EPS) * (dot(m, m) + EPS)) for m in memory])


def allocated(usage: Vector) -> Vector:
    """Eq. of the allocation weighting: one row after the other, the least used first."""
    usage = [MARGIN + (1 - 2 * MARGIN) * u for u in usage]
    found, product = [0.0] * len(usage), 1.0
    for i in sorted(range(len(usage)), key=lambda i: usage[i]):
        found[i] = (1 - usage[i]) * product
        product *= usage[i]
    return found


class Loops:
    """Memory, usage and links of lists."""

    def __init__(self, cell: DNCCell) -> None:
        n, r, m = cell.n_slots, cell.n_heads, cell.slot_width
        self.cell, self.n, self.r, self.m = cell, range(n), range(r), range(m)
        self.h, self.c = [0.0] * cell.n_hidden, [0.0] * cell.n_hidden
        self.memory = [[0.0] * m for _ in self.n]
        self.usage, self.precedence, self.writing = [0.0] * n, [0.0] * n, [0.0] * n
        self.links = [[0.0] * n for _ in self.n]
        self.reading = [[0.0] * n for _ in self.r]
        self.read = [[0.0] * m for _ in self.r]

    def interface(self, x: Tensor) -> Vector:
        cell, n = self.cell, self.cell.n_hidden
        before = torch.tensor(self.h + [v for row in self.read for v in row], dtype=torch.float64)
        sums = (cell.reads.weight @ x + cell.reads.bias + cell.recurs.weight @ before).tolist()
        i, f, o = ([sigmoid(v) for v in sums[k * n : (k + 1) * n]] for k in range(3))
        self.c = [f[u] * self.c[u] + i[u] * math.tanh(sums[3 * n + u]) for u in range(n)]
        self.h = [o[u] * math.tanh(self.c[u]) for u in range(n)]
        h = torch.tensor(self.h, dtype=torch.float64)
        return (cell.interface.weight @ h + cell.interface.bias).tolist()

    def step(self, x: Tensor) -> Vector:
        xi = iter(self.interface(x))
        read_keys = [[next(xi) for _ in self.m] for _ in self.r]
        read_strengths = [oneplus(next(xi)) for _ in self.r]
        write_key = [next(xi) for _ in self.m]
        write_strength = oneplus(next(xi))
        erase = [sigmoid(next(xi)) for _ in self.m]
        write = [next(xi) for _ in self.m]
        free = [sigmoid(next(xi)) for _ in self.r]
        allocation_gate, write_gate = sigmoid(next(xi)), sigmoid(next(xi))
        modes = [softmax([next(xi) for _ in range(3)]) for _ in self.r]

        for i in self.n:
            retained = math.prod(1 - free[r] * self.reading[r][i] for r in self.r)
            u, w = self.usage[i], self.writing[i]
            self.usage[i] = (u + w - u * w) * retained
        found = content(self.memory, write_key, write_strength)
        free_rows = allocated(self.usage)
        w = [write_gate * (allocation_gate * free_rows[i] + (1 - allocation_gate) * found[i]) for i in self.n]
        self.writing = w
        self.memory = [[self.memory[i][j] * (1 - w[i] * erase[j]) + w[i] * write[j] for j in self.m] for i in self.n]
        self.links = [
            [0.0 if i == j else (1 - w[i] - w[j]) * self.links[i][j] + w[i] * self.precedence[j] for j in self.n]
            for i in self.n
        ]
        self.precedence = [(1 - sum(w)) * p + w[i] for i, p in enumerate(self.precedence)]
        for r in self.r:
            before, found = self.reading[r], content(self.memory, read_keys[r], read_strengths[r])
            forward = [sum(self.links[i][j] * before[j] for j in self.n) for i in self.n]
            backward = [sum(self.links[j][i] * before[j] for j in self.n) for i in self.n]
            b, c, f = modes[r]
            self.reading[r] = [b * backward[i] + c * found[i] + f * forward[i] for i in self.n]
            self.read[r] = [sum(self.reading[r][i] * self.memory[i][j] for i in self.n) for j in self.m]
        return self.h + [v for row in self.read for v in row]


def test_steps_by_plain_loops() -> None:
    cell = DNCCell(3, 4, n_slots=5, slot_width=3, n_heads=2).double()
    with torch.no_grad():
        cell.interface.weight.mul_(4)
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loops = Loops(cell)
    expected = torch.tensor([loops.step(step) for step in x], dtype=torch.float64)
    got, state = cell.scan(x, cell.start())
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    for name in ("memory", "usage", "links", "precedence"):
        value = torch.tensor(getattr(loops, name), dtype=torch.float64)
        torch.testing.assert_close(getattr(state, name), value, rtol=1e-8, atol=1e-10)


def test_an_empty_memory_is_taken_from_its_first_row_on() -> None:
    free = allocation(torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(free, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), rtol=0, atol=1e-5)
    taken = allocation(torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(taken, torch.tensor([0, 0, 1.0, 0], dtype=torch.float64), rtol=0, atol=1e-5)
    assert float(allocation(torch.ones(4, dtype=torch.float64)).sum()) < 1e-5


def test_the_gradient_of_allocation_holds_in_float32() -> None:
    """Rows of hardly any use are where it is steep: 1 / u for each row that stands after them."""
    usage = torch.cat([torch.zeros(24), torch.linspace(0.1, 0.9, 8)])
    weight = torch.linspace(-1, 1, 32)

    def slope(dtype: torch.dtype) -> torch.Tensor:
        u = usage.to(dtype).requires_grad_()
        return torch.autograd.grad((allocation(u) * weight.to(dtype)).sum(), u)[0].double()

    torch.testing.assert_close(slope(torch.float32), slope(torch.float64), rtol=1e-5, atol=1e-5)
