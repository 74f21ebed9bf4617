"""Worker processes: the same gradient as a loop, errors as they were, and no process that outlives its parent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kshot.algorithms import MAML, MAMLpp, ProtoNet
from kshot.core import Episode, Learner, Spec, UserError
from kshot.core.episode import select, unbind
from kshot.engine import auto
from kshot.engine.auto import by_processes, choose
from kshot.engine.batch import Batching, OuterGradient, OuterStep
from kshot.engine.checkpoint import Checkpoints
from kshot.engine.processes import end_idle, pool
from kshot.engine.processes.memory import laid_out, mapped, new_file
from kshot.nn.conv import Conv4
from kshot.nn.mlp import MLP
from kshot.testing import synthetic_episodes

sys.path.insert(0, str(Path(__file__).parent))
toy_workers = __import__("toy_workers")

VECTORS = Spec("regression", (2,), 2)
#: Largest difference that is allowed from a loop, relative to the largest entry; ten times what rounding gives.
NEAR = {torch.float32: 1e-6, torch.float64: 1e-10}

Start = Callable[..., OuterStep]


@pytest.fixture
def start() -> Iterator[Start]:
    """Make steps by two workers, whose processes end with the test."""
    made: list[OuterStep] = []

    def make(learner: Learner, inside: str = "loop", workers: int = 2, **options: Any) -> OuterStep:
        made.append(OuterStep(learner, Batching("processes", inside=inside, workers=workers, **options)))
        return made[-1]

    yield make
    for step in made:
        step.close()


@pytest.fixture(scope="module", autouse=True)
def _stock() -> Iterator[None]:
    yield
    end_idle()


def near(got: OuterGradient, reference: OuterGradient, dtype: torch.dtype) -> None:
    for mine, theirs in ((got.grads, reference.grads), (got.buffers, reference.buffers)):
        assert mine.keys() == theirs.keys()
        # Over all of them: a bias before a normalisation has a gradient of rounding errors alone.
        scale = max([float(t.double().abs().max()) for t in theirs.values()], default=0.0) or 1.0
        for name, t in theirs.items():
            assert mine[name].dtype == t.dtype
            assert float((mine[name].double() - t.double()).abs().max()) <= NEAR[dtype] * scale, name
    torch.testing.assert_close(got.losses, reference.losses, rtol=NEAR[dtype], atol=NEAR[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_a_loop_while_the_weights_move(start: Start, dtype: torch.dtype) -> None:
    """Buffers that hold statistics, a number of tasks that two do not divide, weights and modes that change."""
    learner = MAMLpp.from_backbone(MLP(2, (6, 5), "running"), VECTORS, n_inner_steps=2).to(dtype).train()
    several, loop = start(learner), OuterStep(learner, Batching("loop"))
    for n_tasks in (5, 2, 1):
        episodes = synthetic_episodes(VECTORS, n_tasks, dtype=dtype)
        near(several(episodes), loop(episodes), dtype)
        with torch.no_grad():
            for t in (*learner.parameters(), *learner.buffers()):
                t.add_(1) if not t.is_floating_point() else t.mul_(1.01)
    learner.eval()
    next(learner.parameters()).requires_grad_(False)
    near(several(episodes), loop(episodes), dtype)
    wide = several(episodes, wide=True)
    assert {g.dtype for g in wide.grads.values()} == {torch.float64}


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["loop", "vmap", "fused"])
def test_equal_to_a_loop_on_the_network_of_the_papers(start: Start, inside: str) -> None:
    images = Spec("classification", (1, 28, 28), 5)
    learner = MAML.from_backbone(Conv4(normalisation="episode"), images, n_inner_steps=2).double().train()
    if inside == "fused" and not learner.fused:
        pytest.skip("no compiled kernels here: they need a C++ compiler")
    episodes = synthetic_episodes(images, 5, n_shot=1, n_query=2)
    near(start(learner, inside, chunk=2)(episodes), OuterStep(learner, Batching("loop"))(episodes), torch.float64)


def test_many_things_of_one_pool(start: Start) -> None:
    """Lists of episodes, mixed precision, random numbers, warnings, prints; one start, as starting takes a while."""
    learner = toy_workers.odd()
    step, loop = start(learner, "vmap"), OuterStep(learner, Batching("loop"))
    episodes = toy_workers.episodes()
    near(step(episodes), loop(episodes), torch.float32)
    pids = [p.pid for p in step._workers._processes]  # pyright: ignore[reportOptionalMemberAccess]

    varied = [*unbind(episodes), select(toy_workers.episodes(2), slice(0, 1))]
    near(step(varied), loop(varied), torch.float32)

    step.batching = Batching("processes", inside="loop", workers=2)
    exact = loop(episodes).losses
    step.autocast = loop.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    mixed = step(episodes).losses
    torch.testing.assert_close(mixed, loop(episodes).losses, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed, exact, rtol=1e-5, atol=1e-5)

    learner.what.fill_(5)
    with pytest.warns(UserWarning, match="said once"):
        step(episodes)
    step(episodes)  # a second warning would be an error
    assert pids == [p.pid for p in step._workers._processes]  # pyright: ignore[reportOptionalMemberAccess]


def test_dropout_draws_from_the_generator_that_a_checkpoint_keeps(start: Start) -> None:
    network = nn.Sequential(MLP(2, (16,)), nn.Dropout(0.5), nn.Linear(16, 2))
    step, episodes = start(MAML(network).train()), synthetic_episodes(VECTORS, 4, dtype=torch.float32)
    torch.manual_seed(5)
    first, other = step(episodes), step(episodes)
    torch.manual_seed(5)
    again = step(episodes)
    assert torch.equal(first.losses, again.losses)
    assert all(torch.equal(g, again.grads[k]) for k, g in first.grads.items())
    assert not torch.equal(first.losses, other.losses)


def test_errors_come_as_they_were_and_the_pool_goes_on(start: Start) -> None:
    learner = toy_workers.odd(1)
    step, episodes = start(learner), toy_workers.episodes()
    for _ in range(2):
        with pytest.raises(UserError, match=r"^expected another number, got 1; take 0$") as e:
            step(episodes)
    assert "in outer_loss" in str(e.value.__cause__)
    learner.what.fill_(2)
    with pytest.raises(RuntimeError, match=r"^Unportable: a and b$"):
        step(episodes)
    learner.what.fill_(0)
    near(step(episodes), OuterStep(learner, Batching("loop"))(episodes), torch.float32)
    learner.what.fill_(3)
    with pytest.raises(UserError, match=r"it has ended \(status 7\); if memory is short"):
        step(episodes)
    assert not step._workers.alive  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGINT", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_no_worker_outlives_its_parent(number: str) -> None:
    """Ctrl-C while a worker is at it ends all at once; after kill -9 they end with what they are at, 6 s of sleep."""
    program, what = Path(__file__).with_name("toy_sleep.py"), {"SIGINT": "600", "SIGKILL": "6"}[number]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, program, what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as parent:
        pids = [int(p) for p in parent.stdout.readline().split()]  # pyright: ignore[reportOptionalMemberAccess]
        assert len(pids) == 2
        assert all(map(running, pids))
        time.sleep(0.2)
        parent.send_signal(getattr(signal, number))
        try:
            parent.wait(timeout=60)
        finally:
            parent.kill()
    deadline = time.monotonic() + 60
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, pids))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_learners_that_cannot_be_handed_over() -> None:
    class Local(ProtoNet):
        pass

    with pytest.raises(UserError, match="another process can load, but Local cannot be pickled"):
        OuterStep(Local(MLP(2, (4,))), Batching("processes"))(synthetic_episodes(Spec("classification", (2,), 2), 2))


def test_a_learner_that_only_this_process_knows(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    made = type("Typed", (ProtoNet,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Typed", made, raising=False)
    step = start(made(MLP(2, (4,))), workers=1)
    with pytest.raises(UserError, match=r"'Typed'.*put its class into a module that can be imported"):
        step(synthetic_episodes(Spec("classification", (2,), 2), 2, dtype=torch.float32))


def test_no_room_for_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(n_bytes: int) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pool, "new_file", full)
    with pytest.raises(UserError, match=r"a file of \d+ bytes that processes share, got: No space left"):
        OuterStep(maml(), Batching("processes"))(FEW)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="worker processes that run loop, vmap, native, fused, got 'processes'"):
        Batching("processes", inside="processes")
    with pytest.raises(UserError, match="workers >= 0 processes, got -1"):
        Batching("processes", workers=-1)
    with pytest.raises(UserError, match="has no fused batching"):
        OuterStep(ProtoNet(MLP(2, (4,))), Batching("processes", inside="fused"))
    assert str(Batching("processes", 3, inside="vmap", workers=2)) == "2 processes of vmap, chunks of 3"
    assert Batching("processes", 3, inside="vmap", workers=2).of_one_process() == Batching("vmap", 3)


def test_shared_tensors_lie_apart_and_are_seen_by_all(tmp_path: Path) -> None:
    kinds = {
        "a": (torch.Size((3,)), torch.float64),
        "empty": (torch.Size((0, 2)), torch.float32),
        "b": (torch.Size(()), torch.int64),
    }
    places = laid_out(kinds)
    file = new_file(max(p.end for p in places))
    try:
        one, other = mapped(file, places), mapped(file, places)
    finally:
        file.unlink()
    one["a"].copy_(torch.arange(3.0))
    one["b"].fill_(7)
    assert other["a"].tolist() == [0, 1, 2]
    assert int(other["b"]) == 7
    assert other["empty"].shape == (0, 2)
    assert all(p.start % 64 == 0 for p in places)


FEW = synthetic_episodes(VECTORS, 3, dtype=torch.float32)


def maml() -> MAML:
    return MAML.from_backbone(MLP(2, (4,)), VECTORS).train()


def test_offered_where_there_are_threads_and_tasks_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    def offered(cores: int, threads: int, episodes: Episode | list[Episode]) -> Batching | None:
        monkeypatch.setattr(auto, "cores", lambda: cores)
        monkeypatch.setattr(auto.torch, "get_num_threads", lambda: threads)
        return by_processes(Batching("vmap", 2), maml(), episodes)

    assert offered(4, 2, FEW) == Batching("processes", 2, inside="vmap", workers=2)
    assert offered(4, 8, list(unbind(FEW))) == Batching("processes", 2, inside="vmap", workers=3)
    assert offered(1, 8, FEW) is offered(8, 1, FEW) is offered(8, 8, select(FEW, slice(0, 1))) is None


@pytest.mark.parametrize(("n_steps", "seconds", "chosen"), [(60, 0.5, True), (60, 2.0, False), (40, 0.5, None)])
def test_measured_where_the_run_is_long_enough_to_pay_for_it(
    monkeypatch: pytest.MonkeyPatch, n_steps: int, seconds: float, chosen: bool | None
) -> None:
    times = {"loop": 1.0, "vmap": 3.0, "2 processes of loop": seconds}
    monkeypatch.setattr(auto, "cores", lambda: 2)
    monkeypatch.setattr(auto.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(auto, "_measure", lambda step, *rest, **options: times[str(step.batching)])
    best, measured = choose(maml(), FEW, n_steps=n_steps, compiled="off")
    assert str(best) == ("2 processes of loop" if chosen else "loop")
    assert ("2 processes of loop" in measured) is (chosen is not None)


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_to_the_same_bits(toy: Any, tmp_path: Path) -> None:
    """Dropout and running statistics in the workers, two of them, and a request to stop that only the parent hears."""

    def fit(out: Path, stop_at: int = 0, resume: bool = False) -> str:
        def on_event(name: str, step: int, values: dict[str, Any]) -> None:
            if name == "step" and step == stop_at:
                signal.raise_signal(signal.SIGINT)

        options = {"batching": "processes", "workers": 2, "on_event": on_event}
        return toy.trainer(toy.restless(), out, **options).fit(resume=resume).stopped

    def weights(out: Path) -> dict[str, torch.Tensor]:
        return Checkpoints(out / "checkpoints").load_newest()[0]["learner"]

    assert fit(tmp_path / "whole") == "done"
    assert fit(tmp_path / "parts", stop_at=5) == "interrupted"
    assert fit(tmp_path / "parts", resume=True) == "done"
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(t, parts[k]) for k, t in whole.items())


@pytest.mark.slow
def test_training_by_the_command_line(tmp_path: Path) -> None:
    flags = (
        "--data sinusoid --steps 3 --validate-every 0 --eval-episodes 0 --batching processes --workers 2 --log-every 1"
    )
    command = [sys.executable, "-m", "kshot", "train", "maml", *flags.split(), "--out", str(tmp_path / "run")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert "tasks batched: 2 processes of loop" in done.stderr
    loop = [*command[:-1], str(tmp_path / "loop"), "--batching", "loop"]
    subprocess.run(loop, env=env, capture_output=True, timeout=250, check=True)
    losses = [
        [float(row.split(",")[1]) for row in (tmp_path / name / "metrics.csv").read_text().splitlines()[1:]]
        for name in ("run", "loop")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
