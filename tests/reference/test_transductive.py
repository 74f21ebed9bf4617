"""Transductive methods by plain loops, written from the papers (float64)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.algorithms import BDCSPN, PTMAP, TIM, LaplacianShot
from kshot.core import Episode, Learner, Spec, Split
from kshot.nn.flat import Flat
from kshot.testing import synthetic_episode

WAYS, WIDTH = 3, 6
SPEC = Spec("classification", (WIDTH,), WAYS)


def answers(learner: Learner, one: Episode) -> Tensor:
    learner = learner.double().eval()
    with torch.no_grad():
        return learner.predict(learner.adapt(one.support), one.query.x)


def means(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([z[y == c].mean(0) for c in range(WAYS)])


def test_bd_cspn() -> None:
    one = synthetic_episode(SPEC, n_query=5)
    x, xq, y = F.normalize(one.support.x), F.normalize(one.query.x), one.support.y
    xq = xq + x.mean(0) - xq.mean(0)
    prototypes = means(x, y)
    cosines = torch.stack([torch.stack([F.cosine_similarity(q, p, dim=0) for p in prototypes]) for q in xq])
    rectified = []
    for c in range(WAYS):
        mine = sorted(
            (i for i in range(len(xq)) if int(cosines[i].argmax()) == c), key=lambda i, c=c: -float(cosines[i, c])
        )
        members = [*x[y == c], *(xq[i] for i in mine[:2])]
        weights = [torch.exp(10 * F.cosine_similarity(m, prototypes[c], dim=0)) for m in members]
        rectified.append(sum((w * m for w, m in zip(weights, members, strict=True)), torch.zeros(WIDTH)) / sum(weights))
    expected = torch.stack([torch.stack([10 * F.cosine_similarity(q, p, dim=0) for p in rectified]) for q in xq])
    got = answers(BDCSPN(Flat((WIDTH,)), n_confident=2), one)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def tim_loss(w: Tensor, x: Tensor, y: Tensor, xq: Tensor) -> float:
    """The loss of TIM with lambda = alpha = 0.1."""
    p, pq = (torch.softmax(-7.5 * torch.cdist(z, w) ** 2, 1) for z in (x, xq))
    cross = -p.log()[torch.arange(len(y)), y].mean()
    marginal = pq.mean(0)
    return float(0.1 * cross + (marginal * marginal.log()).sum() - 0.1 * (pq * pq.log()).sum(1).mean())


def test_tim_by_alternating_directions() -> None:
    one = synthetic_episode(SPEC, n_query=5)
    x, xq, y = F.normalize(one.support.x), F.normalize(one.query.x), one.support.y
    w, before = means(x, y), tim_loss(means(x, y), x, y, xq)
    n, nq, onehot = len(x), len(xq), F.one_hot(y, WAYS).double()
    for _ in range(10):
        p = torch.softmax(-7.5 * torch.cdist(x, w) ** 2, 1)
        pq = torch.softmax(-7.5 * torch.cdist(xq, w) ** 2, 1)
        q = torch.stack([pq[i] ** 1.1 / (pq**1.1).sum(0).sqrt() for i in range(nq)])
        q = q / q.sum(1, keepdim=True)
        new = []
        for k in range(WAYS):
            top = torch.zeros(WIDTH, dtype=torch.float64)
            for i in range(n):
                top = top + 0.1 / 1.1 * (onehot[i, k] * x[i] + p[i, k] * (w[k] - x[i]))
            for i in range(nq):
                top = top + n / nq * (q[i, k] * xq[i] + pq[i, k] * (w[k] - xq[i]))
            new.append(top / (0.1 / 1.1 * onehot[:, k].sum() + n / nq * q[:, k].sum()))
        w = torch.stack(new)
    got = answers(TIM(Flat((WIDTH,)), n_steps=10), one)
    torch.testing.assert_close(got, -7.5 * torch.cdist(xq, w) ** 2, rtol=1e-6, atol=1e-6)
    assert tim_loss(w, x, y, xq) < before


def test_laplacianshot() -> None:
    one = synthetic_episode(SPEC, n_query=5)
    centre = torch.linspace(-0.5, 0.5, WIDTH, dtype=torch.float64)
    x, xq, y = F.normalize(one.support.x - centre), F.normalize(one.query.x - centre), one.support.y
    xq = xq + x.mean(0) - xq.mean(0)
    m = means(x, y)

    def shares(v: Tensor) -> Tensor:
        parts = torch.stack([torch.exp(10 * F.cosine_similarity(v, p, dim=0)) for p in m])
        return parts / parts.sum()

    prototypes = []
    for c in range(WAYS):
        members = [*x[y == c], *(q for q in xq if int(shares(q).argmax()) == c)]
        prototypes.append(sum((shares(v)[c] * v for v in members), torch.zeros(WIDTH)) / len(members))
    unary = torch.cdist(xq, torch.stack(prototypes)) ** 2
    near = []
    for i in range(len(xq)):
        others = sorted((j for j in range(len(xq)) if j != i), key=lambda j, i=i: float(((xq[i] - xq[j]) ** 2).sum()))
        near.append(others[:3])
    y_q = torch.softmax(-unary, 1)
    logits = -unary
    for _ in range(20):
        logits = torch.stack(
            [-unary[i] + 0.7 * sum((y_q[j] for j in near[i]), torch.zeros(WAYS)) for i in range(len(xq))]
        )
        y_q = torch.softmax(logits, 1)
    learner = LaplacianShot(Flat((WIDTH,)))
    learner.mean = centre
    torch.testing.assert_close(answers(learner, one), logits, rtol=1e-7, atol=1e-7)


def test_laplacianshot_answers_features_with_much_in_common_once_they_are_centred() -> None:
    """Weights over the classes shrink uncentred prototypes by unlike factors, and one attracts all queries."""
    g = torch.Generator().manual_seed(0)
    common, centres = 3 * torch.rand(40, generator=g), 0.4 * torch.randn(WAYS, 40, generator=g)
    y = torch.arange(WAYS).repeat_interleave(12)
    x = (common + centres[y] + 0.4 * torch.randn(len(y), 40, generator=g)).double()
    shot = torch.arange(len(y)) % 12 == 0
    one = Episode(Split(x[shot], y[shot], WAYS), Split(x[~shot], y[~shot], WAYS))
    learner = LaplacianShot(Flat((40,)))
    learner.mean = common.double()
    assert float((answers(learner, one).argmax(-1) == one.query.y).double().mean()) > 0.95


def test_pt_map() -> None:
    one = synthetic_episode(SPEC, n_query=4)
    x, xq, y = (*(F.normalize((s.x.clamp(min=0) + 1e-6) ** 0.5) for s in one), one.support.y)
    x, xq = (torch.stack([(row - z.mean(0)) / (row - z.mean(0)).norm() for row in z]) for z in (x, xq))
    centres, onehot = means(x, y), F.one_hot(y, WAYS).double()

    def transport(centres: Tensor) -> Tensor:
        plan = torch.exp(-10 * torch.cdist(xq, centres) ** 2)
        for _ in range(60):
            plan = plan / plan.sum(0, keepdim=True) * (len(xq) / WAYS)
            plan = plan / plan.sum(1, keepdim=True)
        return plan

    for _ in range(20):
        assigned = torch.cat([onehot, transport(centres)])
        new = torch.stack(
            [(assigned[:, k : k + 1] * torch.cat([x, xq])).sum(0) / assigned[:, k].sum() for k in range(WAYS)]
        )
        centres = centres + 0.2 * (new - centres)
    torch.testing.assert_close(answers(PTMAP(Flat((WIDTH,))), one).exp(), transport(centres), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cls", [BDCSPN, LaplacianShot, PTMAP])
def test_a_query_that_comes_alone_is_looked_at(cls: type[Learner]) -> None:
    """Less the mean of itself it would be nothing, and every answer the same."""
    torch.manual_seed(0)
    means = 6 * torch.eye(4, 9)
    learner = cls(nn.Identity()).eval()  # pyright: ignore[reportCallIssue]
    state = learner.adapt(Split(means.repeat(3, 1) + torch.rand(12, 9), torch.arange(4).repeat(3), 4))
    alone = [int(learner.predict(state, q[None]).argmax()) for q in means + torch.rand(4, 9)]
    assert alone == [0, 1, 2, 3]
