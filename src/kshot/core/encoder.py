"""Encoders turn what people have (pictures, sentences, molecules, rows of a table) into vectors of one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

#: What examples are.
ENCODER_KINDS = ("image", "text", "molecule", "table", "vector")

#: Told how many examples are done, of how many.
OnProgress = Callable[[int, int], None]


@runtime_checkable
class Encoder(Protocol):
    """Turns examples into vectors; frozen: the same example always gives the same vector.

    Attributes:
        kind: one of ``ENCODER_KINDS``.
        name: what a person types to get it, such as "image:tf_efficientnet_lite0".
        dim: D, length of a vector.
        fingerprint: a hash of weights and settings; it changes whenever vectors may.
    """

    @property
    def kind(self) -> str:
        """What examples are."""
        ...

    @property
    def name(self) -> str:
        """What a person types."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of weights and settings."""
        ...

    def key(self, example: Any) -> str:
        """Hash the content of an example.

        Args:
            example: a picture, a text and so on.

        Returns:
            A hexadecimal text, equal for examples that are the same to the last bit or character.

        Raises:
            UserError: no such file, or not an example of this kind.
        """
        ...

    def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
        """Turn examples into vectors, in batches of the encoder's own choice.

        Args:
            examples: N examples.
            on_progress: told after each batch.

        Returns:
            (N, D), float32, on the CPU.

        Raises:
            UserError: an example that cannot be read; the message names it.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """Return what makes this encoder again, without its tensors.

        Returns:
            Plain JSON values; "name" is one of them.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return what this encoder has learnt from a person's own data.

        Returns:
            Name -> tensor; empty where nothing was learnt (weights that were downloaded are not repeated).
        """
        ...
