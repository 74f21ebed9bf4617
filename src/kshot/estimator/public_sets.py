"""The public sets of the trials, read and encoded; embeddings are frozen, and cached on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kshot.apps.text.intents import banking77, clinc150
from kshot.apps.vision.faces import orl_faces
from kshot.core import OnProgress
from kshot.estimator.encode import encode
from kshot.estimator.encoders import make_encoder
from kshot.estimator.fit import ONE_SHOT_HEADS
from kshot.estimator.names import spoken
from kshot.estimator.trial import Features


def encoded(kind: str, examples: Sequence[Any], on_progress: OnProgress | None) -> Tensor:
    """Encode by the default encoder of a kind.

    Args:
        kind: see ``kshot.core.encoder.ENCODER_KINDS``.
        examples: N examples.
        on_progress: told how many are done.

    Returns:
        (N, D).
    """
    return encode(make_encoder("auto", kind), examples, on_progress=on_progress)


def read_banking(root: Path | None, on_progress: OnProgress | None) -> Features:
    """Read and encode BANKING77.

    Args:
        root: the data root.
        on_progress: told of the encoding.

    Returns:
        The set.
    """
    data = banking77(root)
    z, test = (encoded("text", x, on_progress) for x in (data.train_x, data.test_x))
    return Features(z, data.train_y, test, data.test_y, names=_names(data.class_names))


def read_clinc(root: Path | None, on_progress: OnProgress | None) -> Features:
    """Read and encode CLINC150 with what is out of scope.

    Args:
        root: the data root.
        on_progress: told of the encoding.

    Returns:
        The set.
    """
    data = clinc150(root)
    z, test, outside = (encoded("text", x, on_progress) for x in (data.train_x, data.test_x, data.outside_x))
    return Features(z, data.train_y, test, data.test_y, outside, _names(data.class_names))


def _names(classes: Sequence[str]) -> Tensor:
    return encoded("text", [spoken(name) for name in classes], None)


def read_orl(root: Path | None, on_progress: OnProgress | None) -> Features:
    """Read and encode ORL's faces.

    Args:
        root: the data root.
        on_progress: told of the encoding.

    Returns:
        The set.
    """
    pictures, people = orl_faces(root)
    names = sorted(set(people))
    z, y = encoded("image", pictures, on_progress), torch.tensor([names.index(p) for p in people])
    return Features(z, y, one_shot_head=ONE_SHOT_HEADS["image"])
