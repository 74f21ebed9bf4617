"""Adapting without an outer gradient: the weights of plain fine-tuning, in about its time."""

import pytest
import torch

from kshot.bench import adapting
from kshot.core import UserError


def test_the_weights_are_those_of_plain_fine_tuning():
    result = adapting.adapting(rounds=1, n_inner_steps=2, n_shot=1)
    assert [line.name for line in result.lines] == ["kshot", "plain fine-tuning"]
    assert float(result.agreement.rsplit(" ", 1)[1]) < 1e-4
    assert result.least == 0.9


def test_other_weights_are_no_case(monkeypatch):
    fine_tuned = adapting._fine_tuned
    monkeypatch.setattr(adapting, "_fine_tuned", lambda net, support, n: fine_tuned(net, support, n + 1))
    with pytest.raises(UserError, match="error of kshot"):
        adapting.adapting(rounds=1, n_inner_steps=1, n_shot=1)


def test_an_adaptation_builds_no_graph():
    _, learner, support = adapting._task(1, 1)
    with torch.no_grad():
        adapted = learner.adapt(support)
    assert not any(p.requires_grad or p.grad_fn for p in adapted.params.values())
