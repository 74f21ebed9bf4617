"""Devices by name; tasks shared by processes give what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kshot.core import UserError
from kshot.engine.batch import OuterGradient, combine
from kshot.engine.checkpoint import Checkpoints, load_tree
from kshot.engine.distributed import PRECISIONS, average, make_fabric, resolve_device, synchronise

SCRIPT = Path(__file__).with_name("toy_share.py")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that this machine has so many GPUs."""

    def have(n: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)

    return have


def test_devices_by_name(gpus: Any) -> None:
    gpus(0)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    gpus(2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("name", "there", "message"),
    [
        ("cuda", 0, r"device 'cuda' is not on this machine; there are: cpu \(1\). Use --device auto"),
        ("cuda:2", 2, r"there are: cpu \(1\), cuda \(2\)"),
        ("cpu:1", 0, "device 'cpu:1' is not on this machine"),
        ("meta", 0, "device 'meta' is not on this machine"),
        ("gpu", 0, "a device such as auto, cpu, cuda or cuda:0, got 'gpu'"),
        ("", 0, "got ''"),
    ],
)
def test_devices_that_are_not_there(
    gpus: Any, monkeypatch: pytest.MonkeyPatch, name: str, there: int, message: str
) -> None:
    gpus(there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        resolve_device(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "16"}, f"precision must be one of {', '.join(PRECISIONS)}, got '16'"),
        ({"devices": 0}, "devices >= 1 and nodes >= 1, got 0 and 1"),
        ({"nodes": 0}, "got 1 and 0"),
        ({"device": "tpu"}, "got 'tpu'"),
    ],
)
def test_fabrics_that_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_fabric(**{"device": "cpu", **options})


def test_more_gpus_than_there_are(gpus: Any) -> None:
    gpus(2)
    with pytest.raises(UserError, match="asked for 3 GPUs, found 2; lower --devices"):
        make_fabric("cuda", devices=3)


def test_one_process_has_nothing_to_share() -> None:
    fabric = make_fabric("cpu")
    gradient = OuterGradient(torch.ones(3), {}, {})
    assert average(fabric, gradient, 3, {}) is gradient
    synchronise(fabric, torch.nn.Linear(1, 1))


def test_shares_of_unequal_size_are_averaged_by_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes with 1, 2 and 3 tasks, whose messages are added up by hand."""
    constants = torch.tensor([0.1, 1 / 3, -float("inf")])
    before = {"mean": torch.tensor([0.5, -0.5]), "constants": constants, "count": torch.tensor(4)}
    g = torch.Generator().manual_seed(0)

    def draw(n: int) -> OuterGradient:
        buffers = {**before, "mean": torch.randn(2, generator=g)}
        return OuterGradient(torch.randn(n, generator=g), {"w": torch.randn(2, 2, generator=g)}, buffers)

    shares = [draw(n) for n in (1, 2, 3)]
    fabric: Any = SimpleNamespace(world_size=3)
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: sent.append(flat.clone()))
    for share in shares:
        average(fabric, share, 6, before)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.copy_(torch.stack(sent).sum(0)))
    expected = combine(shares)
    for share in shares:
        got = average(fabric, share, 6, before)
        torch.testing.assert_close(got.losses, expected.losses.mean().reshape(1))
        torch.testing.assert_close(got.grads["w"], expected.grads["w"])
        torch.testing.assert_close(got.buffers["mean"], expected.buffers["mean"])
        assert torch.equal(got.buffers["constants"], constants)
        assert int(got.buffers["count"]) == 4


def test_fewer_tasks_than_processes(toy: Any) -> None:
    fabric: Any = SimpleNamespace(
        world_size=4, device=torch.device("cpu"), strategy=make_fabric("cpu").strategy, is_global_zero=True
    )
    with pytest.raises(UserError, match="n_tasks=3 cannot be shared by 4 processes; pass n_tasks=4 or more, or fewer"):
        toy.trainer(fabric=fabric)


def test_everyone_gets_the_first_ones_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[torch.Tensor] = []

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        told.append(tensor.fill_(7))

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    fabric: Any = SimpleNamespace(world_size=2)
    synchronise(fabric, module)
    assert all(bool((t == 7).all()) for t in module.state_dict().values())
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(("here", "elsewhere"), [(True, 0), (False, 1), (False, 0)])
def test_all_leave_after_the_same_step(toy: Any, monkeypatch: pytest.MonkeyPatch, here: bool, elsewhere: int) -> None:
    trainer = toy.trainer()
    trainer.fabric = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda votes: votes.add_(elsewhere))
    assert trainer._any(here) is (here or bool(elsewhere))


def run(out: Path, mode: str, processes: int) -> list[dict[str, Any]]:
    """Start the toy as torchrun does, and return what each process wrote."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(out), mode, str(processes)], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return [load_tree(out / f"rank-{rank}") for rank in range(processes)]


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    (one,) = run(tmp_path / "one", "plain", 1)
    for mode in ("plain", "uneven"):
        first, second = run(tmp_path / mode, mode, 2)
        close(first["learner"], second["learner"], 0)
        close(first["learner"], one["learner"], 1e-5)
        assert torch.equal(first["learner"]["constant"], one["learner"]["constant"])
        # The first process validates for all: they agree on the best.
        assert {p["progress"]["best"] for p in (first, second)} == {1.0}
        assert len(Checkpoints(tmp_path / mode / "checkpoints").steps()) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_stop_together_and_resume_together(tmp_path: Path) -> None:
    (one,) = run(tmp_path / "one", "plain", 1)
    stopped = run(tmp_path / "two", "stop", 2)
    assert [(p["progress"]["stopped"], p["progress"]["step"]) for p in stopped] == [("interrupted", 4)] * 2
    for resumed in run(tmp_path / "two", "resume", 2):
        assert resumed["progress"]["stopped"] == "done"
        close(resumed["learner"], one["learner"], 1e-5)
