"""Models of numbers on the command line: fit, predict, info, report, export."""

import csv
import json
import re

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="fitting needs scikit-learn")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path, n: int, seed: int = 0, target: str = "price", comma: bool = False):
    """Write houses: the price is known from area and age, but for noise of 3."""
    dice = np.random.default_rng(seed)
    x = dice.normal(size=(n, 2))
    y = 200 + 30 * x[:, 0] - 10 * x[:, 1] ** 2 + 3 * dice.normal(size=n)
    rows = [[f"{v:.3f}" for v in (*a, b)] for a, b in zip(x, y, strict=True)]
    with path.open("w", newline="") as f:
        made = csv.writer(f, delimiter=";" if comma else ",")
        made.writerow(["area", "age", target])
        made.writerows([[c.replace(".", ",") for c in row] if comma else row for row in rows])
    return path


@pytest.fixture
def model(kshot, tmp_path):
    line = ["fit", write(tmp_path / "houses.csv", 40), "--out", tmp_path / "m.kshot", "--task", "regression"]
    ran = kshot(*line, "--label-column", "price", "--report", tmp_path / "fit.html")
    assert ran.status == 0, ran.err
    return tmp_path / "m.kshot", ran.out


def read(path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_what_fit_says_holds_on_new_rows(kshot, model, tmp_path):
    path, said = model
    expected = float(re.search(r"expected error +([\d.]+)", said)[1])
    new = write(tmp_path / "new.csv", 200, seed=1)
    ran = kshot("predict", path, new, "--label-column", "price", "--out", tmp_path / "p.csv")
    assert ran.status == 0, ran.err
    rows = read(tmp_path / "p.csv")
    assert list(rows[0]) == ["input", "prediction", "low", "high", "nearest", "nearest_target", "distance", "actual"]
    numbers = {name: np.array([float(row[name]) for row in rows]) for name in ("prediction", "low", "high", "actual")}
    rmse = float(np.sqrt(np.mean((numbers["prediction"] - numbers["actual"]) ** 2)))
    assert expected / 2 < rmse < 2 * expected < 30
    held = float(np.mean((numbers["low"] <= numbers["actual"]) & (numbers["actual"] <= numbers["high"])))
    # 0.9 in expectation over draws of the 40 shots.
    assert held > 0.75
    assert f"intervals of 90 % held {100 * held:.1f} %" in ran.out
    assert f"error  {rmse:.4g}" in ran.out


def test_wider_intervals_and_the_same_as_in_python(kshot, model, tmp_path):
    from kshot.estimator import FewShotRegressor

    new = write(tmp_path / "new.csv", 5, seed=1)
    for name, coverage in (("a", 0.5), ("b", 0.9)):
        assert kshot("predict", model[0], new, "--coverage", coverage, "--out", tmp_path / f"{name}.csv").status == 0
    narrow, wide = read(tmp_path / "a.csv"), read(tmp_path / "b.csv")
    for a, b in zip(narrow, wide, strict=True):
        assert float(b["low"]) < float(a["low"]) < float(a["high"]) < float(b["high"])
    again = FewShotRegressor.load(model[0])
    x = np.array([[float(row["area"]), float(row["age"])] for row in read(new)])
    import pandas

    answers = again.predict(pandas.DataFrame(x, columns=["area", "age"]))
    np.testing.assert_allclose([float(row["prediction"]) for row in wide], answers, rtol=1e-8)


def test_rows_that_no_shot_vouches_for_are_told(kshot, refused, model, tmp_path):
    (tmp_path / "new.csv").write_text("area,age\n1e6,0\n,0\n0,0\n")
    ran = kshot("predict", model[0], tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert "note: 1 row lies outside the range of the shots in column area (first: row 2);" in ran.err
    assert "note: 1 row has no value in column area (first: row 3)" in ran.err
    (tmp_path / "new.csv").write_text("area,age\n0,0\nna,?\n")
    assert "no value in any column that the model reads (row 3)" in refused(
        "predict", model[0], tmp_path / "new.csv", "--out", tmp_path / "p.csv"
    )


def test_a_table_for_people_info_and_export(kshot, model, tmp_path):
    new = write(tmp_path / "new.csv", 3, seed=1)
    assert "nearest shot" in kshot("predict", model[0], new).out
    assert "answers         numbers with intervals" in kshot("info", model[0]).out
    found = json.loads(kshot("info", model[0], "--json", "-").out)
    assert found["task"] == "regression"
    pytest.importorskip("onnxruntime", reason="export needs the extra onnx")
    assert kshot("export", model[0], "--onnx", tmp_path / "m.onnx").status == 0


def test_reports(kshot, model, tmp_path):
    assert "Do intervals hold?" in (tmp_path / "fit.html").read_text()
    assert kshot("info", model[0], "--report", tmp_path / "info.html").status == 0
    new = write(tmp_path / "new.csv", 20, seed=1)
    ran = kshot("predict", model[0], new, "--label-column", "price", "--report", tmp_path / "new.html")
    assert ran.status == 0, ran.err
    assert "Within their 90% intervals" in (tmp_path / "new.html").read_text()


def test_numbers_with_commas_and_their_usual_name(kshot, tmp_path):
    data = write(tmp_path / "houses.csv", 20, target="Target", comma=True)
    ran = kshot("fit", data, "--out", tmp_path / "m.kshot", "--task", "regression")
    assert ran.status == 0, ran.err
    assert "Target from 1" in ran.out


def test_a_wrong_number_is_pointed_at(kshot, tmp_path):
    data = write(tmp_path / "houses.csv", 40)
    rows = data.read_text().splitlines()
    rows[7] = ",".join([*rows[7].split(",")[:2], "900"])
    data.write_text("\n".join(rows))
    ran = kshot("fit", data, "--out", tmp_path / "m.kshot", "--task", "regression", "--label-column", "price")
    look = ran.out.partition("look again")[2]
    assert look.splitlines()[1].startswith("row 8")


def test_molecules(kshot, tmp_path):
    pytest.importorskip("rdkit", reason="molecules need rdkit")
    smiles = ["C" * n for n in range(1, 15)]
    (tmp_path / "m.csv").write_text("smiles,y\n" + "\n".join(f"{s},{len(s)}" for s in smiles))
    ran = kshot("fit", tmp_path / "m.csv", "--out", tmp_path / "m.kshot", "--task", "regression")
    assert ran.status == 0, ran.err
    ran = kshot("predict", tmp_path / "m.kshot", "--text", "CCCC", "--out", "-")
    assert ran.out.startswith("input,text,prediction,low,high")


def test_amounts_are_no_names_of_classes(kshot, refused, tmp_path):
    data = write(tmp_path / "houses.csv", 30, target="label")
    said = refused("fit", data, "--out", tmp_path / "m.kshot")
    assert "30 different numbers among 30 labels; to learn numbers pass --task regression" in said
    assert not (tmp_path / "m.kshot").exists()
    whole = [row.rpartition(".")[0] + str(i) for i, row in enumerate(data.read_text().splitlines()[1:])]
    data.write_text("\n".join(["area,age,label", *(f"{row.rpartition(',')[0]},{i}" for i, row in enumerate(whole))]))
    ran = kshot("fit", data, "--out", tmp_path / "m.kshot", "--head", "cosine")
    assert ran.status == 0
    assert "if they are amounts, say --task regression" in ran.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--finetune",), "--finetune is for classes"),
        (("--unknown-rate", "0.1"), "--unknown-rate is for classes"),
        (("--label-column", "no"), "label column 'no'"),
        ((), "column of targets"),
        (("--label-column", "words"), "a finite number expected as target, got 'few'"),
    ],
)
def test_what_cannot_be_learnt(refused, tmp_path, flags, said):
    (tmp_path / "t.csv").write_text("area,price,words\n1,2,few\n2,4,more\n3,6,1\n")
    line = ["fit", tmp_path / "t.csv", "--out", tmp_path / "m.kshot", "--task", "regression"]
    assert said in refused(*line, *flags)
    assert not (tmp_path / "m.kshot").exists()


def test_what_models_of_numbers_have_not(refused, kshot, model, table_model, tmp_path):
    new = write(tmp_path / "new.csv", 3, seed=1)
    assert "--top is for models of classes" in refused("predict", model[0], new, "--top", 2)
    assert "coverage between 0 and 1, got 90" in refused("predict", model[0], new, "--coverage", 90)
    assert "--coverage is for models of numbers" in refused("predict", table_model, new, "--coverage", 0.5)
    for command in (["add", model[0], "--class", "a", new], ["remove", model[0], "--class", "a"]):
        assert "predicts numbers and has none" in refused(*command)


def test_few_rows_vouch_for_no_interval(kshot, tmp_path):
    data = write(tmp_path / "houses.csv", 5)
    ran = kshot("fit", data, "--out", tmp_path / "m.kshot", "--task", "regression", "--label-column", "price")
    assert "can be judged from 10 examples on" in ran.out
    ran = kshot("predict", tmp_path / "m.kshot", data, "--out", tmp_path / "p.csv")
    assert "intervals of 90 % take 9 shots or more" in ran.out + ran.err
    assert {row["low"] for row in read(tmp_path / "p.csv")} == {""}
