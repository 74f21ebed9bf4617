"""What every clause of the contract is given, and the error that it raises."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from kshot.core import Learner, Spec

#: Agreement that float64 must reach where two ways compute one thing; rounding alone stays far below.
TOLERANCE = 1e-8
#: The same in float32, relative to the largest entry.
TOLERANCE_FLOAT32 = 1e-3


class ContractError(AssertionError):
    """A learner breaks a clause of the contract.

    Attributes:
        clause: the name of the clause, a key of ``kshot.testing.CLAUSES``.
    """

    def __init__(self, clause: str, learner: str, expected: str, got: str, advice: str) -> None:
        super().__init__(f"{learner} breaks the clause {clause!r}: expected {expected}, got {got}; {advice}")
        self.clause = clause


class Skipped(Exception):
    """A clause does not apply to a learner; the message says why."""


@dataclass(frozen=True)
class Case:
    """A learner under test.

    Attributes:
        name: what it is called in messages.
        spec: the tasks it is tested on.
        new: makes one, with weights that depend on a seed (on a copy of one given instance: always the same weights).
        seed: of weights and episodes.
        compiled: compare compiled programs too, which takes a minute or more.
        clause: the clause that is being checked.
    """

    name: str
    spec: Spec
    new: Callable[[int], Learner]
    seed: int
    compiled: bool
    clause: str = ""

    def learner(self, dtype: torch.dtype = torch.float64, *, training: bool = False) -> Learner:
        """Make the learner under test.

        Args:
            dtype: of its floating parameters and buffers.
            training: the mode it is put into.

        Returns:
            A copy that may be changed.
        """
        return copy.deepcopy(self.new(self.seed)).to(dtype=dtype).train(training)

    def fail(self, expected: str, got: str, advice: str) -> NoReturn:
        """Report that the clause is broken.

        Args:
            expected: what the contract asks for.
            got: what came.
            advice: what to do.

        Raises:
            ContractError: always.
        """
        raise ContractError(self.clause, self.name, expected, got, advice)

    def same(self, got: Tensor, expected: Tensor, what: str, advice: str, tolerance: float = TOLERANCE) -> None:
        """Demand that two tensors agree.

        Args:
            got: one.
            expected: the other.
            what: what they are, for the message.
            advice: what to do where they do not agree.
            tolerance: largest difference, relative to the largest entry (of at least 1).
        """
        if got.shape != expected.shape:
            self.fail(f"{what} of shape {tuple(expected.shape)}", f"{tuple(got.shape)}", advice)
        gap = difference(got, expected)
        if not gap <= tolerance:
            self.fail(f"{what} to agree within {tolerance:g}", f"a difference of {gap:.2g}", advice)


def difference(got: Tensor, expected: Tensor) -> float:
    """Measure how far two tensors are apart.

    Args:
        got: one.
        expected: the other, of the same shape.

    Returns:
        The largest difference, relative to the largest entry of ``expected`` (of at least 1).
    """
    if not expected.numel():
        return 0.0
    # Entries that are equal have no difference, infinities among them.
    gap = torch.where(got == expected, 0.0, (got.double() - expected.double()).abs())
    finite = expected.double()[torch.isfinite(expected)]
    largest = float(finite.abs().max()) if finite.numel() else 1.0
    return float(gap.max()) / max(1.0, largest)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generator for a while, and leave it as it was.

    Args:
        seed: any integer.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
