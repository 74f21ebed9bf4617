"""Names of classes: how they are said, and when they count as one more shot."""

import pytest
import torch
from tests.estimator.test_heads import shots

from kshot.core import UserError
from kshot.estimator.fit import NAMES_HELP, add_class, fit, remove_class
from kshot.estimator.heads import fit_head
from kshot.estimator.names import speakable, spoken


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("card_arrival", "card arrival"),
        ("cardArrival", "card arrival"),
        ("Top-Up/failed", "top up failed"),
        (7, ""),
        ("__", ""),
        ("größe", "größe"),
    ],
)
def test_spoken(label, text):
    assert spoken(label) == text


def test_names_that_cannot_help():
    assert speakable(["card_arrival", "lost card"]) == ["card arrival", "lost card"]
    assert speakable([0, 1]) is None
    assert speakable(["a_b", "a b"]) is None


def _named(n=6):
    """Shots that overlap, and names that lie in the middle of their classes."""
    every, labels = shots(n=40, d=16, spread=2.0)
    take = torch.cat([(labels == c).nonzero().squeeze(1)[:n] for c in range(4)])
    return every[take], labels[take], torch.stack([every[labels == c].mean(0) for c in range(4)])


def test_names_that_help_are_one_more_shot():
    z, y, names = _named()
    found = fit(z, y, 4, names=names)
    assert found.names is not None
    both, labels = torch.cat([z, names]), torch.cat([y, torch.arange(4)])
    expected = fit_head(both, labels, 4, found.head.name, found.head.strength)
    torch.testing.assert_close(found.head.logits(z), expected.logits(z))
    assert len(found.z) == len(z)
    assert found.held_out is not None
    assert sorted(found.held_out.index.tolist()) == list(range(len(z)))


def test_names_that_mislead_are_left_out():
    z, y, names = _named(n=8)
    found = fit(z, y, 4, names=3 * names.roll(1, 0))
    assert found.names is None
    torch.testing.assert_close(found.probabilities(z), fit(z, y, 4).probabilities(z))


def test_single_shots_are_judged_by_names():
    z, y, names = _named()
    first = torch.tensor([0, 6, 12, 18])
    found = fit(z[first], y[first], 4, names=names)
    assert found.names is not None
    assert found.expected is not None
    assert found.expected.n == 4
    assert 0 <= found.expected.low <= found.expected.accuracy <= found.expected.high <= 1
    assert found.p_values(z).tolist() == [1.0] * len(z)


def test_names_that_say_nothing_are_not_believed_for_single_shots():
    g = torch.Generator().manual_seed(1)
    z, names = (torch.randn(30, 16, generator=g, dtype=torch.float64) for _ in range(2))
    assert fit(z, torch.arange(30), 30, names=names).names is None
    assert 0 < NAMES_HELP < 1


def test_classes_come_and_go_with_their_names():
    z, y, names = _named()
    first = y < 3
    found = fit(z[first], y[first], 3, names=names[:3])
    assert found.names is not None
    with pytest.raises(UserError, match="name of the new class"):
        add_class(found, z[~first])
    more = add_class(found, z[~first], names[3])
    assert more.names is not None
    assert len(more.names) == 4
    back = remove_class(more, 1)
    torch.testing.assert_close(back.names, names[[0, 2, 3]])
