"""The compiled Neural Turing Machine against the plain steps, and what it refuses."""

import pytest
import torch
from torch import Tensor

from kshot.core import UserError
from kshot.nn import native
from kshot.nn.memory.ntm import NTMCell
from kshot.nn.native.ntm import Shape, Start, ntm_scan

SIZES = [
    {},
    {"controller": "feedforward"},
    {"n_heads": 3, "n_slots": 13, "slot_width": 5, "n_shifts": 5, "n_hidden": 11, "memory_start": "learned"},
    {"controller": "feedforward", "n_heads": 2, "n_slots": 3, "slot_width": 1, "n_hidden": 3, "memory_start": "random"},
]
compiled = pytest.mark.skipif(not native.available(), reason=f"no native library: {native.why_not()}")


def cell(dtype: torch.dtype = torch.float64, **size: object) -> NTMCell:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = NTMCell(4, **size).to(dtype)  # pyright: ignore[reportArgumentType]
        for p in made.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return made


def weighted(t: Tensor, salt: int) -> Tensor:
    g = torch.Generator().manual_seed(salt)
    return (t * torch.randn(t.shape, generator=g, dtype=t.dtype)).sum()


def followed(made: NTMCell, x: Tensor, how: str) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    features, end = getattr(made, how)(x, made.start((x.shape[1],)))
    loss = weighted(features, 1) + sum(weighted(t, 2 + i) for i, t in enumerate(end))
    grads = torch.autograd.grad(loss, [x, *made.parameters()], materialize_grads=True)
    return features.detach(), [t.detach() for t in end], list(grads)


@compiled
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_kernel_and_steps_agree_with_all_gradients(
    size: dict[str, object], dtype: torch.dtype, tolerance: float
) -> None:
    made = cell(dtype, **size)
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(5), dtype=dtype).requires_grad_()
    (features, end, grads), (expected, expected_end, expected_grads) = (
        followed(made, x, "fused_scan"),
        followed(made, x, "scan"),
    )
    for got, right in zip([features, *end, *grads], [expected, *expected_end, *expected_grads], strict=True):
        scale = max(1.0, float(right.abs().max())) if right.numel() else 1.0
        torch.testing.assert_close(got, right, rtol=0, atol=tolerance * scale)


@compiled
def test_without_gradients_a_scan_is_the_kernels_whatever_its_batch_axes() -> None:
    made = cell()
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, after = made.scan(x, made.start((2, 3)))
    with torch.no_grad():
        quick, end = made.scan(x, made.start((2, 3)))
    torch.testing.assert_close(quick, plain.detach(), rtol=0, atol=1e-12)
    for got, right in zip(end, after, strict=True):
        torch.testing.assert_close(got, right.detach(), rtol=0, atol=1e-12)


@compiled
def test_threads_change_nothing() -> None:
    made, before = cell(), torch.get_num_threads()
    x = torch.randn(4, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    one = followed(made, x, "fused_scan")
    torch.set_num_threads(3)
    try:
        three = followed(made, x, "fused_scan")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], three[0])
    assert all(torch.equal(a, b) for a, b in zip(one[2][0], three[2][0], strict=True))


@compiled
def test_a_gradient_is_taken_once() -> None:
    made = cell()
    features, _ = made.fused_scan(torch.zeros(2, 1, 4, dtype=torch.float64), made.start((1,)))
    features.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        features.sum().backward()


def test_weightings_stay_weightings_on_an_empty_memory() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        made = cell(dtype)
        made.start_memory.zero_()
        x = torch.ones(1, 4, dtype=dtype)
        features, state = made(x, made.start((1,)))
        torch.testing.assert_close(state.weights.sum(-1).float(), torch.ones(1, 2), rtol=0, atol=0.02)
        features.sum().backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in made.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"controller": "gru"}, "controller must be one of"),
        ({"memory_start": "ones"}, "memory_start must be one of"),
        ({"n_shifts": 2}, "odd"),
        ({"n_shifts": 5, "n_slots": 3}, "at most n_slots=3"),
        ({"n_heads": 0}, "n_heads of at least 1"),
    ],
)
def test_sizes_that_make_no_sense(size: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cell(**size)


@compiled
def test_shapes_that_do_not_fit_are_refused() -> None:
    shape = Shape(hidden=3, lstm=1, reads=1, writes=1, slots=4, width=2, shifts=3)
    start = Start(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(1, 2, 4), torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match=r"expected w_controller of shape \(12, 5\)"):
        ntm_scan(shape, torch.zeros(2, 1, 12), torch.zeros(12, 4), torch.zeros(20, 3), torch.zeros(20), start)
    with pytest.raises(ValueError, match="at least one step"):
        ntm_scan(shape, torch.zeros(0, 1, 12), torch.zeros(12, 5), torch.zeros(20, 3), torch.zeros(20), start)
