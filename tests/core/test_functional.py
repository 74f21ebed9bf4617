"""Modules whose parts are shared, run with other tensors."""

import pytest
import torch
from torch import Tensor, nn

from kshot.core.functional import functional_call


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Tied(Twice):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight


class Counter(Twice):
    """A buffer that a call replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(x)


@pytest.mark.parametrize("kind", [Twice, Tied])
def test_shared_parts_are_replaced_everywhere_and_put_back(kind: type[Twice]) -> None:
    module, other = kind(), kind()
    own = dict(module.named_parameters(remove_duplicate=False))
    given = dict(other.named_parameters())
    x = torch.ones(1, 2)
    assert torch.equal(functional_call(module, given, (x,)), other(x))
    now = dict(module.named_parameters(remove_duplicate=False))
    assert now.keys() == own.keys()
    assert all(now[name] is tensor for name, tensor in own.items())


@pytest.mark.parametrize("kind", [Twice, Tied])
def test_the_gradient_counts_every_use(kind: type[Twice]) -> None:
    module, x = kind(), torch.ones(1, 2)
    given = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
    functional_call(module, given, (x,)).sum().backward()
    module(x).sum().backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(given[name].grad, p.grad)


def test_replaced_buffers_land_in_the_callers_dict() -> None:
    module = Counter()
    given = {"calls": torch.tensor(4.0)}
    functional_call(module, given, (torch.ones(1, 2),))
    assert given == {"calls": torch.tensor(5.0)}
    assert float(module.calls) == 0
