"""scikit-learn's own list of checks, on both estimators."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn", reason="the estimators have scikit-learn's interface: install kshot[sklearn]")

from sklearn.utils.estimator_checks import check_estimator

from kshot.estimator import FewShotClassifier, FewShotRegressor


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [FewShotClassifier(), FewShotClassifier(encoder="vector:identity", head="ridge"), FewShotRegressor()],
    ids=["classifier", "vectors", "regressor"],
)
@pytest.mark.filterwarnings("default")
def test_every_check_passes(estimator: object) -> None:
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] not in ("passed", "skipped")}
    assert not failed
    assert len(results) > 40
    # Only what needs a setting of scipy is skipped.
    assert {r["check_name"] for r in results if r["status"] == "skipped"} <= {"check_array_api_input"}
