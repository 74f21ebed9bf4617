"""Leave-one-out: nobody is judged by a head that has seen them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kshot.estimator.calibrate import calibrated_loss
from kshot.estimator.heads import LOGISTIC_LIMIT, fit_head
from kshot.estimator.held_out import MAX_FOLDS, candidates, choose_head, folds, folds_of, held_out_logits


@given(st.lists(st.integers(1, 25), min_size=2, max_size=8), st.integers(0, 99))
def test_folds_take_every_shot_once_and_never_a_whole_class(counts, seed):
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    parts = folds(y, torch.Generator().manual_seed(seed))
    taken = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
    judged = [i for i, label in enumerate(y.tolist()) if counts[label] > 1]
    assert sorted(taken.tolist()) == judged
    for part in parts:
        left = torch.bincount(y, minlength=len(counts)) - torch.bincount(y[part], minlength=len(counts))
        assert int(left.min()) >= 1
        if max(counts) <= MAX_FOLDS:
            assert int(torch.bincount(y[part]).max()) == 1
    if parts and max(counts) > 1:
        assert len(parts) <= MAX_FOLDS


def _shots(seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(3).repeat_interleave(4)
    return torch.randn(3, 6, generator=g)[y] + torch.randn(12, 6, generator=g), y


def test_the_answer_for_a_shot_is_that_of_a_head_without_it():
    z, y = _shots()
    parts = folds(y, torch.Generator().manual_seed(0))
    (found,) = held_out_logits(z, y, 3, "ridge", [0.5], parts)
    assert torch.equal(found.labels, y[found.index])
    row = 0
    for part in parts:
        keep = torch.tensor([i for i in range(12) if i not in part.tolist()])
        head = fit_head(z[keep], y[keep], 3, "ridge", 0.5)
        torch.testing.assert_close(found.logits[row : row + len(part)], head.logits(z[part]))
        row += len(part)


def test_a_shot_left_out_has_no_say_in_its_own_answer():
    z, y = _shots()
    parts = [torch.tensor([0])]
    before = held_out_logits(z, y, 3, "prototypes", [0.4], parts)[0].logits
    after = held_out_logits(z, torch.cat([torch.tensor([2]), y[1:]]), 3, "prototypes", [0.4], parts)[0].logits
    torch.testing.assert_close(before, after)


def test_the_head_with_the_least_loss_is_chosen():
    z, y = _shots()
    parts = folds(y, torch.Generator().manual_seed(0))
    chosen = choose_head(z, y, 3, parts, calibrated_loss, {"ridge": (0.1, 1.0), "cosine": (1.0,)})
    assert chosen is not None
    assert list(chosen.losses.values()) == sorted(chosen.losses.values())
    assert f"{chosen.head.name} {chosen.head.strength:g}" == next(iter(chosen.losses))
    assert calibrated_loss(chosen.held_out) == next(iter(chosen.losses.values()))
    assert choose_head(z, y, 3, [], calibrated_loss, {"cosine": (1.0,)}) is None


def test_no_logistic_head_where_it_would_take_minutes():
    assert "logistic" in candidates(100, 384, 10)
    assert "logistic" not in candidates(int(LOGISTIC_LIMIT), 384, 10)


def test_folds_of_two_shots_leave_classes_with_both():
    for n_classes in (2, 3, 20):
        y = torch.arange(n_classes).repeat(2)
        for part in folds(y, torch.Generator().manual_seed(0)):
            assert len(y) - len(part) > n_classes


def test_prototypes_are_not_chosen_where_a_fold_leaves_single_shots():
    z, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 2])
    parts = folds(y, torch.Generator().manual_seed(0))
    heads = {"prototypes": (1.0,), "cosine": (1.0,)}
    chosen = choose_head(z, y, 3, parts, calibrated_loss, heads)
    assert chosen is not None
    assert list(chosen.losses) == ["cosine 1"]
    asked = choose_head(z, y, 3, parts, calibrated_loss, {"prototypes": (1.0,)})
    assert asked is not None
    assert asked.head.name == "prototypes", "what is asked for is done"


def test_copies_are_left_out_together():
    """Noise in two copies tells nothing of new examples, and must not look as if it did."""
    z, y = torch.randn(10, 6, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2
    deal = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    assert [p.tolist() for p in folds_of(z, y, deal())] == [p.tolist() for p in folds(y, deal())]
    twice, labels = torch.cat([z, z]), torch.cat([y, y])
    parts = folds_of(twice, labels, deal())
    assert sorted(torch.cat(parts).tolist()) == list(range(20))
    for part in parts:
        assert {i % 10 for i in part.tolist()} == {i for i in range(10) if i in part.tolist()}
        assert {i + 10 for i in part.tolist() if i < 10} == {i for i in part.tolist() if i >= 10}
    (found,) = held_out_logits(twice, labels, 2, "ridge", [0.01], parts)
    assert float((found.logits.argmax(1) == found.labels).double().mean()) < 0.9
    assert folds_of(z[:1].expand(4, -1), torch.tensor([0, 0, 1, 1]), deal()) == []
