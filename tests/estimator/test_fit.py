"""The whole of ``fit`` on embeddings."""

import pytest
import torch
from tests.estimator.test_heads import shots

from kshot.core import UserError
from kshot.estimator.calibrate import PRIOR
from kshot.estimator.fit import add_class, fit, remove_class
from kshot.estimator.heads import STRENGTHS, fit_head


def test_what_is_learnt_is_right_and_sure():
    z, y = shots(n=8, d=12, spread=0.15)
    found = fit(z, y, 4)
    p = found.probabilities(z)
    assert torch.equal(p.argmax(1), y)
    torch.testing.assert_close(p.sum(1), torch.ones(len(y), dtype=torch.float64))
    assert found.expected is not None
    assert found.expected.n == len(y)
    assert len(found.losses) == sum(len(s) for s in STRENGTHS.values())


def test_the_same_seed_gives_the_same_answers():
    z, y = shots()
    assert torch.equal(fit(z, y, 4, seed=3).probabilities(z), fit(z, y, 4, seed=3).probabilities(z))


def test_a_head_can_be_named():
    z, y = shots()
    found = fit(z, y, 4, head="ridge")
    assert found.head.name == "ridge"
    assert {name.split()[0] for name in found.losses} == {"ridge"}


def test_single_shots_give_answers_but_no_promises():
    z, _ = shots(n=6)
    found = fit(z[[0, 6, 12]], torch.arange(3), 3)
    assert found.head.name == "cosine"
    assert (found.temperature, found.expected, found.held_out) == (PRIOR, None, None)
    assert found.p_values(z).tolist() == [1.0] * len(z)
    assert found.doubts == []


def test_some_single_shots_among_others():
    z, y = shots(n=5)
    keep = (y != 1) | (torch.arange(len(y)) == 5)
    found = fit(z[keep], y[keep], 4)
    assert found.held_out is not None
    assert 1 not in found.held_out.labels.tolist()


@pytest.mark.parametrize("name", [name for name in STRENGTHS if name != "logistic"])
def test_a_class_added_is_as_if_it_had_been_there(name):
    z, y = shots(n=6, spread=0.3)
    first = y < 3
    found = add_class(fit(z[first], y[first], 3, head=name), z[~first])
    expected = fit_head(found.z, found.y, 4, name, found.head.strength)
    torch.testing.assert_close(found.head.logits(z), expected.logits(z))
    assert found.n_classes == 4
    assert found.expected is None
    back = remove_class(found, 3)
    assert back.n_classes == 3
    torch.testing.assert_close(
        back.head.logits(z), fit_head(z[first], y[first], 3, name, found.head.strength).logits(z)
    )


def test_a_class_added_to_a_logistic_head_leaves_the_others_alone():
    z, y = shots(n=6, spread=0.3)
    first = y < 3
    before = fit(z[first], y[first], 3, head="logistic")
    after = add_class(before, z[~first])
    assert torch.equal(after.head.weight[:3], before.head.weight)
    assert torch.equal(after.probabilities(z).argmax(1), y)
    # The new row is where the loss of all shots is least: any step away is worse.
    share = after.head.strength * len(y) / 4 / torch.bincount(y).double()[y]

    def loss(row):
        head = after.head._replace(weight=torch.cat([before.head.weight, row[None]]))
        losses = torch.nn.functional.cross_entropy(head.logits(z), y, reduction="none")
        return float((share * losses).sum() + row.square().sum() / 2)

    row = after.head.weight[3]
    assert all(loss(row + d) > loss(row) for d in (0.1, -0.1, 0.1 * row, -0.1 * row))


def test_classes_after_a_removed_one_move_down():
    z, y = shots(n=6, spread=0.2)
    found = remove_class(fit(z, y, 4), 1)
    assert torch.equal(found.probabilities(z[y == 3]).argmax(1), torch.full((int((y == 3).sum()),), 2))
    with pytest.raises(UserError, match="two classes to remain"):
        remove_class(remove_class(found, 0), 0)


def test_nearest_shots():
    z, y = shots()
    similarity, index = fit(z, y, 4).nearest(z, 2)
    assert torch.equal(index[:, 0], torch.arange(len(z)))
    torch.testing.assert_close(similarity[:, 0], torch.ones(len(z), dtype=z.dtype))
    assert fit(z, y, 4).nearest(z, 999)[1].shape[1] == len(z)


def test_short_vectors_are_alike_by_chance():
    z, y = shots(n=12, d=3, spread=0.1)
    assert fit(z, y, 4).duplicates == []
    z[1] = 2 * z[0]
    assert [(p.first, p.second) for p in fit(z, y, 4).duplicates] == [(0, 1)]


def test_mistakes():
    z, y = shots()
    with pytest.raises(UserError, match="at least two classes, got 1"):
        fit(z, torch.zeros_like(y), 1)
    with pytest.raises(UserError, match="every one of 5 classes"):
        fit(z, y, 5)
    with pytest.raises(UserError, match="head must be one of auto"):
        fit(z, y, 4, head="tree")
    z[7, 2] = float("nan")
    with pytest.raises(UserError, match="example 7 has NaN"):
        fit(z, y, 4)
