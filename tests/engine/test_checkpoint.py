"""Checkpoints: whole or not there, whatever happens; damaged and foreign files are told apart and run no code."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from kshot.core import UserError
from kshot.engine import checkpoint as room
from kshot.engine.checkpoint import Checkpoints, load_tree, save_tree, write_atomically
from kshot.testing.strategies import trees

TREE = {
    "weights": {"w": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0, 2), "scalar": torch.tensor(3)},
    "optimiser": {"state": {0: {"step": torch.tensor(5.0)}, 12: {"step": torch.tensor(6.0)}}, "betas": (0.9, 0.999)},
    "progress": {"step": 7, "best": None, "done": False, "name": "ünïcode/~"},
}


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit; a tuple counts as the list that it comes back as."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    save_tree(tmp_path / "a.safetensors", TREE)
    assert same(TREE, load_tree(tmp_path / "a.safetensors"))


@given(tree=trees())
def test_any_tree_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_tree(path, tree)
    assert same(tree, load_tree(path))


def test_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    save_tree(tmp_path / "a", {"nan": math.nan, "inf": [math.inf, -math.inf], "big": 2**80})
    assert same({"nan": math.nan, "inf": [math.inf, -math.inf], "big": 2**80}, load_tree(tmp_path / "a"))


def test_keys_with_slashes_stay_apart(tmp_path: Path) -> None:
    tree = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "": {"a": torch.full((1,), 2.0)}, "~1": torch.ones(2)}
    save_tree(tmp_path / "a", tree)
    assert same(tree, load_tree(tmp_path / "a"))


def test_tied_weights_and_views_are_stored(tmp_path: Path) -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    base = torch.arange(12.0)
    tree = {"tied": nn.Sequential(a, b).state_dict(), "views": [base[::2], base[:3], base.view(3, 4).T, base]}
    save_tree(tmp_path / "a", tree)
    assert same(dict(tree, tied=dict(tree["tied"])), load_tree(tmp_path / "a"))


def test_an_optimiser_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(steps: int, optimiser: torch.optim.Optimizer, p: nn.Parameter) -> None:
        for _ in range(steps):
            p.grad = p.detach() ** 2
            optimiser.step()

    p, q = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.zeros(2))
    first, second = (torch.optim.Adam([x], lr=0.1, fused=True) for x in (p, q))
    run(3, first, p)
    save_tree(tmp_path / "a", {"p": p, "optimiser": first.state_dict()})
    tree = load_tree(tmp_path / "a")
    second.load_state_dict(tree["optimiser"])
    q.data.copy_(tree["p"])
    run(2, first, p)
    run(2, second, q)
    assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {1: 0, "b": 0}}, r"all texts or all whole numbers, got \['1', 'b'\] at a"),
        ({True: 1}, "all texts or all whole numbers"),
        ({(1, 2): 1}, "all texts or all whole numbers"),
        ({"a": [object()]}, "got a object at a/0"),
        ({"a": {"b/c": {3}}}, "got a set at a/b~1c"),
        (nn.Linear(1, 1), "got a Linear at the top"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        save_tree(tmp_path / "a", tree)
    assert not list(tmp_path.iterdir())


# Damage.


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tree = {"w": torch.arange(3.0), "progress": {"step": 12, "name": "adam"}}
    save_tree(path, tree)
    data, unnoticed = path.read_bytes(), 0
    for at in range(len(data)):
        for bit in (0, at % 7 + 1):
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
            try:
                assert same(tree, load_tree(path)), f"bit {bit} of byte {at} changed what was read"
                unnoticed += 1
            except UserError:
                pass
    # Padding and the version number (an older one) may change without harm.
    assert unnoticed < 2 * 20


@given(st.integers(0, 400), st.binary(max_size=40))
def test_truncated_and_overwritten_files_are_refused(
    tmp_path_factory: pytest.TempPathFactory, keep: int, more: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    save_tree(path, TREE)
    data = path.read_bytes()
    path.write_bytes(data[: min(keep, len(data) - 1)] + more)
    if path.read_bytes() == data:
        return
    with pytest.raises(UserError, match=r"cut.safetensors"):
        load_tree(path)


def header_of(**changes: Any) -> dict[str, str]:
    header = {"format": room.FORMAT, "version": 1, "digest": room._digest({}, "1"), "value": "1", **changes}
    return {"kshot": json.dumps({k: v for k, v in header.items() if v is not None})}


FOREIGN = {
    "of another program": (save({"w": torch.ones(1)}), "was not written by kshot"),
    "with other metadata": (save({}, {"kshot": "[1, 2]"}), "was not written by kshot"),
    "with broken metadata": (save({}, {"kshot": "{"}), "is damaged"),
    "of a newer version": (save({}, header_of(version=2)), "format version 2, this kshot reads up to 1; upgrade"),
    "without a digest": (save({}, header_of(digest=None)), "is damaged"),
    "without a value": (save({}, header_of(value=None)), "is damaged"),
    "with another value": (save({}, header_of(value="2")), "is damaged"),
    "empty": (b"", "is damaged"),
    "of text": (b"hello, this is no checkpoint at all", "is damaged"),
    "with a header of a terabyte": (struct.pack("<Q", 2**40) + b"{}", "is damaged"),
}


@pytest.mark.parametrize(("data", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_tree(tmp_path / "a")


def test_a_good_header_alone_is_accepted(tmp_path: Path) -> None:
    """So that the refusals above are for what they name."""
    (tmp_path / "a").write_bytes(save({}, header_of()))
    assert load_tree(tmp_path / "a") == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a checkpoint at .*nothing, found no file"):
        load_tree(tmp_path / "nothing")
    with pytest.raises(UserError, match="is damaged, or no checkpoint"):
        load_tree(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("exploded",))


def test_reading_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Bomb(), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(pickle.dumps(Bomb()))
    for name in ("a", "b"):
        with pytest.raises(UserError, match="is damaged"):
            load_tree(tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "exploded").exists()


# Crashes and full disks.


def failing(error: BaseException) -> Any:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    return fail


class Killed(BaseException):
    """Stands for a kill: nothing of ours runs after it."""


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_kill_between_write_and_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Checkpoints(tmp_path)
    run.save(1, {"step": 1})
    with monkeypatch.context() as m:
        m.setattr(Path, "replace", failing(Killed()))
        with pytest.raises(Killed):
            run.save(2, {"step": 2})
        with pytest.raises(Killed):
            save_tree(tmp_path / "step-00000001.safetensors", {"step": -1})
    assert run.load_newest()[0] == {"step": 1}
    assert [n for n in names(tmp_path) if n.endswith(".part")] != []
    run.save(3, {"step": 3})
    assert names(tmp_path) == ["step-00000001.safetensors", "step-00000003.safetensors"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_gives_a_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run = Checkpoints(tmp_path)
    run.save(1, {"step": 1})
    full = failing(OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as m:
        m.setattr(*(os, "fsync", full) if call == "fsync" else (Path, call, full))
        with pytest.raises(UserError, match=r"could not write .*00000002.*: No space left on device; free some space"):
            run.save(2, {"step": 2})
    assert names(tmp_path) == ["step-00000001.safetensors"]
    assert run.load_newest()[0] == {"step": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"could not write .*: Permission denied"):
        write_atomically(tmp_path / "a", b"")
    tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="could not write"):
        Checkpoints(tmp_path / "run").save(1, {})


# The checkpoints of a run.


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    run = Checkpoints(tmp_path / "deep" / "run")
    for step in (0, 5, 10, 100_000_000):
        assert run.save(step, {"step": step}).exists()
    save_tree(run.best, {"step": 5})
    (run.folder / "step-later.safetensors").write_text("not ours")
    assert [step for step, _ in run.steps()] == [100_000_000, 10]
    tree, path, problems = run.load_newest()
    assert tree == {"step": 100_000_000}
    assert path.name == "step-100000000.safetensors"
    assert not problems
    assert load_tree(run.best) == {"step": 5}


def test_the_one_before_a_damaged_one_is_used(tmp_path: Path) -> None:
    run = Checkpoints(tmp_path)
    paths = [run.save(step, {"step": step}) for step in (1, 2)]
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    tree, path, problems = run.load_newest()
    assert tree == {"step": 1}
    assert path == paths[0]
    assert len(problems) == 1
    assert "step-00000002" in problems[0]


def test_a_damaged_later_one_does_not_push_out_the_good(tmp_path: Path) -> None:
    run = Checkpoints(tmp_path)
    run.save(1, {"step": 1})
    (tmp_path / "step-00000009.safetensors").write_text("damaged")
    for step in (2, 3):
        run.save(step, {"step": step})
    assert [step for step, _ in run.steps()] == [9, 3, 2]
    assert run.load_newest()[0] == {"step": 3}
    run.save(9, {"step": 9})
    assert [step for step, _ in run.steps()] == [9, 3]
    assert run.load_newest()[0] == {"step": 9}


def test_no_usable_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"usable checkpoint in .*: the folder has none. Train it first: kshot train --resume"
    ):
        Checkpoints(tmp_path / "none").load_newest()
    (tmp_path / "step-00000001.safetensors").write_text("damaged")
    with pytest.raises(UserError, match=r"step-00000001.safetensors is damaged"):
        Checkpoints(tmp_path).load_newest()
