"""The case that waits for an accuracy: both are trained and judged alike, and the peer is given up in time."""

import sys
import types

import pytest
import torch

from kshot.bench import cases, peers, reaching
from kshot.data.catalog import open_source


class Wrapped(torch.nn.Module):
    """MAML as learn2learn wraps a network: ``clone`` and ``adapt``, here without second derivatives."""

    def __init__(self, net, lr, first_order=False):
        super().__init__()
        self.net, self.lr, self.fast = net, lr, None

    def clone(self):
        return Wrapped(self.net, self.lr)

    def forward(self, x):
        weights = self.fast or dict(self.net.named_parameters())
        return torch.func.functional_call(self.net, weights, (x,))

    def adapt(self, loss):
        now = dict(self.net.named_parameters())
        grads = torch.autograd.grad(loss, list(now.values()))
        self.fast = {k: p - self.lr * g for (k, p), g in zip(now.items(), grads, strict=True)}


def net(n_way):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, n_way))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("learn2learn")
    package.algorithms = types.SimpleNamespace(MAML=Wrapped)  # pyright: ignore[reportAttributeAccessIssue]
    models = types.SimpleNamespace(OmniglotCNN=net)
    package.vision = types.SimpleNamespace(models=models)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "learn2learn", package)
    monkeypatch.setattr(peers, "installed", lambda name: name == "learn2learn")
    monkeypatch.setattr(reaching, "N_VALIDATION", 4)
    monkeypatch.setattr(
        reaching, "_source", lambda split, root: open_source("glyphs", split, n_way=5, n_shot=1, n_query=1)
    )


def test_both_stop_where_the_target_is_reached(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "TARGET", 0.0)
    said = []
    result = reaching.time_to_target(1, every=64, say=said.append)
    ours, theirs = result.lines
    assert [text.partition(":")[0] for text in said] == ["kshot, round 1 of 1", "learn2learn, round 1 of 1"]
    assert said[0].endswith(ours.note)
    assert (ours.name, theirs.name, result.least, result.against) == ("kshot", "learn2learn", 3.0, "learn2learn")
    assert "reached" in ours.note
    assert "after 4 outer steps" in ours.note
    assert "after 2 outer steps" in theirs.note
    assert theirs.ratio is not None
    assert theirs.ratio[0] == pytest.approx(theirs.seconds / ours.seconds)


def test_a_peer_that_does_not_come_there_is_stopped(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "TARGET", 2.0)
    found = reaching._learn2learn(None, 0, 1, most=0.2)
    assert not found.done
    assert found.seconds >= 0.2
    assert "stopped at" in found.note


def test_it_runs_only_where_it_is_named() -> None:
    assert cases.LONG in cases.CASES
    assert cases.LONG not in cases.runnable()
