"""DeepEMD by plain loops and SciPy's linear program, written from the paper (float64)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kshot.algorithms import DeepEMD
from kshot.core import Spec, Split, UserError
from kshot.nn.conv import Conv4
from kshot.nn.flat import Flat
from kshot.nn.solvers import transport
from kshot.testing import CLAUSES, check_learner, tiny_backbone
from kshot.testing.synthetic import SPECS

WAYS, CHANNELS, NODES = 3, 5, 4


def _maps(n: int, seed: int) -> torch.Tensor:
    # Maps after a ReLU, parts of different strength.
    return torch.randn(n, CHANNELS * NODES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).relu()


def _exact(u: np.ndarray, v: np.ndarray) -> float:
    """Similarity of two maps (C, n): Eq. 6 to 8, by a linear program over all n * n flows."""
    optimize = pytest.importorskip("scipy.optimize")
    n = u.shape[1]
    cosines = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in v.T] for a in u.T])
    have = np.array([max(a @ v.mean(1), 0) + 1e-3 for a in u.T])
    want = np.array([max(b @ u.mean(1), 0) + 1e-3 for b in v.T])
    have, want = have / have.sum(), want / want.sum()
    rows = [np.eye(n)[i][:, None].repeat(n, 1).ravel() for i in range(n)]
    columns = [np.eye(n)[j][None].repeat(n, 0).ravel() for j in range(n)]
    solved = optimize.linprog(1 - cosines.ravel(), A_eq=np.array(rows + columns), b_eq=np.concatenate([have, want]))
    assert solved.success
    return float((solved.x * cosines.ravel()).sum())


def test_a_sharp_matching_is_the_linear_program() -> None:
    support = Split(_maps(2 * WAYS, 0), torch.arange(WAYS).repeat_interleave(2), WAYS)
    queries = _maps(4, 1)
    learner = DeepEMD(Flat((CHANNELS * NODES,)), NODES, temperature=2.0, sharpness=400.0, n_steps=1000)
    got = learner.predict(learner.adapt(support), queries)
    means = torch.stack([support.x[2 * c : 2 * c + 2].mean(0) for c in range(WAYS)])
    pairs = [[(q, p) for p in means.view(WAYS, CHANNELS, NODES)] for q in queries.view(-1, CHANNELS, NODES)]
    expected = torch.tensor([[2 * _exact(q.numpy(), p.numpy()) for q, p in row] for row in pairs], dtype=torch.float64)
    # The entropy of 16 flows over the sharpness: 2.8 / 400, times the temperature.
    torch.testing.assert_close(got, expected, rtol=0, atol=0.014)
    assert float((got - expected).abs().mean()) < 0.005
    blunt = DeepEMD(Flat((CHANNELS * NODES,)), NODES, temperature=2.0, sharpness=1.0, n_steps=300)
    assert bool((blunt.predict(blunt.adapt(support), queries) <= expected + 1e-9).all()), "nothing beats the optimum"


def test_the_flow_keeps_its_margins() -> None:
    g = torch.Generator().manual_seed(0)
    scores = 5 * torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    rows, columns = (torch.rand(2, n, generator=g, dtype=torch.float64) + 0.1 for n in (6, 4))
    rows, columns = rows / rows.sum(-1, keepdim=True), columns / columns.sum(-1, keepdim=True)
    flow = transport(scores, rows, columns, 400)
    torch.testing.assert_close(flow.sum(-1), rows)
    torch.testing.assert_close(flow.sum(-2), columns, rtol=1e-6, atol=1e-9)
    # Optimal: log flow minus scores is a sum of a term for the row and one for the column.
    rest = flow.log() - scores
    torch.testing.assert_close(rest[:, 1:, 1:] - rest[:, :1, 1:], (rest[:, 1:, :1] - rest[:, :1, :1]).expand(2, 5, 3))


def test_one_part_is_a_cosine() -> None:
    x, y = _maps(6, 0), torch.arange(3).repeat_interleave(2)
    learner = DeepEMD(Flat((20,)))
    got = learner.predict(learner.adapt(Split(x, y, 3)), _maps(5, 1))
    means = torch.stack([x[2 * c : 2 * c + 2].mean(0) for c in range(3)])
    expected = 12.5 * F.normalize(_maps(5, 1)) @ F.normalize(means).mT
    torch.testing.assert_close(got, expected)


def test_parts_of_a_map_may_change_places() -> None:
    """What is where does not count: a query whose parts are those of a class, in another order, matches it fully."""
    learner = DeepEMD(Flat((20,)), NODES, temperature=1.0, sharpness=300.0, n_steps=500)
    parts = 3 * torch.eye(CHANNELS, NODES, dtype=torch.float64)
    others = torch.zeros_like(parts)
    others[4] = 3
    support = Split(torch.stack([parts.flatten(), others.flatten()]), torch.arange(2), 2)
    query = parts[:, [2, 0, 3, 1]].reshape(1, -1)
    answers = learner.predict(learner.adapt(support), query)
    assert float(answers[0, 0]) == pytest.approx(1, abs=0.01)
    assert float(answers[0, 1]) == pytest.approx(0, abs=0.01)


def test_maps_of_a_network_are_cut_into_their_places() -> None:
    backbone = Conv4(1, 8, 28, downsample="first2")
    learner = DeepEMD.from_backbone(backbone, Spec("classification", (1, 28, 28), 3))
    assert learner.n_nodes == 49
    z = torch.arange(8 * 49.0).view(1, -1)
    assert torch.equal(learner.nodes(z)[0, 5], z.view(8, 49)[:, 5])


def test_the_contract_with_several_parts() -> None:
    settings = {"temperature": 2.0, "sharpness": 4.0, "n_steps": 6}
    report = check_learner(lambda spec: DeepEMD(tiny_backbone(spec), 2, **settings), SPECS["classification"])
    assert {line.clause for line in report} == set(CLAUSES)


@pytest.mark.parametrize("wrong", [{"n_steps": 0}, {"temperature": 0.0}, {"sharpness": -1.0}, {"n_nodes": 0}])
def test_numbers_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(UserError, match="expected n_nodes and n_steps >= 1"):
        DeepEMD(Flat((4,)), **wrong)
