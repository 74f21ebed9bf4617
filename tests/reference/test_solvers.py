"""Heads that are solutions, against slow and independent solvers (float64)."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm
from torch import Tensor, nn

from kshot.algorithms import DKT, LRD2, R2D2, LinearProbe, MetaOptNet
from kshot.core import Episode, Learner, Spec
from kshot.nn.flat import Flat
from kshot.testing import synthetic_episode

SPEC = Spec("classification", (6,), 3)


def episode(n_shot: int = 4) -> Episode:
    return synthetic_episode(SPEC, n_shot=n_shot, n_query=3)


def ready(learner: Learner) -> Learner:
    with torch.no_grad():  # scalars that are not where they start
        for p in learner.parameters():
            p.add_(0.3)
    return learner.double().eval().requires_grad_(False)


def answers(learner: Learner, one: Episode) -> np.ndarray:
    with torch.no_grad():
        return learner.predict(learner.adapt(one.support), one.query.x).numpy()


def ones(x: Tensor) -> np.ndarray:
    return np.hstack([x.numpy(), np.ones((len(x), 1))])


def labels(y: Tensor) -> np.ndarray:
    return np.eye(SPEC.n_outputs)[y.numpy()]


@pytest.mark.parametrize("n_shot", [1, 4])
def test_r2d2_is_least_squares_on_the_augmented_system(n_shot: int) -> None:
    one, learner = episode(n_shot), ready(R2D2(Flat((6,))))
    root = float(learner.log_penalty.exp().sqrt())
    x, y = ones(one.support.x), labels(one.support.y)
    stacked = np.vstack([x, root * np.eye(x.shape[1])]), np.vstack([y, np.zeros((x.shape[1], y.shape[1]))])
    w = np.linalg.lstsq(*stacked, rcond=None)[0]
    expected = float(learner.log_scale.exp()) * ones(one.query.x) @ w + float(learner.shift)
    np.testing.assert_allclose(answers(learner, one), expected, rtol=1e-8, atol=1e-9)


def test_lrd2_goes_where_a_general_minimiser_goes() -> None:
    one, learner = episode(), ready(LRD2(Flat((6,)), n_steps=12))
    x, penalty = ones(one.support.x), float(learner.log_penalty.exp())
    columns = []
    for k in range(SPEC.n_outputs):
        sign = 2 * labels(one.support.y)[:, k] - 1
        found = minimize(
            lambda w, s=sign: np.logaddexp(0, -s * (x @ w)).sum() + penalty / 2 * w @ w, np.zeros(7), tol=1e-12
        )
        columns.append(found.x)
    expected = float(learner.log_scale.exp()) * ones(one.query.x) @ np.stack(columns, 1)
    np.testing.assert_allclose(answers(learner, one), expected, atol=1e-4)


def test_linear_probe_goes_where_lbfgs_goes() -> None:
    one, learner = episode(), LinearProbe(Flat((6,)), penalty=0.3).double().eval()
    norm = lambda x: (x / x.norm(dim=1, keepdim=True)).numpy()  # noqa: E731
    x, y = norm(one.support.x), labels(one.support.y)

    def loss(flat: np.ndarray) -> float:
        w, b = flat[:18].reshape(6, 3), flat[18:]
        f = x @ w + b
        return float((np.log(np.exp(f).sum(1)) - (f * y).sum(1)).sum() + 0.15 * (w**2).sum())

    flat = minimize(
        loss, np.zeros(21), method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 10**6, "ftol": 1e-14, "gtol": 1e-8}
    ).x
    expected = norm(one.query.x) @ flat[:18].reshape(6, 3) + flat[18:]
    got = answers(learner, one)
    np.testing.assert_allclose(got - got.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-3)


@pytest.mark.parametrize("penalty", [0.1, 1.0])
def test_metaoptnet_goes_where_a_constrained_minimiser_goes(penalty: float) -> None:
    """The dual of Crammer and Singer, in its own variables alpha, by sequential least squares."""
    one, learner = episode(3), ready(MetaOptNet(Flat((6,)), penalty=penalty))
    x, y = one.support.x.numpy(), labels(one.support.y)
    n, ways = y.shape

    def dual(alpha: np.ndarray) -> float:
        a = alpha.reshape(n, ways)
        return float(0.5 * ((x.T @ a) ** 2).sum() - (a * y).sum())

    slope = lambda alpha: (x @ x.T @ alpha.reshape(n, ways) - y).ravel()  # noqa: E731
    rows = np.kron(np.eye(n), np.ones(ways))
    found = minimize(
        dual,
        np.zeros(n * ways),
        jac=slope,
        bounds=[(None, penalty * v) for v in y.ravel()],
        constraints={"type": "eq", "fun": lambda a: rows @ a, "jac": lambda a: rows},
        method="SLSQP",
        options={"maxiter": 2000, "ftol": 1e-15},
    )
    w = x.T @ found.x.reshape(n, ways)
    expected = float(learner.log_scale.exp()) * one.query.x.numpy() @ w
    np.testing.assert_allclose(answers(learner, one), expected, atol=3e-3)


def kernel(learner: DKT, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    variance = float(learner.log_variance.exp())
    out = np.zeros((len(a), len(b)))
    for i, u in enumerate(a):
        for j, v in enumerate(b):
            if "cos" in learner.kernel:
                out[i, j] = variance * u @ v / np.linalg.norm(u) / np.linalg.norm(v)
            elif learner.kernel == "linear":
                out[i, j] = variance * u @ v
            else:
                out[i, j] = variance * np.exp(-((u - v) ** 2).sum() / 2 / float(learner.log_length.exp()) ** 2)
    return out


@pytest.mark.parametrize("name", ["bncossim", "cosine", "linear", "rbf"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_dkt_is_a_gaussian_process(name: str, kind: str) -> None:
    spec = SPEC if kind == "classification" else Spec("regression", (6,), 2)
    one, learner = synthetic_episode(spec, n_shot=4, n_query=3), ready(DKT(Flat((6,)), kernel=name))  # pyright: ignore[reportArgumentType]
    noise, mean = float(learner.log_noise.exp()), float(learner.mean)
    x, xq = one.support.x.numpy(), one.query.x.numpy()
    if name == "bncossim":
        learner.running_mean, learner.running_var = (0.1 * torch.arange(6.0).double() + shift for shift in (-0.2, 0.4))
        x, xq = ((v - learner.running_mean.numpy()) / np.sqrt(learner.running_var.numpy() + 1e-5) for v in (x, xq))
    targets = [2 * labels(s.y) - 1 if kind == "classification" else s.y.numpy() for s in one]

    k = kernel(learner, x, x) + noise * np.eye(len(x))
    expected = mean + kernel(learner, xq, x) @ np.linalg.inv(k) @ (targets[0] - mean)
    variance = np.diag(kernel(learner, xq, xq) - kernel(learner, xq, x) @ np.linalg.inv(k) @ kernel(learner, x, xq))
    with torch.no_grad():
        got, spread = learner.predictive(learner.adapt(one.support), one.query.x)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(spread.numpy(), variance + noise, rtol=1e-7)
    logits = 2 * expected / (variance + noise)[:, None] if kind == "classification" else expected
    np.testing.assert_allclose(answers(learner, one), logits, rtol=1e-7, atol=1e-8)

    whole, both = np.vstack([x, xq]), np.vstack(targets)
    density = multivariate_normal(np.full(len(whole), mean), kernel(learner, whole, whole) + noise * np.eye(len(whole)))
    logs = [density.logpdf(column) for column in both.T]
    assert float(learner.outer_loss(one)) == pytest.approx(-sum(logs) / len(whole), rel=1e-8)


@pytest.mark.parametrize("name", ["bncossim", "cosine", "linear", "rbf"])
def test_dkt_gives_the_probabilities_of_bayes_rule(name: str) -> None:
    """Class by class: how likely its targets are, +1 in its own place and -1 elsewhere, under what is predicted."""
    one, learner = synthetic_episode(SPEC, n_shot=4, n_query=3), ready(DKT(Flat((6,)), kernel=name))  # pyright: ignore[reportArgumentType]
    mean, variance = (t.numpy() for t in learner.predictive(learner.adapt(one.support), one.query.x))
    likely = [norm.pdf(2 * labels(torch.tensor([c])) - 1, mean, np.sqrt(variance)[:, None]).prod(1) for c in range(3)]
    by_hand = np.stack(likely, 1) / np.sum(likely, 0)[:, None]
    got = torch.from_numpy(answers(learner, one)).softmax(-1).numpy()
    np.testing.assert_allclose(got, by_hand, rtol=1e-8, atol=1e-12)
    assert (got.argmax(1) == mean.argmax(1)).all()


def test_dkt_normalises_each_task_while_training_and_remembers_for_the_test() -> None:
    learner, one = DKT(Flat((6,))).double().train(), episode()
    z = torch.cat([one.support.x, one.query.x])
    loss = learner.outer_loss(one)
    torch.testing.assert_close(learner.running_mean, 0.1 * z.mean(0))
    torch.testing.assert_close(learner.running_var, 0.9 + 0.1 * z.var(0, correction=0))
    by_hand = (z - z.mean(0)) / torch.sqrt(z.var(0, correction=0) + 1e-5)
    plain = DKT(Flat((6,)), kernel="cosine").double()
    n = len(one.support.y)
    expected = plain.outer_loss(Episode(one.support._replace(x=by_hand[:n]), one.query._replace(x=by_hand[n:])))
    torch.testing.assert_close(loss, expected)


def test_dkt_is_unsure_far_from_what_it_has_seen() -> None:
    learner = ready(DKT(nn.Identity(), kernel="rbf"))
    one = synthetic_episode(Spec("regression", (1,), 1), n_shot=5)
    with torch.no_grad():
        state = learner.adapt(one.support)
        _, near = learner.predictive(state, one.support.x)
        _, far = learner.predictive(state, one.support.x + 100)
    assert float(near.max()) < float(far.min())
    torch.testing.assert_close(far, torch.full_like(far, float(learner.log_variance.exp() + learner.log_noise.exp())))
