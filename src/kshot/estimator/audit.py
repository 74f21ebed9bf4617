"""Looking over the shots: which seem mislabelled, which are nearly the same, and what to label next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kshot.estimator.calibrate import probabilities
from kshot.estimator.held_out import HeldOut

#: Cosine similarity from which two examples count as nearly the same.
NEARLY_SAME = 0.985
#: The same where embeddings are short, up to rounding.
SAME = 0.999999
_BLOCK = 2048
#: The least distance, 1 - cosine, that counts; smaller ones are rounding.
_NEAREST = 1e-6


class Doubt(NamedTuple):
    """A shot whose label is in doubt.

    Attributes:
        index: which shot.
        label: the label that it has.
        instead: the label that the others suggest.
        own: probability of its own label, by a head that has not seen it.
        other: probability of the suggested one.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    label: int
    instead: int
    own: float
    other: float


class Pair(NamedTuple):
    """Two shots that are nearly the same.

    Attributes:
        first: one.
        second: the other.
        similarity: cosine of their embeddings.
    """

    first: int
    second: int
    similarity: float


def doubtful_labels(held_out: HeldOut, temperature: float, n_classes: int) -> list[Doubt]:
    """List shots that are probably mislabelled.

    Confident learning (Northcutt et al. 2021, arXiv:1911.00068, Eq. 1 and 2): a shot counts as of class j where p(j)
    reaches the mean p(j) of the shots labelled j; it is in doubt where that holds of another class, more probable than
    its own.

    Args:
        held_out: answers for shots left out.
        temperature: T.
        n_classes: C.

    Returns:
        The most doubtful first.
    """
    p = probabilities(held_out.logits, temperature)
    own = p.gather(1, held_out.labels[:, None]).squeeze(1)
    counts = torch.bincount(held_out.labels, minlength=n_classes)
    typical = torch.zeros(n_classes, dtype=p.dtype).index_add_(0, held_out.labels, own) / counts.clamp(min=1)
    # A class that no shot vouches for needs certainty.
    typical = torch.where(counts > 0, typical, 1.0)
    reached = torch.where(p >= typical, p, 0.0).scatter(1, held_out.labels[:, None], 0.0)
    other, instead = reached.max(1)
    found = [
        Doubt(int(held_out.index[i]), int(held_out.labels[i]), int(instead[i]), float(own[i]), float(other[i]))
        for i in (other > own).nonzero().squeeze(1).tolist()
    ]
    return sorted(found, key=lambda d: d.own - d.other)


def near_duplicates(z: Tensor, threshold: float = NEARLY_SAME, most: int = 1000) -> list[Pair]:
    """List pairs of examples that are nearly the same. Time grows with N * N * D, memory with N.

    Args:
        z: (N, D).
        threshold: least cosine similarity.
        most: so many pairs at most.

    Returns:
        The most similar first.
    """
    u = torch.nn.functional.normalize(z, dim=-1)
    found: list[Pair] = []
    for start in range(0, len(u), _BLOCK):
        similarity = u[start : start + _BLOCK] @ u.T
        later = torch.arange(len(u)) > torch.arange(start, start + len(similarity))[:, None]
        for i, j in ((similarity >= threshold) & later).nonzero().tolist():
            found.append(Pair(start + i, j, min(float(similarity[i, j]), 1.0)))
        found = sorted(found, key=lambda p: -p.similarity)[:most]
    return found


def label_next(logits: Tensor, u: Tensor, n: int) -> list[int]:
    """Choose unlabelled examples whose labels would teach the most: uncertain ones, unlike one another.

    The margin between the two most probable classes says how uncertain (Scheffer et al. 2001); among the most
    uncertain, the one farthest from those chosen so far is next, so that ten copies of one puzzle are asked about once.
    One minus the margin is the sum of all but the greatest probability, plus the second greatest; as a logarithm it
    tells examples apart whose probabilities are all 0 and 1 to the last digit.

    Args:
        logits: (N, C), of which probabilities are the softmax.
        u: embeddings (N, D).
        n: so many.

    Returns:
        Indices, the first one first.
    """
    others = logits.double().log_softmax(1).sort(dim=1, descending=True).values[:, 1:]
    doubt = torch.logaddexp(others.logsumexp(1), others[:, 0])
    unit = torch.nn.functional.normalize(u, dim=-1)
    far = torch.ones(len(u), dtype=doubt.dtype)
    taken = torch.zeros(len(u), dtype=torch.bool)
    chosen: list[int] = []
    for _ in range(min(n, len(u))):
        gain = (doubt + far.clamp(min=_NEAREST).log()).masked_fill(taken, -torch.inf)
        best = int(gain.argmax())
        taken[best] = True
        chosen.append(best)
        far = torch.minimum(far, (1 - unit @ unit[best]).to(far.dtype))
    return chosen
