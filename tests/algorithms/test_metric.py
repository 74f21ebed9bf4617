"""SimpleShot by hand, and the doors of the metric and solver families."""

import pytest
import torch
from torch import nn

from kshot.algorithms import (
    DKT,
    FEAT,
    LRD2,
    GaussianProtoNet,
    LinearProbe,
    MatchingNet,
    MetaOptNet,
    SimpleShot,
)
from kshot.core import Spec, UserError
from kshot.nn.flat import Flat
from kshot.testing import synthetic_episode, synthetic_episodes

SPEC = Spec("classification", (4,), 3)


@pytest.mark.parametrize("transform", ["un", "l2n", "cl2n"])
def test_simpleshot_is_the_nearest_mean_of_transformed_features(transform: str) -> None:
    one = synthetic_episode(SPEC)
    learner = SimpleShot(Flat((4,)), transform=transform).double().eval()  # pyright: ignore[reportArgumentType]
    learner.mean = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)

    def changed(x: torch.Tensor) -> torch.Tensor:
        rows = []
        for row in x:
            centred = row - learner.mean if transform == "cl2n" else row
            rows.append(centred if transform == "un" else centred / centred.norm())
        return torch.stack(rows)

    z, zq = changed(one.support.x), changed(one.query.x)
    means = torch.stack([z[one.support.y == c].mean(0) for c in range(3)])
    got = learner.predict(learner.adapt(one.support), one.query.x)
    torch.testing.assert_close(got, -(torch.cdist(zq, means) ** 2), rtol=1e-8, atol=1e-8)


def test_simpleshot_follows_the_mean_of_its_training_features() -> None:
    learner, batches = SimpleShot.from_backbone(Flat((4,)), SPEC).double().train(), synthetic_episodes(SPEC, 30)
    seen = torch.cat([batches.support.x, batches.query.x], 1)
    for i in range(30):
        learner.outer_losses(type(batches)(*(s._replace(x=s.x[i : i + 1], y=s.y[i : i + 1]) for s in batches)))
    # For the first hundred batches it is the plain mean.
    torch.testing.assert_close(learner.mean, seen.flatten(0, 1).mean(0))
    assert float(learner.n_seen) == 30
    learner.eval().outer_losses(batches)
    assert float(learner.n_seen) == 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimpleShot(nn.Identity(), transform="l3n"), "transform must be one of un, l2n, cl2n, got 'l3n'"),  # pyright: ignore[reportArgumentType]
        (lambda: MatchingNet(nn.Identity(), n_processing=0), "n_processing >= 1 and scale > 0, got 0"),
        (lambda: MatchingNet(nn.Identity(), scale=0.0), "scale > 0, got 5 and 0.0"),
        (lambda: GaussianProtoNet(Flat((2,)), covariance="full"), "one of radius, diagonal, got 'full'"),  # pyright: ignore[reportArgumentType]
        (lambda: FEAT(Flat((2,)), temperature=0.0), "temperature > 0 and balance >= 0, got 0.0"),
        (lambda: LRD2(nn.Identity(), n_steps=0), "n_steps >= 1, got 0"),
        (lambda: LinearProbe(nn.Identity(), penalty=0.0), "penalty > 0, got 0.0"),
        (lambda: MetaOptNet(nn.Identity(), penalty=-1.0), "penalty > 0, got -1.0"),
        (lambda: DKT(nn.Identity(), kernel="matern"), "one of bncossim, cosine, linear, rbf, got 'matern'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_settings_that_make_no_sense(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
