"""The outer losses of gradient steps on Conv4 with a linear head, and their gradient through them, as one operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kshot.nn.native import conv4
from kshot.nn.native.build import library
from kshot.nn.native.design import N_BLOCKS, Design, design_of
from kshot.nn.native.gradient import with_gradient
from kshot.nn.native.kernels import Inner, Labelled, Pool, maml_run

_pool = Pool("maml")


def maml_losses(
    support: Labelled, query: Labelled, parameters: Sequence[Tensor], inner: Inner, pools: int = N_BLOCKS
) -> Tensor:
    """Losses of the queries after the inner steps.

    Memory is about 300 kB for each support image, inner step and thread (28 x 28, 64 filters, float32), whatever the
    number of tasks.

    Args:
        support: what each task is learnt from.
        query: what it is judged on.
        parameters: as ``conv4.trunk`` takes them, then the head (W, D) and its bias (W,).
        inner: the inner loop.
        pools: blocks that pool, the first ones.

    Returns:
        (T,) losses, sums over the steps where those weigh; only their mean, or another multiple of their sum, can be
        differentiated, once: by parameters, rates and normalisations.

    Raises:
        ValueError: shapes, types or labels are none that the kernel knows.
    """
    ways, design = parameters[-1].numel(), design_of(support.x, parameters, pools)
    shapes = [*design.shapes, (ways, design.n_features), (ways,)]
    conv4.check_parameters(parameters, shapes, support.x.dtype)
    for part in (support, query):
        conv4.check_labels(part.y, tuple(part.x.shape[:2]), ways)
    alike = query.x.dtype == support.x.dtype and len(query.x) == len(support.x)
    if not alike or design_of(query.x, parameters, pools) != design:
        raise ValueError(
            "expected support and queries of as many tasks, one size and one type, "
            f"got {tuple(support.x.shape)} of {support.x.dtype} and {tuple(query.x.shape)} of {query.x.dtype}"
        )
    _check(inner, design, sum(torch.Size(shape).numel() for shape in shapes), support.x.dtype)
    learned = [t for t in (inner.rates, inner.norms) if t is not None and t.requires_grad]

    def run(flat: Tensor) -> tuple[Tensor, Tensor]:
        kernel, by_rates = _pool.take(library(flat.dtype, design)), inner.rates.requires_grad
        theta, threads = flat[: inner.rates.shape[1]], torch.get_num_threads()
        found = maml_run(kernel, theta, ways, support, query, inner, threads, by_rates=by_rates)
        _pool.put_back(kernel)
        by_norms = found.norms if inner.norms is not None and inner.norms.requires_grad else None
        several = [g.reshape(-1) for g in (found.parameters, found.rates, by_norms) if g is not None]
        return found.losses, torch.cat(several)

    return with_gradient(run, [*parameters, *learned])


def _check(inner: Inner, design: Design, n_parameters: int, dtype: torch.dtype) -> None:
    n_steps = len(inner.rates)
    expected = [(n_steps, n_parameters), (n_steps,), (n_steps, 2 * N_BLOCKS, design.filters)]
    given = [t for t in (inner.rates, inner.weights, inner.norms) if t is not None]
    kinds = {(t.dtype, t.device.type) for t in given}
    shapes = [tuple(t.shape) for t in given]
    if shapes != expected[: len(given)] or kinds != {(dtype, "cpu")} or n_steps == 0:
        raise ValueError(
            f"expected rates, weights (and normalisations) of shapes {expected} in {dtype} on the CPU, got {shapes} in "
            f"{sorted(map(str, kinds))}"
        )
