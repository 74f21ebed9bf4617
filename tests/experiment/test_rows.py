"""What is said of memories that are too small, and of weights of another memory."""

import dataclasses

import pytest
import torch

from kshot.algorithms import DNC, LSTM, MANN, NTM
from kshot.core import Spec, UserError
from kshot.data import Copy, NGrams
from kshot.data.sinusoid import Sinusoid
from kshot.data.source import TaskSource
from kshot.experiment.config import RunConfig
from kshot.experiment.rows import check_rows, memory_warning
from kshot.nn.flat import Flat
from kshot.nn.memory.cell import ROWS

FIVE_WAY = Spec("classification", (4,), 5)


class Classes(TaskSource):
    """Says its shape, and draws nothing."""

    name, spec, n_shot, n_query = "classes", FIVE_WAY, 1, 9

    def plan(self, n_tasks, generator):
        raise NotImplementedError

    def episodes(self, plan):
        raise NotImplementedError


def mann(n_slots, spec=FIVE_WAY):
    return MANN(Flat(spec.input_shape), spec, n_hidden=4, n_slots=n_slots, slot_width=3)


def test_training_and_instances_read_support_and_queries_as_one_sequence():
    """The paper's own setting: 5 classes of 10 examples, each written to 4 of 128 rows."""
    learner, source = mann(128), Classes()
    assert memory_warning(learner, source) == ""
    expected = (
        "each of the 50 examples of a sequence is written to 4 rows of its own, and the memory has 128: rows are "
        "overwritten, those of the oldest use first; to keep all, train with --n-slots 200"
    )
    assert memory_warning(learner, source, training=True) == expected
    assert memory_warning(learner, source, instances=10) == expected
    assert memory_warning(learner, source, instances=6) == ""
    assert memory_warning(mann(200), source, training=True) == ""
    assert "--n-slots 200" in memory_warning(mann(199), source, training=True)


def test_the_step_of_a_query_writes_too():
    # Five examples and one query, four rows each.
    assert memory_warning(mann(24), Classes()) == ""
    assert "--n-slots 24" in memory_warning(mann(23), Classes())


def test_heads_that_choose_where_they_write_are_not_said_to_overwrite():
    for make in (NTM, DNC):
        found = memory_warning(make(Flat((4,)), FIVE_WAY, n_slots=49), Classes(), training=True)
        assert "50 examples is longer than the memory of 49 rows: the heads choose where they write" in found
        assert "--n-slots 50" in found
        assert "overwritten" not in found
        assert memory_warning(make(Flat((4,)), FIVE_WAY, n_slots=50), Classes(), training=True) == ""
    assert memory_warning(LSTM(Flat((4,)), FIVE_WAY), Classes(), training=True) == ""


def test_sequences_count_what_is_read_and_what_is_shown_while_it_is_asked():
    copying, bits = Copy(min_length=9, max_length=9, n_bits=3), NGrams(n_bits=12)
    ten, thirteen = (
        (lambda n: NTM(Flat((4,)), copying.spec, n_slots=n)),
        (lambda n: NTM(Flat((1,)), bits.spec, n_slots=n)),
    )
    assert memory_warning(ten(10), copying, training=True) == ""
    assert "a sequence of 10 steps is longer than the memory of 9 rows" in memory_warning(ten(9), copying)
    assert memory_warning(thirteen(13), bits) == ""
    assert "a sequence of 13 steps is longer than the memory of 12 rows" in memory_warning(thirteen(12), bits)
    # MANN writes at each step, also where there is nothing to be read.
    assert memory_warning(mann(76, copying.spec), copying) == ""
    assert "each of the 19 steps" in memory_warning(mann(75, copying.spec), copying)


def test_regression_counts_points():
    source = Sinusoid(n_shot=10, n_query=10)
    learner = mann(79, source.spec)
    assert "20 examples" in memory_warning(learner, source, training=True)
    assert memory_warning(learner, source) == ""


@pytest.mark.parametrize("make", [NTM, DNC, MANN])
def test_weights_of_another_memory_are_refused(make):
    built = {n: make(Flat((4,)), FIVE_WAY, n_hidden=4, n_slots=n, slot_width=3) for n in (8, 9)}
    kept = built[8].state_dict()
    assert int(kept[f"cell.{ROWS}"]) == 8
    with pytest.raises(RuntimeError, match="a memory of 8 rows, expected 9: build it with n_slots=8"):
        built[9].load_state_dict(kept)
    config = dataclasses.replace(RunConfig("mann", "glyphs"), options={"n_slots": 8})
    with pytest.raises(UserError, match="the file is of another memory: expected 9 rows, got 8; leave out --n-slots"):
        check_rows(built[9], kept, config, "the file")
    check_rows(built[8], kept, config, "the file")
    # As older versions wrote them: the run's settings say how many rows there were.
    old = {name: t for name, t in kept.items() if not name.endswith(ROWS)}
    with pytest.raises(UserError, match="expected 9 rows, got 8"):
        check_rows(built[9], old, config, "the file")
    assert not any(built[8].load_state_dict({name: torch.zeros_like(t) for name, t in old.items()}))
    assert not any(p.any() for p in built[8].parameters())
