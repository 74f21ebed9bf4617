"""Trees: every container keeps its type, every tensor is met once and in order."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given

from kshot.core.tree import leaves, tree_map
from kshot.testing.strategies import trees


class Pair(NamedTuple):
    left: object
    right: object


def test_containers_keep_their_types_and_other_leaves_stay() -> None:
    tree = {"a": Pair(torch.ones(2), None), "b": [torch.zeros(1), 3], "c": (torch.ones(1), "text", 0.5)}
    doubled = tree_map(lambda t: 2 * t, tree)
    assert isinstance(doubled["a"], Pair)
    assert doubled["a"].right is None
    assert doubled["a"].left.tolist() == [2, 2]
    assert isinstance(doubled["b"], list)
    assert doubled["b"][1] == 3
    assert doubled["c"][1:] == ("text", 0.5)


def test_several_trees_are_walked_together() -> None:
    a, b = {"x": torch.tensor(1.0), "n": 1}, {"x": torch.tensor(2.0), "n": 2}
    assert tree_map(torch.add, a, b) == {"x": torch.tensor(3.0), "n": 1}


def test_trees_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        tree_map(torch.add, [torch.ones(1)], [torch.ones(1), torch.ones(1)])


def test_leaves_come_in_order() -> None:
    tree = {"a": torch.tensor(0), "b": [torch.tensor(1), (torch.tensor(2), None)], "c": "text"}
    assert [int(t) for t in leaves(tree)] == [0, 1, 2]
    assert leaves(None) == []


@given(trees())
def test_mapping_the_identity_gives_the_tree_back(tree: object) -> None:
    mapped = tree_map(lambda t: t, tree)
    assert repr(mapped) == repr(tree)
    assert all(a is b for a, b in zip(leaves(mapped), leaves(tree), strict=True))
