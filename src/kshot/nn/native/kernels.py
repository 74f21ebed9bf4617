"""The functions of ``cpp/*.cpp`` as seen from Python: tensors in, tensors out, no autograd."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.nn.native.design import N_BLOCKS, Design


class Labelled(NamedTuple):
    """Examples of T tasks.

    Attributes:
        x: images (T, N, channels, side, side).
        y: int64 (T, N), class indices below the width of the head.
    """

    x: Tensor
    y: Tensor


class Inner(NamedTuple):
    """Gradient steps: theta <- theta - rate * gradient, element by element.

    Attributes:
        rates: one for each of S steps and each of the P parameters in the kernel's order, (S, P).
        weights: of the loss of the queries after each step, (S,); those of zero cost nothing.
        first_order: leave second derivatives out.
        norms: scales, then shifts, of the four normalisations for each step, (S, 8, C); None where they are parameters
            like all others.
    """

    rates: Tensor
    weights: Tensor
    first_order: bool
    norms: Tensor | None = None


class InnerGradient(NamedTuple):
    """What ``maml_run`` computes.

    Attributes:
        losses: (T,).
        parameters: gradient of the mean loss by the parameters, (P,).
        rates: by the rates, (S, P); None where that was not asked for.
        norms: by the normalisations of the steps, (S, 8, C); None where they have none of their own.
    """

    losses: Tensor
    parameters: Tensor
    rates: Tensor | None
    norms: Tensor | None


class Kernel:
    """A C++ object that keeps its memory between calls; for one call at a time.

    Args:
        library: the compiled library, of one type of number.
        kind: "trunk", "maml", "ntm" or "lrua".

    Raises:
        MemoryError: there is none left.
    """

    def __init__(self, library: ctypes.CDLL, kind: str) -> None:
        self.kind, self.library = kind, library
        new = self._function("new")
        new.restype = ctypes.c_void_p
        self._address = ctypes.c_void_p(new())
        if not self._address:
            raise MemoryError(f"no memory for a native {kind}")

    def __del__(self) -> None:
        self._function("delete")(self._address)

    def __call__(self, name: str, *args: Tensor | int | float | None) -> None:
        """Call a method of the object.

        Args:
            name: of the method.
            *args: contiguous tensors, passed by address (None is no address), and numbers.

        Raises:
            MemoryError: there is none left.
        """
        if self._function(name)(self._address, *map(_as_c, args)) != 0:
            raise MemoryError(f"no memory for the native {self.kind}; use fewer images at once (chunk)")

    def _function(self, name: str) -> Any:
        return getattr(self.library, f"{self.kind}_{name}")


def _as_c(value: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_int | ctypes.c_double:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int(value)


class Pool:
    """Kernels that wait for their next call.

    Args:
        kind: see ``Kernel``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._idle: dict[ctypes.CDLL, list[Kernel]] = {}

    def take(self, library: ctypes.CDLL) -> Kernel:
        """Take a kernel out, or make one.

        Args:
            library: the compiled library, of one type of number.

        Returns:
            The kernel, which is the caller's until it is put back.
        """
        try:
            return self._idle.setdefault(library, []).pop()
        except IndexError:
            return Kernel(library, self.kind)

    def put_back(self, kernel: Kernel) -> None:
        """Leave a kernel for the next caller.

        Args:
            kernel: one that ``take`` returned.
        """
        self._idle[kernel.library].append(kernel)

    @contextmanager
    def resumed(self, ctx: Any) -> Iterator[Kernel]:
        """Take the way back with the kernel that went there, and put it back behind that.

        Args:
            ctx: of an autograd function, with ``kernel`` as the way there left it.

        Yields:
            The kernel.

        Raises:
            RuntimeError: the way back was taken before.
        """
        kernel: Kernel | None = ctx.kernel
        if kernel is None:
            raise RuntimeError("this gradient was taken already, and what it needs was let go; take it once")
        ctx.kernel = None
        yield kernel
        self.put_back(kernel)


def check_scan(
    names: Sequence[str], tensors: Sequence[Tensor], shapes: Callable[[int, int], list[tuple[int, ...]]]
) -> None:
    """Refuse what the kernel of a recurrent cell cannot read.

    Args:
        names: of the tensors.
        tensors: the first is the input's part of each step, (L, B, ...), whose type all should have.
        shapes: (L, B) -> what their shapes should be.

    Raises:
        ValueError: they are something else, or there is no step.
    """
    sums = tensors[0]
    if sums.ndim != 3 or not sums.shape[0]:
        raise ValueError(f"expected sums of at least one step, (L, B, ...), got shape {tuple(sums.shape)}")
    for name, t, expected in zip(names, tensors, shapes(*sums.shape[:2]), strict=True):
        if tuple(t.shape) != expected or t.dtype != sums.dtype or t.device.type != "cpu":
            raise ValueError(
                f"expected {name} of shape {expected} and {sums.dtype} on the CPU, got {tuple(t.shape)}, {t.dtype} on "
                f"{t.device}"
            )


