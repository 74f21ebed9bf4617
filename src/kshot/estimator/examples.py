"""What people pass as examples: which kind it is, as one list, and how to name and to show each one later."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kshot.core import UserError
from kshot.core.encoder import ENCODER_KINDS
from kshot.estimator.sources_folder import IMAGE_SUFFIXES

#: Kinds whose examples are rows of one array.
ARRAY_KINDS = ("table", "vector")
#: Pixels of the longer side of a thumbnail, and characters kept of a text.
THUMBNAIL_SIDE = 96
THUMBNAIL_TEXT = 300
#: At most so many thumbnails are kept, the same number of every class.
MOST_THUMBNAILS = 4000
_NAME_LENGTH = 60


def kind_of(examples: Any) -> str:
    """Tell what examples are.

    Paths of pictures, pictures of Pillow and arrays of pixels are images. Other texts are texts (SMILES too: ask for
    kind "molecule"). Arrays of numbers and data frames are tables; a data frame of one column of texts is texts.

    Args:
        examples: anything that can be passed to ``fit``.

    Returns:
        "image", "text" or "table".

    Raises:
        UserError: it is a single text, a frame that is not read yet, or examples of several kinds.
    """
    if isinstance(examples, str | bytes | os.PathLike):
        raise UserError(f"expected a list of examples, got the single one {str(examples)!r:.80}; put it into a list")
    if hasattr(examples, "collect"):
        raise UserError(f"expected examples in memory, got a {type(examples).__name__}; pass what its collect() gives")
    if _is_frame(examples):
        return kind_of(_only_column(examples)) if _only_column(examples) is not None else "table"
    if isinstance(examples, Tensor) or (isinstance(examples, np.ndarray) and examples.dtype.kind in "biufc"):
        return "image" if examples.ndim in (3, 4) and str(examples.dtype).endswith("uint8") else "table"
    if not isinstance(examples, list | tuple | np.ndarray) and not _is_series(examples):
        return "table"  # sparse matrices and whatever else gives an array; scikit-learn's checks look further
    if isinstance(examples, np.ndarray) and examples.ndim == 2 and examples.shape[1] != 1:
        return "table"
    kinds = {_kind_of_one(e): i for i, e in reversed(list(enumerate(_flat(examples))))}
    return _one_kind(kinds, examples)


def _one_kind(kinds: dict[str, int], examples: Any) -> str:
    if set(kinds) == {"path", "text"}:
        return "text"
    if len(kinds) > 1:
        what = " and ".join(f"{k} (example {i})" for k, i in sorted(kinds.items(), key=lambda item: item[1]))
        raise UserError(f"expected examples of one kind, got {what}; fit one model for each kind")
    kind = next(iter(kinds), "table")
    return "image" if kind == "path" else kind


def _kind_of_one(example: Any) -> str:
    if isinstance(example, str):
        return "path" if Path(example).suffix.lower() in IMAGE_SUFFIXES and "\n" not in example else "text"
    if isinstance(example, os.PathLike) or hasattr(example, "getbands"):
        return "image"
    if isinstance(example, np.ndarray | Tensor):
        return "image" if example.ndim in (2, 3) else "table"
    return "table"


def listed(examples: Any, kind: str) -> list[Any]:
    """Turn examples that are not rows of numbers into a list.

    Args:
        examples: a list, an array, a series or a data frame of one column.
        kind: what they are.

    Returns:
        The examples.

    Raises:
        UserError: no examples, or a data frame of several columns.
    """
    if kind not in ENCODER_KINDS:
        raise UserError(f"kind must be one of auto, {', '.join(ENCODER_KINDS)}, got {kind!r}; choose one")
    if isinstance(examples, str | bytes | os.PathLike):
        raise UserError(f"expected a list of examples, got the single one {str(examples)!r:.80}; put it into a list")
    if _is_frame(examples):
        column = _only_column(examples)
        if column is None:
            raise UserError(
                f"expected one column of {kind}s, got the columns {', '.join(map(str, examples.columns))[:200]}; "
                "pass the one that is to be read"
            )
        examples = column
    if not hasattr(examples, "__len__"):
        raise UserError(f"expected a list of {kind}s, got {type(examples).__name__}; put them into a list")
    found = _flat(examples)
    if not found:
        raise UserError(f"expected at least one example, got none; pass a list of {kind}s")
    return [str(e) if isinstance(e, np.str_) else e for e in found]


def _is_frame(examples: Any) -> bool:
    return hasattr(examples, "shape") and hasattr(examples, "columns") and len(examples.shape) == 2


def _is_series(examples: Any) -> bool:
    # A column of pandas has "tolist", one of polars "to_list".
    return hasattr(examples, "tolist") or hasattr(examples, "to_list")


def _only_column(frame: Any) -> Any:
    # The only column of a data frame, if it holds no numbers.
    if frame.shape[1] != 1:
        return None
    column = frame[frame.columns[0]]
    return None if np.asarray(column).dtype.kind in "biufc" else column


def _flat(examples: Any) -> list[Any]:
    if isinstance(examples, Tensor):
        return list(examples)
    if isinstance(examples, np.ndarray):
        return list(examples[:, 0] if examples.ndim == 2 and examples.dtype.kind in "OUS" else examples)
    return list(examples)


def names_of(examples: Sequence[Any], kind: str) -> list[str]:
    """Name examples, for messages and reports.

    Args:
        examples: N examples.
        kind: what they are.

    Returns:
        A path, the beginning of a text, or a number for each.
    """
    return [_name(e, kind, i) for i, e in enumerate(examples)]


def _name(example: Any, kind: str, i: int) -> str:
    if kind == "image" and isinstance(example, str | os.PathLike):
        return str(example)
    if isinstance(example, str):
        text = " ".join(example[: 4 * _NAME_LENGTH].split())
        return text if len(text) <= _NAME_LENGTH else f"{text[:_NAME_LENGTH]}…"
    filename = getattr(example, "filename", "")
    return str(filename) if filename else f"{'row' if kind in ARRAY_KINDS else kind} {i + 1}"


def thumbnails_of(examples: Sequence[Any], kind: str, labels: Sequence[Any]) -> list[bytes] | list[str]:
    """Make something small to show of each example.

    Args:
        examples: N examples.
        kind: what they are.
        labels: (N,); every class has as many thumbnails as any other, where not all can have one.

    Returns:
        For images JPEG files, b"" where there is none; for others texts.
    """
    each = max(1, MOST_THUMBNAILS // max(1, len(set(labels))))
    seen: dict[Any, int] = {}
    wanted = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        wanted.append(seen[label] <= each)
    if kind == "image":
        return [_picture(e) if w else b"" for e, w in zip(examples, wanted, strict=True)]
    return [_text(e) if w else "" for e, w in zip(examples, wanted, strict=True)]


def _picture(example: Any) -> bytes:
    from kshot.apps.vision.load import read_reduced

    try:
        picture = read_reduced(example, lambda w, h: min(w, h) // (2 * THUMBNAIL_SIDE))
    except UserError:
        return b""  # the file has gone since it was encoded
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def _text(example: Any) -> str:
    if isinstance(example, str):
        return example[:THUMBNAIL_TEXT]
    if isinstance(example, np.ndarray) and example.ndim == 1 and example.dtype.kind in "biuf":
        return ", ".join(f"{v:.4g}" for v in example[:20].tolist()) + (", …" if len(example) > 20 else "")
    return str(example)[:THUMBNAIL_TEXT]
