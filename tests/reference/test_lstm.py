"""The LSTM cell and the LSTM learner against their equations by plain loops (float64)."""

import copy
import math

import torch
from torch import Tensor

from kshot.algorithms import LSTM
from kshot.core import Spec
from kshot.nn.memory.lstm import LSTMCell
from kshot.testing import synthetic_episode, tiny_backbone


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def lstm_by_loops(cell: LSTMCell, steps: list[list[float]]) -> tuple[list[list[float]], list[list[float]]]:
    """One unit, one gate, one number at a time: h of every step of the top layer, and the contents of every layer."""
    n, contents = cell.n_hidden, []
    cell = copy.deepcopy(cell).requires_grad_(False)
    for read, recur in zip(cell.reads, cell.recurs, strict=True):
        h, c, outputs = [0.0] * n, [0.0] * n, []
        for x in steps:
            sums = []
            for row in range(4 * n):
                total = float(read.bias[row])
                total += sum(float(read.weight[row, j]) * x[j] for j in range(len(x)))
                total += sum(float(recur.weight[row, j]) * h[j] for j in range(n))
                sums.append(total)
            c = [sigmoid(sums[n + u]) * c[u] + sigmoid(sums[u]) * math.tanh(sums[3 * n + u]) for u in range(n)]
            h = [sigmoid(sums[2 * n + u]) * math.tanh(c[u]) for u in range(n)]
            outputs.append(h)
        steps = outputs
        contents.append(c)
    return steps, contents


def test_layers_by_plain_loops() -> None:
    cell = LSTMCell(3, 4, 2).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    outputs, contents = lstm_by_loops(cell, x.tolist())
    got, state = cell.scan(x, cell.start())
    expected = torch.tensor(outputs, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state.c, torch.tensor(contents, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_one_layer_is_pytorchs() -> None:
    cell, theirs = LSTMCell(3, 4).double(), torch.nn.LSTM(3, 4).double()
    swap = [0, 1, 3, 2]  # PyTorch's order of gates is i, f, g, o

    def swapped(t: Tensor) -> Tensor:
        return t.detach().view(4, 4, -1)[swap].reshape(16, -1)

    with torch.no_grad():
        theirs.weight_ih_l0.copy_(swapped(cell.reads[0].weight))
        theirs.weight_hh_l0.copy_(swapped(cell.recurs[0].weight))
        theirs.bias_ih_l0.copy_(swapped(cell.reads[0].bias)[:, 0])
        theirs.bias_hh_l0.zero_()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(cell.scan(x, cell.start((2,)))[0], theirs(x)[0], rtol=1e-10, atol=1e-12)


def test_the_learner_shows_every_label_one_step_late() -> None:
    """Inputs (x_1, 0), (x_2, y_1), ..., and each query (x, y_S) by itself."""
    spec = Spec("classification", (3,), 3)
    learner = LSTM(tiny_backbone(spec), spec, n_hidden=5).double().eval()
    support, query = synthetic_episode(spec, n_shot=2, n_query=2)
    with torch.no_grad():
        z, asked = learner.backbone(support.x).tolist(), learner.backbone(query.x).tolist()
    shown = [[0.0] * 3]
    for y in support.y.tolist():
        shown.append([float(k == y) for k in range(3)])
    got = learner.predict(learner.adapt(support), query.x)
    for i, one in enumerate(asked):
        steps = [a + b for a, b in zip([*z, one], shown, strict=True)]
        h = torch.tensor(lstm_by_loops(learner.cell, steps)[0][-1], dtype=torch.float64)
        torch.testing.assert_close(got[i], learner.head(h), rtol=1e-9, atol=1e-11)
