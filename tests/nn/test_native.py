import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from kshot.nn import native
from kshot.nn.conv import Conv4
from kshot.nn.native import Design
from kshot.nn.norm import collecting

needs_compiler = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")
NETWORK = [(64, 1, 3, 3), *[(64, 64, 3, 3)] * 3]


def _parameters(dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    convs = [torch.randn(s, generator=g, dtype=torch.float64) * (2 / (9 * s[1])) ** 0.5 for s in NETWORK]
    scales = [1 + 0.3 * torch.randn(64, generator=g, dtype=torch.float64) for _ in range(4)]
    shifts = [0.3 * torch.randn(64, generator=g, dtype=torch.float64) for _ in range(4)]
    return [p.to(dtype).requires_grad_() for p in (*convs, *scales, *shifts)]


def _drawings(groups, n, dtype, seed=0):
    """Binary strokes on nothing, like Omniglot: whole regions are constant, which is where statistics lose digits."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.rand(groups * n, 1, 7, 7, generator=g)
    strokes = F.interpolate(noise, size=28, mode="bilinear", align_corners=False) > 0.62
    return strokes.to(dtype).view(groups, n, 1, 28, 28)


def _plain(x, p):
    out = []
    for z in x:
        for w, scale, shift in zip(p[:4], p[4:8], p[8:], strict=True):
            z = F.batch_norm(F.conv2d(z, w, padding=1), None, None, scale, shift, training=True)
            z = F.relu(F.max_pool2d(z, 2))
        out.append(z.flatten(1))
    return torch.stack(out)


def _gradient(embed, x, p):
    features = embed(x, p)
    loss = (features * torch.linspace(-1, 1, 64, dtype=x.dtype)).square().sum()
    return torch.cat([g.reshape(-1).double() for g in torch.autograd.grad(loss, p)])


def _fused(x, p):
    return native.trunk(x, p).features


@needs_compiler
@pytest.mark.parametrize(("groups", "n"), [(1, 1), (1, 7), (3, 5), (2, 64)])
def test_the_trunk_is_the_plain_network_in_float64(groups, n):
    p, x = _parameters(torch.float64), _drawings(groups, n, torch.float64)
    torch.testing.assert_close(_fused(x, p), _plain(x, p), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(_gradient(_fused, x, p), _gradient(_plain, x, p), rtol=1e-7, atol=1e-8)


@needs_compiler
def test_statistics_are_those_of_each_group():
    p, x = _parameters(torch.float64), _drawings(2, 6, torch.float64)
    found = native.trunk(x, p)
    for g in range(2):
        y = F.conv2d(x[g], p[0], padding=1)
        torch.testing.assert_close(found.means[g, 0], y.mean((0, 2, 3)).detach())
        torch.testing.assert_close(found.variances[g, 0], y.var((0, 2, 3), correction=0).detach())


@needs_compiler
def test_float32_is_as_exact_as_pytorch():
    # Medians over episodes: where two pixels of a pooling window are nearly equal, any rounding picks either.
    ours, theirs = [], []
    for seed in range(7):
        exact = _gradient(_plain, _drawings(1, 20, torch.float64, seed), _parameters(torch.float64))
        x, p = _drawings(1, 20, torch.float32, seed), _parameters(torch.float32)
        ours.append(float((_gradient(_fused, x, p) - exact).norm() / exact.norm()))
        theirs.append(float((_gradient(_plain, x, p) - exact).norm() / exact.norm()))
    assert sorted(ours)[3] < 4 * sorted(theirs)[3]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_every_time(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        p, x = _parameters(torch.float32), _drawings(2, 9, torch.float32)
        first = _gradient(_fused, x, p)
        assert all(torch.equal(_gradient(_fused, x, p), first) for _ in range(10))
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_a_second_derivative_is_refused():
    p, x = _parameters(torch.float32), _drawings(1, 3, torch.float32)
    (g, *_) = torch.autograd.grad(_fused(x, p).square().sum(), p, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        g.sum().backward()


@needs_compiler
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 2, 1, 27, 28),
        torch.zeros(2, 1, 28, 28),
        torch.zeros(1, 2, 1, 28, 28, dtype=torch.float16),
        torch.zeros(1, 0, 1, 28, 28),
    ],
)
def test_images_that_the_kernel_cannot_read_are_refused(x):
    with pytest.raises(ValueError, match=r"expected (square )?images"):
        native.trunk(x, _parameters(torch.float32))


@needs_compiler
def test_images_of_other_channels_than_the_network_are_refused():
    with pytest.raises(ValueError, match="expected parameters of shapes"):
        native.trunk(torch.zeros(1, 2, 3, 28, 28), _parameters(torch.float32))


@needs_compiler
@pytest.mark.parametrize(
    "wrong", [Design(5, 28, 64), Design(1, 15, 64), Design(1, 28, 48), Design(1, 200, 64), Design(pools=0)]
)
def test_networks_that_the_kernels_cannot_be_compiled_for(wrong):
    x = torch.zeros(1, 2, *wrong.image_shape)
    with pytest.raises(ValueError, match="the kernels know images of at most"):
        native.trunk(x, [torch.zeros(shape) for shape in wrong.shapes], wrong.pools)
    assert not native.available(torch.float32, wrong)
    assert "cannot be compiled" in native.why_not(torch.float32, wrong)


@needs_compiler
def test_colour_images_of_another_size_and_features_of_several_pixels():
    """A side that no vector divides, three channels, 2 x 2 pixels left over: the library's known answer in float64."""
    design = Design(3, 33, 32)
    assert native.available(torch.float64, design), native.why_not(torch.float64, design)
    net = Conv4(3, 32, 33).double()
    x = torch.randn(2, 5, 3, 33, 33, dtype=torch.float64)
    torch.testing.assert_close(net.fused(x), _each(net, x))
    support_y, query_y = torch.tensor([[0, 1, 1]] * 2), torch.tensor([[1, 0]] * 2)
    losses = native.protonet_losses(x, support_y, query_y, 2, net.kernel_parameters()).losses
    z = _each(net, x)
    prototypes = torch.stack([z[:, 0], z[:, 1:3].mean(1)], 1)
    logits = -torch.cdist(z[:, 3:], prototypes).square()
    expected = F.cross_entropy(logits.flatten(0, 1), query_y.flatten(), reduction="none").view(2, 2).mean(1)
    torch.testing.assert_close(losses, expected)


@needs_compiler
def test_blocks_that_do_not_pool():
    design = Design(1, 18, 32, pools=1)
    assert native.available(torch.float64, design), native.why_not(torch.float64, design)


@needs_compiler
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("downsample", ["first2", "first3"])
def test_pooling_in_the_first_blocks_only(training, downsample):
    net, x = Conv4(downsample=downsample).double(), _drawings(2, 5, torch.float64)
    net(x[0])  # so that the statistics that are stored are not those that it is born with
    net.train(training)
    with native.switched_off():
        expected = _each(net, x)
    got = net.fused(x) if training else _each_without_gradient(net, x)
    torch.testing.assert_close(got, expected)


def _each_without_gradient(net, x):
    assert native.ready(torch.float64, net.design)
    with torch.no_grad():
        return _each(net, x)


def _each(net, x):
    return torch.stack([net(group) for group in x])


@needs_compiler
def test_only_the_network_that_the_kernels_know_is_fusable():
    assert Conv4(normalisation="running").fusable
    assert Conv4(normalisation="episode").fusable
    assert Conv4(downsample="first2").fusable
    for other in (
        Conv4(normalisation="layer"),
        Conv4(normalisation="support"),
        Conv4(n_filters=48),
        Conv4(image_size=200),
        Conv4(in_channels=5),
        Conv4(downsample="stride"),
        Conv4().half(),
    ):
        assert not other.fusable
    hooked = Conv4()
    hooked.blocks[1].register_forward_hook(lambda *args: None)
    assert not hooked.fusable


@needs_compiler
def test_negative_scales_pool_the_lowest_value():
    p, x = _parameters(torch.float64), _drawings(1, 5, torch.float64)
    p = [(-t if t.ndim == 1 and i % 2 else t).detach().requires_grad_() for i, t in enumerate(p)]
    torch.testing.assert_close(_fused(x, p), _plain(x, p), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(_gradient(_fused, x, p), _gradient(_plain, x, p), rtol=1e-7, atol=1e-8)


@needs_compiler
def test_divergence_is_not_hidden():
    # A ReLU by max(z, 0) would turn NaN into 0.
    p = _parameters(torch.float32)
    p[1].data[0, 0, 0, 0] = float("nan")
    assert bool(torch.isnan(_fused(_drawings(1, 3, torch.float32), p)).any())


def _losses(support_y, query_y, ways=2, dtype=torch.float32):
    x = _drawings(len(support_y), support_y.shape[1] + query_y.shape[1], dtype)
    return native.protonet_losses(x, support_y, query_y, ways, _parameters(dtype)).losses


@needs_compiler
@pytest.mark.parametrize("wrong", [torch.tensor([[0, 2]]), torch.tensor([[-1, 1]]), torch.tensor([[0.0, 1.0]])])
def test_labels_beyond_the_classes_are_refused(wrong):
    fine = torch.tensor([[0, 1]])
    for support_y, query_y in ((wrong, fine), (fine, wrong)):
        with pytest.raises(ValueError, match="labels"):
            _losses(support_y, query_y)
    x = _drawings(1, 2, torch.float32)
    head = [torch.zeros(2, 64), torch.zeros(2)]
    with pytest.raises(ValueError, match="labels"):
        native.maml_losses(
            native.Labelled(x, wrong),
            native.Labelled(x, fine),
            [*_parameters(torch.float32), *head],
            _inner(),
        )


N_PARAMETERS = sum(p.numel() for p in _parameters(torch.float32)) + 2 * 65  # with a head of two classes


def _inner(n_steps=1, n_parameters=N_PARAMETERS, **others):
    rates = torch.full((n_steps, n_parameters), 0.1)
    return native.Inner(**{"rates": rates, "weights": torch.ones(n_steps), "first_order": False, **others})


@needs_compiler
@pytest.mark.parametrize(
    "wrong",
    [
        _inner(n_steps=0),
        _inner(n_parameters=7),
        _inner(weights=torch.ones(2)),
        _inner(rates=_inner().rates.double()),
        _inner(norms=torch.ones(1, 4, 64)),
    ],
)
def test_an_inner_loop_of_other_shapes_is_refused(wrong):
    x, y = _drawings(1, 2, torch.float32), torch.tensor([[0, 1]])
    theta = [*_parameters(torch.float32), torch.zeros(2, 64), torch.zeros(2)]
    with pytest.raises(ValueError, match="expected rates"):
        native.maml_losses(native.Labelled(x, y), native.Labelled(x, y), theta, wrong)


@needs_compiler
def test_only_the_mean_of_the_losses_has_a_gradient():
    y = torch.tensor([[0, 1], [1, 0]])
    _losses(y, y).sum().backward()
    with pytest.raises(RuntimeError, match="weigh differently"):
        (_losses(y, y) * torch.tensor([1.0, 2.0])).sum().backward()


@pytest.mark.parametrize("variable", ["KSHOT_NATIVE=0", "CXX=no-such-compiler"])
def test_without_kernels_everything_still_works(variable, tmp_path, monkeypatch):
    name, value = variable.split("=")
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    code = (
        "from kshot.nn import native; from kshot.nn.conv import Conv4; from kshot.algorithms import ProtoNet\n"
        "assert not native.available() and not Conv4().fusable and not ProtoNet(Conv4()).fused\n"
        "print(native.why_not())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert value in done.stdout or name in done.stdout


@needs_compiler
def test_a_network_turns_to_the_kernels_by_itself_where_one_derivative_is_enough(monkeypatch):
    assert native.available(torch.float64, Design())
    calls = []
    fused = Conv4.fused
    monkeypatch.setattr(Conv4, "fused", lambda self, x: calls.append(x.shape) or fused(self, x))
    net, x = Conv4(normalisation="episode").double(), _drawings(1, 6, torch.float64)[0]

    def features():
        out = net(x)
        return out, torch.cat([g.reshape(-1) for g in torch.autograd.grad(out.square().sum(), net.kernel_parameters())])

    expected = features()  # gradients are on, and nobody promised anything
    assert calls == []
    with native.differentiated_once():
        torch.testing.assert_close(features(), expected, rtol=1e-7, atol=1e-9)
        with native.switched_off():
            net(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected[0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(net(torch.stack([x, x]))[1], expected[0], rtol=1e-9, atol=1e-10)
    assert [shape[0] for shape in calls] == [1, 1, 2]


@needs_compiler
@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: Conv4(normalisation="layer")(x),
        lambda net, x: torch.func.vmap(net)(x[:, None]),
        lambda net, x: net(x.requires_grad_()),
        lambda net, x: (net.blocks.register_forward_hook(lambda *_: None), net(x)),
        lambda net, x: torch.export.export(net, (x,)),
        lambda net, x: torch.autocast("cpu", torch.bfloat16)(net)(x),
        lambda net, x: torch.func.functional_call(net, {"blocks.0.norm.weight": torch.ones(1, 64)}, (x,)),
    ],
)
def test_everything_else_is_left_to_pytorch(run, monkeypatch):
    assert native.available(torch.float32, Design())
    monkeypatch.setattr(Conv4, "fused", lambda self, x: pytest.fail("the kernels were asked"))
    with torch.no_grad():
        run(Conv4(normalisation="episode"), _drawings(1, 4, torch.float32)[0])


@needs_compiler
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", ["running", "support"])
def test_statistics_that_are_kept(mode, training):
    torch.manual_seed(0)
    assert native.available(torch.float64, Design())
    x = _drawings(1, 70, torch.float64)[0]
    net = Conv4(normalisation=mode).double().train(training)
    for block in net.blocks:
        block.conv.bias.data.normal_()
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 2)
    twin = copy.deepcopy(net)

    def embed(one):
        with collecting(one):
            first = one(x[:7])
        return first, one(x), one(torch.stack([x, x]))

    with torch.no_grad():
        found = embed(net)
        with native.switched_off():
            expected = embed(twin)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=1e-9, atol=1e-10)


@needs_compiler
def test_nothing_is_compiled_only_to_answer(tmp_path):
    code = (
        "import torch; from kshot.nn import native; from kshot.nn.conv import Conv4\n"
        "net = Conv4(normalisation='episode')\n"
        "with torch.no_grad(): net(torch.rand(2, 1, 28, 28))\n"
        "print(native.ready(torch.float32, net.design))"
    )
    env = {**os.environ, "KSHOT_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    assert list(tmp_path.rglob("*.so")) == []
