"""Memory to plan with, where a container holds less than the machine has."""

from pathlib import Path

import pytest
import torch

from kshot.engine import free_memory as room
from kshot.engine.free_memory import free_memory, left_by_groups


def group(folder: Path, names: tuple[str, str], numbers: tuple[str, int], stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in zip(names, numbers, strict=True):
        (folder / name).write_text(f"{number}\n", encoding="ascii")
    (folder / "memory.stat").write_text(stat, encoding="ascii")


SECOND, FIRST = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_every_group_that_holds_this_process_counts(tmp_path: Path) -> None:
    """The second version: a group without a limit says "max"; files that were read can be given back."""
    groups, limits = tmp_path / "cgroup", tmp_path / "limits"
    groups.write_text("0::/job/step\n", encoding="ascii")
    group(limits / "job/step", SECOND, ("max", 700), "anon 1\ninactive_file 200\n")
    group(limits / "job", SECOND, ("5000", 1000), "anon 1\ninactive_file 300\n")
    assert left_by_groups(groups, limits) == [5000 - 1000 + 300]
    group(limits / "job/step", SECOND, ("600", 700), "anon 1\n")
    assert left_by_groups(groups, limits) == [0, 4300]


def test_the_first_version_has_a_tree_for_memory(tmp_path: Path) -> None:
    groups, limits = tmp_path / "cgroup", tmp_path / "limits"
    groups.write_text("5:devices:/x\n4:cpu,memory:/docker/abc\n0::/\n", encoding="ascii")
    # Within the container its own folder is not seen, and the limit is at the top.
    group(limits / "memory", FIRST, ("9000", 4000), "cache 5\ntotal_inactive_file 500\n")
    assert left_by_groups(groups, limits) == [5500]


def test_where_there_are_no_groups_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_by_groups(tmp_path / "absent", tmp_path) == []
    monkeypatch.setattr(room, "GROUPS", tmp_path / "absent")
    of_machine = free_memory(torch.device("cpu"))
    assert of_machine > 2**20
    monkeypatch.setattr(room, "left_by_groups", lambda groups, limits: [12345])
    assert free_memory(torch.device("cpu")) == 12345
