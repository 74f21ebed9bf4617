"""The contract for tasks of kind "sequence": a sound learner passes, one that looks ahead is caught."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kshot.core import Learner, Spec, Split
from kshot.testing import CLAUSES, ContractError, check_learner
from kshot.testing.synthetic import SPECS


class Running(Learner):
    """A leaky sum of what was read, which goes on along the queries."""

    kinds = ("sequence",)

    def __init__(self, backbone: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.backbone = backbone
        self.read = nn.Linear(int(backbone.n_features), 5)  # pyright: ignore[reportArgumentType]
        self.answer = nn.Linear(5, spec.n_outputs)

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: object) -> Running:
        return cls(backbone, spec)

    def scan(self, x: Tensor, state: Tensor) -> Tensor:
        states = []
        for z in self.read(self.backbone(x)):
            state = torch.tanh(0.5 * state + z)
            states.append(state)
        return torch.stack(states)

    def adapt(self, support: Split) -> Tensor:
        return self.scan(support.x, self.read.bias.new_zeros(5))[-1]

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return self.answer(self.scan(x, state))


def test_a_sound_learner_keeps_every_clause() -> None:
    report = {line.clause: line for line in check_learner(Running)}
    assert set(report) == set(CLAUSES)
    assert {name for name, line in report.items() if not line.kept} == {"order", "labels", "ways"}
    assert report["leak"].note == "inductive: every step without those after it"
    assert "vmap" in report["batching"].note


def test_looking_ahead_is_caught() -> None:
    class Ahead(Running):
        def scan(self, x: Tensor, state: Tensor) -> Tensor:
            return super().scan(x, state) + super().scan(x.flip(0), state).mean(0)

    with pytest.raises(ContractError, match=r"breaks the clause 'leak'.*with and without later steps"):
        check_learner(Ahead, clauses=["leak"])


def test_forgetting_what_was_read_is_caught() -> None:
    class Forgets(Running):
        def predict(self, state: Tensor, x: Tensor) -> Tensor:
            return super().predict(torch.zeros_like(state), x)

    with pytest.raises(ContractError, match="breaks the clause 'support'"):
        check_learner(Forgets, SPECS["sequence"], clauses=["support"])
