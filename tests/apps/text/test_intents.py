"""Sets of sentences by intent: what is read, how shots are drawn, and what is said where a file is not right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kshot.apps.text.intents import banking77, clinc150, draw_shots
from kshot.core import UserError, generator


def write_banking(root: Path, train: str, test: str) -> None:
    folder = root / "text" / "banking77"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text(train, encoding="utf-8")
    (folder / "test.csv").write_text(test, encoding="utf-8")


def test_banking_reads_quotes_and_line_breaks_within_a_cell(tmp_path: Path) -> None:
    write_banking(tmp_path, 'text,category\n"a, \u2028 b\nc",zoo\nd,age\n', "text,category\ne,zoo\n")
    held = banking77(tmp_path)
    assert held.train_x == ["a, \u2028 b\nc", "d"]
    assert held.class_names == ("age", "zoo")
    assert held.train_y.tolist() == [1, 0]
    assert held.test_y.tolist() == [1]
    assert held.outside_x == []


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        ("sentence,category\na,b\n", "text,category\na,b\n", "columns text, category"),
        ("text,category\na,b,c\n", "text,category\na,b\n", "columns text, category"),
        ("", "text,category\na,b\n", "columns text, category"),
        ("text,category\na,b\n", "text,category\na,c\n", "that training has"),
    ],
)
def test_banking_says_what_is_not_right(tmp_path: Path, train: str, test: str, says: str) -> None:
    write_banking(tmp_path, train, test)
    with pytest.raises(UserError, match=says):
        banking77(tmp_path)


def test_absent_files_are_named_with_their_address(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.csv.*github"):
        banking77(tmp_path)
    with pytest.raises(UserError, match=r"data_full\.json.*github"):
        clinc150(tmp_path)


def test_clinc_keeps_what_is_out_of_scope_apart(tmp_path: Path) -> None:
    path = tmp_path / "text" / "clinc150" / "data_full.json"
    path.parent.mkdir(parents=True)
    held = {"train": [["a", "y"], ["b", "x"]], "test": [["c", "x"]], "oos_test": [["d", "oos"]]}
    path.write_text(json.dumps(held))
    found = clinc150(tmp_path)
    assert found.class_names == ("x", "y")
    assert found.train_y.tolist() == [1, 0]
    assert found.outside_x == ["d"]
    for broken in ("[]", "{", json.dumps({"train": 3})):
        path.write_text(broken)
        with pytest.raises(UserError, match="expected CLINC150"):
            clinc150(tmp_path)


def test_shots_are_of_their_class_and_repeatable() -> None:
    labels = torch.tensor([0, 1, 2] * 5)
    drawn = draw_shots(labels, 3, generator(0, "shots"))
    assert labels[drawn].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len(set(drawn.tolist())) == 9
    assert drawn.equal(draw_shots(labels, 3, generator(0, "shots")))
    assert not drawn.equal(draw_shots(labels, 3, generator(1, "shots")))
    with pytest.raises(UserError, match="6 examples of class 0, got 5"):
        draw_shots(labels, 6, generator(0, "shots"))


@pytest.mark.needs_data
def test_real_sets_have_their_published_sizes(data_root: Path) -> None:
    if not (data_root / "text").is_dir():
        pytest.skip("no text data sets under KSHOT_DATA")
    bank, clinc = banking77(data_root), clinc150(data_root)
    assert (len(bank.train_x), len(bank.test_x), len(bank.class_names)) == (10003, 3080, 77)
    assert (len(clinc.train_x), len(clinc.test_x), len(clinc.class_names)) == (15000, 4500, 150)
    assert len(clinc.outside_x) == 1000
    assert bank.test_y.bincount().tolist() == [40] * 77
