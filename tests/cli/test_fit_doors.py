"""Bad input to the commands on fitted models: status 2, one clear message, nothing half-written."""

import json
import os
import shutil

import pytest
from PIL import Image
from tests.cli.own_data import draw_folder, rows, write_table

from kshot.cli.fitted import check_json_free, check_model_free, label_like
from kshot.core import UserError

pytest.importorskip("sklearn", reason="fitting needs scikit-learn")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def out(tmp_path_factory):
    """A model file to be, in an empty folder that must stay empty."""
    folder = tmp_path_factory.mktemp("out")
    yield folder / "m.kshot"
    assert not list(folder.iterdir()), "nothing is half-written"


def write(path, text: str, encoding: str = "utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


TEXTS = "text,label\nI lost my card,card\ncard stolen,card\nwill it rain,weather\nis it cold,weather\n"


# Folders


def test_a_folder_with_one_class(refused, tmp_path, out):
    draw_folder(tmp_path / "shapes", 3, ("circle",))
    message = refused("fit", tmp_path / "shapes", "--out", out)
    assert "at least two classes" in message
    assert "circle" in message


def test_a_folder_without_classes(refused, tmp_path, out):
    draw_folder(tmp_path / "shapes", 3, ("circle",))
    assert "one sub-folder of pictures for each class" in refused("fit", tmp_path / "shapes" / "circle", "--out", out)


def test_a_class_folder_without_images(refused, tmp_path, out):
    draw_folder(tmp_path / "shapes", 2)
    (tmp_path / "shapes" / "empty").mkdir()
    assert "empty" in refused("fit", tmp_path / "shapes", "--out", out)


def test_a_truncated_image_is_named(refused, tmp_path, out, glyphs_run):
    draw_folder(tmp_path / "shapes", 3)
    bad = tmp_path / "shapes" / "square" / "square-1.png"
    bad.write_bytes(bad.read_bytes()[:70])
    assert "square-1.png" in refused("fit", tmp_path / "shapes", "--encoder", glyphs_run, "--out", out)


def test_an_image_that_is_none(refused, tmp_path, out, glyphs_run):
    draw_folder(tmp_path / "shapes", 3)
    write(tmp_path / "shapes" / "circle" / "notes.jpg", "not a picture")
    assert "notes.jpg" in refused("fit", tmp_path / "shapes", "--encoder", glyphs_run, "--out", out)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_colour_modes_are_welcome(kshot, tmp_path, glyphs_run, mode):
    draw_folder(tmp_path / "shapes", 2)
    path = tmp_path / "shapes" / "circle" / f"other.{'jpg' if mode == 'CMYK' else 'png'}"
    picture = Image.open(tmp_path / "shapes" / "circle" / "circle-0.png")
    picture.convert("L" if mode == "I;16" else mode).convert(mode).save(path)
    ran = kshot("fit", tmp_path / "shapes", "--encoder", glyphs_run, "--out", tmp_path / "m")
    assert ran.status == 0, ran.err


def test_the_same_file_under_two_labels_is_told(kshot, tmp_path, glyphs_run):
    draw_folder(tmp_path / "shapes", 3)
    shutil.copy(tmp_path / "shapes" / "circle" / "circle-0.png", tmp_path / "shapes" / "square" / "copy.png")
    ran = kshot("fit", tmp_path / "shapes", "--encoder", glyphs_run, "--out", tmp_path / "m")
    assert ran.status == 0, ran.err
    (line,) = [line for line in ran.out.splitlines() if line.startswith("note: the same example under two labels")]
    assert "circle-0.png (circle)" in line
    assert "copy.png (square)" in line


# Tables


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question,topic\na,b\nc,d\n", "expected a column of labels"),
        (TEXTS.replace("card stolen", "  "), "empty cell in column 'text' (row 3)"),
        (TEXTS.replace(",card\nwill", ",\nwill"), "empty label (row 3)"),
        (TEXTS.replace("weather", "card"), "one class only (card)"),
        (TEXTS.replace("card stolen,card", "card stolen"), "row 3"),
        ('text,label\n"no end,card\n', "quotation marks"),
        ("text,text,label\na,b,c\n", "text twice"),
        ("text,label\n", "nothing below the header"),
        ("", "empty"),
        ("text,label\nab\0c,x\n", "NUL"),
    ],
)
def test_tables_that_cannot_be_read(refused, tmp_path, out, text, said):
    assert said in refused("fit", write(tmp_path / "t.csv", text), "--out", out)


