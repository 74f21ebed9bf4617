"""Few-shot learning on a person's own data, as scikit-learn estimators.

``FewShotClassifier`` and ``FewShotRegressor`` need scikit-learn and are imported when they are first used; the
mathematics beneath (``kshot.estimator.fit`` and its neighbours) needs torch alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot.estimator.classifier import FewShotClassifier
    from kshot.estimator.regressor import FewShotRegressor

_HOME_OF = {
    "FewShotClassifier": "kshot.estimator.classifier",
    "FewShotRegressor": "kshot.estimator.regressor",
}

__all__ = ["FewShotClassifier", "FewShotRegressor"]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'kshot.estimator' has no attribute {name!r}; it has {', '.join(_HOME_OF)}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
