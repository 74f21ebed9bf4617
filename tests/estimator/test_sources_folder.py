"""Folders of pictures: what is a class, what is left out, and what is wrong, by name."""

import os
import random
from pathlib import Path

import pytest
from PIL import Image

from kshot.core import UserError
from kshot.estimator.sources import read_inputs, read_training


def picture(path: Path, shade: int = 0, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (shade, 2 * shade % 256, 255 - shade)).save(path)
    return path


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    root = tmp_path / "birds"
    for i, name in enumerate(["heron/1.png", "heron/2.JPG", "gull/a.png", "gull/deeper/b.webp", "wren/only.png"]):
        picture(root / name, 40 * i, side=8 + i)
    return root


def test_sub_folders_are_classes(birds: Path) -> None:
    source = read_training(birds)
    assert source.kind == "image"
    names = ["gull/a.png", "gull/deeper/b.webp", "heron/1.png", "heron/2.JPG", "wren/only.png"]
    assert source.examples == [birds / name for name in names]
    assert source.names == [str(birds / name) for name in names]
    assert source.labels == ["gull", "gull", "heron", "heron", "wren"]
    assert (source.columns, source.notes, source.skipped, len(source)) == ((), [], [], 5)
    assert read_training(str(birds)).examples == source.examples


def test_pictures_have_no_columns(birds: Path) -> None:
    for asked, named in (({"label_column": "kind"}, "kind"), ({"columns": ("a", "b")}, "a, b")):
        with pytest.raises(UserError, match=f"columns? {named}, got pictures .*the names of their folders"):
            read_training(birds, **asked)
    with pytest.raises(UserError, match="column kind, got pictures"):
        read_inputs(birds / "gull", label_column="kind")


def test_hidden_files_and_litter_are_ignored_and_other_files_noted(birds: Path) -> None:
    for name in (".hidden.png", "heron/.thumb.png", ".git/x.png", "Thumbs.db", "heron/desktop.ini", "__MACOSX/a.png"):
        path = birds / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (birds / "heron" / "notes.txt").write_text("x")
    (birds / "heron" / "README").write_text("x")
    picture(birds / "loose.png")
    source = read_training(birds)
    assert len(source) == 5
    assert source.notes == [
        "pictures outside of class folders are left out (1): loose.png",
        "files that are no pictures are left out: 1 .txt, 1 no suffix",
    ]


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(UserError, match="got an empty folder; put the pictures of each class"):
        read_training(tmp_path)
    with pytest.raises(UserError, match=r"expected pictures in .*, got no pictures"):
        read_inputs(tmp_path)


def test_no_sub_folders(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("x")
    with pytest.raises(UserError, match=r"got no sub-folders but data.csv"):
        read_training(tmp_path)
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="got pictures directly in it and no sub-folders"):
        read_training(tmp_path)


def test_one_class(tmp_path: Path) -> None:
    picture(tmp_path / "heron" / "1.png")
    with pytest.raises(UserError, match=r"at least two classes in .*, got one class only \(heron\)"):
        read_training(tmp_path)


def test_a_class_folder_without_pictures(birds: Path) -> None:
    (birds / "swan").mkdir()
    (birds / "tern").mkdir()
    (birds / "tern" / "a.doc").write_text("x")
    with pytest.raises(UserError, match=r"2 bad examples: no pictures \(.*swan\); no pictures, but a.doc \(.*tern\)"):
        read_training(birds)
    source = read_training(birds, skip_bad=True)
    assert len(source) == 5
    assert source.skipped[0] == (str(birds / "swan"), "no pictures")