def test_mixed_encodings(refused, tmp_path, out):
    data = tmp_path / "t.csv"
    data.write_bytes(TEXTS.encode() + "café,x\n".encode() + "café,x\n".encode("latin-1"))
    assert "UTF-8" in refused("fit", data, "--out", out)


def test_a_label_column_that_is_not_there(refused, tmp_path, out):
    data = write(tmp_path / "t.csv", TEXTS)
    message = refused("fit", data, "--label-column", "topic", "--out", out)
    assert "'topic'" in message
    assert "text, label" in message


def test_broken_json_lines(refused, tmp_path, out):
    good = json.dumps({"text": "a", "label": "x"})
    assert "line 2" in refused("fit", write(tmp_path / "t.jsonl", f"{good}\n{{broken\n"), "--out", out)


@pytest.mark.parametrize("name", ["data.xlsx", "data.zip", "data.json", "data"])
def test_files_of_other_forms(refused, tmp_path, out, name):
    assert name in refused("fit", write(tmp_path / name, "PK"), "--out", out)


def test_nothing_there(refused, tmp_path, out):
    assert "does not exist" in refused("fit", tmp_path / "nothing", "--out", out)


# What was asked for


def test_no_data_and_no_model_file(refused, tmp_path):
    assert "kshot fit DATA --out MODEL" in refused("fit")
    assert "--out model.kshot" in refused("fit", tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--encoder", "text:no-such-model-anywhere"), "kind"),
        (("--encoder", "table:fourier"), "quantile"),
        (("--encoder", "runs/nothing"), "runs/nothing"),
        (("--head", "forest"), "invalid choice 'forest'"),
        (("--unknown-rate", 1.5), "below 1"),
        (("--columns", "height", "age"), "age"),
        (("--kind", "image"), ".csv"),
        (("--finetune",), "fine-tun"),
    ],
)
def test_settings_that_make_no_sense(refused, tmp_path, out, flags, said):
    assert said in refused("fit", write_table(tmp_path / "p.csv", rows(3)), "--out", out, *flags)


def test_a_file_that_is_no_model_is_not_written_over(refused, tmp_path, table_model):
    data = write_table(tmp_path / "p.csv", rows(3))
    before = data.read_bytes()
    assert "p.csv" in refused("fit", data, "--out", data)
    assert "folder" in refused("fit", data, "--out", tmp_path)
    assert "p.csv" in refused("fit", data, "--out", tmp_path / "m", "--report", data)
    assert "p.csv" in refused("remove", table_model, "--class", "setosa", "--out", data)
    assert "p.csv" in refused("predict", table_model, data, "--out", data)
    assert data.read_bytes() == before
    assert not (tmp_path / "m").exists()


