"""The conditional neural process against Eq. 1 to 4 of its paper, point by point (float64)."""

import math

import torch
import torch.nn.functional as F

from kshot.algorithms import CNP
from kshot.core import Spec
from kshot.testing import synthetic_episode, tiny_backbone


def test_regression() -> None:
    spec = Spec("regression", (2,), 2)
    learner = CNP(tiny_backbone(spec), spec, n_hidden=6, encoder_layers=2, decoder_layers=2).double().eval()
    support, query = synthetic_episode(spec, n_shot=4, n_query=3)
    with torch.no_grad():
        zs, zq = learner.backbone(support.x), learner.backbone(query.x)
        r = torch.zeros(6, dtype=torch.float64)
        for z, y in zip(zs, support.y, strict=True):
            r += learner.encoder(torch.cat([z, y])) / 4
        total, means = 0.0, []
        for z, y in [*zip(zs, support.y, strict=True), *zip(zq, query.y, strict=True)]:
            out = learner.decoder(torch.cat([z, r])).tolist()
            means.append(out[:2])
            for o in range(2):
                sigma = 0.1 + 0.9 * math.log1p(math.exp(out[2 + o]))
                total += (float(y[o]) - out[o]) ** 2 / (2 * sigma**2) + math.log(sigma * math.sqrt(2 * math.pi))
        got = learner.predict(learner.adapt(support), query.x)
    torch.testing.assert_close(got, torch.tensor(means[4:], dtype=torch.float64), rtol=1e-9, atol=1e-11)
    loss = learner.outer_loss(type(synthetic_episode(spec))(support, query))
    assert abs(float(loss.detach()) - total / (7 * 2)) < 1e-9


def test_classes_are_averaged_apart_and_stand_side_by_side() -> None:
    spec = Spec("classification", (1, 8, 8), 3)
    learner = CNP(tiny_backbone(spec), spec, n_hidden=5, encoder_layers=1, decoder_layers=2).double().eval()
    episode = synthetic_episode(spec, n_shot=[1, 3, 2], n_query=2)
    support, query = episode
    with torch.no_grad():
        zs, zq = learner.backbone(support.x), learner.backbone(query.x)
        r = []
        for k in range(3):
            mine = [learner.encoder(zs[i]) for i in range(len(zs)) if int(support.y[i]) == k]
            r.append(sum(mine) / len(mine))
        logits = torch.stack([learner.decoder(torch.cat([z, *r])) for z in torch.cat([zs, zq])])
        got = learner.predict(learner.adapt(support), query.x)
        loss = learner.outer_loss(episode)
    torch.testing.assert_close(got, logits[len(zs) :], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.cat([support.y, query.y])), rtol=1e-9, atol=1e-11)


def test_a_class_that_was_not_seen_leaves_the_others_their_answers() -> None:
    spec = Spec("classification", (1, 8, 8), 3)
    learner = CNP(tiny_backbone(spec), spec, n_hidden=5).double().eval()
    support, query = synthetic_episode(spec, n_shot=2)
    seen = support.y > 0
    with torch.no_grad():
        state = learner.adapt(support._replace(x=support.x[seen], y=support.y[seen]))
        assert learner.predict(state, query.x).isfinite().all()
    assert state.head[:5].tolist() == [0.0] * 5