def test_splits_are_not_taken_for_classes(birds: Path, tmp_path: Path) -> None:
    for split in ("train", "Test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / split).symlink_to(birds)
    with pytest.raises(UserError, match=r"got splits \(Test, train\); pass one of them, such as .*Test"):
        read_training(tmp_path / "data")
    assert len(read_training(tmp_path / "data" / "train")) == 5
    # A class may have such a name if it holds pictures.
    for name in ("train/1.png", "test/2.png"):
        picture(tmp_path / "vehicles" / name, len(name))
    assert read_training(tmp_path / "vehicles").labels == ["test", "train"]


def test_loops_of_links_end(birds: Path) -> None:
    (birds / "heron" / "loop").symlink_to(birds)
    assert len(read_training(birds)) == 5


def test_the_same_picture_under_two_labels_is_noted_or_refused(birds: Path) -> None:
    copy = birds / "wren" / "copy.png"
    copy.write_bytes((birds / "heron" / "1.png").read_bytes())
    pair = f"{birds / 'heron' / '1.png'} (heron) and {copy} (wren)"
    assert read_training(birds).notes == [f"the same example under two labels: {pair}"]
    with pytest.raises(UserError, match="under one label, got the same one twice") as caught:
        read_training(birds, strict=True)
    assert pair in str(caught.value)
    # Within a class it does not matter, nor do other pictures of the same size.
    copy.rename(birds / "heron" / "copy.png")
    (birds / "wren" / "other.bin").write_bytes(b"x")
    assert not [note for note in read_training(birds, strict=True).notes if "two labels" in note]


def test_unreadable_pictures_are_left_out_only_if_asked(birds: Path) -> None:
    truncated = birds / "heron" / "0.png"
    Image.frombytes("L", (64, 64), random.Random(0).randbytes(4096)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:2000])
    (birds / "gull" / "empty.jpg").write_bytes(b"")
    # Encoding names them; here they are only listed.
    assert len(read_training(birds)) == 7
    told: list[tuple[int, int]] = []
    source = read_training(birds, skip_bad=True, on_progress=lambda *at: told.append(at))
    assert len(source) == 5
    assert [Path(name).name for name, _ in source.skipped] == ["empty.jpg", "0.png"]
    assert "truncated" in source.skipped[1].why
    assert told[-1] == (7, 7)
    (birds / "wren" / "only.png").write_bytes(b"no picture")
    (birds / "heron" / "1.png").write_bytes(b"")
    (birds / "heron" / "2.JPG").write_bytes(b"")
    with pytest.raises(UserError, match=r"got one class only \(gull\) after 5 bad examples were left out"):
        read_training(birds, skip_bad=True)


def test_names_that_are_no_text_can_be_printed(birds: Path) -> None:
    try:
        folder = os.fsdecode(os.fsencode(birds) + b"/caf\xe9")
        picture(Path(folder) / "1.png")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    source = read_training(birds)
    assert source.labels is not None
    assert source.labels[0] == "caf\\xe9"
    assert source.examples[0].exists()
    "".join([*source.labels, *source.names]).encode()


def test_inputs_are_folders_and_files_however_deep(birds: Path, tmp_path: Path) -> None:
    single = picture(tmp_path / "one.bmp")
    source = read_inputs([single, birds / "gull", birds / "heron"])
    assert [p.name for p in source.examples] == ["one.bmp", "a.png", "b.webp", "1.png", "2.JPG"]
    assert (source.kind, source.labels) == ("image", None)
    assert read_inputs(str(single)).examples == [single]
    nameless = single.rename(tmp_path / "photo")
    assert read_inputs(nameless, kind="image").examples == [nameless]
    (birds / "gull" / "c.png").write_bytes(b"")
    assert [Path(name).name for name, _ in read_inputs(birds, skip_bad=True).skipped] == ["c.png"]
    with pytest.raises(UserError, match="expected something that can be read, got none"):
        read_inputs(birds / "gull" / "c.png", skip_bad=True)


def test_inputs_of_another_kind(birds: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text\nhello\n")
    with pytest.raises(UserError, match=r"expected a file of texts, got .*birds"):
        read_inputs(birds, kind="text")
    with pytest.raises(UserError, match=r"expected pictures, as the model was fitted on, got .*a.csv"):
        read_inputs(file, kind="image")
    with pytest.raises(UserError, match="files of one kind, got pictures"):
        read_inputs([file, birds])
    with pytest.raises(UserError, match="expected a file of texts, got the folder"):
        read_training(birds, kind="text")
    with pytest.raises(UserError, match="expected a kind of image, text, molecule, table, got 'sound'"):
        read_training(birds, kind="sound")
    with pytest.raises(UserError, match="at least one file or folder, got none"):
        read_inputs([])


@pytest.mark.parametrize("read", [read_training, read_inputs])
def test_what_is_not_there(tmp_path: Path, read) -> None:
    with pytest.raises(UserError, match="which does not exist; check the name"):
        read(tmp_path / "nothing")


@pytest.mark.needs_data
def test_faces_by_person(data_root: Path, tmp_path: Path) -> None:
    import zipfile

    archive = data_root / "faces" / "att_faces.zip"
    if not archive.exists():
        pytest.skip("no att_faces.zip in KSHOT_DATA")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "faces")
    root = next(p.parent.parent for p in sorted((tmp_path / "faces").rglob("1.pgm")))
    source = read_training(root, strict=True)
    assert source.labels is not None
    assert len(source) == 400
    assert len(set(source.labels)) == 40
