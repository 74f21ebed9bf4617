from __future__ import annotations

import pytest

from kshot.core import UserError
from kshot.evaluation import read_history


def read(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    return read_history(path)


def test_columns_are_found_and_gaps_left_out(tmp_path):
    history = read(tmp_path, "step,loss,val,lr\n1,1.5,,0.1\n2,1.25,0.5,0.1\n3,,0.75,\n")
    assert history.loss == [(1, 1.5), (2, 1.25)]
    assert history.validation == [(2, 0.5), (3, 0.75)]


@pytest.mark.parametrize(
    "header", ["outer_step,train_loss,val_accuracy", " Step , Loss , Validation", "step,loss,val_auc"]
)
def test_other_names_do(tmp_path, header):
    history = read(tmp_path, f"{header}\n7,1.5,0.5\n")
    assert history.loss == [(7, 1.5)]
    assert history.validation == [(7, 0.5)]


def test_rows_are_counted_where_there_is_no_step(tmp_path):
    assert read(tmp_path, "loss\n3\n2\n").loss == [(1, 3.0), (2, 2.0)]


def test_a_line_cut_short_and_broken_numbers_are_left_out(tmp_path):
    history = read(tmp_path, "step,loss,val\n1,2.0,0.5\n2,nan,inf\n3,x,0.6\n4,1.")
    assert history.loss == [(1, 2.0), (4, 1.0)]
    assert history.validation == [(1, 0.5), (3, 0.6)]


def test_after_a_resumed_run_the_later_row_counts(tmp_path):
    assert read(tmp_path, "step,loss\n1,9\n2,8\n3,7\n2,4\n3,3\n").loss == [(1, 9), (2, 4), (3, 3)]


@pytest.mark.parametrize("text", ["", "step,loss\n", "a,b\n1,2\n"])
def test_nothing_known_is_an_empty_history(tmp_path, text):
    history = read(tmp_path, text)
    assert history.loss == []
    assert history.validation == []


def test_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the metrics at .*gone\.csv"):
        read_history(tmp_path / "gone.csv")
