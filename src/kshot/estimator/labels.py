"""Labels of a person's own: texts, whole numbers, floats or truth values, and the numbers 0..C-1 behind them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.core import UserError

#: What a model file says of the type of labels -> what a label is turned into.
TYPES: dict[str, type] = {"text": str, "whole": int, "float": float, "truth": bool}


def number(y: NDArray[Any]) -> tuple[NDArray[Any], Tensor]:
    """Number classes.

    Args:
        y: (N,) labels.

    Returns:
        The classes in order, (C,), and int64 (N,) of 0..C-1.

    Raises:
        UserError: labels of several types, a missing one, or fewer than two classes.
    """
    from sklearn.utils.multiclass import check_classification_targets

    if y.dtype.kind == "O":
        _check_objects(y)
    with warnings.catch_warnings():
        # Few shots of many classes look like a regression to scikit-learn.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        check_classification_targets(y)
    classes, numbers = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise UserError(
            f"expected at least two classes, got one class only ({classes[0]!s:.40}); add examples of "
            "another class, or of anything else"
        )
    return classes, torch.from_numpy(numbers.astype(np.int64))


def _check_objects(y: NDArray[Any]) -> None:
    seen: dict[str, int] = {}
    for i, label in enumerate(y.tolist()):
        if label is None or label != label:
            raise UserError(
                f"expected a label for each example, example {i} has none ({label}); give it one, or remove it"
            )
        seen.setdefault("text" if isinstance(label, str) else "number", i)
    if len(seen) > 1:
        raise UserError(
            f"expected labels of one type, got text (example {seen['text']}) and number "
            f"(example {seen['number']}); turn all into texts"
        )


def type_of(classes: NDArray[Any]) -> str:
    """Name the type of labels.

    Args:
        classes: (C,).

    Returns:
        One of ``TYPES``.
    """
    if classes.dtype.kind == "b":
        return "truth"
    first = classes.tolist()[0]
    if isinstance(first, bool):
        return "truth"
    return "text" if isinstance(first, str) else "float" if isinstance(first, float) else "whole"


def add_label(classes: NDArray[Any], label: Any) -> NDArray[Any]:
    """Add a class at the end.

    Args:
        classes: (C,).
        label: the new one.

    Returns:
        (C + 1,).

    Raises:
        UserError: it is there already, or of another type than the others.
    """
    wanted = type_of(classes)
    own = np.asarray(label)
    new = own.item() if own.ndim == 0 else label
    fits = isinstance(new, TYPES[wanted]) or (wanted == "float" and isinstance(new, int))
    if not fits or (isinstance(new, bool) and wanted != "truth"):
        raise UserError(
            f"expected a label of type {TYPES[wanted].__name__}, as the others are, got {label!r:.80}; "
            "pass one of that type"
        )
    if new in classes.tolist():
        raise UserError(f"expected a new class, {label!r:.80} is one of the model's; remove it first, or fit again")
    extended = np.empty(len(classes) + 1, dtype=np.result_type(classes, own) if classes.dtype != object else object)
    extended[:-1], extended[-1] = classes, new
    return extended


def index_of(classes: NDArray[Any], label: Any) -> int:
    """Find a class.

    Args:
        classes: (C,).
        label: one of them.

    Returns:
        Its number.

    Raises:
        UserError: there is no such class.
    """
    known = classes.tolist()
    if label not in known:
        shown = ", ".join(map(str, known[:10])) + (" ..." if len(known) > 10 else "")
        raise UserError(f"expected one of the classes {shown}, got {label!r:.80}; name one of them")
    return known.index(label)


def unknown_label(classes: NDArray[Any], wanted: Any) -> Any:
    """Choose what stands for "none of the classes".

    Args:
        classes: (C,).
        wanted: a person's own choice, or None.

    Returns:
        It; by default -1 for numbers and "unknown" for others.

    Raises:
        UserError: it is one of the classes.
    """
    label = wanted if wanted is not None else -1 if type_of(classes) in ("whole", "float") else "unknown"
    if label in classes.tolist():
        raise UserError(f"expected an unknown_label beside the classes, {label!r} is one of them; choose another")
    return label


def with_unknown(answers: NDArray[Any], refused: NDArray[np.bool_], label: Any) -> NDArray[Any]:
    """Put the label for unknown where an answer is refused.

    Args:
        answers: (N,) labels.
        refused: (N,).
        label: what stands for unknown.

    Returns:
        (N,); of type object where no other holds both.
    """
    own = np.asarray(label)
    texts = {answers.dtype.kind, own.dtype.kind} <= {"U"}
    numbers = {answers.dtype.kind, own.dtype.kind} <= set("iuf")
    found = answers.astype(np.result_type(answers, own) if texts or numbers else object)
    found[refused] = label
    return found
