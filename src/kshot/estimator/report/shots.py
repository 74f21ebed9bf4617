"""Examples worth a look, each with its nearest shots: doubtful labels, near-duplicates, doubtful predictions."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kshot.estimator.audit import NEARLY_SAME
from kshot.estimator.expected import wilson
from kshot.estimator.fit import MOST_COMPARED
from kshot.estimator.report.subject import NewExamples, Subject, blocks
from kshot.estimator.report.wording import count, noun, share, whole
from kshot.estimator.unknown import smallest_rate

View = dict[str, Any]
#: So many of each are shown.
SHOWN = 24
NEIGHBOURS = 3
_LONGEST, _NAME = 220, 60
#: The rate at which new examples are called unknown in the report, if so few shots can vouch for it.
RATE = 0.05
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


def look(subject: Subject, index: int, tag: str = "") -> View:
    """Show a shot.

    Args:
        subject: of the report.
        index: which shot.
        tag: a short remark, such as a similarity.

    Returns:
        Its picture or text, its name and its class.
    """
    label = subject.classes[int(subject.fit.y[index])]
    return {**appearance(subject.looks[index], subject.names[index]), "label": label, "tag": tag}


def appearance(seen: bytes | str, name: str) -> View:
    """Show an example.

    Args:
        seen: JPEG or PNG bytes, or a text; empty where there is none.
        name: what to call it.

    Returns:
        The address of a picture or else a text; and the name, its end where it is long.
    """
    src, text = "", ""
    if isinstance(seen, bytes):
        kind = "jpeg" if seen.startswith(_JPEG) else "png" if seen.startswith(_PNG) else ""
        src = f"data:image/{kind};base64,{base64.b64encode(seen).decode()}" if kind else ""
    else:
        text = seen if len(seen) <= _LONGEST else seen[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
    short = name if len(name) <= _NAME else "\N{HORIZONTAL ELLIPSIS}" + name[-_NAME + 1 :]
    return {"src": src, "text": text or ("" if src else short), "name": short if src or short != text else ""}


def doubts(subject: Subject) -> View:
    """Show shots whose label is in doubt.

    Args:
        subject: of the report.

    Returns:
        Cards with the nearest other shots; empty where there are none.
    """
    found = subject.fit.doubts
    if not found:
        return {}
    shown = found[:SHOWN]
    index = torch.tensor([d.index for d in shown])
    near = _neighbours(subject, subject.fit.z[index], leave_out=index)
    cards = [
        {
            "look": look(subject, d.index),
            "label": subject.classes[d.label],
            "own": whole(d.own),
            "instead": subject.classes[d.instead],
            "other": whole(d.other),
            "near": around,
        }
        for d, around in zip(shown, near, strict=True)
    ]
    return {"cards": cards, "n": len(found), "left_out": len(found) - len(shown)}


def duplicates(subject: Subject) -> View:
    """Show pairs of shots that are nearly the same, those of two labels first.

    Args:
        subject: of the report.

    Returns:
        Cards; empty where there are none.
    """
    y = subject.fit.y
    found = sorted(subject.fit.duplicates, key=lambda p: (int(y[p.first]) == int(y[p.second]), -p.similarity))
    if not found:
        return {}
    cards = [
        {
            "looks": [look(subject, p.first), look(subject, p.second)],
            "similarity": f"{p.similarity:.3f}",
            "crossing": int(y[p.first]) != int(y[p.second]),
        }
        for p in found[:SHOWN]
    ]
    return {"cards": cards, "n": len(found), "left_out": len(found) - len(cards), "threshold": NEARLY_SAME}


def compared(subject: Subject) -> bool:
    """Tell whether near-duplicates were looked for.

    Args:
        subject: of the report.

    Returns:
        False where there are too many shots.
    """
    return len(subject.fit.z) <= MOST_COMPARED


def new_examples(subject: Subject) -> View:
    """Judge the new examples, and show wrong answers, or those that the model is least sure of.

    Args:
        subject: of the report.

    Returns:
        Numbers and cards; empty where there are none.
    """
    new = subject.new
    if new is None or not len(new.z):
        return {}
    answer, sure, second = predictions(subject, new.z)
    p = subject.fit.p_values(new.z)
    rate = RATE if len(subject.fit.reference) and smallest_rate(subject.fit.reference) <= RATE else None
    wrong = torch.zeros(len(answer), dtype=torch.bool) if new.labels is None else new.labels != answer
    order = sorted(range(len(answer)), key=lambda i: (not bool(wrong[i]), _sureness(wrong, sure, i)))[:SHOWN]
    near = _neighbours(subject, new.z[order])
    cards = [
        {
            "look": appearance(new.look(i), new.names[i]),
            "answer": subject.classes[int(answer[i])],
            "sure": whole(float(sure[i])),
            "second": subject.classes[int(second[i])],
            "wrong": bool(wrong[i]),
            "truth": _truth(subject, new, i),
            "p": f"{float(p[i]):.2g}" if len(subject.fit.reference) else "",
            "unknown": rate is not None and float(p[i]) <= rate,
            "near": around,
        }
        for i, around in zip(order, near, strict=True)
    ]
    return {
        "facts": _told(subject, new, answer, p, rate),
        "cards": cards,
        "order": "Wrong answers first, the surest at the top" if bool(wrong.any()) else "The least sure answers",
        "left_out": len(answer) - len(cards),
    }


def predictions(subject: Subject, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Answer for embeddings.

    Args:
        subject: of the report.
        z: (N, D).

    Returns:
        The most probable class, its probability and the second most probable class, (N,) each.
    """
    parts = []
    for rows in blocks(len(z), subject.fit.n_classes):
        parts.append(subject.fit.probabilities(z[rows]).topk(2, dim=1))
    values, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    return indices[:, 0], values[:, 0], indices[:, 1]


