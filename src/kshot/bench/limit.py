"""The limit: how many operations a step needs, counted, and how many the machine can do, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def matmul_peak(size: int = 2048, rounds: int = 7) -> float:
    """Measure the matrix-product peak of the CPU in float32, with the threads of this process.

    Args:
        size: rows and columns of the matrices.
        rounds: products; the median counts.

    Returns:
        Floating-point operations a second.
    """
    a, b = torch.ones(size, size), torch.ones(size, size)
    taken = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        torch.mm(a, b)
        taken.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(taken[2:])


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
