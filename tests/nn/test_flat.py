"""The backbone "none": examples as they are, with or without a task axis."""

import torch

from kshot.nn.flat import Flat


def test_axes_become_one() -> None:
    flat = Flat((1, 2, 3))
    assert flat.n_features == 6
    assert not list(flat.parameters())
    x = torch.arange(24.0).view(4, 1, 2, 3)
    assert torch.equal(flat(x), x.view(4, 6))
    assert torch.equal(flat(x.view(2, 2, 1, 2, 3)), x.view(2, 2, 6))
    rows = torch.arange(6.0).view(2, 3)
    assert torch.equal(Flat((3,))(rows), rows)
    assert torch.equal(Flat((3,))(rows[None]), rows[None])
