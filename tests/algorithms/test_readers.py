"""What learners share that read labelled examples as a sequence, and how safe their cells are."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kshot.algorithms import DNC, LSTM, MANN, NTM
from kshot.core import Episode, Spec, Split, UserError
from kshot.core.episode import unbind
from kshot.data.sequences.copying import copy_tasks
from kshot.engine.reading import Reader
from kshot.evaluation.evaluate import evaluate
from kshot.nn import native
from kshot.nn.flat import Flat
from kshot.nn.memory.cell import Cell
from kshot.nn.memory.dnc import DNCCell
from kshot.nn.memory.labelled import offset, shown, shuffled
from kshot.nn.memory.lrua import LRUACell
from kshot.nn.memory.lstm import LSTMCell
from kshot.nn.memory.ntm import NTMCell
from kshot.nn.memory.similarity import cosine
from kshot.nn.native.ntm import ntm_scan
from kshot.testing import synthetic_episode, synthetic_episodes

SPEC = Spec("classification", (4,), 3)
CELLS = {
    "lstm": lambda: LSTMCell(3, 4, 2),
    "lrua": lambda: LRUACell(3, 4, n_slots=6, slot_width=3, n_heads=2),
    "dnc": lambda: DNCCell(3, 4, n_slots=5, slot_width=3, n_heads=2),
    "ntm": lambda: NTMCell(3, n_hidden=4, n_layers=2, n_heads=2, n_slots=5, slot_width=3),
    "ntm feedforward": lambda: NTMCell(3, controller="feedforward", n_hidden=4, n_slots=5, slot_width=3),
    "ntm that reads late": lambda: NTMCell(3, n_hidden=4, n_heads=2, n_slots=5, slot_width=3, reads="after"),
}


def test_labels_come_one_step_late() -> None:
    z, y = torch.arange(3.0)[:, None], torch.tensor([2, 0, 1])
    got = offset(z, shown(y, 3, z))
    assert got.tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [2, 1, 0, 0]]
    assert offset(z[:0], shown(y[:0], 3, z)).shape == (0, 4)
    targets = torch.tensor([[0.5], [0.25]], dtype=torch.float64)
    assert torch.equal(shown(targets, 1, z), targets.float())


def test_examples_of_each_task_are_put_into_its_own_order() -> None:
    t = torch.randn(4, 2, 3)
    order = torch.tensor([[3, 0], [1, 1], [0, 3], [2, 2]])
    got = shuffled(order, t)
    assert torch.equal(got[:, 0], t[[3, 1, 0, 2], 0])
    assert torch.equal(got[:, 1], t[[0, 1, 3, 2], 1])
    assert torch.equal(shuffled(order, t[..., 0]), got[..., 0])


def one_sequence(learner: Reader, episode: Episode, order: Tensor) -> Tensor:
    """The loss of training, for a known order: every step from those before it, by ``adapt`` and ``predict``."""
    x = torch.cat([episode.support.x, episode.query.x])[order]
    y = torch.cat([episode.support.y, episode.query.y])[order]
    losses = []
    for t in range(len(y)):
        logits = learner.predict(learner.adapt(Split(x[:t], y[:t], 3)), x[t : t + 1])
        losses.append(F.cross_entropy(logits, y[t : t + 1]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("make", [LSTM, MANN, DNC])
def test_training_judges_every_step_of_one_mixed_sequence(make: type[Reader]) -> None:
    learner = make.from_backbone(Flat((4,)), SPEC, n_hidden=5).double().train()
    episodes = synthetic_episodes(SPEC, 2, n_shot=1, n_query=2)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        got = learner.outer_losses(episodes)
        torch.manual_seed(0)
        orders = torch.rand(9, 2).argsort(0).unbind(1)
        expected = torch.stack([one_sequence(learner, e, o) for e, o in zip(unbind(episodes), orders, strict=True)])
    assert not torch.equal(*orders)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_evaluation_keeps_the_order_and_follow_gives_its_answers() -> None:
    learner = LSTM(Flat((4,)), SPEC, n_hidden=5).double().eval()
    episode = synthetic_episode(SPEC, n_shot=1, n_query=2)
    x, y = (torch.cat([getattr(part, name) for part in episode]) for name in ("x", "y"))
    with torch.no_grad():
        loss = learner.outer_loss(episode)
        torch.testing.assert_close(loss, one_sequence(learner, episode, torch.arange(len(y))))
        torch.testing.assert_close(loss, F.cross_entropy(learner.follow(Split(x, y, 3)), y))


@pytest.mark.parametrize("name", CELLS)
def test_scan_is_step_after_step_in_any_batch_and_under_vmap(name: str) -> None:
    cell = CELLS[name]().double()
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    outputs, state = cell.scan(x, cell.start((2, 3)))
    plain, end = Cell.scan(cell, x[:, 1, 2], cell.start())
    torch.testing.assert_close(outputs[:, 1, 2], plain, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(state, end, strict=True):
        torch.testing.assert_close(mine[1, 2], theirs, rtol=1e-10, atol=1e-12)
    mapped = torch.func.vmap(lambda one: cell.scan(one, cell.start())[0], in_dims=1, out_dims=1)(x[:, :, 0])
    torch.testing.assert_close(mapped, outputs[:, :, 0], rtol=1e-10, atol=1e-12)
    nothing, same = cell.scan(x[:0], state)
    assert nothing.shape == (0, 2, 3, cell.n_features)
    assert same is state


#: Every number of every weight is moved: as small as they can be, and still be themselves.
TINY = {
    "lstm": lambda: LSTMCell(2, 2, 2),
    "lrua": lambda: LRUACell(2, 2, n_slots=4, slot_width=2, n_heads=2),
    "dnc": lambda: DNCCell(2, 2, n_slots=3, slot_width=2, n_heads=2),
    "ntm": lambda: NTMCell(2, n_hidden=2, n_layers=2, n_heads=2, n_slots=3, slot_width=2),
    "ntm feedforward": lambda: NTMCell(2, controller="feedforward", n_hidden=2, n_slots=3, slot_width=2),
    "ntm that reads late": lambda: NTMCell(2, n_hidden=2, n_slots=3, slot_width=2, reads="after"),
}


@pytest.mark.parametrize("name", TINY)
def test_gradients_of_a_cell_once_and_twice(name: str) -> None:
    """By inputs and weights, over three steps: the memory is written, read, and written again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        cell = TINY[name]().double()
        x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in cell.named_parameters()]

    def scan(x: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(_Scan(cell), dict(zip((f"cell.{n}" for n in names), weights, strict=True)), (x,))

    inputs = (x, *cell.parameters())
    assert torch.autograd.gradcheck(scan, inputs, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradgradcheck(scan, inputs, atol=1e-6, rtol=1e-4, fast_mode=True)


class _Scan(nn.Module):
    """A cell whose call is its scan from the start."""

    def __init__(self, cell: Cell[Any]) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell.scan(x, self.cell.start())[0]


@pytest.mark.skipif(not native.available(), reason=f"no native library: {native.why_not()}")
def test_the_kernel_of_mann_is_not_for_every_type() -> None:
    cell = LRUACell(3, 4, n_slots=6, slot_width=3, n_heads=2)
    assert cell.can_fuse()
    assert not cell.to(torch.bfloat16).can_fuse()
    cell.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert not cell.can_fuse()
        outputs, _ = cell.fused_scan(torch.zeros(2, 1, 3), cell.start((1,)))
    assert bool(outputs.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CELLS)
def test_an_empty_memory_has_finite_gradients(name: str, dtype: torch.dtype) -> None:
    """Rows of zeros have no direction; keys of zeros neither."""
    cell = CELLS[name]().to(dtype)
    for scale in (0.0, 1.0, 100.0):
        cell.zero_grad()
        x = scale * torch.randn(12, 2, 3, dtype=dtype)
        cell.scan(x, cell.start((2,)))[0].square().sum().backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in cell.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_cosine_in_any_type_is_within_its_rounding(dtype: torch.dtype, tolerance: float) -> None:
    g = torch.Generator().manual_seed(0)
    keys, memory = (torch.randn(n, 4, generator=g).to(dtype) for n in (3, 5))
    torch.testing.assert_close(
        cosine(keys, memory).double(), cosine(keys.double(), memory.double()), rtol=0, atol=tolerance
    )
    for scale in (0.0, 1e-15, 1e15):
        tensors = [(scale * t).requires_grad_() for t in (keys, memory)]
        found = cosine(*tensors)
        assert float(found.detach().abs().max()) <= 1 + tolerance
        assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(found.sum(), tensors))


def test_cosine_is_that_of_the_textbook_and_zero_at_zero() -> None:
    keys, memory = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    expected = F.cosine_similarity(keys.unsqueeze(-2), memory.unsqueeze(-3), dim=-1)
    torch.testing.assert_close(cosine(keys, memory), expected, rtol=1e-5, atol=1e-5)
    assert not cosine(torch.zeros(1, 4), torch.randn(3, 4)).any()


@pytest.mark.skipif(not native.available(), reason=f"no native library: {native.why_not()}")
def test_an_evaluation_of_one_length_is_a_few_calls_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    source, calls = copy_tasks("meta_test", min_length=5, max_length=5, n_bits=2), []

    def counted(*args: Any) -> Any:
        calls.append(args)
        return ntm_scan(*args)

    monkeypatch.setattr("kshot.nn.memory.ntm.ntm_scan", counted)
    learner = NTM(Flat((3,)), source.spec, n_hidden=5, n_slots=7, slot_width=3)
    together = evaluate(learner, source, n_episodes=32)
    # Reading and answering, of two chunks of 16; and of the first two tasks by either way, to see that they agree.
    assert len(calls) == 2 * 2 + 2 * 2 + 2
    alone = evaluate(learner, source, n_episodes=32, batching="loop")
    assert len(calls) == 10 + 2 * 32
    torch.testing.assert_close(together.per_episode["bits"], alone.per_episode["bits"], rtol=1e-5, atol=1e-5)


def test_doors() -> None:
    with pytest.raises(UserError, match="expected n_layers of at least 1, got 0"):
        LSTMCell(3, 4, 0)
    with pytest.raises(UserError, match="more rows of memory than heads"):
        LRUACell(3, n_slots=4, n_heads=4)
    with pytest.raises(UserError, match="usage_decay between 0 and 1"):
        LRUACell(3, usage_decay=1.5)
    with pytest.raises(UserError, match="expected n_heads of at least 1"):
        DNCCell(3, n_heads=0)
    with pytest.raises(UserError, match="without it"):
        LSTM(nn.Identity(), SPEC)
