"""The compiled least recently used access memory against the plain steps, and what it refuses."""

import pytest
import torch
from torch import Tensor

from kshot.nn import native
from kshot.nn.memory.lrua import LRUACell, LRUAState
from kshot.nn.native.lrua import Shape, Weights, lrua_scan

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native library: {native.why_not()}")
SIZES = [
    {},
    {"n_hidden": 7, "n_slots": 9, "slot_width": 5, "n_heads": 3},
    {"n_hidden": 5, "n_slots": 33, "slot_width": 1, "n_heads": 1, "usage_decay": 0.5},
]


def cell(dtype: torch.dtype = torch.float64, **size: object) -> LRUACell:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = LRUACell(4, **size).to(dtype)  # pyright: ignore[reportArgumentType]
        for p in made.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return made


def drawn(shape: torch.Size, salt: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(salt), dtype=torch.float64).to(dtype)


def some_state(made: LRUACell, n: int) -> LRUAState:
    # Rows that differ, of which each step empties others.
    state = made.start((n,))
    several = (drawn(t.shape, 20 + i, t.dtype).abs().requires_grad_() for i, t in enumerate(state))
    return LRUAState(*several)


def followed(made: LRUACell, x: Tensor, start: LRUAState, how: str) -> tuple[list[Tensor], list[Tensor]]:
    features, end = getattr(made, how)(x, start)
    found = [features, *end]
    loss = torch.stack([(t * drawn(t.shape, i, t.dtype)).sum() for i, t in enumerate(found)]).sum()
    asked = [x, *made.parameters(), *(t for t in start if t.requires_grad)]
    return [t.detach() for t in found], list(torch.autograd.grad(loss, asked))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "of_gradients"), [(torch.float64, 1e-12, 1e-11), (torch.float32, 5e-5, 3e-4)]
)
def test_kernel_and_steps_agree_with_all_gradients(
    size: dict[str, object], dtype: torch.dtype, tolerance: float, of_gradients: float
) -> None:
    made = cell(dtype, **size)
    x = drawn(torch.Size((7, 5, 4)), 3, dtype).requires_grad_()
    start = some_state(made, 5)
    (values, grads), (expected, expected_grads) = (followed(made, x, start, how) for how in ("fused_scan", "scan"))
    for many, others, most in ((values, expected, tolerance), (grads, expected_grads, of_gradients)):
        for got, right in zip(many, others, strict=True):
            scale = max(1.0, float(right.abs().max()))
            torch.testing.assert_close(got, right, rtol=0, atol=most * scale)


def test_from_an_even_memory_the_same_rows_are_taken_from_the_first_on() -> None:
    made, x = cell(n_hidden=6, n_slots=20, slot_width=4, n_heads=2), drawn(torch.Size((12, 3, 4)), 3, torch.float64)
    start = made.start((3,))
    (features, end), (expected, right) = made.fused_scan(x, start), made.scan(x, start)
    torch.testing.assert_close(features, expected)
    for got, wanted in zip(end, right, strict=True):
        torch.testing.assert_close(got, wanted)
    _, after, did = made.step(x[0, 0], made.start())
    assert did["write weights"].argmax(-1).tolist() == [0, 1]
    assert made.step(x[1, 0], after)[2]["write weights"][:, 2:].argmax(-1).tolist() == [0, 1]


def test_threads_change_nothing() -> None:
    made, before = cell(), torch.get_num_threads()
    x, start = drawn(torch.Size((4, 5, 4)), 3, torch.float64).requires_grad_(), some_state(made, 5)
    one = followed(made, x, start, "fused_scan")
    torch.set_num_threads(3)
    try:
        three = followed(made, x, start, "fused_scan")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one[0], three[0], strict=True))


def test_the_gradient_can_be_taken_once() -> None:
    made = cell(n_slots=9)
    features, _ = made.fused_scan(drawn(torch.Size((3, 2, 4)), 3, torch.float64), made.start((2,)))
    torch.autograd.grad(features.sum(), made.recurs.weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        torch.autograd.grad(features.sum(), made.recurs.weight)


def test_what_does_not_fit_is_refused() -> None:
    shape = Shape(3, 1, 5, 2)
    weights = Weights(torch.zeros(12, 5), torch.zeros(4, 3), torch.zeros(4))
    start = LRUAState(*(torch.zeros(2, *s) for s in ((3,), (3,), (5, 2), (1, 5), (5,), (2,))))
    sums = torch.zeros(4, 2, 12)
    lrua_scan(shape, sums, weights, start, 0.99)
    with pytest.raises(ValueError, match="at least one step"):
        lrua_scan(shape, sums[:0], weights, start, 0.99)
    with pytest.raises(ValueError, match=r"usage of shape \(2, 5\)"):
        lrua_scan(shape, sums, weights, start._replace(usage=torch.zeros(2, 6)), 0.99)
    with pytest.raises(ValueError, match="asks"):
        lrua_scan(shape, sums, weights._replace(asks=torch.zeros(4, 3).double()), start, 0.99)


def test_a_number_that_is_none_is_not_hidden() -> None:
    made = cell(torch.float32)
    x = drawn(torch.Size((3, 1, 4)), 3, torch.float32)
    x[1] = torch.nan
    features, _ = made.fused_scan(x, made.start((1,)))
    assert bool(torch.isfinite(features[0]).all())
    assert not bool(torch.isfinite(features[1]).any())
