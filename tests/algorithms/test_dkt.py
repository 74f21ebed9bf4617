"""DKT says how sure it is: its probabilities are about as often right as they are high."""

import pytest
import torch
from torch import Tensor

from kshot.algorithms import DKT
from kshot.core import Spec
from kshot.evaluation import metrics
from kshot.nn.flat import Flat
from kshot.testing import synthetic_episode

SPEC = Spec("classification", (6,), 5)


def trained(kernel: str, n_shot: int) -> DKT:
    learner = DKT(Flat((6,)), kernel=kernel).double().train()  # pyright: ignore[reportArgumentType]
    optimiser = torch.optim.Adam(learner.parameters(), 0.05)
    for i in range(60):
        optimiser.zero_grad()
        learner.outer_loss(synthetic_episode(SPEC, n_shot=n_shot, n_query=3, seed=1000 + i)).backward()
        optimiser.step()
    return learner.eval().requires_grad_(False)


def error(logits: list[Tensor], y: list[Tensor]) -> float:
    return metrics.calibration_error(metrics.confidence_bins(torch.stack(logits), torch.stack(y)).sum(0))


@pytest.mark.parametrize("n_shot", [1, 5])
@pytest.mark.parametrize("kernel", ["bncossim", "cosine", "linear"])
def test_probabilities_are_calibrated_and_the_answer_is_that_of_the_means(kernel: str, n_shot: int) -> None:
    learner = trained(kernel, n_shot)
    logits, means, truth = [], [], []
    for i in range(40):
        one = synthetic_episode(SPEC, n_shot=n_shot, n_query=10, seed=i)
        state = learner.adapt(one.support)
        logits.append(learner.predict(state, one.query.x))
        means.append(learner.predictive(state, one.query.x)[0])
        truth.append(one.query.y)
    # A softmax of the bare means stands at 0.38 to 0.44 here, of Phi(mean / sqrt(1 + variance)) at 0.41 to 0.48.
    assert error(logits, truth) < 0.12 < 0.35 < error(means, truth)
    assert all(torch.equal(a.argmax(-1), b.argmax(-1)) for a, b in zip(logits, means, strict=True))


def test_a_kernel_without_noise_leaves_no_variance_to_divide_by_zero() -> None:
    one = synthetic_episode(SPEC, n_shot=2, dtype=torch.float32)
    learner = DKT(Flat((6,)), kernel="linear").eval().requires_grad_(False)
    learner.log_noise.fill_(-18.0)
    state = learner.adapt(one.support)
    mean, variance = learner.predictive(state, one.support.x)  # what was seen, of which nothing is left to know
    assert float(variance.min()) >= float(learner.log_noise.exp())
    assert bool(torch.isfinite(learner.predict(state, one.support.x)).all())
    assert bool(torch.isfinite(mean).all())
