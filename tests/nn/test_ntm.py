"""The compiled Neural Turing Machine against the plain steps, and what it refuses."""

import pytest
import torch
from torch import Tensor, nn

from kshot.core import UserError
from kshot.engine.memory_plan import measured
from kshot.nn import native
from kshot.nn.memory.ntm import NTMCell, NTMState
from kshot.nn.native.ntm import Shape, Start, Weights, ntm_scan

SIZES = [
    {},
    {"controller": "feedforward"},
    {"n_heads": 3, "n_slots": 13, "slot_width": 5, "n_shifts": 5, "n_hidden": 11, "memory_start": "learned"},
    {"n_layers": 2, "n_hidden": 7, "n_slots": 9, "slot_width": 4, "n_heads": 2},
    {"reads": "after", "n_slots": 9, "slot_width": 4, "n_heads": 2},
    {"reads": "after", "controller": "feedforward", "n_hidden": 7, "n_slots": 5, "slot_width": 3},
    {"n_layers": 3, "n_hidden": 5, "n_slots": 6, "slot_width": 3, "controller": "feedforward"},
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


class Whole(nn.Module):
    """A module that is called as a cell scans."""

    def __init__(self, cell: NTMCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell.scan(x, self.cell.start())[0]


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
@pytest.mark.parametrize(
    ("dtype", "tolerance", "of_gradients"), [(torch.float64, 1e-13, 1e-12), (torch.float32, 5e-6, 1e-4)]
)
def test_kernel_and_steps_agree_with_all_gradients(
    size: dict[str, object], dtype: torch.dtype, tolerance: float, of_gradients: float
) -> None:
    made = cell(dtype, **size)
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(5), dtype=dtype).requires_grad_()
    (features, end, grads), (expected, expected_end, expected_grads) = (
        followed(made, x, "fused_scan"),
        followed(made, x, "scan"),
    )
    # Rounding alone: of values near 1, and of sums of many such in gradients.
    for many, others, most in (
        ([features, *end], [expected, *expected_end], tolerance),
        (grads, expected_grads, of_gradients),
    ):
        for got, right in zip(many, others, strict=True):
            scale = max(1.0, float(right.abs().max())) if right.numel() else 1.0
            torch.testing.assert_close(got, right, rtol=0, atol=most * scale)


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
@pytest.mark.parametrize("size", [{}, {"controller": "feedforward", "n_layers": 2, "n_hidden": 5}])
def test_under_vmap_without_gradients_the_kernel_runs_once_for_all(
    size: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, calls = cell(**size), []  # pyright: ignore[reportArgumentType]

    def counted(*args: object) -> object:
        calls.append(args)
        return ntm_scan(*args)  # pyright: ignore[reportArgumentType]

    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    singles = [[made.scan(each, made.start()) for each in row] for row in x]
    monkeypatch.setattr("kshot.nn.memory.ntm.ntm_scan", counted)

    def read(one: Tensor) -> tuple[Tensor, NTMState]:
        return made.scan(one, made.start())

    with torch.no_grad():
        found, end = torch.func.vmap(torch.func.vmap(read))(x)
        along, _ = torch.func.vmap(read, in_dims=1, out_dims=1)(x[0].transpose(0, 1))
    assert len(calls) == 2
    torch.testing.assert_close(along.transpose(0, 1), found[0], rtol=0, atol=1e-12)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(found[i, j], singles[i][j][0].detach(), rtol=0, atol=1e-12)
            for got, right in zip(end, singles[i][j][1], strict=True):
                torch.testing.assert_close(got[i, j], right.detach(), rtol=0, atol=1e-12)
    # What nobody can read from C++: parameters that are mapped, and operations that are only counted.
    with torch.no_grad():
        weights = made.heads.weight.expand(2, -1, -1)
        whole = Whole(made)
        torch.func.vmap(lambda w: torch.func.functional_call(whole, {"cell.heads.weight": w}, (x[0, 0],)))(weights)
        with measured():
            made.scan(x[0], made.start((5,)))
    assert len(calls) == 2


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


def test_weights_know_the_order_that_they_were_trained_in() -> None:
    early, late = cell(), cell(reads="after")
    for taker, giver in ((early, late), (late, early)):
        with pytest.raises(RuntimeError, match="reads_after"):
            taker.load_state_dict(giver.state_dict())
    late.load_state_dict(cell(reads="after").state_dict())


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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_addressing_is_safe_at_any_size_and_true_in_its_type(dtype: torch.dtype, tolerance: float) -> None:
    made = NTMCell(4, n_slots=6, slot_width=3)
    g = torch.Generator().manual_seed(0)
    address, memory = torch.randn(2, 9, generator=g, dtype=torch.float64), torch.randn(6, 3, generator=g).double()
    before = torch.randn(2, 6, generator=g, dtype=torch.float64).softmax(-1)
    rounded = [t.to(dtype).requires_grad_() for t in (address, before, memory)]
    expected, _ = made._place(*(t.detach().double() for t in rounded))
    got, _ = made._place(*rounded)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)
    # Key strengths and sharpenings that would take exponentials and powers out of any range; keys and rows of zeros.
    for strength, sharpness, scale in ((1e4, 1e4, 1.0), (1e4, 0.0, 1e9), (0.0, 1e4, 0.0), (-1e4, -1e4, 1e-9)):
        extreme = address.clone()
        extreme[:, 3], extreme[:, 8] = strength, sharpness
        extreme[:, :3] *= scale
        tensors = [t.to(dtype).requires_grad_() for t in (extreme, before, scale * memory)]
        weights, _ = made._place(*tensors)
        torch.testing.assert_close(weights.sum(-1).double(), torch.ones(2).double(), rtol=0, atol=tolerance)
        grads = torch.autograd.grad((weights * torch.arange(6, dtype=dtype)).sum(), tensors)
        assert all(bool(t.isfinite().all()) for t in grads), (strength, sharpness, scale)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"n_layers": 0}, "n_layers of at least 1"),
        ({"controller": "gru"}, "controller must be one of"),
        ({"memory_start": "ones"}, "memory_start must be one of"),
        ({"reads": "never"}, "reads must be one of before, after"),
        ({"n_shifts": 2}, "odd"),
        ({"n_shifts": 5, "n_slots": 3}, "at most n_slots=3"),
        ({"n_heads": 0}, "n_heads of at least 1"),
    ],
)
def test_sizes_that_make_no_sense(size: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cell(**size)  # pyright: ignore[reportArgumentType]


@compiled
def test_shapes_that_do_not_fit_are_refused() -> None:
    shape = Shape(hidden=3, layers=1, lstm=1, reads=1, writes=1, slots=4, width=2, shifts=3)
    heads = torch.zeros(20, 3), torch.zeros(20)
    none = torch.zeros(0, 12, 6), torch.zeros(0, 12)
    start = Start(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(1, 2, 4), torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match=r"expected controller of shape \(12, 5\)"):
        ntm_scan(shape, torch.zeros(2, 1, 12), Weights(torch.zeros(12, 4), *none, *heads), start)
    with pytest.raises(ValueError, match="at least one step"):
        ntm_scan(shape, torch.zeros(0, 1, 12), Weights(torch.zeros(12, 5), *none, *heads), start)
