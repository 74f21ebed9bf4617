"""What the classifier and the regressor share: from whatever examples are to vectors, in scikit-learn's manner."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.core import Encoder, OnProgress, UserError
from kshot.estimator.encode import encode
from kshot.estimator.encoders import kind_by_encoder, make_encoder
from kshot.estimator.examples import ARRAY_KINDS, kind_of, listed, names_of, thumbnails_of

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import assert_all_finite, check_is_fitted, column_or_1d, validate_data
except ModuleNotFoundError as error:
    raise UserError(
        f"expected the package {error.name}, whose interface these estimators have, and it is not installed; "
        "install it: pip install 'kshot[sklearn]'"
    ) from error

__all__ = ["BaseEstimator", "ClassifierMixin", "Embedded", "RegressorMixin", "lift"]


def lift(z: Tensor, kind: str) -> Tensor:
    """Give rows of a table one more coordinate, sqrt(D), the same for all.

    Heads look at directions only. With the new coordinate each row has a direction of its own, where without it a row
    and twice that row would be the same; that holds for embeddings, but not for money and ages.

    Args:
        z: (N, D).
        kind: what the examples are.

    Returns:
        (N, D + 1) for "table", else ``z`` itself.
    """
    return torch.cat([z, z.new_full((len(z), 1), z.shape[1] ** 0.5)], dim=1) if kind == "table" else z


class Embedded(BaseEstimator, ABC):
    """An estimator of embeddings: reads examples, encodes them, and remembers what the shots were.

    Attributes:
        encoder_: the Encoder.
        kind_: what the examples are.
        names_: what to call each shot.
        n_features_in_: C, where examples are rows of numbers.
    """

    encoder: Any
    kind: str
    cache: bool
    random_state: Any
    on_progress: OnProgress | None
    encoder_: Encoder
    kind_: str
    names_: list[str]
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    # The shots themselves, or after loading what is left of them.
    _shots: list[Any]
    _thumbnails: list[Any] | None

    def embed(self, X: Any) -> Tensor:
        """Turn examples into the vectors that answers are made from.

        Args:
            X: N examples of the kind that was fitted.

        Returns:
            (N, D), float32; rows of a table are lifted, see ``lift``.
        """
        check_is_fitted(self)
        return self._vectors(self._read(X), self.encoder_)

    @property
    def thumbnails_(self) -> list[bytes] | list[str]:
        """Something small to show of each shot: JPEG files for images (b"" where there is none), texts for others."""
        check_is_fitted(self)
        if self._thumbnails is None:
            return thumbnails_of(self._shots, self.kind_, self._groups())
        return self._thumbnails

    def save(self, path: str | Path) -> None:
        """Write the model into one file; see ``kshot.estimator.model_file``.

        Args:
            path: the file, usually ending in .kshot.
        """
        from kshot.estimator.model_file import save_model

        save_model(self, path)  # pyright: ignore[reportArgumentType]

    @classmethod
    def load(cls, path: str | Path, *, encoder: Any = None, on_progress: OnProgress | None = None) -> Self:
        """Read a model; no code of the file is run.

        Args:
            path: the file.
            encoder: only for a model whose encoder was a function or network: that very one.
            on_progress: told (done, all) examples while encoding.

        Returns:
            The fitted model.

        Raises:
            UserError: the file holds another kind of model, is damaged, or its encoder is not to be had.
        """
        from kshot.estimator.model_file import load_model

        model = load_model(path, encoder=encoder, on_progress=on_progress)
        if not isinstance(model, cls):
            wanted, other = (c.__name__.removeprefix("FewShot").lower() for c in (cls, type(model)))
            raise UserError(f"expected a {wanted} in {path}, got a {other}; load it by {type(model).__name__}.load")
        return model

    def _groups(self) -> Sequence[Any]:
        return [0] * len(self.names_)

    def _open(self, X: Any, y: Any, *, y_numeric: bool = False) -> tuple[Any, Any]:
        # Checks examples and targets of a new fit, and finds out the kind.
        own = kind_by_encoder(self.encoder)
        kind = self.kind if self.kind != "auto" else own or _kind_of_run(self.encoder) or kind_of(X)
        if kind in ARRAY_KINDS:
            rules = {"y_numeric": y_numeric, "ensure_min_samples": 1, **_rules(kind)}
            X, y = validate_data(self, _stacked(X), _objects(y), **rules)
        else:
            X = listed(X, kind)
            y = _column(y, len(X), y_numeric)
            for name in ("n_features_in_", "feature_names_in_"):
                if hasattr(self, name):
                    delattr(self, name)
        self.kind_ = kind
        return X, y

    def _read(self, X: Any) -> Any:
        if self.kind_ in ARRAY_KINDS:
            return validate_data(self, _stacked(X), reset=False, **_rules(self.kind_))
        return listed(X, self.kind_)

    def _make_encoder(self, examples: Any) -> Encoder:
        return make_encoder(self.encoder, self.kind_, examples)

    def _vectors(self, examples: Any, encoder: Encoder) -> Tensor:
        if getattr(encoder, "cheap", False):
            return lift(encoder.encode(examples, self.on_progress), self.kind_)
        return lift(encode(encoder, examples, cache=self.cache, on_progress=self.on_progress), self.kind_)

    def _remember(self, examples: Any, names: Sequence[str] | None) -> None:
        self.names_ = self._named(examples, names)
        self._shots, self._thumbnails = list(examples), None

    def _extend(self, examples: Any, names: Sequence[str]) -> None:
        self.names_ = [*self.names_, *names]
        if self._thumbnails is None:
            self._shots = [*self._shots, *examples]
        else:
            self._thumbnails = [*self._thumbnails, *thumbnails_of(list(examples), self.kind_, [0] * len(examples))]

    def _keep(self, index: Sequence[int]) -> None:
        self.names_ = [self.names_[i] for i in index]
        if self._thumbnails is None:
            self._shots = [self._shots[i] for i in index]
        else:
            self._thumbnails = [self._thumbnails[i] for i in index]

    def _named(self, examples: Any, names: Sequence[str] | None) -> list[str]:
        if names is not None and len(names) != len(examples):
            raise UserError(f"expected a name for each of {len(examples)} examples, got {len(names)}; leave names out")
        return names_of(examples, self.kind_) if names is None else list(names)

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        own = self.kind if self.kind != "auto" else kind_by_encoder(self.encoder)
        # Only tables have a meaning for what is missing.
        tags.input_tags.allow_nan = own in (None, "table")
        tags.input_tags.string = own in ("text", "molecule")
        return tags


def _stacked(X: Any) -> Any:
    # A column of vectors, as pandas and NumPy hold objects, is a matrix.
    if getattr(X, "ndim", 2) != 1 or not hasattr(X, "tolist"):
        return X
    rows = list(X)
    return np.stack(rows) if rows and np.ndim(rows[0]) == 1 else X


def _objects(y: Any) -> Any:
    # NumPy would turn a missing label among texts into the text "nan", and a number into a text.
    if not isinstance(y, list | tuple) or len({isinstance(label, str) for label in y}) < 2:
        return y
    own = np.empty(len(y), dtype=object)
    own[:] = y
    return own


def _rules(kind: str) -> dict[str, Any]:
    return {"dtype": [np.float64, np.float32], "ensure_all_finite": "allow-nan" if kind == "table" else True}


def _kind_of_run(encoder: Any) -> str | None:
    # A run says what it was trained on.
    from pathlib import Path

    if isinstance(encoder, str | Path) and encoder != "auto" and (Path(encoder) / "config.toml").is_file():
        return make_encoder(encoder, "image").kind
    return None


def _column(y: Any, n: int, numeric: bool) -> Any:
    if y is None:
        raise UserError("requires y to be passed, but the target y is None; pass one label for each example")
    y = column_or_1d(_objects(y), warn=True)
    if len(y) != n:
        raise UserError(f"expected a target for each of {n} examples, got {len(y)}; give as many as examples")
    y = y.astype(np.float64) if numeric else y
    assert_all_finite(y, input_name="y")
    return y
