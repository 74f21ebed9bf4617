"""Training a Neural Turing Machine to copy: kshot's trainer against pytorch-ntm, and against plain steps."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.algorithms import NTM
from kshot.bench.equal import refuse_unequal, unequal
from kshot.bench.peers import several
from kshot.bench.plain import gap
from kshot.bench.result import Result, lines_of
from kshot.bench.timing import take_turns
from kshot.core import Episode, UserError
from kshot.data.loader import EpisodeLoader
from kshot.data.sequences.copying import Copy
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.train import TrainConfig, Trainer
from kshot.nn.flat import Flat

#: Batch -> how many times as fast as pytorch-ntm is asked.
ASKED = {1: 6.0, 16: 8.0, 64: 12.0}
LENGTH, SLOTS, WIDTH, UNITS = 20, 128, 20, 100
PEER = "pytorch-ntm"
_RATE, _MOMENTUM, _CLIP = 1e-4, 0.9, 10.0


def ntm_copy(rounds: int, n_sequences: int = 1, per: int = 0) -> Result:
    """Time training steps of an NTM that copies 20 vectors of 8 bits: 128 x 20, an LSTM of 100 units, one thread.

    Args:
        rounds: measured rounds.
        n_sequences: of a step.
        per: steps in a row that are timed together; 0 for about 16 sequences.

    Returns:
        Seconds of a step: forward, backward, clipping, RMSProp; of kshot with its data.

    Raises:
        UserError: the kernel's gradient is not that of plain steps.
    """
    threads, per = torch.get_num_threads(), per or max(1, 16 // n_sequences)
    torch.set_num_threads(1)
    try:
        return _timed(rounds, n_sequences, per)
    finally:
        torch.set_num_threads(threads)


def _timed(rounds: int, n_sequences: int, per: int) -> Result:
    source = Copy(min_length=LENGTH, max_length=LENGTH)
    episodes = next(EpisodeLoader(source, n_sequences, seed=0))
    if not isinstance(episodes, Episode):
        raise UserError("expected sequences of one length, got a list of episodes; give one length")
    contenders: dict[str, Callable[[], Any]] = {
        "kshot": _trainer("fused", n_sequences, per),
        "kshot, plain steps": _trainer("native", n_sequences, per),
    }
    case = f"ntm-copy-{n_sequences}"
    plain = gradients(_learner(), episodes, "native")
    gaps = {"kshot": gap(gradients(_learner(), episodes, "fused"), plain)}
    refuse_unequal(case, gaps["kshot"])
    if peer_installed():
        contenders[PEER] = several(peer_step(_learner(), episodes), per)
        gaps[PEER] = gap(peer_gradients(_learner(), episodes), plain)
    timings = take_turns(contenders, rounds)
    notes = {"kshot": "data included", PEER: "the authors' modules as they are, on tensors that are there already"}
    notes |= unequal(gaps)
    return Result(
        case,
        f"Neural Turing Machine, copy, {LENGTH} vectors of 8 bits, memory {SLOTS} x {WIDTH}, LSTM of {UNITS} units, "
        f"{n_sequences} sequences, one thread: one training step",
        lines_of(timings, "kshot", per, notes),
        "loss and gradients against plain steps, relative: "
        + ", ".join(f"{name} {found:.1e}" for name, found in gaps.items()),
        ASKED.get(n_sequences),
        PEER,
    )


def peer_installed() -> bool:
    """Tell whether pytorch-ntm can be imported; it is no package, so that its folder must be on PYTHONPATH.

    Returns:
        True if so.
    """
    return importlib.util.find_spec("ntm") is not None and importlib.util.find_spec("ntm.aio") is not None


def _learner() -> NTM:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        spec = Copy().spec
        # Its memory starts at random, since the peer's cosines are not defined for rows of nothing.
        learner = NTM(
            Flat(spec.input_shape), spec, n_hidden=UNITS, n_slots=SLOTS, slot_width=WIDTH, memory_start="random"
        )
    return learner.train()


def _trainer(kind: str, n_sequences: int, per: int) -> Callable[[], None]:
    learner, source = _learner(), Copy(min_length=LENGTH, max_length=LENGTH)
    config = TrainConfig(
        steps=per,
        batching=kind,
        validate_every=0,
        optimiser="rmsprop",
        outer_lr=_RATE,
        momentum=_MOMENTUM,
        clip_value=_CLIP,
    )

    def run() -> None:
        Trainer(learner, EpisodeLoader(source, n_sequences, seed=0), config).fit()

    return run


def gradients(learner: NTM, episodes: Episode, kind: str) -> dict[str, Tensor]:
    """Take kshot's loss and the gradients that are compared.

    Args:
        learner: the machine.
        episodes: the sequences.
        kind: of batching.

    Returns:
        "loss", the mean, and the gradients of the heads and of the last layer.
    """
    found = OuterStep(learner, Batching(kind))(episodes)
    return {"loss": found.losses.mean(), "heads": found.grads["cell.heads.weight"], "last": found.grads["head.weight"]}


def peer_step(learner: NTM, episodes: Episode) -> Callable[[], float]:
    """Make pytorch-ntm's training step, as its train.py has it.

    Args:
        learner: whose weights it gets.
        episodes: the sequences of every step.

    Returns:
        A function that trains on them once and returns the loss.
    """
    machine = _peer(learner)
    optimiser = torch.optim.RMSprop(machine.parameters(), lr=_RATE, momentum=_MOMENTUM, alpha=0.95)

    def step() -> float:
        optimiser.zero_grad()
        loss = _peer_loss(machine, episodes)
        loss.backward()
        nn.utils.clip_grad_value_(machine.parameters(), _CLIP)
        optimiser.step()
        return loss.item()

    return step


def peer_gradients(learner: NTM, episodes: Episode) -> dict[str, Tensor]:
    """Take pytorch-ntm's loss and gradients at kshot's weights and start.

    Args:
        learner: kshot's machine.
        episodes: the sequences.

    Returns:
        What ``gradients`` returns.
    """
    machine = _peer(learner)
    loss = _peer_loss(machine, episodes, learner)
    loss.backward()
    read, write = machine.ntm.heads
    heads = torch.cat([_turned(read.fc_read.weight.grad), _turned(write.fc_write.weight.grad)])
    return {"loss": loss.detach(), "heads": heads, "last": machine.ntm.fc.weight.grad}


def _peer(learner: NTM) -> Any:
    # One read and one write head look at the memory before the step in both, so that they are one function.
    aio = importlib.import_module("ntm.aio")
    machine = aio.EncapsulatedNTM(9, 8, UNITS, 1, 1, SLOTS, WIDTH)
    cell: Any = learner.cell
    lstm, (read, write) = machine.ntm.controller.lstm, machine.ntm.heads
    recurrent = cell.recurrent.weight
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.cat([cell.input.weight, recurrent[:, :WIDTH]], 1))
        lstm.weight_hh_l0.copy_(recurrent[:, WIDTH:])
        lstm.bias_ih_l0.copy_(cell.input.bias)
        lstm.bias_hh_l0.zero_()
        for layer, part in ((read.fc_read, slice(0, cell.sizes[0])), (write.fc_write, slice(cell.sizes[0], None))):
            layer.weight.copy_(_turned(cell.heads.weight[part]))
            layer.bias.copy_(_turned(cell.heads.bias[part]))
        machine.ntm.fc.weight.copy_(learner.head.weight)
        machine.ntm.fc.bias.copy_(learner.head.bias)
        machine.memory.mem_bias.copy_(cell.start_memory)
    return machine


def _turned(rows: Tensor) -> Tensor:
    # Its shifts stand the other way round.
    first = WIDTH + 2
    return torch.cat([rows[:first], rows[first : first + 3].flip(0), rows[first + 3 :]])


def _peer_loss(machine: Any, episodes: Episode, start: NTM | None = None) -> Tensor:
    x, y = episodes.support.x.float().transpose(0, 1), episodes.query.y.transpose(0, 1)
    n = x.shape[1]
    machine.init_sequence(n)
    if start is not None:
        cell: Any = start.cell
        state = cell.start((n,))
        lstm = (state.hidden.unsqueeze(0).contiguous(), state.cell.unsqueeze(0).contiguous())
        machine.previous_state = ([state.reads], lstm, list(state.weights.unbind(1)))
    for step in x:
        machine(step)
    out = torch.stack([machine()[0] for _ in y])
    return F.binary_cross_entropy(out, y.float())
