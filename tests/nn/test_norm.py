"""Normalisation against PyTorch's own, mode by mode: outputs, statistics and gradients."""

import copy

import pytest
import torch
from torch import Tensor, nn

from kshot.core import UserError
from kshot.nn.norm import NORMALISATIONS, Norm, collecting, normalisation_of, uses_support_statistics

C = 3
INPUTS = {"images": (8, C, 5, 4), "vectors": (8, C)}


def batch(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (1 + 2 * torch.randn(shape, generator=g, dtype=torch.float64)).requires_grad_()


def layer(mode: str) -> Norm:
    """A layer whose scale and shift are not those that it is born with."""
    norm = Norm(C, mode).double()
    if mode != "none":
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.5, -2.0]))
            norm.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return norm


def theirs(shape: tuple[int, ...], ours: Norm, **options: bool) -> nn.Module:
    made = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(C, **options).double()
    made.weight, made.bias = nn.Parameter(ours.weight.detach().clone()), nn.Parameter(ours.bias.detach().clone())
    return made


def agree(ours: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Equal outputs, and equal gradients of a loss that weighs all entries differently."""
    results = []
    for module in (ours, other):
        own = x.detach().clone().requires_grad_()
        y = module(own)
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
        grads = torch.autograd.grad((weights * y.sin()).sum(), [own, module.weight, module.bias])
        results.append([y, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize(("mode", "training"), [("running", True), ("running", False), ("episode", True)])
def test_pairs_are_normalised_without_being_made(shape: tuple[int, ...], mode: str, training: bool) -> None:
    left, right = batch(shape, 1)[:3], batch(shape, 2) * 0.5 - 1
    found = []
    for by_pairs in (True, False):
        norm = layer(mode)
        if mode == "running":
            norm(batch(shape, 3) * 2)  # so that what is stored is not what it is born with
        norm.train(training)
        ours = norm.of_pairs(left, right) if by_pairs else (left, right)
        sums = (ours[0].unsqueeze(0) + ours[1].unsqueeze(1)).flatten(0, 1)
        y = sums if by_pairs else norm(sums)
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
        grads = torch.autograd.grad((weights * y.sin()).sum(), [left, right, norm.weight, norm.bias])
        found.append([y, *grads, *norm.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", INPUTS.values(), ids=INPUTS.keys())
def test_running_statistics_are_those_of_batch_norm(shape: tuple[int, ...]) -> None:
    ours = layer("running")
    other = theirs(shape, ours)
    for step in range(4):
        agree(ours, other, batch(shape, step))  # each call also moves the running statistics, of both alike
        torch.testing.assert_close(ours.running_mean, other.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.running_var, other.running_var, rtol=1e-12, atol=1e-12)
    agree(ours.eval(), other.eval(), batch(shape, 9))
    assert not ours.transductive


@pytest.mark.parametrize("shape", INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("training", [True, False])
def test_episode_statistics_are_those_of_the_batch_in_both_modes(shape: tuple[int, ...], training: bool) -> None:
    ours = layer("episode")
    agree(ours.train(training), theirs(shape, ours, track_running_stats=False).train(training), batch(shape))
    assert ours.transductive
    assert not dict(ours.named_buffers())


@pytest.mark.parametrize("shape", INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("training", [True, False])
def test_layer_statistics_are_those_of_each_example(shape: tuple[int, ...], training: bool) -> None:
    ours, other = layer("layer"), nn.GroupNorm(1, C).double()
    other.weight, other.bias = ours.weight, ours.bias
    agree(ours.train(training), other, batch(shape))
    alone = torch.cat([ours(x[None]) for x in batch(shape)])
    torch.testing.assert_close(ours(batch(shape)), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_support_statistics_are_taken_once_and_used_after(training: bool) -> None:
    ours, support, query = layer("support").train(training), batch(INPUTS["images"]), batch(INPUTS["images"], 1)
    reference = theirs(INPUTS["images"], ours, track_running_stats=False)
    with collecting(ours):
        torch.testing.assert_close(ours(support), reference(support), rtol=1e-9, atol=1e-9)
    mean, var = support.mean((0, 2, 3)), support.var((0, 2, 3), correction=0)
    standard = (query - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    expected = ours.weight[:, None, None] * standard + ours.bias[:, None, None]
    torch.testing.assert_close(ours(query), expected, rtol=1e-9, atol=1e-9)
    alone = torch.cat([ours(x[None]) for x in query])
    torch.testing.assert_close(alone, expected, rtol=1e-9, atol=1e-9)
    assert not ours.collecting
    assert ours.running_mean.requires_grad  # the outer gradient runs through the support's statistics


def test_collecting_ends_even_by_an_error() -> None:
    ours = layer("support")

    def fail() -> None:
        with collecting(nn.Sequential(ours)):
            raise RuntimeError(f"boom {ours.collecting}")

    with pytest.raises(RuntimeError, match="boom True"):
        fail()
    assert not ours.collecting


def test_none_is_the_identity_without_parameters() -> None:
    x = batch(INPUTS["images"])
    assert layer("none")(x) is x
    assert not list(layer("none").parameters())


@pytest.mark.parametrize("mode", ["running", "episode", "layer", "none", "support"])
@pytest.mark.parametrize("training", [True, False])
def test_a_task_axis_keeps_tasks_apart(mode: str, training: bool) -> None:
    ours = layer(mode).train(training)
    if mode == "running":
        ours(batch(INPUTS["images"], 7))  # statistics that are not those it is born with
    x = batch((3, *INPUTS["images"]))
    single, after = [], []
    for task in x:
        own = copy.deepcopy(ours)
        with collecting(own):
            single.append(own(task))
        after.append(dict(own.named_buffers()))
    with collecting(ours):
        torch.testing.assert_close(ours(x), torch.stack(single), rtol=1e-9, atol=1e-9)
    for name, buffer in ours.named_buffers():
        kept = torch.stack([b[name] for b in after])
        expected = kept if mode == "support" else kept.mean(0)
        torch.testing.assert_close(buffer, expected, rtol=1e-9, atol=1e-9)


def test_stored_statistics_of_several_tasks_are_used_task_by_task() -> None:
    ours, support = layer("support"), batch((3, *INPUTS["images"]))
    with collecting(ours):
        ours(support)
    query = batch((3, 2, *INPUTS["images"][1:]), 1)
    together = ours(query)
    for task in range(3):
        own = layer("support")
        with collecting(own):
            own(support[task])
        torch.testing.assert_close(together[task], own(query[task]), rtol=1e-9, atol=1e-9)


def test_buffers_are_replaced_and_not_written_in_place() -> None:
    ours = layer("running")
    before = ours.running_mean
    ours(batch(INPUTS["images"]))
    assert before.eq(0).all()
    assert ours.running_mean is not before


def test_a_single_example_has_a_finite_answer() -> None:
    for mode in NORMALISATIONS:
        assert torch.isfinite(layer(mode)(batch((1, C)))).all()
        assert torch.isfinite(layer(mode).running_var).all() if mode == "running" else True


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(UserError, match=r"normalisation must be one of running, episode.*got 'batch'"):
        Norm(C, "batch")


@pytest.mark.parametrize("shape", [(C,), (8, C, 1), (2, 2, 8, C, 1, 1)])
def test_other_numbers_of_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"expected \(N, C\), .* got \("):
        layer("running")(batch(shape))


NAMES = {
    "running": [Norm(C, "running")],
    "episode": [nn.BatchNorm1d(C, track_running_stats=False)],
    "episode+running": [Norm(C, "episode"), nn.BatchNorm2d(C)],
    "layer": [Norm(C, "layer"), nn.LayerNorm(C), nn.GroupNorm(1, C), Norm(C, "none")],
    "none": [Norm(C, "none"), nn.Linear(1, 1)],
    "support": [Norm(C, "support")],
}


@pytest.mark.parametrize(("name", "layers"), NAMES.items(), ids=NAMES.keys())
def test_the_normalisation_of_a_network_has_a_name(name: str, layers: list[nn.Module]) -> None:
    network = nn.Sequential(*layers)
    assert normalisation_of(network) == name
    assert uses_support_statistics(network) is (name == "support")


def test_a_layer_prints_its_mode() -> None:
    assert "running" in repr(Norm(C, "running"))


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 2)])
@pytest.mark.parametrize(
    ("mode", "training"), [("episode", True), ("episode", False), ("running", True), ("running", False)]
)
def test_pytorchs_own_batch_norm_gives_what_its_parts_give(monkeypatch, shape, mode, training) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = []
    for plain in (True, False):
        norm = Norm(3, mode).double().train(training)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
        if not plain:
            monkeypatch.setattr(norm, "_is_plain", lambda x: False)
        assert norm._is_plain(x) is plain
        y = norm(x)
        (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        second = torch.autograd.grad((first**2).sum(), [x, norm.weight])
        found.append([y, first, *second, *norm.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_pytorchs_own_batch_norm_is_left_aside_where_it_would_be_wrong() -> None:
    x = torch.randn(4, 3, 2, 2)
    assert Norm(3, "episode")._is_plain(x)
    assert not Norm(3, "support")._is_plain(x)  # its statistics carry a gradient
    assert not Norm(3, "layer")._is_plain(x)
    assert not Norm(3, "episode")._is_plain(x[None])
    assert not Norm(3, "episode")._is_plain(x.bfloat16())
    assert not Norm(3, "episode")._is_plain(x[:1, :, :1, :1])  # of one number there is no variance
    running = Norm(3, "running")
    assert running._is_plain(x)
    running.running_mean = running.running_mean.requires_grad_()
    assert not running._is_plain(x)
    norm, seen = Norm(3, "episode"), []

    def one(x: torch.Tensor) -> torch.Tensor:
        seen.append(norm._is_plain(x))
        return norm(x).sum()

    torch.func.vmap(torch.func.grad(one))(x[None])
    assert seen == [False]
