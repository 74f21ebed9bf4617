"""Encoders by name, by object or by function, and back from a model file.

Names: "auto" takes the default of the kind; "image:MODEL" any model of timm; "text:MODEL" any of
sentence-transformers; "molecule:morgan"; "table:quantile"; "vector:identity"; or the folder of a run of
``kshot train``. A model's name may stand alone where the kind is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kshot.core import Encoder, UserError
from kshot.core.encoder import ENCODER_KINDS
from kshot.estimator.examples import kind_of
from kshot.estimator.own_encoders import OwnEncoder

__all__ = ["encoder_from", "kind_by_encoder", "kind_of", "make_encoder"]

_ONLY = {"molecule": "morgan", "table": "quantile", "vector": "identity"}


def kind_by_encoder(encoder: Any) -> str | None:
    """Tell the kind of examples that an encoder takes, where it says so itself.

    Args:
        encoder: see ``make_encoder``.

    Returns:
        One of ``ENCODER_KINDS``; None for "auto", a function, a bare name or the folder of a run.

    Raises:
        UserError: it is none of what an encoder can be.
    """
    if isinstance(encoder, str | Path):
        kind = str(encoder).partition(":")[0]
        return kind if ":" in str(encoder) and kind in ENCODER_KINDS else None
    if isinstance(encoder, Encoder):
        return encoder.kind
    if not callable(encoder):
        raise UserError(
            f"expected an encoder as a name, an Encoder, a network or a function, got {type(encoder).__name__}; "
            "'auto' chooses one"
        )
    return None


def make_encoder(encoder: Any, kind: str, examples: Any = None) -> Encoder:
    """Open an encoder.

    Args:
        encoder: "auto", a name (see the module), an Encoder, a ``torch.nn.Module`` or a function, see
            ``kshot.estimator.own_encoders.OwnEncoder``.
        kind: what the examples are.
        examples: the shots, (N, C): where they are rows of numbers, their scales are learnt from them.

    Returns:
        The encoder.

    Raises:
        UserError: no such encoder, one of another kind, or a package is missing.
    """
    if kind not in ENCODER_KINDS:
        raise UserError(f"kind must be one of auto, {', '.join(ENCODER_KINDS)}, got {kind!r}; choose one")
    own = kind_by_encoder(encoder)
    if own is not None and own != kind:
        raise UserError(f"expected an encoder of kind {kind!r}, got {encoder!s:.80} of kind {own!r}; choose another")
    if isinstance(encoder, str | Path):
        found = _by_name(str(encoder), kind, examples)
    else:
        found = encoder if isinstance(encoder, Encoder) else _own(encoder, kind)
    if found.kind != kind:
        raise UserError(
            f"expected an encoder of kind {kind!r}, got {found.name} of kind {found.kind!r}; choose another"
        )
    fit = getattr(found, "fit", None)
    # A table's encoder that has not seen any rows yet.
    return fit(examples) if kind == "table" and not found.dim and fit is not None and examples is not None else found


def _own(encoder: Any, kind: str) -> Any:
    if isinstance(encoder, nn.Module) and kind == "image":
        from kshot.apps.vision import ModuleEncoder

        return ModuleEncoder(encoder, name=f"image:module {type(encoder).__name__}", device="auto")
    return OwnEncoder(encoder, kind)


def _by_name(name: str, kind: str, examples: Any) -> Any:
    prefix, colon, model = name.partition(":")
    # A drive letter is no kind.
    if not (colon and prefix in ENCODER_KINDS):
        model = "" if name == "auto" else name
        if model and (Path(model) / "config.toml").is_file():
            return _of_run(model)
    if kind in _ONLY and model not in ("", _ONLY[kind]):
        raise UserError(
            f"expected the encoder {kind}:{_ONLY[kind]} or the folder of a run, got {name!r}; 'auto' takes the first"
        )
    if kind == "vector":
        from kshot.apps.tables import VectorEncoder

        return VectorEncoder(int(examples.shape[1]))
    return _opened(kind, model)


@lru_cache(maxsize=4)
def _opened(kind: str, model: str) -> Any:
    # Encoders are frozen, so that one serves every fold of a cross-validation.
    if kind == "image":
        from kshot.apps.vision import ImageEncoder

        return ImageEncoder(f"image:{model}") if model else ImageEncoder()
    if kind == "text":
        from kshot.apps.text.encoder import TextEncoder

        return TextEncoder(model, device=_device()) if model else TextEncoder(device=_device())
    if kind == "molecule":
        from kshot.apps.molecules import MoleculeEncoder

        return MoleculeEncoder()
    from kshot.apps.tables import TableEncoder

    return TableEncoder()


def _of_run(folder: str) -> Any:
    from kshot.estimator.run_encoder import RunEncoder

    return RunEncoder.open(Path(folder))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def encoder_from(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: str) -> Encoder:
    """Make an encoder again.

    Args:
        settings: what its ``settings`` returned.
        tensors: what its ``tensors`` returned.
        kind: what the examples are.

    Returns:
        The encoder.

    Raises:
        UserError: it was a function or a network, which no file holds.
    """
    name = str(settings.get("name", ""))
    if settings.get("run"):
        from kshot.estimator.run_encoder import RunEncoder

        again: Any = RunEncoder.from_settings(settings, tensors)
        return again
    if name.partition(":")[0] != kind or "version" in settings:
        raise UserError(
            f"expected the encoder {name!r} beside the model, since it was a function or network of your own, which no "
            "file holds; pass it again: load(path, encoder=...)"
        )
    return _made_again(dict(settings), tensors, kind)


def _made_again(settings: dict[str, Any], tensors: Mapping[str, Tensor], kind: str) -> Any:
    if kind == "image":
        from kshot.apps.vision import ImageEncoder

        return ImageEncoder.restore(settings, tensors)
    if kind == "text":
        from kshot.apps.text.encoder import TextEncoder

        return TextEncoder.restore(settings, tensors, device=_device())
    if kind == "molecule":
        from kshot.apps.molecules import MoleculeEncoder

        return MoleculeEncoder.from_settings(settings, tensors)
    from kshot.apps import tables

    make = tables.TableEncoder if kind == "table" else tables.VectorEncoder
    return make.from_settings(settings, tensors)
