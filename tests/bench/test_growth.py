"""The small network against its peers, and the growth of time and memory: what they say, drawn and judged."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from kshot.bench import peers, plain
from kshot.bench.growth import growth, picture, powers
from kshot.bench.sinusoid import CLONING, INNER_LR, PEERS, batch, networks, sinusoid_step
from kshot.cli.main import main
from kshot.engine.batch import Batching, OuterStep


def _double():
    learner, net = networks(2, 8)
    episodes = batch(3)
    return (
        learner.double(),
        net.double(),
        type(episodes)(*(s._replace(x=s.x.double(), y=s.y.double()) for s in episodes)),
    )


@pytest.mark.parametrize("name", ["cloned", *PEERS])
def test_all_take_the_same_gradient_of_a_regression(name):
    if name in PEERS and not peers.installed(name):
        pytest.skip(f"{name} is not installed")
    learner, net, episodes = _double()
    ours = OuterStep(learner, Batching("vmap"))(episodes).grads
    if name == "cloned":
        theirs = plain.cloning_maml_step(net, episodes, INNER_LR, 2)
        before = plain.maml_step(net, episodes, INNER_LR, 2)
        assert plain.gap(theirs, before) < 1e-12
    else:
        theirs = peers.maml_step(name, net, episodes, INNER_LR, 2)()
    assert plain.gap(dict(zip(ours, theirs.values(), strict=True)), ours) < 1e-7


def test_the_small_network_is_compared_with_learn2learns_way():
    result = sinusoid_step(1, n_tasks=2, per=1, compiled="off")
    assert result.lines[0].name == "kshot"
    assert CLONING in [line.name for line in result.lines]
    assert (result.least, result.against) == (10.0, "learn2learn" if peers.installed("learn2learn") else CLONING)
    gaps = [float(gap) for gap in re.findall(r"[\d.]+e[-+]\d+", result.agreement)]
    assert len(gaps) >= 2
    assert max(gaps) < 1e-4


@pytest.fixture(scope="module")
def result():
    with torch.random.fork_rng([]):
        return growth(1, tasks=(1, 4), steps=(4, 16), per=1, width=64)


def test_memory_grows_with_tasks_and_with_the_root_of_recomputed_steps(result):
    found = result.extra["powers"]
    assert 0.5 < found["bytes by tasks"] < 1.05
    assert found["bytes by steps"] > 0.8
    assert found["bytes by steps, recomputed"] < 0.55
    assert float(result.agreement.rpartition(" ")[2]) < 1e-5
    assert len(result.lines) == 8
    assert all(line.seconds > 0 and "peak" in line.note for line in result.lines)


def test_powers_of_a_known_growth():
    points = [
        {"grows": "tasks", "recompute": False, "n": n, "seconds": 0.5 * n, "bytes": 3 * n**2} for n in (1, 2, 4, 8, 16)
    ]
    assert powers(points) == {"seconds by tasks": pytest.approx(1), "bytes by tasks": pytest.approx(2)}


def test_the_picture_is_a_file_of_four_charts(result):
    root = ET.fromstring(picture(result))
    assert len(root.findall("{http://www.w3.org/2000/svg}svg")) == 4
    assert len([e for e in root.iter() if e.get("class") == "line faint"]) == 5  # four lines, and their key


def test_the_picture_is_of_one_case(capsys, tmp_path: Path):
    assert main(["bench", "imports", "--plot", str(tmp_path / "a.svg")]) == 2
    assert "--plot draws the case growth, got imports" in capsys.readouterr().err
