"""The losses of Prototypical Networks on Conv4 by squared distance, and their gradient, as one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.nn.native import conv4
from kshot.nn.native.build import library
from kshot.nn.native.design import N_BLOCKS, design_of
from kshot.nn.native.gradient import with_gradient
from kshot.nn.native.kernels import ProtoNetResult, protonet_run


class ProtoNetLosses(NamedTuple):
    """What the kernel tells of T tasks.

    Attributes:
        losses: (T,); only their mean, or another multiple of their sum, can be differentiated, once.
        means: see ``conv4.Trunk``, of each task, (T, 4, C).
        variances: likewise.
    """

    losses: Tensor
    means: Tensor
    variances: Tensor


def protonet_losses(
    x: Tensor,
    support_y: Tensor,
    query_y: Tensor,
    ways: int,
    parameters: Sequence[Tensor],
    pools: int = N_BLOCKS,
) -> ProtoNetLosses:
    """Losses of tasks whose support and queries are normalised together.

    Memory is about 150 kB for each image of one task (28 x 28, 64 filters, float32), whatever the number of tasks.

    Args:
        x: images of the support, then of the queries, (T, S + Q, channels, side, side).
        support_y: int64 (T, S), class indices below ``ways``.
        query_y: int64 (T, Q).
        ways: number of classes W.
        parameters: as ``conv4.trunk`` takes them.
        pools: blocks that pool, the first ones.

    Returns:
        The losses, and statistics.

    Raises:
        ValueError: shapes, types or labels are none that the kernel knows.
    """
    design = design_of(x, parameters, pools)
    conv4.check_parameters(parameters, design.shapes, x.dtype)
    n_tasks, n_images = x.shape[:2]
    n_support = support_y.shape[-1]
    conv4.check_labels(support_y, (n_tasks, n_support), ways)
    conv4.check_labels(query_y, (n_tasks, n_images - n_support), ways)
    found: list[ProtoNetResult] = []

    def run(flat: Tensor) -> tuple[Tensor, Tensor]:
        kernel, threads = conv4.pool.take(library(x.dtype, design)), torch.get_num_threads()
        found.append(protonet_run(kernel, design, flat, ways, x.contiguous(), support_y, query_y, threads))
        conv4.pool.put_back(kernel)
        return found[0].losses, found[0].grad

    losses = with_gradient(run, parameters)
    return ProtoNetLosses(losses, found[0].means, found[0].variances)
