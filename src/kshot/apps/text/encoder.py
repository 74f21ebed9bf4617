"""Sentences -> unit vectors, by a pretrained model, frozen or fine-tuned."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kshot.apps.text.change import apply_change
from kshot.apps.text.pretrained import EMBEDDED, open_model
from kshot.core import OnProgress, UserError

#: Characters of a text that are looked at for each token that the model reads; the rest of a longer text is cut before
#: it is split into tokens, so that a cell of any size costs no more than a page. English has 4 to 5 a token.
CHARACTERS_PER_TOKEN = 64

#: Sentences that are split into tokens at once; bounds memory whatever their number.
_BLOCK = 8192

#: Tokens in a batch, filling up included; more is slower on a CPU, whose caches it leaves.
_BATCH_TOKENS = 512


class TextEncoder:
    """Turns texts into unit vectors by a pretrained sentence model.

    A text that is longer than the model reads is cut, as the model itself does it; of a text longer than
    ``CHARACTERS_PER_TOKEN * max_length`` characters only that many are looked at. Space around a text means nothing.

    Args:
        name: "all-MiniLM-L6-v2", which needs no network; any name that sentence-transformers knows; or a folder. A
            leading "text:" is allowed.
        max_length: tokens to read of a text, None for what the model does by itself (256 for the default).
        device: where to run.

    Attributes:
        kind: "text".
        name: "text:" and the name of the model.
        dim: D, length of a vector.
        device: where it runs.

    Raises:
        UserError: no such model, or it is not here and cannot be downloaded, or a library is not installed.
    """

    kind = "text"

    def __init__(
        self, name: str = EMBEDDED, *, max_length: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self._model = open_model(name.removeprefix("text:"), max_length)
        self._network = self._model.network.to(device)
        self._asked_length = max_length
        self._change: dict[str, Tensor] = {}
        self._recipe: dict[str, Any] | None = None
        self.name = f"text:{self._model.name}"
        self.dim = self._model.dim
        self.device = torch.device(device)

    @property
    def max_length(self) -> int:
        """The most tokens that are read of a text."""
        return self._model.max_length

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the weights as they are now, the tokenizer and the settings."""
        digest = hashlib.sha256(json.dumps([self.max_length, CHARACTERS_PER_TOKEN]).encode())
        digest.update(self._model.tokenizer_json().encode())
        digest.update(_hash_weights(self._network).encode())
        return digest.hexdigest()

    def key(self, example: str) -> str:
        """Hash a text.

        Args:
            example: the text.

        Returns:
            sha256 of its characters, all of them.

        Raises:
            UserError: it is not a text.
        """
        if not isinstance(example, str):
            raise UserError(f"expected a text, got {type(example).__name__}; turn it into a string")
        return hashlib.sha256(example.encode("utf-8", "surrogatepass")).hexdigest()

    def encode(self, examples: Sequence[str], on_progress: OnProgress | None = None) -> Tensor:
        """Turn texts into vectors, those of similar length together.

        Args:
            examples: N texts.
            on_progress: told after each batch how many are done, of how many.

        Returns:
            (N, D), float32, on the CPU, rows of unit length.

        Raises:
            UserError: an example is not a text, is empty, or holds nothing that the model can read; the message says
                which.
        """
        z = torch.empty(len(examples), self.dim)
        done = 0
        for start in range(0, len(examples), _BLOCK):
            ids = self.tokenize(examples[start : start + _BLOCK], first=start)
            for rows in length_batches([len(one) for one in ids], _BATCH_TOKENS):
                with torch.inference_mode():
                    z[[start + row for row in rows]] = self._embed([ids[row] for row in rows])
                done += len(rows)
                if on_progress is not None:
                    on_progress(done, len(examples))
        return z

    def tokenize(self, examples: Sequence[str], *, first: int = 0) -> list[list[int]]:
        """Split texts into tokens.

        Args:
            examples: N texts.
            first: how many came before these, so that an error names the right row.

        Returns:
            N lists of token numbers, each of ``max_length`` at most.

        Raises:
            UserError: see ``encode``.
        """
        texts = [self._checked(text, first + i) for i, text in enumerate(examples)]
        ids = self._model.tokenize(texts)
        bare = len(self._model.tokenize([""])[0])
        for i, one in enumerate(ids):
            if len(one) <= bare:
                raise UserError(
                    f"expected words, got {texts[i][:40]!r} in row {first + i + 1}, of which the model can read "
                    "nothing; remove the row or write the text anew"
                )
        return ids

    def pad(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Fill token numbers up to the longest.

        Args:
            ids: N lists of token numbers.

        Returns:
            input_ids and attention_mask, each (N, L), int64, on the encoder's device.
        """
        longest = max(len(one) for one in ids)
        filled = [[*one, *[self._model.pad] * (longest - len(one))] for one in ids]
        mask = [[1] * len(one) + [0] * (longest - len(one)) for one in ids]
        return torch.tensor(filled, device=self.device), torch.tensor(mask, device=self.device)

    def network(self) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        """Return the network behind the tokenizer, for exporting.

        Returns:
            A module (input_ids, attention_mask) -> (N, D) unit vectors in evaluation mode, and example inputs, (2, L)
            each. The module is the encoder's own: copy it before changing it.
        """
        return self._network, self.pad(self.tokenize(["When will my card arrive?", "Hello"]))

    def preprocessing(self) -> dict[str, Any]:
        """Say how a text becomes the inputs of ``network``.

        Returns:
            Plain JSON values; "tokenizer_json" is the content of a ``tokenizer.json``, which the tokenizers library
            reads.
        """
        return {
            "kind": self.kind,
            "model": self._model.name,
            "inputs": ["input_ids", "attention_mask"],
            "strip": True,
            "max_characters": self._max_characters,
            "max_length": self.max_length,
            "pad_token_id": self._model.pad,
            "tokenizer_json": self._model.tokenizer_json(),
        }

    def settings(self) -> dict[str, Any]:
        """Return what makes this encoder again, without its tensors.

        Returns:
            Plain JSON values, for ``restore``.
        """
        return {
            "kind": self.kind,
            "name": self.name,
            "max_length": self._asked_length,
            "weights": self.base_weights,
            "finetuned": self._recipe,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return what fine-tuning has changed.

        Returns:
            Name -> tensor, see ``kshot.apps.text.change``; empty for a frozen encoder.
        """
        return dict(self._change)

    @cached_property
    def base_weights(self) -> str:
        """sha256 over the pretrained weights, before any change."""
        return _hash_weights(self._model.network)

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], *, device: torch.device | str = "cpu"
    ) -> TextEncoder:
        """Make an encoder again.

        Args:
            settings: what ``settings`` returned.
            tensors: what ``tensors`` returned.
            device: where to run.

        Returns:
            An encoder that gives the same vectors.

        Raises:
            UserError: the model of that name is absent or has other weights now.
        """
        encoder = cls(settings["name"], max_length=settings["max_length"], device=device)
        if encoder.base_weights != settings["weights"]:
            raise UserError(
                f"expected {encoder.name} with the weights that it had before, got others of the same name; install "
                "the version of the model that was used then, or fit again"
            )
        return encoder.changed(tensors, settings["finetuned"]) if tensors else encoder

    def changed(self, change: Mapping[str, Tensor], recipe: Mapping[str, Any] | None) -> TextEncoder:
        """Return a copy with changed weights; this one stays as it is.

        Args:
            change: what to add to the pretrained weights, see ``kshot.apps.text.change``.
            recipe: how the change was found, plain JSON values.

        Returns:
            The changed encoder.

        Raises:
            UserError: this encoder is changed already, or the change does not fit the network.
        """
        if self._change:
            raise UserError("expected a frozen encoder, got one that was fine-tuned already; start from a fresh one")
        other = object.__new__(TextEncoder)
        other.__dict__.update({name: held for name, held in self.__dict__.items() if name != "fingerprint"})
        other._network = copy.deepcopy(self._network)
        other._change = {name: t.detach().cpu().clone() for name, t in change.items()}
        other._recipe = dict(recipe or {})
        apply_change(other._network, other._change)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> TextEncoder:
        # Nothing changes an encoder once it is made.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Pretrained weights are read again rather than pickled.
        return _again, (self.settings(), self.tensors(), str(self.device))

    @property
    def _max_characters(self) -> int:
        return CHARACTERS_PER_TOKEN * self.max_length

    def _checked(self, text: Any, row: int) -> str:
        if not isinstance(text, str):
            raise UserError(
                f"expected a text in row {row + 1}, got {type(text).__name__}; turn it into a string or remove the row"
            )
        cut = text.lstrip()[: self._max_characters].rstrip()
        if not cut:
            raise UserError(f"expected a text in row {row + 1}, got an empty one; remove the row or fill it in")
        try:
            cut.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"expected a text in row {row + 1}, got half a character at place {error.start + 1}, as a wrong "
                "encoding leaves it; save the file as UTF-8 and read it again"
            ) from error
        return cut

    def _embed(self, ids: Sequence[Sequence[int]]) -> Tensor:
        return self._network(*self.pad(ids)).float().cpu()


def _again(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str) -> TextEncoder:
    return TextEncoder.restore(settings, tensors, device=device)


def length_batches(lengths: Sequence[int], n_tokens: int) -> Iterator[list[int]]:
    """Group rows of similar length.

    Args:
        lengths: N lengths.
        n_tokens: the most tokens of a batch, filling up included; a single longer row is a batch of its own.

    Yields:
        Indices of the rows of a batch, longest rows first, so that a lack of memory shows at once.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > n_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _hash_weights(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, t in sorted(network.state_dict().items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