def trunk_forward(
    kernel: Kernel, design: Design, parameters: Tensor, x: Tensor, threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Embed G groups of N images, each group normalised by its own statistics.

    Args:
        kernel: of kind "trunk"; it remembers the images, which must live until ``trunk_backward``.
        design: what it was compiled for.
        parameters: convolutions, scales and shifts, flat.
        x: (G, N, channels, side, side), contiguous.
        threads: how many to use; the results depend on it in the last bits.

    Returns:
        Features (G, N, D); mean and biased variance of each convolution, without its bias, (G, 4, C).
    """
    groups, each = x.shape[:2]
    features = x.new_empty(groups, each, design.n_features)
    means, variances = (x.new_empty(groups, N_BLOCKS, design.filters) for _ in range(2))
    kernel("forward", parameters, x, groups, each, features, means, variances, threads)
    return features, means, variances


def trunk_backward(kernel: Kernel, grad_features: Tensor, n_parameters: int) -> Tensor:
    """Differentiate the last ``trunk_forward``.

    Args:
        kernel: the same.
        grad_features: (G, N, D), contiguous.
        n_parameters: length of ``parameters``.

    Returns:
        The gradient by the parameters, flat.
    """
    grad = grad_features.new_empty(n_parameters)
    kernel("backward", grad_features, grad)
    return grad


class ProtoNetResult(NamedTuple):
    """What ``protonet_run`` computes.

    Attributes:
        losses: (T,).
        grad: of the mean loss by the parameters, flat.
        means: as of ``trunk_forward``, (T, 4, C).
        variances: likewise.
    """

    losses: Tensor
    grad: Tensor
    means: Tensor
    variances: Tensor


def protonet_run(
    kernel: Kernel,
    design: Design,
    parameters: Tensor,
    ways: int,
    x: Tensor,
    support_y: Tensor,
    query_y: Tensor,
    threads: int,
) -> ProtoNetResult:
    """Compute the losses of T tasks by distances to prototypes, and the gradient of their mean.

    Args:
        kernel: of kind "trunk".
        design: what it was compiled for.
        parameters: convolutions, scales and shifts, flat.
        ways: number of classes.
        x: support, then queries, (T, S + Q, channels, side, side), contiguous.
        support_y: int64 (T, S).
        query_y: int64 (T, Q).
        threads: how many to use; the results depend on it in the last bits.

    Returns:
        Losses, gradient, statistics.
    """
    n_tasks = len(x)
    losses, grad = x.new_empty(n_tasks), torch.empty_like(parameters)
    means, variances = (x.new_empty(n_tasks, N_BLOCKS, design.filters) for _ in range(2))
    labels: list[Tensor | int] = []
    for y in (support_y, query_y):
        labels += [y.to(torch.int32).contiguous(), y.shape[1]]
    kernel("protonet", parameters, ways, x, *labels, n_tasks, losses, means, variances, grad, threads)
    return ProtoNetResult(losses, grad, means, variances)


def maml_run(
    kernel: Kernel,
    parameters: Tensor,
    ways: int,
    support: Labelled,
    query: Labelled,
    inner: Inner,
    threads: int,
    *,
    by_rates: bool = False,
) -> InnerGradient:
    """Compute the outer losses of T tasks and the gradient of their mean.

    Args:
        kernel: of kind "maml".
        parameters: convolutions, scales, shifts, head and its bias, flat (P,).
        ways: width of the head.
        support: what each task is learnt from.
        query: what it is judged on.
        inner: the inner loop, of tensors of the type of the parameters.
        threads: how many to use; the results depend on it in the last bits.
        by_rates: take the gradient by the rates as well.

    Returns:
        Losses and gradients.
    """
    rates, norms = inner.rates.contiguous(), None if inner.norms is None else inner.norms.contiguous()
    losses, grad = parameters.new_empty(len(support.x)), torch.empty_like(parameters)
    grad_rates = torch.empty_like(rates) if by_rates else None
    grad_norms = None if norms is None else torch.empty_like(norms)
    examples: list[Tensor | int] = []
    for part in (support, query):
        examples += [part.x.contiguous(), part.y.to(torch.int32).contiguous(), part.x.shape[1]]
    loop = (len(rates), int(not inner.first_order), rates, norms, inner.weights.contiguous())
    kernel("run", parameters, ways, *examples, len(losses), *loop, losses, grad, grad_rates, grad_norms, threads)
    return InnerGradient(losses, grad, grad_rates, grad_norms)
