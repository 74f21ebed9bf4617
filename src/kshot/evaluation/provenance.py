"""Where a number came from: the code's commit, the software and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment(device: str = "cpu") -> dict[str, Any]:
    """Describe the software and the machine that a number was made with; no names of hosts or users.

    Args:
        device: where the learner ran.

    Returns:
        kshot, python, torch, platform, cpu, cores, threads, device.
    """
    from kshot import __version__

    return {
        "kshot": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def commit() -> str:
    """Name the commit of the package's source, with "+dirty" where the package's files differ from it.

    Returns:
        The hash; "" for an installed package, without git, or on any failure of it.
    """
    package = Path(__file__).resolve().parents[1]
    # An environment inside somebody else's repository must not take that repository's commit for ours.
    if not _git(package, "ls-files", "--", "evaluation/provenance.py"):
        return ""
    head = _git(package, "rev-parse", "--verify", "--quiet", "HEAD")
    changed = _git(package, "status", "--porcelain", "--", ".")
    return head + "+dirty" if head and changed else head


def _git(folder: Path, *arguments: str) -> str:
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=environ, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
