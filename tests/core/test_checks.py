"""The checks at the doors: every documented bad input gives its documented error."""

import pytest
import torch
from hypothesis import given

from kshot.core import Episode, Spec, Split, UserError
from kshot.core.checks import check_episode, check_finite, check_split
from kshot.testing import synthetic_episode
from kshot.testing.strategies import episodes, specs

IMAGES = Spec("classification", (1, 4, 4), 3)
VECTORS = Spec("regression", (2,), 1)
BITS = Spec("sequence", (4,), 3)


def labelled(y: list[int], n_way: int | None = 3, n: int | None = None) -> Split:
    return Split(torch.zeros(len(y) if n is None else n, 1, 4, 4), torch.tensor(y, dtype=torch.int64), n_way)


def test_good_episodes_pass() -> None:
    for spec in (IMAGES, VECTORS, BITS):
        check_episode(synthetic_episode(spec), spec)
    check_episode(Episode(labelled([0, 1, 2], None), labelled([1], None)), IMAGES)


@given(specs().flatmap(lambda spec: episodes(spec).map(lambda e: (spec, e))))
def test_made_up_episodes_pass(drawn: tuple[Spec, Episode]) -> None:
    check_episode(drawn[1], drawn[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_entries_that_are_no_numbers(bad: float) -> None:
    x = torch.zeros(2, 3)
    check_finite(x, "x")
    x[1, 2] = bad
    with pytest.raises(UserError, match="finite numbers in pixels, got 1 NaN or infinite"):
        check_finite(x, "pixels")
    with pytest.raises(UserError, match="got 1 NaN"):
        check_finite(torch.complex(x, x)[1, 2:], "z")
    check_finite(torch.tensor([1, 2]), "counts")


CLASSIFICATION = {
    "labels out of range": (labelled([0, 1, 3]), "labels 0..2 for 3 classes, got 0..3"),
    "a negative label": (labelled([0, -1, 2]), "got -1..2"),
    "fewer labels than images": (labelled([0, 1], n=3), "3 inputs but 2 targets"),
    "no examples": (labelled([]), "at least one example in support, got none"),
    "another size": (Split(torch.zeros(3, 1, 5, 5), torch.arange(3), 3), r"shape \(1, 4, 4\), got \(1, 5, 5\)"),
    "labels as floats": (Split(torch.zeros(3, 1, 4, 4), torch.zeros(3), 3), "int64 class indices"),
    "one-hot labels": (Split(torch.zeros(3, 1, 4, 4), torch.eye(3, dtype=torch.int64), 3), r"shape \(3, 3\)"),
    "another n_way": (labelled([0, 1, 2], 5), "n_way=3 in support, got n_way=5"),
    "a number for images": (Split(torch.tensor(1.0), torch.arange(3), 3), "first axis that counts"),
    "no tensor": (Split([1, 2, 3], torch.arange(3), 3), "got list"),
    "NaN": (Split(torch.full((3, 1, 4, 4), float("nan")), torch.arange(3), 3), "48 NaN"),
}


@pytest.mark.parametrize(("split", "message"), CLASSIFICATION.values(), ids=CLASSIFICATION.keys())
def test_bad_splits_of_a_classification(split: Split, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_split(split, IMAGES, "support")


REGRESSION = {
    "targets as whole numbers": (torch.zeros(4, 1, dtype=torch.int64), r"floats of shape \(., 1\), got torch.int64"),
    "targets without an axis": (torch.zeros(4), r"got torch.float32 of shape \(4,\)"),
    "targets too wide": (torch.zeros(4, 2), r"shape \(4, 2\)"),
    "NaN targets": (torch.full((4, 1), float("nan")), "finite numbers in query.y"),
}


@pytest.mark.parametrize(("y", "message"), REGRESSION.values(), ids=REGRESSION.keys())
def test_bad_splits_of_a_regression(y: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_split(Split(torch.zeros(4, 2), y), VECTORS, "query")


def test_a_class_without_support() -> None:
    with pytest.raises(
        UserError, match="support has 2 classes but n_way=3: class 1 has no example; pass n_way=2 or add"
    ):
        check_episode(Episode(labelled([0, 2, 2]), labelled([1])), IMAGES)


def test_the_query_is_checked_too() -> None:
    with pytest.raises(UserError, match=r"query\.y"):
        check_episode(Episode(labelled([0, 1, 2]), labelled([4])), IMAGES)


def test_parts_of_nested_inputs_are_checked() -> None:
    x = {"text": torch.zeros(3, 5), "image": torch.full((3, 2), float("inf"))}
    with pytest.raises(UserError, match="6 NaN or infinite"):
        check_split(Split(x, torch.arange(3), 3), IMAGES, "support")


def test_sequences_are_asked_for_bits_at_the_query_alone() -> None:
    support, query = synthetic_episode(BITS)
    for bad in (support._replace(y=torch.zeros(2, 3, dtype=torch.bool)), support._replace(y=torch.zeros(2, 0))):
        with pytest.raises(UserError, match=r"support.y: expected bool of shape \(., 0\).*nothing is asked while"):
            check_episode(Episode(bad, query), BITS)
    for bad in (query._replace(y=query.y.double()), query._replace(y=query.y[:, :2])):
        with pytest.raises(UserError, match=r"query.y: expected bool of shape \(., 3\), got .*; one row of bits for"):
            check_episode(Episode(support, bad), BITS)
    with pytest.raises(UserError, match="got bits: this split is a sequence; it has no classes"):
        query.ways()
