"""The same network in fewer steps: batch norm within convolutions, and padding that needs no copy."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: How far results may lie apart, of their largest: float32 sums in another order.
TOLERANCE = 1e-4


class _Seen(NamedTuple):
    sizes: dict[str, torch.Size]
    pairs: dict[str, str]


def simplified(network: nn.Module, example: Tensor) -> nn.Module:
    """Fold what can be folded at inference, and check that the result is the same.

    Args:
        network: in evaluation mode; not changed.
        example: (N, 3, H, W), what it takes; the result serves this height and width.

    Returns:
        A simpler copy, or a plain copy where the simpler one gave other results.
    """
    simple = copy.deepcopy(network)
    with torch.inference_mode():
        expected = network(example)
    seen = _watch(simple, example)
    for conv, norm in seen.pairs.items():
        _fold(simple, conv, norm)
    for name, size in seen.sizes.items():
        _pad_inside(simple, name, size)
    with torch.inference_mode():
        got = simple(example)
    largest = float(expected.abs().max())
    if float((got - expected).abs().max()) > TOLERANCE * max(largest, 1e-6):
        return copy.deepcopy(network)
    return simple


def _watch(network: nn.Module, example: Tensor) -> _Seen:
    # Which batch norm takes exactly what which convolution gave, and what size each convolution takes.
    sizes: dict[str, torch.Size] = {}
    pairs: dict[str, str] = {}
    given: dict[int, str] = {}
    held: list[Tensor] = []
    calls: Counter[str] = Counter()
    names = {module: name for name, module in network.named_modules()}
    hooks: list[Any] = []

    def after_convolution(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        sizes[names[module]], given[id(y)] = inputs[0].shape, names[module]
        calls[names[module]] += 1
        # Kept, so that no other tensor gets its id.
        held.append(y)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[names[module]] += 1
        if id(inputs[0]) in given:
            pairs[given[id(inputs[0])]] = names[module]

    for module in names:
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        with torch.inference_mode():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return _Seen(
        {n: s for n, s in sizes.items() if calls[n] == 1},
        {c: n for c, n in pairs.items() if calls[c] == 1 and calls[n] == 1},
    )


def _fold(network: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        return
    network.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
    # In timm a batch norm may carry its activation.
    activation = getattr(norm, "act", None)
    network.set_submodule(norm_name, activation if isinstance(activation, nn.Module) else nn.Identity())


def _pad_inside(network: nn.Module, name: str, size: torch.Size) -> None:
    # timm pads as TensorFlow does, by a copy of the picture with one more row and column below than above. A kernel
    # with a first row and column of zeros does the same with even padding.
    conv = network.get_submodule(name)
    if not isinstance(conv, nn.Conv2d) or type(conv).__name__ != "Conv2dSame":
        return
    pads = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(size[-2:], conv.kernel_size, conv.stride, conv.dilation, strict=True)
    ]
    odd = [p % 2 for p in pads]
    if any(o and d != 1 for o, d in zip(odd, conv.dilation, strict=True)):
        return
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, 1, groups=conv.groups, bias=False, device="meta")
    plain.kernel_size = (conv.kernel_size[0] + odd[0], conv.kernel_size[1] + odd[1])
    plain.stride, plain.dilation = conv.stride, conv.dilation
    plain.padding = ((pads[0] + 1) // 2, (pads[1] + 1) // 2)
    weight = nn.functional.pad(conv.weight.detach(), (odd[1], 0, odd[0], 0))
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None:
        plain.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    network.set_submodule(name, plain.eval())
