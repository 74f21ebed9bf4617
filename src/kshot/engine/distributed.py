"""Devices and processes: Lightning Fabric launches and connects them; the tasks of each outer step are shared out.

Every process draws the same plan and works on its share of the tasks; gradients are averaged, weighted by the number of
tasks; so the result does not depend on how many processes there are, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from kshot.core import Tree, UserError
from kshot.engine.batch import OuterGradient, widened
from kshot.engine.inner import Named

PRECISIONS = ("32-true", "64-true", "bf16-mixed")


def resolve_device(name: str) -> torch.device:
    """Turn a device's name into a device that is there.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1", "mps".

    Returns:
        The device; "auto" takes a GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"expected a device such as auto, cpu, cuda or cuda:0, got {name!r}") from error
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= there.get(device.type, 0):
        known = ", ".join(f"{k} ({n})" for k, n in there.items() if n)
        raise UserError(f"device {name!r} is not on this machine; there are: {known}. Use --device auto")
    return device


def make_fabric(device: str = "auto", devices: int = 1, nodes: int = 1, precision: str = "32-true") -> Fabric:
    """Make the Fabric that a run lives in.

    Args:
        device: see ``resolve_device``.
        devices: processes on this machine.
        nodes: machines; under ``torchrun`` its own settings are used.
        precision: one of ``PRECISIONS``.

    Returns:
        The fabric, not launched yet.

    Raises:
        UserError: a count below one, an unknown precision, or more GPUs than there are.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if devices < 1 or nodes < 1:
        raise UserError(f"expected devices >= 1 and nodes >= 1, got {devices} and {nodes}")
    kind = resolve_device(device)
    if kind.type == "cuda" and devices > torch.cuda.device_count():
        raise UserError(f"asked for {devices} GPUs, found {torch.cuda.device_count()}; lower --devices")
    strategy = "ddp" if devices * nodes > 1 else "auto"
    chosen = [kind.index] if kind.type == "cuda" and kind.index is not None and devices == 1 else devices
    return Fabric(accelerator=kind.type, devices=chosen, num_nodes=nodes, strategy=strategy, precision=precision)  # pyright: ignore[reportArgumentType]


def converted(fabric: Fabric, batch: Tree) -> Tree:
    """Give inputs and targets the type of the weights.

    Args:
        fabric: with the precision.
        batch: tensors of any structure.

    Returns:
        The same in float64 for ``64-true``, else as it is. Mixed precision rounds where it computes: inputs that were
        rounded beforehand could not be read by kernels, and what a target loses is lost to every loss.
    """
    precision = fabric.strategy.precision
    return batch if isinstance(precision, MixedPrecision) else precision.convert_input(batch)


def disconnect() -> None:
    """Leave the other processes, where there are any; a process that ends with threads of the group alive may abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def synchronise(fabric: Fabric, module: nn.Module) -> None:
    """Give all processes the weights of the first, whatever each had drawn for a start.

    Args:
        fabric: connects the processes.
        module: changed in place in all processes but the first.
    """
    if fabric.world_size == 1:
        return
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            torch.distributed.broadcast(tensor, src=0)


def average(fabric: Fabric, gradient: OuterGradient, total: int, before: Named) -> OuterGradient:
    """Average an outer gradient over processes, weighted by their numbers of tasks.

    Args:
        fabric: connects the processes.
        gradient: this process's.
        total: tasks of the step in all processes.
        before: the buffers that every process started from; one that no task changed stays as it was to the last bit.

    Returns:
        The gradient of the mean over all tasks; ``losses`` holds their mean, (1,).
    """
    if fabric.world_size == 1:
        return gradient
    share = len(gradient.losses) / total
    floats = {
        k: torch.where(b == before[k], 0.0, b - before[k]) for k, b in gradient.buffers.items() if b.is_floating_point()
    }
    mine = [gradient.losses.mean().reshape(1), *gradient.grads.values(), *floats.values()]
    # One message for everything: many small ones cost more than their bytes.
    flat = torch.cat([widened(t).reshape(-1) * share for t in mine])
    torch.distributed.all_reduce(flat)
    mean = [part.view_as(t).to(t.dtype) for part, t in zip(flat.split([t.numel() for t in mine]), mine, strict=True)]
    grads, buffers = mean[1 : 1 + len(gradient.grads)], mean[1 + len(gradient.grads) :]
    return OuterGradient(
        mean[0],
        dict(zip(gradient.grads, grads, strict=True)),
        {**gradient.buffers, **{k: before[k] + change for k, change in zip(floats, buffers, strict=True)}},
    )


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Let only kernels run that give the same bits each time.

    Args:
        wanted: False changes nothing.

    Yields:
        Nothing; afterwards it is as before.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
