"""How much memory there is to plan with: of the device, of the machine, and of the container that holds the process."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import torch

#: Where Linux lists the groups of this process, and where their limits lie.
GROUPS, LIMITS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Find how much memory is free.

    Args:
        device: of the tensors.

    Returns:
        Bytes: on a GPU with what PyTorch holds and does not use; on a CPU at most what a container leaves.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return min([_of_machine(), *left_by_groups(GROUPS, LIMITS)])


def _of_machine() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            named = dict(line.split(":") for line in lines)
        return int(named["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: what the machine has
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def left_by_groups(groups: Path, limits: Path) -> list[int]:
    """Find what the limits of control groups, of either version, leave to this process.

    Args:
        groups: the file that lists the groups.
        limits: the folder of their limits.

    Returns:
        Bytes for each limit that there is: of its group, and of those that hold it. What can be given back, as
        files that were read, counts as free.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if not kinds:
            home, names = limits, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            home, names = limits / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        found += [left for group in (own, *own.parents) if (left := _left(home / group, *names)) is not None]
    return found


def _left(group: Path, limit: str, used: str, spare: str) -> int | None:
    # Within a container the group itself may not be seen, and its limit is at the top.
    try:
        most, now = ((group / name).read_text(encoding="ascii").strip() for name in (limit, used))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, int(most) - int(now) + int(stat.get(spare, 0)))
    except (OSError, ValueError):  # no such file, or "max"
        return None