def _sureness(wrong: Tensor, sure: Tensor, i: int) -> float:
    # Among wrong answers the surest are the worst; among the others the least sure.
    return -float(sure[i]) if bool(wrong[i]) else float(sure[i])


def _truth(subject: Subject, new: NewExamples, i: int) -> str:
    if new.labels is None:
        return ""
    label = int(new.labels[i])
    return subject.classes[label] if label >= 0 else "none of the classes"


def _told(subject: Subject, new: NewExamples, answer: Tensor, p: Tensor, rate: float | None) -> list[tuple[str, str]]:
    facts = [("Judged", count(len(answer), noun(subject)))]
    inside = torch.ones(len(answer), dtype=torch.bool) if new.labels is None else new.labels >= 0
    if new.labels is not None and bool(inside.any()):
        n, right = int(inside.sum()), int((new.labels == answer)[inside].sum())
        low, high = wilson(right / n, n)
        interval = f"95% interval {share(low)} to {share(high)}"
        facts.append(("Accuracy", f"{share(right / n)} ({right:,} of {n:,}; {interval})"))
    if rate is not None:
        refused = (p <= rate) & inside
        known = "" if new.labels is None else " of the classes"
        what = f"{int(refused.sum()):,} of {int(inside.sum()):,}{known} at a false-alarm rate of {whole(rate)}"
        facts.append(("Called unknown", what))
        if not bool(inside.all()):
            of = f"{int(((p <= rate) & ~inside).sum()):,} of {int((~inside).sum()):,}"
            facts.append(("Of no class", f"{of} were recognised as unknown"))
    return facts


def _neighbours(subject: Subject, z: Tensor, leave_out: Tensor | None = None) -> list[list[View]]:
    similarity, index = subject.fit.nearest(z, NEIGHBOURS + (leave_out is not None))
    found = []
    for row in range(len(z)):
        own = -1 if leave_out is None else int(leave_out[row])
        pairs: Sequence[tuple[float, int]] = [
            (s, i) for s, i in zip(similarity[row].tolist(), index[row].tolist(), strict=True) if i != own
        ]
        found.append([look(subject, i, f"{s:.2f}".replace("-", "\N{MINUS SIGN}")) for s, i in pairs[:NEIGHBOURS]])
    return found
