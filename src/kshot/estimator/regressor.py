"""The few-shot regressor: pictures, texts, molecules or rows of numbers in, numbers with intervals out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kshot.core import OnProgress, UserError, generator
from kshot.estimator.embedded import Embedded, RegressorMixin, check_is_fitted
from kshot.estimator.kernel_ridge import MOST_NESTED, KernelRidge, fit_kernel_ridge, nested_residuals

#: Time grows with the third power of the number of shots, and memory with its square.
MOST_SHOTS = 10_000
LEAST_NESTED = 4


class ExpectedError(NamedTuple):
    """What to expect on new examples, by exact leave-one-out on the shots.

    Attributes:
        rmse: root of the mean squared error.
        mae: mean absolute error.
        r2: share of the variance that is explained; 0 is as good as answering the mean of the others.
        n: shots.
    """

    rmse: float
    mae: float
    r2: float
    n: int


class FewShotRegressor(RegressorMixin, Embedded):
    """Learns a number from a few examples: kernel ridge regression on embeddings, with intervals.

    Args:
        encoder: as for ``FewShotClassifier``.
        kind: "auto", or what the examples are: "image", "text", "molecule", "table" or "vector".
        cache: keep embeddings on the disk, by content.
        random_state: seed; it chooses the shots that the kernel is tried on where there are more than 1,500.
        on_progress: told (done, all) examples while encoding.

    Attributes:
        encoder_: the Encoder.
        fit_: see ``KernelRidge``.
        y_: targets of the shots, float64 (N,).
        z_: embeddings of the shots, (N, D).
        kind_: what the examples are.
        names_: what to call each shot.
        n_features_in_: number of columns, where examples are rows of numbers.

    Example:
        >>> model = FewShotRegressor().fit([[0.0], [1.0], [2.0], [3.0]], [0.0, 2.0, 4.0, 6.0])
        >>> bool(2 < model.predict([[1.5]])[0] < 4)
        True
    """

    fit_: KernelRidge

    def __init__(
        self,
        encoder: Any = "auto",
        *,
        kind: str = "auto",
        cache: bool = True,
        random_state: Any = 0,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.encoder = encoder
        self.kind = kind
        self.cache = cache
        self.random_state = random_state
        self.on_progress = on_progress

    def fit(self, X: Any, y: Any, *, names: Sequence[str] | None = None) -> FewShotRegressor:
        """Learn from examples with targets.

        Args:
            X: N examples, at least two.
            y: N numbers.
            names: what to call each example in reports.

        Returns:
            Itself.

        Raises:
            UserError: too few or too many examples.
        """
        X, y = self._open(X, y, y_numeric=True)
        if not 2 <= len(y) <= MOST_SHOTS:
            raise UserError(
                f"expected 2 to {MOST_SHOTS:,} examples, got n_samples = {len(y)}; "
                + ("add some" if len(y) < 2 else "choose some of them at random")
            )
        encoder = self._make_encoder(X)
        z = self._vectors(X, encoder)
        if not bool(torch.isfinite(z).all()):
            raise UserError("expected finite embeddings, got NaN or infinity; check the examples, and the encoder")
        self.y_ = np.asarray(y, dtype=np.float64)
        self.z_ = z
        order = torch.randperm(len(z), generator=generator(self._seed(), "kernel"))
        targets = torch.from_numpy(self.y_.copy())
        self.fit_ = fit_kernel_ridge(z, targets, unit=self.kind_ != "table", order=order)
        self.encoder_ = encoder
        self._remember(X, names)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Answer with numbers.

        Args:
            X: N examples.
            return_std: also tell how far the targets are expected to lie from the answers.

        Returns:
            (N,), or two of them.
        """
        z = self.embed(X)
        mean = self.fit_.mean(z).numpy()
        return (mean, self.fit_.deviation(z).numpy()) if return_std else mean

    def predict_interval(self, X: Any, coverage: float = 0.9) -> NDArray[np.float64]:
        """Answer with intervals, by the jackknife+ on the shots.

        Args:
            X: N examples.
            coverage: share of targets that are to lie within.

        Returns:
            (N, 2), lower and upper end; infinite where so few shots cannot vouch for the share: it takes at least
            ``1 / (1 - coverage)`` of them, less one.

        Raises:
            UserError: a share that is not between 0 and 1.
        """
        if not 0 < coverage < 1:
            raise UserError(f"expected coverage between 0 and 1, got {coverage}; 0.9 is usual")
        return self.fit_.interval(self.embed(X), coverage).numpy()

    @property
    def expected_error_(self) -> ExpectedError:
        """The error to expect on new examples, by leave-one-out on the shots.

        The kernel, too, is chosen anew without each shot, for the least error of many is too good to be true; but not
        beyond 300 shots, where that is no matter, and not below 4, where there is nothing left to choose by.
        """
        check_is_fitted(self)
        n, residuals = len(self.y_), self.fit_.residuals
        if LEAST_NESTED <= n <= MOST_NESTED:
            residuals = nested_residuals(self.fit_.x, torch.from_numpy(self.y_.copy()))
        # A mean of the others misses a shot by n / (n - 1) of its distance from the mean of all.
        return error_of(self.y_, self.y_ - residuals.numpy(), n / (n - 1))


def error_of(y: NDArray[np.float64], answers: NDArray[np.float64], farther: float = 1.0) -> ExpectedError:
    """Tell how far answers are off.

    Args:
        y: targets (N,).
        answers: (N,).
        farther: by how much a mean misses more than the mean of ``y`` does.

    Returns:
        The errors.
    """
    off = answers - y
    spread, square = (float(np.square(v).mean()) for v in ((y - y.mean()) * farther, off))
    return ExpectedError(square**0.5, float(np.abs(off).mean()), 1 - square / spread if spread else 0.0, len(y))