def test_a_model_stays_when_a_new_fit_fails(refused, tmp_path, table_model):
    shutil.copy(table_model, tmp_path / "m")
    refused("fit", write(tmp_path / "t.csv", "text,label\na,b\n"), "--out", tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == table_model.read_bytes()


# Model files


@pytest.mark.parametrize("command", ["predict", "add", "label-next", "info", "remove", "export"])
def test_what_is_no_model(refused, tmp_path, command):
    more = {"add": ("--class", "x"), "remove": ("--class", "x"), "export": ("--onnx", tmp_path / "m.onnx")}.get(
        command, ()
    )
    data = () if command in ("info", "remove", "export") else (write_table(tmp_path / "p.csv", rows(1)),)
    assert "none.kshot" in refused(command, tmp_path / "none.kshot", *data, *more)
    text = write(tmp_path / "text.kshot", "this is no model")
    assert "text.kshot" in refused(command, text, *data, *more)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("keep", [0.3, 0.999])
def test_a_truncated_model(refused, tmp_path, table_model, keep):
    data = table_model.read_bytes()
    (tmp_path / "m.kshot").write_bytes(data[: int(keep * len(data))])
    for command in (("info",), ("remove", "--class", "setosa")):
        assert "m.kshot" in refused(command[0], tmp_path / "m.kshot", *command[1:])


def test_a_model_of_a_newer_version(refused, tmp_path, table_model):
    data = table_model.read_bytes()
    assert data.count(b'"kshot_model') >= 1
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(header).replace('\\"kshot_model\\": 1', '\\"kshot_model\\": 99')
    text = text.replace('\\"kshot_model\\":1', '\\"kshot_model\\":99').replace(
        '"kshot_model": "1"', '"kshot_model": "99"'
    )
    assert "99" in text
    (tmp_path / "m.kshot").write_bytes(len(text).to_bytes(8, "little") + text.encode() + data[8 + size :])
    assert "upgrade" in refused("info", tmp_path / "m.kshot")
    assert "upgrade" in refused("predict", tmp_path / "m.kshot", write_table(tmp_path / "p.csv", rows(1)))


# Predicting and changing


def test_inputs_that_do_not_fit_the_model(refused, tmp_path, table_model, shape_model, out):
    images = draw_folder(tmp_path / "new", 1)
    table = write_table(tmp_path / "p.csv", rows(1))
    assert "expected a file of tables" in refused("predict", table_model, images, "--out", out)
    assert "expected pictures" in refused("predict", shape_model, table, "--out", out)
    narrow = write(tmp_path / "narrow.csv", "height,width\n1,2\n")
    assert "weight" in refused("predict", table_model, narrow, "--out", out)
    assert "models of texts" in refused("predict", table_model, "--text", "1 2 3", "--out", out)


def test_predict_without_input(refused, table_model, tmp_path):
    assert "INPUT" in refused("predict", table_model)
    assert "model file" in refused("predict", "", tmp_path)
    assert "got both" in refused("predict", table_model, tmp_path, "--text", "a")
    assert "top >= 1" in refused("predict", table_model, tmp_path, "--top", 0)


def test_classes_that_are_there_or_not(refused, tmp_path, table_model):
    shutil.copy(table_model, tmp_path / "m")
    data = write_table(tmp_path / "p.csv", rows(1))
    assert "setosa" in refused("add", tmp_path / "m", "--class", "setosa", data)
    assert "--class NAME" in refused("add", tmp_path / "m", data)
    assert "name one" in refused("add", tmp_path / "m", "--class", "x")
    assert "setosa, versicolor, virginica" in refused("remove", tmp_path / "m", "--class", "rose")
    assert "--class NAME" in refused("remove", tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == table_model.read_bytes()


def test_two_classes_must_remain(kshot, refused, tmp_path, table_model):
    shutil.copy(table_model, tmp_path / "m")
    assert kshot("remove", tmp_path / "m", "--class", "setosa").status == 0
    assert "two" in refused("remove", tmp_path / "m", "--class", "virginica")


def test_export_without_a_file(refused, table_model, tmp_path):
    assert ".onnx" in refused("export", table_model)
    assert ".onnx" in refused("export", table_model, "--onnx", tmp_path / "m.txt")


def test_an_export_is_written_over_an_older_one_alone(refused, tmp_path):
    pytest.importorskip("onnx", reason="export needs the extra onnx")
    for name in ("x.onnx", "x.onnx.json"):
        (tmp_path / name).write_text("my notes")
        # There is no such model: what is in the way is found before the model is opened.
        assert f"{name} is something else" in refused("export", tmp_path / "none", "--onnx", tmp_path / "x.onnx")
        assert (tmp_path / name).read_text() == "my notes"
        (tmp_path / name).unlink()
    (tmp_path / "file").touch()
    assert "cannot be written to" in refused("export", tmp_path / "none", "--onnx", tmp_path / "file" / "x.onnx")


def test_space_around_the_name_of_a_class_means_nothing():
    assert label_like("  low", ["high", "low"]) == "low"
    assert label_like(" new class ", ["high", "low"]) == "new class"
    assert label_like(" low", [" low", "low"]) == " low"
    assert label_like(" 3 ", [1, 2]) == 3
    with pytest.raises(UserError, match="expected the name of a class, got none"):
        label_like("  ", ["high", "low"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
@pytest.mark.timeout(60)
def test_a_pipe_is_not_read_to_find_out_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_json_free(str(tmp_path / "pipe"))
    with pytest.raises(UserError, match="pipe is something else"):
        check_model_free(tmp_path / "pipe")


def test_label_next_of_none(refused, table_model, tmp_path):
    assert "n >= 1" in refused("label-next", table_model, write_table(tmp_path / "p.csv", rows(1)), "-n", 0)


def test_a_class_called_unknown(kshot, tmp_path):
    found = [[*row[:3], "unknown" if row[3] == "setosa" else row[3]] for row in rows(8)]
    ran = kshot("fit", write_table(tmp_path / "p.csv", found), "--out", tmp_path / "m", "--unknown-rate", 0.2)
    assert ran.status == 0, ran.err
    strange = write_table(tmp_path / "s.csv", rows(2, ("stranger",)), label="")
    assert "none of these" in kshot("predict", tmp_path / "m", strange).out
