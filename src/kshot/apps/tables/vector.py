"""Vectors that are embeddings already: checked, and passed on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kshot.apps.tables.rows import matrix
from kshot.core import OnProgress, UserError


@dataclass(frozen=True)
class VectorEncoder:
    """Passes vectors of one length on, as float32.

    Missing values and infinities are errors: a vector has no column that a median could be taken of.

    Attributes:
        dim: D, length of every vector.
        kind: "vector".
        name: "vector:identity".
        cheap: True: nothing is gained by caching.

    Raises:
        UserError: ``dim`` is less than 1.

    Example:
        >>> VectorEncoder(2).encode([[1, 2], [3, 4.5]]).tolist()
        [[1.0, 2.0], [3.0, 4.5]]
    """

    dim: int

    kind: ClassVar[str] = "vector"
    name: ClassVar[str] = "vector:identity"
    cheap: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise UserError(f"expected vectors of length 1 or more, got {self.dim}; pass at least one number each")

    @property
    def fingerprint(self) -> str:
        """Hash of the name and the length."""
        return hashlib.sha256(f"{self.name} {self.dim}".encode()).hexdigest()

    def key(self, example: Any) -> str:
        """Hash a vector.

        Args:
            example: D numbers.

        Returns:
            64 hexadecimal digits.
        """
        return hashlib.sha256(self.encode([example]).numpy().astype("<f4").tobytes()).hexdigest()

    def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
        """Check vectors and stack them.

        Args:
            examples: N vectors of D numbers, or one (N, D) array or tensor.
            on_progress: told once, at the end.

        Returns:
            (N, D), float32, a copy.

        Raises:
            UserError: a vector of another length, or with a number that is missing or not finite as float32.
        """
        values = matrix(examples, self.dim)
        with np.errstate(over="ignore"):
            out = values.astype(np.float32)
        bad = np.argwhere(~np.isfinite(out))
        if len(bad):
            row, column = bad[0].tolist()
            raise UserError(
                f"expected finite numbers within float32, got {values[row, column]} in row {row}, column {column}; "
                "correct it or leave the row out"
            )
        if on_progress is not None:
            on_progress(len(out), len(out))
        return torch.from_numpy(out)

    def settings(self) -> dict[str, Any]:
        """Return what makes this encoder again.

        Returns:
            Its name and length.
        """
        return {"name": self.name, "dim": self.dim}

    def tensors(self) -> dict[str, Tensor]:
        """Return what was learnt: nothing.

        Returns:
            An empty dictionary.
        """
        return {}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> VectorEncoder:
        """Make an encoder again.

        Args:
            settings: what ``settings`` returned.
            tensors: what ``tensors`` returned; not looked at.

        Returns:
            An equal encoder.

        Raises:
            UserError: they are those of another encoder.
        """
        if settings.get("name") != cls.name or type(settings.get("dim")) is not int:
            raise UserError(f"expected settings of {cls.name}, got {dict(settings)}; the model is of another encoder")
        return cls(settings["dim"])
