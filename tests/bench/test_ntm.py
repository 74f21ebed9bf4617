"""The case of the Neural Turing Machine: contenders are compared before they are timed."""

import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.bench import cases, ntm
from kshot.core import UserError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LENGTH": 3, "SLOTS": 8, "WIDTH": 4, "UNITS": 5}.items():
        monkeypatch.setattr(ntm, name, value)


def test_the_case_times_the_trainer_and_plain_steps() -> None:
    result = cases.CASES["ntm-copy-16"](1, per=1)
    assert [line.name for line in result.lines[:2]] == ["kshot", "kshot, plain steps"]
    assert result.lines[1].ratio is not None
    assert result.least == 8.0
    assert "16 sequences" in result.what


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    ntm.ntm_copy(1, 2, per=1)
    assert torch.get_num_threads() == before


def test_contenders_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ntm.gradients

    def wrong(learner, episodes, kind):
        found = right(learner, episodes, kind)
        return {name: -t for name, t in found.items()} if kind == "fused" else found

    monkeypatch.setattr(ntm, "gradients", wrong)
    with pytest.raises(UserError, match=r"ntm-copy-2: .* within 0.005 of the plain loop's, got 2\.0e\+00"):
        ntm.ntm_copy(1, 2, per=1)


class Cell(torch.nn.Module):
    """pytorch-ntm's machine for one head of each kind, as its modules are named."""

    def __init__(self, n_in: int, n_out: int, units: int, layers: int, heads: int, slots: int, width: int) -> None:
        super().__init__()
        address = width + 6
        self.lstm = torch.nn.LSTM(n_in + width, units)
        self.read, self.write = torch.nn.Linear(units, address), torch.nn.Linear(units, address + 2 * width)
        self.fc = torch.nn.Linear(units + width, n_out)
        controller = types.SimpleNamespace(lstm=self.lstm)
        headed = [types.SimpleNamespace(fc_read=self.read), types.SimpleNamespace(fc_write=self.write)]
        self.ntm = types.SimpleNamespace(controller=controller, heads=headed, fc=self.fc)
        self.memory = types.SimpleNamespace(mem_bias=torch.zeros(slots, width))
        self.n_in, self.width, self.slots, self.units = n_in, width, slots, units

    def init_sequence(self, n: int) -> None:
        self.n, self.content = n, self.memory.mem_bias.expand(n, -1, -1)
        lstm = (torch.zeros(1, n, self.units), torch.zeros(1, n, self.units))
        self.previous_state: Any = ([torch.zeros(n, self.width)], lstm, [torch.zeros(n, self.slots)] * 2)

    def _weights(self, o: Tensor, before: Tensor) -> Tensor:
        m = self.width
        alike = torch.cosine_similarity(self.content, o[:, None, :m], dim=-1)
        content = torch.softmax(F.softplus(o[:, m : m + 1]) * alike, 1)
        gate, shift = torch.sigmoid(o[:, m + 1 : m + 2]), torch.softmax(o[:, m + 2 : m + 5], 1)
        gated = gate * content + (1 - gate) * before
        moved = torch.stack([shift[:, j : j + 1] * gated.roll(1 - j, 1) for j in range(3)]).sum(0)
        sharp = moved ** (1 + F.softplus(o[:, m + 5 : m + 6]))
        return sharp / sharp.sum(1, keepdim=True)

    def forward(self, x: Tensor | None = None) -> tuple[Tensor, Any]:
        x = torch.zeros(self.n, self.n_in) if x is None else x
        (read,), state, (w_read, w_write) = self.previous_state
        h, state = self.lstm(torch.cat([x, read], 1)[None], state)
        w_read = self._weights(self.read(h[0]), w_read)
        read = (w_read[:, None] @ self.content)[:, 0]
        o = self.write(h[0])
        w_write = self._weights(o, w_write)
        erase, add = o[:, self.width + 6 :].chunk(2, 1)
        stays = 1 - w_write[..., None] * erase.sigmoid()[:, None]
        self.content = self.content * stays + w_write[..., None] * add[:, None]
        self.previous_state = ([read], state, [w_read, w_write])
        return torch.sigmoid(self.fc(torch.cat([h[0], read], 1))), self.previous_state


def test_the_peer_gets_the_same_weights_and_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of the peer's structure, written here, takes its place; its shifts stand the other way round."""
    package, module = types.ModuleType("ntm"), types.ModuleType("ntm.aio")
    module.EncapsulatedNTM = Cell  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "ntm", package)
    monkeypatch.setitem(sys.modules, "ntm.aio", module)
    monkeypatch.setattr(ntm, "peer_installed", lambda: True)
    result = ntm.ntm_copy(1, 3, per=1)
    assert [line.name for line in result.lines] == ["kshot", "kshot, plain steps", "pytorch-ntm"]
    assert float(result.agreement.rsplit(" ", 1)[1]) < 1e-4
