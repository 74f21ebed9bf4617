"""The report of a model of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from tests.estimator.test_report import Checker

pytest.importorskip("sklearn", reason="the regressor has scikit-learn's interface")

from kshot.core import UserError
from kshot.estimator.regressor import FewShotRegressor
from kshot.estimator.report import numbers, write_model_report


def rows(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    x = dice.normal(size=(n, 3))
    return x, 1000 + 50 * x[:, 0] + 5 * dice.normal(size=n)


@pytest.fixture(scope="module")
def model() -> FewShotRegressor:
    x, y = rows()
    y[11] = 2000
    return FewShotRegressor().fit(x, y, names=[f"house <{i}> &" for i in range(40)])


def test_one_file_that_is_sound(model, tmp_path):
    x, y = rows(25, seed=1)
    write_model_report(model, tmp_path / "r.html", X=x, y=y)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    checked = Checker(page)
    assert not [r for r in checked.references if not r.startswith(("#", "data:"))]
    assert checked.unnamed == 0
    assert "A number learnt from 40 rows" in page
    assert "house <11>" not in page
    assert {"new", "truth", "coverage", "worst", "facts"} <= set(checked.ids)


def test_the_wrong_number_comes_first(model):
    shown = numbers.views(numbers.number_subject(model))
    first = shown["worst"]["cards"][0]
    assert first["look"]["name"] == "house <11> &"
    assert first["truth"] == "2,000"
    assert len(first["near"]) == 3
    # The shot itself is no neighbour of its own.
    assert "house <11> &" not in [near["name"] for near in first["near"]]
    assert shown["new"] == {}
    assert shown["truth"]["n"] == 40


def test_coverage_is_counted_on_shots_left_out(model):
    subject = numbers.number_subject(model)
    found = {row["share"]: row for row in numbers.views(subject)["coverage"]}
    ends = subject.intervals(0.8).numpy()
    held = np.mean((ends[:, 0] <= model.y_) & (model.y_ <= ends[:, 1]))
    assert found["80.0%"]["held"] == f"{100 * held:.1f}%"
    # It takes 1 / 0.05 others.
    few = FewShotRegressor().fit(*rows(12))
    assert numbers.views(numbers.number_subject(few))["coverage"][3]["between"] == "too few shots"


def test_without_intervals_and_without_truth(tmp_path):
    few = FewShotRegressor().fit(*rows(4))
    write_model_report(few, tmp_path / "r.html", X=rows(3, seed=2)[0])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    Checker(page)
    assert "So few shots vouch for no 90% intervals" in page
    assert "inf" not in page.partition("</style>")[2].replace("information", "")


def test_targets_must_come_with_examples(model, tmp_path):
    with pytest.raises(UserError, match="targets only"):
        write_model_report(model, tmp_path / "r.html", y=[1.0])
    with pytest.raises(UserError, match="target for each of 2 new examples, got 1"):
        write_model_report(model, tmp_path / "r.html", X=rows(2)[0], y=[1.0])
    with pytest.raises(UserError, match="call fit"):
        write_model_report(FewShotRegressor(), tmp_path / "r.html")
