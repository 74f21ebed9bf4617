"""The regressor: numbers with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kshot.core import UserError

pytest.importorskip("sklearn", reason="the estimators have scikit-learn's interface: install kshot[sklearn]")

from sklearn.model_selection import cross_val_score

from kshot.estimator import FewShotRegressor


def slope(n: int = 40, seed: int = 0, noise: float = 0.2) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, 2 * x[:, 0] - np.abs(x[:, 1]) + noise * rng.normal(size=n)


def lengths(texts: Any) -> np.ndarray:
    return np.array([[len(t), t.count("a"), 1.0] for t in texts])


def test_learns_and_knows_its_error() -> None:
    model = FewShotRegressor().fit(*slope(80))
    x, y = slope(300, seed=1)
    answers, deviation = model.predict(x, return_std=True)
    rmse = float(np.sqrt(np.mean((answers - y) ** 2)))
    assert model.score(x, y) > 0.8
    assert model.expected_error_.n == 80
    assert model.expected_error_.rmse == pytest.approx(rmse, rel=0.5)
    assert 0.8 < float(np.mean(np.abs(answers - y) <= 2 * deviation)) <= 1


def test_intervals_hold_what_they_promise() -> None:
    inside = []
    for seed in range(10):
        model = FewShotRegressor().fit(*slope(30, seed=seed))
        x, y = slope(100, seed=seed + 100)
        low, high = model.predict_interval(x, 0.8).T
        inside.append(np.mean((low <= y) & (y <= high)))
    # 0.8 in expectation; ten draws of thirty shots vary by about 0.03.
    assert 0.7 < np.mean(inside) < 0.93


def test_texts() -> None:
    texts = ["a" * i + "b" * j for i in range(1, 5) for j in range(4)]
    model = FewShotRegressor(encoder=lengths).fit(texts, [t.count("a") / len(t) for t in texts])
    assert model.kind_ == "text"
    assert model.predict(["aaab", "abbb"]).argmax() == 0
    assert model.names_[0] == "a"


def test_works_with_scikit_learn() -> None:
    assert cross_val_score(FewShotRegressor(), *slope(60), cv=3).mean() > 0.6


def test_what_cannot_be_learnt() -> None:
    x, y = slope()
    with pytest.raises(ValueError, match=r"1 sample|n_samples = 1"):
        FewShotRegressor().fit(x[:1], y[:1])
    with pytest.raises(UserError, match="2 to 10,000 examples"):
        FewShotRegressor(encoder=lengths).fit(["a"], [1.0])
    with pytest.raises(ValueError, match="could not convert string to float"):
        FewShotRegressor(encoder=lengths).fit(["a", "b"], ["one", "two"])
    with pytest.raises(UserError, match="coverage between 0 and 1, got 90"):
        FewShotRegressor().fit(x, y).predict_interval(x, 90)
