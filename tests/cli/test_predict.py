"""``kshot predict``, ``add``, ``remove``, ``label-next`` and ``export``."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.cli.own_data import COLUMNS, draw, draw_folder, rows, write_table

pytest.importorskip("sklearn", reason="fitting needs scikit-learn")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def new_rows(tmp_path):
    """Rows without labels: thirty of the classes, then ten of none."""
    strangers = rows(10, ("stranger",), seed=8)
    return write_table(tmp_path / "new.csv", [*rows(10, seed=7), *strangers], label="")


@pytest.fixture
def mine(table_model, tmp_path):
    """A model that may be changed."""
    shutil.copy(table_model, tmp_path / "mine.kshot")
    return tmp_path / "mine.kshot"


# A file has names of columns, an array has none.
nameless = pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")


def read(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_the_file_of_predictions(kshot, table_model, new_rows, tmp_path):
    ran = kshot("predict", table_model, new_rows, "--out", tmp_path / "p.csv")
    assert ran.status == 0, ran.err
    assert f"40 rows, written to {tmp_path / 'p.csv'}" in ran.out
    found = read(tmp_path / "p.csv")
    assert list(found[0]) == [
        *("input", "label", "probability", "p_known", "label_2", "probability_2", "label_3", "probability_3"),
        *("nearest", "nearest_label", "similarity"),
    ]
    assert [line["input"] for line in found] == [f"row {i}" for i in range(2, 42)]
    truth = [row[-1] for row in rows(10, seed=7)]
    assert np.mean([line["label"] == label for line, label in zip(found, truth, strict=False)]) > 0.9
    for line in found:
        shares = [float(line[name]) for name in ("probability", "probability_2", "probability_3")]
        assert shares == sorted(shares, reverse=True)
        assert math.isclose(sum(shares), 1, abs_tol=1e-4)
        assert line["nearest"].startswith("row ")
        assert 0 < float(line["p_known"]) <= 1
        assert "unknown" not in line["label"]


@nameless
def test_the_same_as_in_python(kshot, table_model, new_rows, tmp_path):
    from kshot.estimator import FewShotClassifier

    kshot("predict", table_model, new_rows, "--out", tmp_path / "p.csv")
    model = FewShotClassifier.load(table_model)
    x = np.loadtxt(new_rows, delimiter=",", skiprows=1)
    expected = model.predict_proba(x).max(1)
    assert np.allclose([float(line["probability"]) for line in read(tmp_path / "p.csv")], expected, atol=1e-5)
    assert [line["label"] for line in read(tmp_path / "p.csv")] == list(model.predict(x))


def test_unknown_at_a_stated_rate(kshot, table_model, new_rows, tmp_path):
    ran = kshot("predict", table_model, new_rows, "--unknown-rate", 0.1, "--out", tmp_path / "p.csv")
    assert ran.status == 0, ran.err
    unknown = [line["label"] == "unknown" for line in read(tmp_path / "p.csv")]
    assert all(unknown[30:]), "rows from nowhere near"
    assert sum(unknown[:30]) <= 9, "three are expected"
    assert all((float(line["p_known"]) <= 0.1) == u for line, u in zip(read(tmp_path / "p.csv"), unknown, strict=True))


def test_a_rate_of_the_model_holds_unless_another_is_typed(kshot, tmp_path, new_rows):
    data = write_table(tmp_path / "plants.csv", rows(8))
    kshot("fit", data, "--out", tmp_path / "m", "--unknown-rate", 0.1)
    kshot("predict", tmp_path / "m", new_rows, "--out", tmp_path / "p.csv")
    assert read(tmp_path / "p.csv")[35]["label"] == "unknown"
    kshot("predict", tmp_path / "m", new_rows, "--out", tmp_path / "p.csv", "--unknown-rate", 0)
    assert read(tmp_path / "p.csv")[35]["label"] != "unknown"


def test_a_rate_that_so_few_shots_cannot_vouch_for(kshot, table_model, new_rows):
    ran = kshot("predict", table_model, new_rows, "--unknown-rate", 0.001)
    assert ran.status == 0
    assert "24 shots left out vouch for no error rate below 0.04" in ran.err
    assert "unknown" not in ran.out


def test_csv_on_standard_output_and_nothing_else(kshot, table_model, new_rows):
    ran = kshot("predict", table_model, new_rows, "--out", "-", "--top", 1)
    assert ran.out.splitlines()[0] == "input,label,probability,p_known,nearest,nearest_label,similarity"
    assert len(ran.out.splitlines()) == 41


def test_a_table_for_people(kshot, table_model, new_rows):
    ran = kshot("predict", table_model, new_rows)
    assert ran.status == 0, ran.err
    assert len(ran.out.splitlines()) == 41
    assert ran.out.splitlines()[1].startswith("row 2 ")


def test_labels_that_are_known_are_counted(kshot, table_model, tmp_path):
    data = write_table(tmp_path / "test.csv", rows(10, seed=5), label="plant")
    ran = kshot("predict", table_model, data, "--label-column", "plant", "--out", tmp_path / "p.csv")
    assert ran.status == 0, ran.err
    right = np.mean([line["label"] == line["actual"] for line in read(tmp_path / "p.csv")])
    assert f"accuracy  {100 * right:.1f} % (95% interval" in ran.out


def test_labels_that_the_model_has_not_are_told(kshot, table_model, tmp_path):
    found = [[*row[:3], {"setosa": "Setosa", "stranger": "new"}.get(row[3], row[3])] for row in rows(4, seed=5)]
    found += [[*row[:3], "new"] for row in rows(2, ("stranger",), seed=5)]
    ran = kshot("predict", table_model, write_table(tmp_path / "test.csv", found), "--label-column", "label")
    note = "note: 6 of the true labels (Setosa, new) are none of the model's classes and count as errors"
    assert note in ran.out.splitlines()
    assert "refused" not in ran.out
    known = write_table(tmp_path / "known.csv", rows(4, seed=5))
    assert "true labels" not in kshot("predict", table_model, known, "--label-column", "label").out


@pytest.mark.parametrize(("label", "said"), [("new", ""), ("unknown", " unless its label is unknown")])
def test_accuracy_where_some_are_refused(kshot, table_model, tmp_path, label, said):
    found = [*rows(10, seed=5), *([*row[:3], label] for row in rows(5, ("stranger",), seed=5))]
    data = write_table(tmp_path / "test.csv", found)
    line = ["predict", table_model, data, "--label-column", "label", "--out", tmp_path / "p.csv"]
    ran = kshot(*line, "--unknown-rate", 0.1)
    answers = read(tmp_path / "p.csv")
    kept = [a for a in answers if a["label"] != "unknown"]
    assert len(kept) <= len(answers) - 5
    for name, these, end in (
        ("accuracy  ", answers, f"on 35; a refused answer counts as wrong{said}"),
        ("accuracy among those not refused  ", kept, f"on {len(kept)}"),
    ):
        right = 100 * np.mean([a["label"] == a["actual"] for a in these])
        (said_of,) = [text for text in ran.out.splitlines() if text.startswith(name)]
        assert said_of.startswith(f"{name}{right:.1f} % (95% interval")
        assert said_of.endswith(end)
    assert ("5 of the true labels (new)" in ran.out) == (label == "new")
    ran = kshot("predict", table_model, write_table(tmp_path / "in.csv", rows(1)), *line[3:], "--unknown-rate", 0.04)
    assert "on 3; none was refused" in ran.out


def test_rows_outside_the_range_of_the_shots_are_told(kshot, table_model, tmp_path):
    found = [row[:3] for row in rows(2)]
    found[1][1], found[4][1], found[4][2] = "1000", "-1000", "1e9"
    ran = kshot("predict", table_model, write_table(tmp_path / "new.csv", found, label=""))
    assert ran.status == 0, ran.err
    assert (
        "note: 2 rows lie outside the range of the shots in columns width, weight (first: row 3); what is beyond it is "
        "read as its end" in ran.err
    )
    ran = kshot("predict", table_model, write_table(tmp_path / "one.csv", found[1:2], label=""))
    assert "note: 1 row lies outside the range of the shots in column width (first: row 2);" in ran.err
    assert "outside" not in kshot("predict", table_model, write_table(tmp_path / "old.csv", rows(8), label="")).err


def test_missing_values_that_no_shot_had_are_told(kshot, table_model, tmp_path):
    found = [row[:3] for row in rows(2)]
    found[2][0] = found[3][0] = ""
    ran = kshot("predict", table_model, write_table(tmp_path / "new.csv", found, label=""))
    assert ran.status == 0, ran.err
    assert "note: 2 rows have no value in column height (first: row 4), where every shot had one; it is read" in ran.err
    # Where shots had none either, it was learnt what that means.
    shots = rows(8)
    shots[0][0] = ""
    kshot("fit", write_table(tmp_path / "gaps.csv", shots), "--out", tmp_path / "gaps.kshot")
    assert "no value" not in kshot("predict", tmp_path / "gaps.kshot", tmp_path / "new.csv").err


def test_a_row_without_any_value_is_bad(kshot, refused, table_model, tmp_path):
    found = [row[:3] for row in rows(2)]
    found[1], found[4] = ["", "?", "nan"], ["", "", "None"]
    data = write_table(tmp_path / "new.csv", found, label="")
    said = refused("predict", table_model, data, "--out", tmp_path / "p.csv")
    assert "got 2 bad examples: no value in any column that the model reads (row 3, row 6)" in said
    assert "--skip-bad" in said
    assert not (tmp_path / "p.csv").exists()
    ran = kshot("predict", table_model, data, "--out", tmp_path / "p.csv", "--skip-bad")
    assert ran.status == 0, ran.err
    assert [line["input"] for line in read(tmp_path / "p.csv")] == ["row 2", "row 4", "row 5", "row 7"]
    assert "left out: row 3: no value in any column that the model reads" in ran.err
    assert "note:" not in ran.err
    none = write_table(tmp_path / "none.csv", [["", "", "NA"]] * 2, label="")
    assert "expected rows with values in" in refused("predict", table_model, none, "--skip-bad")


def test_a_report_on_new_examples(kshot, table_model, tmp_path):
    data = write_table(tmp_path / "test.csv", rows(5, seed=5))
    line = ["predict", table_model, data, "--label-column", "label", "--report", tmp_path / "r.html"]
    ran = kshot(*line)
    assert ran.status == 0, ran.err
    assert "setosa" in (tmp_path / "r.html").read_text()


def test_images_one_by_one_and_in_folders(kshot, shape_model, tmp_path):
    draw("circle", 99).save(tmp_path / "one.png")
    draw_folder(tmp_path / "new", 2, first=80)
    ran = kshot("predict", shape_model, tmp_path / "one.png", tmp_path / "new", "--out", tmp_path / "p.csv")
    assert ran.status == 0, ran.err
    found = read(tmp_path / "p.csv")
    assert len(found) == 7
    assert found[0]["input"] == str(tmp_path / "one.png")
    assert "shapes/circle/circle-" in found[0]["nearest"] or found[0]["nearest_label"] != "circle"


def test_nothing_is_left_when_an_image_is_bad(kshot, refused, shape_model, tmp_path):
    draw_folder(tmp_path / "new", 2)
    (tmp_path / "new" / "circle" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    assert "broken.png" in refused("predict", shape_model, tmp_path / "new", "--out", tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()
    ran = kshot("predict", shape_model, tmp_path / "new", "--out", tmp_path / "p.csv", "--skip-bad")
    assert ran.status == 0, ran.err
    assert "broken.png" in ran.err
    assert len(read(tmp_path / "p.csv")) == 6


def test_add_a_class_and_remove_it(kshot, mine, tmp_path, table_model):
    new = write_table(tmp_path / "strangers.csv", rows(5, ("stranger",), seed=2), label="")
    ran = kshot("add", mine, "--class", "stranger", new)
    assert ran.status == 0, ran.err
    assert f"added stranger with 5 rows; {mine} has 4 classes" in ran.out
    test = write_table(tmp_path / "test.csv", rows(5, ("stranger",), seed=2))
    ran = kshot("predict", mine, test, "--label-column", "label")
    assert "accuracy  100.0 %" in ran.out, "these very rows were added"
    ran = kshot("info", mine)
    assert "stranger" in ran.out
    ran = kshot("remove", mine, "--class", "stranger")
    assert f"removed stranger; {mine} has 3 classes" in ran.out
    assert "stranger" not in kshot("predict", mine, test).out
    ran = kshot("add", mine, new, "--class", "stranger", "--out", tmp_path / "more.kshot")
    assert f"{tmp_path / 'more.kshot'} has 4 classes" in ran.out
    assert "3 classes" in kshot("info", mine).out


def test_label_next_asks_about_what_is_between_classes(kshot, tmp_path):
    # Classes that overlap, so that the model is not sure of everything.
    kshot("fit", write_table(tmp_path / "p.csv", rows(8, noise=1.2)), "--out", tmp_path / "m")
    between = [["1.5", "0", "1.5"], ["0", "1.5", "1.5"]]
    plain = [row[:3] for row in rows(10, noise=0.1)]
    data = write_table(tmp_path / "new.csv", [*plain[:7], between[0], *plain[7:], between[1]], label="")
    ran = kshot("label-next", tmp_path / "m", data, "-n", 2)
    assert ran.status == 0, ran.err
    assert set(ran.out.splitlines()) == {"row 9", "row 33"}


@nameless
def test_export(kshot, table_model, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="exporting needs onnxruntime")
    pytest.importorskip("onnx", reason="exporting needs onnx")
    from kshot.estimator import FewShotClassifier

    ran = kshot("export", table_model, "--onnx", tmp_path / "m.onnx")
    assert ran.status == 0, ran.err
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    x = np.array([[float(v) for v in row[:3]] for row in rows(3, seed=9)])
    (p, *_) = session.run(None, {session.get_inputs()[0].name: x})
    assert np.allclose(p, FewShotClassifier.load(table_model).predict_proba(x), atol=1e-4)
    assert any(json.loads(path.read_text()) for path in tmp_path.glob("m*.json"))


def test_columns_in_another_order(kshot, table_model, tmp_path):
    found = rows(4, seed=3)
    turned = tmp_path / "turned.csv"
    lines = [",".join(reversed(COLUMNS)), *(",".join(str(v) for v in reversed(row[:3])) for row in found)]
    turned.write_text("\n".join(lines))
    kshot("predict", table_model, turned, "--out", tmp_path / "a.csv")
    kshot("predict", table_model, write_table(tmp_path / "new.csv", found, ""), "--out", tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_own_files_are_not_written_over(kshot, refused, table_model, tmp_path):
    own = tmp_path / "own.csv"
    own.write_text("input,price,label\n1,2,a\n")
    assert "something else than the predictions" in refused("predict", table_model, own, "--out", own)
    new, made = write_table(tmp_path / "new.csv", rows(2), label=""), tmp_path / "p.csv"
    assert kshot("predict", table_model, new, "--out", made).status == 0
    twice = tmp_path / "x"
    for command in (
        ("predict", table_model, made, "--out", made),
        ("predict", table_model, new, "--out", twice, "--report", twice),
        ("fit", own, "--out", twice, "--report", twice),
    ):
        assert "expected different files" in refused(*command)
    assert "something else than the JSON" in refused("info", table_model, "--json", table_model)
    assert own.read_text() == "input,price,label\n1,2,a\n"
    assert not twice.exists()


def test_a_class_called_unknown(kshot, mine, tmp_path):
    strange = write_table(tmp_path / "strange.csv", rows(6, ("stranger",)), label="")
    assert kshot("add", mine, "--class", "unknown", strange).status == 0
    far = tmp_path / "far.csv"
    far.write_text(",".join(COLUMNS) + "\n-90,90,-90\n90,-90,90\n")
    ran = kshot("predict", mine, far, "--unknown-rate", "0.6", "--out", tmp_path / "p.csv")
    assert ran.status == 0, ran.err
    assert "none of these" in {line["label"] for line in read(tmp_path / "p.csv")}


def test_a_place_that_cannot_be_written_to_is_found_before_the_work(refused, table_model, tmp_path, monkeypatch):
    new = write_table(tmp_path / "new.csv", rows(2), label="")
    below = new / "deeper" / "report.html"
    for command in (
        ("fit", write_table(tmp_path / "old.csv", rows(4)), "--out", tmp_path / "x.kshot", "--report", below),
        ("predict", table_model, new, "--out", tmp_path / "y.csv", "--report", below),
    ):
        assert f"the report cannot be written to {below}: {new} is a file" in refused(*command)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    told = refused("predict", table_model, new, "--out", tmp_path / "none" / "y.csv")
    assert f"you may not write to {tmp_path}; choose another folder" in told
    assert not (tmp_path / "x.kshot").exists()
    assert not (tmp_path / "y.csv").exists()
