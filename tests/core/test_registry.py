"""The list of methods: names are unique, unknown ones are answered with the nearest."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kshot.core import Learner, Split, UserError, method, methods, register
from kshot.core import registry as room
from kshot.core.registry import unknown


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """An empty list of methods of our own."""
    held: dict = {}
    monkeypatch.setattr(room, "_methods", held)
    return held


class First(Learner):
    def adapt(self, support: Split) -> Tensor:
        return support.x

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return x


class Second(First):
    pass


def test_registered_methods_are_found_by_name_and_listed_in_order() -> None:
    for name in ("zeta", "alpha"):
        assert register(name, family="metric", paper="A. Author, 2017")(First) is First
    assert list(methods()) == ["alpha", "zeta"]
    found = method("zeta")
    assert (found.name, found.family, found.paper, found.learner) == ("zeta", "metric", "A. Author, 2017", First)
    methods().clear()
    assert list(methods()) == ["alpha", "zeta"]


def test_a_name_is_held_by_one_class() -> None:
    register("one", family="solver", paper="")(First)
    register("one", family="solver", paper="")(First)  # a module that is imported again
    with pytest.raises(UserError, match="'one' is taken by First"):
        register("one", family="solver", paper="")(Second)


def test_families_are_fixed() -> None:
    with pytest.raises(UserError, match=r"family must be one of metric, .*got 'magic'"):
        register("x", family="magic", paper="")


def test_unknown_names_are_answered_with_the_nearest() -> None:
    register("protonet", family="metric", paper="")(First)
    with pytest.raises(UserError, match=r"unknown algorithm 'protonte'; did you mean 'protonet'\? Known: protonet"):
        method("protonte")
    assert unknown("thing", "zzz", ["a", "b"]) == "unknown thing 'zzz'. Known: a, b"


def test_the_base_class_is_abstract_and_has_no_native_batching() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Learner()  # pyright: ignore[reportAbstractUsage]
    learner = First()
    assert not learner.native
    for how in ("native", "fused"):
        with pytest.raises(NotImplementedError):
            learner(None, how=how)
    assert torch.equal(learner.predict(torch.zeros(1), torch.ones(1)), torch.ones(1))
