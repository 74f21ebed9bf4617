"""The outer losses of MAML on Conv4 with a linear head and their gradient through the inner steps, as one operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kshot.nn.native import conv4
from kshot.nn.native.build import library
from kshot.nn.native.gradient import with_gradient
from kshot.nn.native.kernels import N_FILTERS, Inner, Labelled, Pool, maml_run

_pool = Pool("maml")


def maml_losses(support: Labelled, query: Labelled, parameters: Sequence[Tensor], inner: Inner) -> Tensor:
    """Query losses after the inner steps.

    Memory is about 300 kB for each support image, inner step and thread (float32), whatever the number of tasks.

    Args:
        support: what each task is learnt from.
        query: what it is judged on.
        parameters: as ``conv4.trunk`` takes them, then the head (W, 64) and its bias (W,).
        inner: the inner loop.

    Returns:
        (T,) losses; only their mean, or another multiple of their sum, can be differentiated, once.

    Raises:
        ValueError: shapes, types or labels are none that the kernel knows.
    """
    ways = parameters[-1].numel()
    conv4.check_parameters(parameters, [*conv4.SHAPES, (ways, N_FILTERS), (ways,)], support.x.dtype)
    for part in (support, query):
        conv4.check_images(part.x)
        conv4.check_labels(part.y, tuple(part.x.shape[:2]), ways)
    if query.x.dtype != support.x.dtype or len(query.x) != len(support.x):
        raise ValueError(
            f"expected support and queries of as many tasks and one type, got {len(support.x)} of {support.x.dtype} "
            f"and {len(query.x)} of {query.x.dtype}"
        )

    def run(flat: Tensor) -> tuple[Tensor, Tensor]:
        kernel = _pool.take(library(flat.dtype))
        found = maml_run(kernel, flat, ways, support, query, inner, torch.get_num_threads())
        _pool.put_back(kernel)
        return found

    return with_gradient(run, parameters)
