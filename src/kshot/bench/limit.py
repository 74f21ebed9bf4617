"""The limit: how many operations a step needs, counted, and how many the machine can do, measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


class MatrixProduct:
    """A float32 matrix product that reaches the peak of the CPU, with the threads of this process.

    Args:
        size: rows and columns of the matrices.
        repeats: products in a row.

    Attributes:
        operations: floating-point operations of a call.
    """

    def __init__(self, size: int = 2048, repeats: int = 3) -> None:
        self._a, self._b, self._repeats = torch.ones(size, size), torch.ones(size, size), repeats
        self.operations = 2 * size**3 * repeats

    def __call__(self) -> None:
        """Multiply."""
        for _ in range(self._repeats):
            torch.mm(self._a, self._b)


def count_operations(run: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products and convolutions of a computation.

    Args:
        run: the computation, in plain PyTorch; a multiplication and an addition are two operations, and a convolution
            counts as the direct one does, however it is really computed.

    Returns:
        The count, backward and double backward included.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
