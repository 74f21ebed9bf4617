"""Heads against the formulas written out, and against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.core import UserError
from kshot.estimator.heads import STRENGTHS, Spread, centre_of, class_means, fit_head, fit_path, units


def shots(n_classes=4, n=6, d=5, seed=0, spread=0.6):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n_classes).repeat_interleave(n)[: n_classes * n - 2]  # the last class has fewer
    centres = torch.randn(n_classes, d, generator=g, dtype=torch.float64)
    return centres[y] + spread * torch.randn(len(y), d, generator=g, dtype=torch.float64), y


@pytest.mark.parametrize(("n", "d"), [(3, 7), (7, 3), (4, 4)])
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.5), (0.3, 2.0)])
def test_spread_is_the_inverse(n, d, a, b):
    g = torch.Generator().manual_seed(1)
    r, m = torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(2, d, generator=g, dtype=torch.float64)
    expected = m @ torch.linalg.inv(a * r.T @ r + b * torch.eye(d, dtype=r.dtype))
    torch.testing.assert_close(Spread.of(r).solve(m, a, b), expected)


def test_spread_of_a_matrix_without_full_rank():
    row = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    spread = Spread.of(torch.cat([row, 2 * row, 0 * row, row, -row]))
    assert len(spread.values) == 1
    assert float(spread.values[0]) == pytest.approx(5 * (1 + 4 + 0 + 1 + 1))


def test_centre_weighs_classes_not_examples():
    z = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    torch.testing.assert_close(centre_of(z, torch.tensor([0, 0, 1]), 2), torch.tensor([0.5, 0.5]))


def test_a_zero_vector_has_a_finite_place():
    assert bool(torch.isfinite(units(torch.zeros(1, 3), torch.zeros(3))).all())


def test_plain_prototypes_answer_the_nearest_mean():
    z, y = shots()
    head = fit_head(z, y, 4, "prototypes", 1.0)
    u = units(z, head.centre)
    means = class_means(u, y, 4)
    variance = (u - means[y]).square().sum() / (len(y) - 4) / 5
    distances = torch.cdist(u, means).square()
    expected = -(distances - u.square().sum(1, keepdim=True)) / 2 / variance
    torch.testing.assert_close(head.logits(z), expected)


@pytest.mark.parametrize("r", [0.1, 0.5])
def test_shrunk_prototypes_are_gaussians_with_a_common_covariance(r):
    z, y = shots()
    head = fit_head(z, y, 4, "prototypes", r)
    u = units(z, head.centre)
    means = class_means(u, y, 4)
    s = (u - means[y]).T @ (u - means[y]) / (len(y) - 4)
    s = (1 - r) * s + r * s.trace() / 5 * torch.eye(5, dtype=s.dtype)
    logp = torch.stack([torch.distributions.MultivariateNormal(m, s).log_prob(u) for m in means], 1)
    torch.testing.assert_close(head.logits(z).log_softmax(1), logp.log_softmax(1))


def test_ridge_solves_the_weighted_normal_equations():
    z, y = shots()
    head = fit_head(z, y, 4, "ridge", 0.3)
    u = units(z, head.centre)
    weight = 1 / torch.bincount(y)[y].double()
    ones = torch.cat([u, torch.ones(len(y), 1, dtype=u.dtype)], 1)
    penalty = 0.3 * torch.eye(6, dtype=u.dtype)
    penalty[-1, -1] = 0  # the bias is free
    left = ones.T @ (weight[:, None] * ones) + penalty
    right = ones.T @ (weight[:, None] * torch.nn.functional.one_hot(y).double())
    torch.testing.assert_close(head.logits(z), ones @ torch.linalg.solve(left, right))


@pytest.mark.parametrize("name", ["prototypes", "ridge"])
@pytest.mark.parametrize("d", [5, 40])
@pytest.mark.parametrize("r", [1.0, 0.3, 1e-9])
def test_one_strength_alone_gives_what_it_gives_among_others(name, d, r):
    z, y = shots(d=d)
    alone, among = fit_head(z, y, 4, name, r), fit_path(z, y, 4, name, [0.7, r])[1]
    torch.testing.assert_close(alone.logits(z), among.logits(z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("r", [1.0, 10.0])
def test_logistic_is_that_of_scikit_learn(r, monkeypatch):
    monkeypatch.setattr("kshot.estimator.heads._LOGISTIC_ITERATIONS", 200)
    linear_model = pytest.importorskip("sklearn.linear_model")
    z, y = shots(spread=1.0)
    head = fit_head(z, y, 4, "logistic", r)
    u = units(z, head.centre)
    theirs = linear_model.LogisticRegression(C=r, class_weight="balanced", tol=1e-10, max_iter=10_000).fit(u, y)
    expected = torch.from_numpy(theirs.predict_log_proba(u))
    torch.testing.assert_close(head.logits(z).log_softmax(1), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", list(STRENGTHS))
def test_a_path_is_its_single_heads_and_classes_may_be_renamed(name):
    z, y = shots(spread=1.0)
    strengths = STRENGTHS[name]
    for r, head in zip(strengths, fit_path(z, y, 4, name, strengths), strict=True):
        alone = fit_head(z, y, 4, name, r)
        torch.testing.assert_close(head.logits(z), alone.logits(z), atol=2e-3, rtol=1e-3)
        assert (head.name, head.strength) == (name, r)
    swap = torch.tensor([2, 0, 3, 1])
    renamed = fit_head(z, swap[y], 4, name, strengths[0])
    torch.testing.assert_close(
        renamed.logits(z)[:, swap], fit_head(z, y, 4, name, strengths[0]).logits(z), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("name", list(STRENGTHS))
def test_every_head_learns_what_is_easy(name):
    z, y = shots(spread=0.05)
    assert torch.equal(fit_head(z, y, 4, name, STRENGTHS[name][0]).logits(z).argmax(1), y)


@pytest.mark.parametrize("name", list(STRENGTHS))
def test_one_shot_of_each_class_is_enough(name):
    z, _ = shots()
    z, y = z[[0, 6, 12]], torch.arange(3)
    logits = fit_head(z, y, 3, name, STRENGTHS[name][-1]).logits(z)
    assert torch.equal(logits.argmax(1), y)


@given(st.integers(0, 50), st.integers(2, 6))
@settings(max_examples=15)
def test_copies_of_a_shot_do_not_move_the_balance(seed, n_copies):
    # Ridge and logistic weigh classes equally: repeating all shots of one class changes nothing.
    z, y = shots(seed=seed, spread=1.0)
    more, labels = torch.cat([z, *[z[y == 1]] * n_copies]), torch.cat([y, *[y[y == 1]] * n_copies])
    for name in ("cosine", "ridge"):
        torch.testing.assert_close(
            fit_head(more, labels, 4, name, 1.0).logits(z), fit_head(z, y, 4, name, 1.0).logits(z)
        )


def test_mistakes():
    z, y = shots()
    with pytest.raises(UserError, match="head must be one of auto, prototypes, cosine, ridge, logistic, got 'svm'"):
        fit_head(z, y, 4, "svm", 1.0)
    with pytest.raises(UserError, match="above 0"):
        fit_head(z, y, 4, "ridge", 0.0)
