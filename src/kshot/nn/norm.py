"""Normalisation with the statistics named: which examples a mean and a variance were taken from.

Batch normalisation leaks: with the statistics of the query batch, the answer to one query depends on the others
(Bronskill et al., TaskNorm, ICML 2020, arXiv:2003.03284). So the mode is always explicit, and printed
with every number:

=========  ====================================================  =====================================================
mode       statistics while training                              statistics when predicting
=========  ====================================================  =====================================================
running    the batch at hand, also averaged into buffers          the buffers (inductive)
episode    the batch at hand                                      the batch at hand: TRANSDUCTIVE, MAML's own code
support    the support batch, for support and query alike         the same (inductive)
layer      each example's own channels and pixels                 the same (inductive)
none       no normalisation                                       the same (inductive)
=========  ====================================================  =====================================================

Buffers are replaced, never written in place, so a functional call sees its own copies and ``vmap`` works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from kshot.core.errors import UserError

NORMALISATIONS = ("running", "episode", "support", "layer", "none")


class Norm(nn.Module):
    """Normalise channels: y = gamma * (x - mean) / sqrt(var + eps) + beta.

    An input (N, C) or (N, C, H, W) is one batch; (T, N, C, H, W) is T tasks, each with statistics of its own.

    Args:
        n_channels: C.
        mode: one of ``NORMALISATIONS``.
        momentum: weight of the newest batch in the running statistics; 0.1 is PyTorch's.
        eps: added to the variance; 1e-5 is PyTorch's.

    Raises:
        UserError: unknown mode.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n_channels: int, mode: str = "running", momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        if mode not in NORMALISATIONS:
            raise UserError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, got {mode!r}")
        self.mode, self.momentum, self.eps = mode, momentum, eps
        self.collecting = False
        if mode == "none":
            return
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))
        if mode in ("running", "support"):
            self.register_buffer("running_mean", torch.zeros(n_channels))
            self.register_buffer("running_var", torch.ones(n_channels))

    @property
    def transductive(self) -> bool:
        """True if examples of one batch influence each other when predicting."""
        return self.mode == "episode"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: (N, C), (N, C, H, W), or (T, N, C, H, W).

        Returns:
            The same shape.

        Raises:
            UserError: the input has another number of axes.
        """
        if self.mode == "none":
            return x
        if x.ndim not in (2, 4, 5):  # of three axes one could not tell which are the channels
            raise UserError(f"expected (N, C), (N, C, H, W) or (T, N, C, H, W), got {tuple(x.shape)}; add or join axes")
        if self._is_plain(x):
            return self._plain(x)
        tail = (-1, *(1,) * (2 if x.ndim >= 4 else 0))  # channels first, pixels after
        mean, var = self._statistics(x, tail)
        scale = torch.rsqrt(var + self.eps) * self.weight.view(tail)
        return x * scale + (self.bias.view(tail) - mean * scale)

    def of_pairs(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise every sum of one of ``left`` and one of ``right``, of which there are many, without taking them.

        Their mean is the sum of both means; their variance is that of both, and twice the mean over pixels of the
        product of what each is there on average.

        Args:
            left: (W, C, H, W') or (W, C); ``statistics`` is "batch" or "stored".
            right: (Q, C, H, W') or (Q, C).

        Returns:
            The same shapes: l + r is ``forward`` of all W * Q sums, for each l of the first and r of the second.
        """
        tail = (-1, *(1,) * (left.ndim - 2))
        if self._stored:
            mean, var = self.running_mean.view(tail), self.running_var.view(tail)
            left = left - mean
        else:
            of_all = (0, *range(2, left.ndim))
            means = left.mean(of_all), right.mean(of_all)
            left, right = left - means[0].view(tail), right - means[1].view(tail)
            both = (left.mean(0) * right.mean(0)).flatten(1).mean(1) if left.ndim > 2 else 0.0
            var = (left * left).mean(of_all) + (right * right).mean(of_all) + 2 * both
            count = len(left) * len(right) * left[0, 0].numel()
            self.average_in((means[0] + means[1]).detach(), var.detach(), count)
            var = var.view(tail)
        scale = torch.rsqrt(var + self.eps) * self.weight.view(tail)
        return left * scale + self.bias.view(tail), right * scale

    @property
    def statistics(self) -> str:
        """Whose statistics a forward pass takes: "batch", "stored" (one number a channel) or "other"."""
        if self._stored:
            return "stored" if self.running_mean.ndim == 1 else "other"
        return "batch" if self.mode in ("running", "episode", "support") else "other"

    @property
    def _stored(self) -> bool:
        return (self.mode == "running" and not self.training) or (self.mode == "support" and not self.collecting)

    def _is_plain(self, x: Tensor) -> bool:
        # PyTorch's own batch norm is several times as fast as its parts, but its second derivative under ``vmap`` was
        # seen 0.3 % off, and statistics that come out of it carry no gradient.
        if peek_interpreter_stack() is not None or torch.compiler.is_compiling() or x.ndim == 5:
            return False
        if x.numel() == x.shape[1] or x.dtype != self.weight.dtype:
            return False
        own = self.running_mean if self.mode == "running" else None
        return self.mode == "episode" or (own is not None and own.ndim == 1 and not own.requires_grad)

    def _plain(self, x: Tensor) -> Tensor:
        if self.mode == "episode" or self._stored:
            mean, var = (None, None) if self.mode == "episode" else (self.running_mean, self.running_var)
            return F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, eps=self.eps)
        mean, var = self.running_mean.clone(), self.running_var.clone()
        out = F.batch_norm(x, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
        self.running_mean, self.running_var = mean, var
        return out

    def _statistics(self, x: Tensor, tail: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        pixels = (-2, -1) if x.ndim >= 4 else ()
        if self.mode == "layer":
            own = (*(() if not pixels else (-3,)), *pixels) or (-1,)
            return x.mean(own, keepdim=True), x.var(own, correction=0, keepdim=True)
        if self._stored:
            return self.running_mean.view(*self.running_mean.shape[:-1], *_task_gap(self.running_mean), *tail), (
                self.running_var.view(*self.running_var.shape[:-1], *_task_gap(self.running_var), *tail)
            )
        batch = (-4 if pixels else -2, *pixels)
        mean = x.mean(batch, keepdim=True)
        var = ((x - mean) ** 2).mean(batch, keepdim=True)
        self._remember(mean, var, count=x.numel() // (mean.numel() or 1), n_trailing=len(tail))
        return mean, var

    def _remember(self, mean: Tensor, var: Tensor, count: int, n_trailing: int) -> None:
        if self.mode not in ("running", "support"):
            return
        mean, var = (s.reshape(*s.shape[: -n_trailing - 1], -1) for s in (mean, var))
        if self.mode == "support":
            self.running_mean, self.running_var = mean, var
            return
        self.average_in(mean.detach(), var.detach(), count)

    def average_in(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Average a batch's statistics into the running ones, or keep them (mode "support"); in others do nothing.

        Args:
            mean: (C,), or (T, C) of T tasks, which count as one batch.
            var: the biased variances, of the same shape.
            count: how many numbers each mean was taken of.
        """
        if self.mode not in ("support", "running"):
            return
        # Mixed precision takes a batch's statistics in bfloat16, and keeps buffers in float32.
        mean, var = mean.to(self.running_mean.dtype), var.to(self.running_var.dtype)
        if self.mode == "support":
            self.running_mean, self.running_var = mean, var
            return
        # The unbiased variance goes into the buffer and the biased one into the output, as PyTorch's BatchNorm does.
        var = var * (count / max(count - 1, 1))
        mean, var = (s.mean(0) if s.ndim > 1 else s for s in (mean, var))
        self.running_mean = torch.lerp(self.running_mean, mean, self.momentum)
        self.running_var = torch.lerp(self.running_var, var, self.momentum)

    def extra_repr(self) -> str:
        """Return the mode, for printing.

        Returns:
            A short text.
        """
        return self.mode


def _task_gap(buffer: Tensor) -> tuple[int, ...]:
    return (1,) if buffer.ndim > 1 else ()


@contextmanager
def collecting(module: nn.Module) -> Iterator[None]:
    """While open, layers in mode "support" take their statistics from the batch at hand and keep them.

    The statistics land in the layers' buffers, so inside ``functional_call`` they land in the caller's dict of buffers
    and the module itself is left as it was.

    Args:
        module: the network.

    Yields:
        Nothing.
    """
    layers = [m for m in module.modules() if isinstance(m, Norm)]
    for layer in layers:
        layer.collecting = True
    try:
        yield
    finally:
        for layer in layers:
            layer.collecting = False


def uses_support_statistics(module: nn.Module) -> bool:
    """Tell whether a network has layers in mode "support".

    Returns:
        True if so.
    """
    return any(isinstance(m, Norm) and m.mode == "support" for m in module.modules())


def normalisation_of(module: nn.Module) -> str:
    """Name the normalisation of a network, for tables and records.

    Returns:
        The mode of its ``Norm`` layers; for PyTorch's batch norms "running" or "episode"; "none" if there are none;
        several joined by "+".
    """
    modes = set()
    for m in module.modules():
        if isinstance(m, Norm):
            modes.add(m.mode)
        elif isinstance(m, nn.modules.batchnorm._BatchNorm):
            modes.add("episode" if m.running_mean is None else "running")
        elif isinstance(m, nn.LayerNorm | nn.GroupNorm):
            modes.add("layer")
    return "+".join(sorted(modes - {"none"})) or "none"


def give_every_step_its_own(model: nn.Module, n_steps: int) -> frozenset[str]:
    """Give normalisations a scale, a shift and statistics for every inner step: a new first axis.

    Args:
        model: changed in place.
        n_steps: N.

    Returns:
        The names of the parameters and buffers that have the new axis.
    """
    kinds = (Norm, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    names = set()
    for path, layer in model.named_modules():
        if not isinstance(layer, kinds):
            continue
        for name, p in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(p.detach().expand(n_steps, *p.shape).clone()))
            names.add(f"{path}.{name}".lstrip("."))
        for name, b in list(layer.named_buffers(recurse=False)):
            if b.is_floating_point():  # a counter of batches stays one
                setattr(layer, name, b.expand(n_steps, *b.shape).clone())
                names.add(f"{path}.{name}".lstrip("."))
    return frozenset(names)
