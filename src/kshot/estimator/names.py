"""Names of classes as text: ``card_arrival`` is itself an example of how people ask about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_\-./\s]+")


def spoken(label: Any) -> str:
    """Write a class's name as one would say it.

    Args:
        label: the name, such as "card_arrival" or "cardArrival".

    Returns:
        "card arrival"; "" for a name without letters, which says nothing.
    """
    words = " ".join(word for word in _WORD_ENDS.split(str(label)) if word).lower()
    return words if any(c.isalpha() for c in words) else ""


def speakable(labels: Sequence[Any]) -> list[str] | None:
    """Write the names of all classes as one would say them.

    Args:
        labels: the names.

    Returns:
        One text for each; None where a name has no letters or two sound the same, so that names cannot help.
    """
    texts = [spoken(label) for label in labels]
    return texts if all(texts) and len(set(texts)) == len(texts) else None
