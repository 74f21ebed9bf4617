"""Pictures to vectors in batches, by threads.

On a CPU each thread takes a batch of its own through reading and the network, with PyTorch inside it on one core: that
keeps all cores busy without their waiting for one another within every layer. For a GPU, or a function that must not be
called by two threads at once, threads only read, and this one runs the network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.core import OnProgress


def encode_in_batches(
    examples: Sequence[Any],
    read: Callable[[Any], np.ndarray],
    forward: Callable[[Tensor], Tensor],
    *,
    dim: int,
    batch_size: int,
    n_threads: int,
    in_threads: bool,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Read, stack, encode.

    Args:
        examples: N pictures.
        read: picture -> uint8 (H, W, 3); called in threads.
        forward: uint8 (B, H, W, 3) -> (B, D).
        dim: D.
        batch_size: B at most; smaller where there are few pictures, or at the end.
        n_threads: number of threads.
        in_threads: True to call ``forward`` in threads as well.
        on_progress: told after each batch, in this thread.

    Returns:
        (N, D), float32, on the CPU.
    """
    n = len(examples)
    out = torch.empty((n, dim), dtype=torch.float32)
    size = max(1, min(batch_size, -(-n // n_threads)))
    starts = iter(range(0, n, size))
    waiting: deque[Future[Tensor]] = deque()
    held = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_threads, "kshot-pictures", initializer=_alone if in_threads else None)

    def work(start: int) -> Tensor:
        pixels = torch.from_numpy(np.stack([read(examples[i]) for i in range(start, min(start + size, n))]))
        return forward(pixels) if in_threads else pixels

    def submit() -> None:
        start = next(starts, None)
        if start is not None:
            waiting.append(pool.submit(work, start))

    try:
        for _ in range(n_threads + 1):
            submit()
        done = 0
        while waiting:
            got = waiting.popleft().result()
            submit()
            vectors = got if in_threads else forward(got)
            out[done : done + len(vectors)] = vectors.to("cpu", torch.float32)
            done += len(vectors)
            if on_progress is not None:
                on_progress(done, n)
    finally:
        # What still waits is not read after an error.
        pool.shutdown(cancel_futures=True)
        if in_threads:
            # For threads yet to come: this one's own number never changed.
            torch.set_num_threads(held)
    return out


def _alone() -> None:
    # Within OpenMP the number of threads belongs to the thread that sets it.
    if torch.backends.openmp.is_available():
        torch.set_num_threads(1)
