"""Metric methods by plain loops, written from the papers (float64)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.algorithms import FEAT, GaussianProtoNet, MatchingNet, RelationNet
from kshot.algorithms.metric.relation import Relation
from kshot.core import Episode, Learner, Spec
from kshot.nn.conv import Conv4
from kshot.nn.flat import Flat
from kshot.testing import synthetic_episode

WAYS, WIDTH = 3, 6
SPEC = Spec("classification", (WIDTH,), WAYS)


def ready(learner: Learner) -> Learner:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return learner.double().eval()


def answers(learner: Learner, one: Episode) -> Tensor:
    with torch.no_grad():
        return learner.predict(learner.adapt(one.support), one.query.x)


def matching_by_loops(f: Tensor, g: Tensor, y: Tensor, scale: float) -> Tensor:
    out = torch.zeros(len(f), WAYS, dtype=torch.float64)
    for q in range(len(f)):
        exps = [torch.exp(scale * F.cosine_similarity(f[q], g[i], dim=0)) for i in range(len(g))]
        for i in range(len(g)):
            out[q, y[i]] += exps[i] / sum(exps)
    return out.log()


def test_matching_networks() -> None:
    one, learner = synthetic_episode(SPEC), MatchingNet(Flat((WIDTH,)), scale=3.0).double().eval()
    expected = matching_by_loops(one.query.x, one.support.x, one.support.y, 3.0)
    torch.testing.assert_close(answers(learner, one), expected, rtol=1e-8, atol=1e-8)


def test_full_context_embeddings() -> None:
    """Appendix A.1 and A.2, with PyTorch's own LSTM reading the support."""
    one, learner = synthetic_episode(SPEC), ready(MatchingNet(Flat((WIDTH,)), fce=True, n_processing=3, scale=10.0))
    x, xq = one.support.x, one.query.x

    lstm = nn.LSTM(WIDTH, WIDTH, bidirectional=True).double()
    with torch.no_grad():
        for suffix, part in (("", learner.forwards), ("_reverse", learner.backwards)):
            getattr(lstm, f"weight_ih_l0{suffix}").copy_(part.gates.weight[:, :WIDTH])
            getattr(lstm, f"weight_hh_l0{suffix}").copy_(part.gates.weight[:, WIDTH:])
            getattr(lstm, f"bias_ih_l0{suffix}").copy_(part.gates.bias)
            getattr(lstm, f"bias_hh_l0{suffix}").zero_()
        both, _ = lstm(x)
        g = both[:, :WIDTH] + both[:, WIDTH:] + x
        f = torch.zeros_like(xq)
        w, b = learner.attending.gates.weight, learner.attending.gates.bias
        for q in range(len(xq)):
            h, c = xq[q], torch.zeros(WIDTH, dtype=torch.float64)
            for _ in range(3):
                a = torch.softmax(torch.stack([h @ g[i] for i in range(len(g))]), 0)
                r = sum((a[i] * g[i] for i in range(len(g))), torch.zeros_like(h))
                i_, f_, g_, o_ = (w @ torch.cat([xq[q], h, r]) + b).chunk(4)
                c = torch.sigmoid(f_) * c + torch.sigmoid(i_) * torch.tanh(g_)
                h = torch.sigmoid(o_) * torch.tanh(c) + xq[q]
            f[q] = h
    expected = matching_by_loops(f, g, one.support.y, 10.0)
    torch.testing.assert_close(answers(learner, one), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("covariance", ["radius", "diagonal"])
def test_gaussian_prototypes(covariance: str) -> None:
    one = synthetic_episode(SPEC, n_shot=[1, 2, 3])
    learner = ready(GaussianProtoNet(Flat((WIDTH,)), covariance=covariance))  # pyright: ignore[reportArgumentType]
    x, y = one.support.x, one.support.y
    expected = torch.zeros(len(one.query.y), WAYS, dtype=torch.float64)
    with torch.no_grad():
        for c in range(WAYS):
            total, weighted = 0.0, 0.0
            for i in range(len(y)):
                if int(y[i]) == c:
                    s = 1 + torch.log1p(torch.exp(learner.confidence(x[i])))
                    total, weighted = total + s, weighted + s * x[i]
            for q, xq in enumerate(one.query.x):
                expected[q, c] = -torch.sqrt((total * (xq - weighted / total) ** 2).sum())
    torch.testing.assert_close(answers(learner, one), expected, rtol=1e-6, atol=1e-6)


def attend(learner: FEAT, items: list[Tensor]) -> list[Tensor]:
    part, out = learner.attention, []
    for one in items:
        scores = torch.stack([part.query(one) @ part.key(other) / WIDTH**0.5 for other in items])
        a = torch.softmax(scores, 0)
        read = sum((a[j] * part.value(other) for j, other in enumerate(items)), torch.zeros_like(one))
        out.append(F.layer_norm(part.out(read) + one, (WIDTH,), part.norm.weight, part.norm.bias))
    return out


def test_feat() -> None:
    one, learner = synthetic_episode(SPEC), ready(FEAT(Flat((WIDTH,)), temperature=4.0, balance=0.3))
    x, y, xq, yq = one.support.x, one.support.y, one.query.x, one.query.y
    with torch.no_grad():
        adapted = attend(learner, [x[y == c].mean(0) for c in range(WAYS)])
        logits = torch.stack([torch.stack([-((q - p) ** 2).sum() / 4 for p in adapted]) for q in xq])
        z, labels = torch.cat([x, xq]), torch.cat([y, yq])
        centres = [torch.stack(attend(learner, list(z[labels == c]))).mean(0) for c in range(WAYS)]
        pulled = torch.stack([torch.stack([-((one_ - c) ** 2).sum() / 4 for c in centres]) for one_ in z])
        loss = F.cross_entropy(logits, yq) + 0.3 * F.cross_entropy(pulled, labels)
    torch.testing.assert_close(answers(learner, one), logits, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(learner.outer_loss(one), loss, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_relation_networks_on_maps(combine: str) -> None:
    """Two blocks and two linear layers on concatenated maps, a class being the sum or the mean of its support's."""
    spec = Spec("classification", (1, 16, 16), WAYS)
    backbone = Conv4(1, 3, 16, "none", "first2")
    assert backbone.map_shape == (3, 4, 4)
    one, learner = synthetic_episode(spec), ready(RelationNet.from_backbone(backbone, spec, combine=combine))
    assert isinstance(learner.relation, Relation)
    r = learner.relation
    with torch.no_grad():
        z, zq = backbone(one.support.x).view(-1, 3, 4, 4), backbone(one.query.x).view(-1, 3, 4, 4)
        expected = torch.zeros(len(zq), WAYS, dtype=torch.float64)
        for q in range(len(zq)):
            for c in range(WAYS):
                pair = torch.cat([getattr(z[one.support.y == c], combine)(0), zq[q]])[None]
                for block in (r.trunk[0], r.trunk[1]):
                    pair = F.max_pool2d(F.relu(F.conv2d(pair, block.conv.weight, block.conv.bias, padding=1)), 2)
                expected[q, c] = r.out(F.relu(r.hidden(pair.flatten()))).squeeze()
        scores, truth = torch.sigmoid(expected), F.one_hot(one.query.y, WAYS).double()
    torch.testing.assert_close(answers(learner, one), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(learner.outer_loss(one), ((scores - truth) ** 2).mean(), rtol=1e-8, atol=1e-8)
