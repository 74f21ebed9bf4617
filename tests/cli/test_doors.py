"""Every bad input of the list gets exit status 2 and one message: what was expected, what came, what to do."""

import errno
import os
import shutil
import zipfile

import pytest
from tests.cli.conftest import SHORT, SINUSOID, TINY

from kshot.core import UserError
from kshot.data import ImageSet, ImageTasks
from kshot.experiment.config import load_config


def test_unknown_command(refused):
    assert "did you mean 'train'" in refused("trian")


def test_unknown_algorithm(refused):
    message = refused("train", "protonett", "--data", "glyphs")
    assert "unknown algorithm 'protonett'" in message
    assert "did you mean 'protonet'" in message


def test_unknown_data_set(refused):
    message = refused("train", "protonet", "--data", "omniglott")
    assert "unknown data set 'omniglott'" in message
    assert "did you mean 'omniglot'" in message


def test_unknown_option(refused):
    assert "Did you mean --n-way?" in refused("train", "protonet", "--data", "glyphs", "--n-wya", 3)


def test_option_of_another_algorithm(refused):
    message = refused("train", "protonet", "--data", "glyphs", "--inner-lr", 0.1)
    assert "It is an option of " in message
    assert " maml " in message


def test_option_of_another_data_set(refused):
    assert "It is an option of omniglot" in refused("train", "protonet", "--data", "glyphs", "--scheme", "lake")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--n-way", "five"), "five"),
        (("--n-way",), "--n-way"),
        (("--augment", "mirror"), "invalid choice 'mirror'"),
        (("--n-way", 1), "expected n_way >= 2, got 1"),
        (("--steps", 0), "expected steps >= 1, got 0"),
        (("--schedule", "cosin"), "schedule must be one of"),
        (("--optimiser", "lion"), "optimiser must be one of"),
        (("--outer-lr", 0), "expected outer_lr > 0"),
        (("--normalisation", "batch"), "unknown normalisation 'batch'"),
        (("--backbone", "resnet"), "unknown backbone 'resnet'"),
        (("--distance", "manhattan"), "distance must be one of"),
        (("--batching", "fast"), "batching must be one of"),
        (("--precision", "16"), "precision must be one of"),
        (("--eval-episodes", 1), "at least 2 episodes"),
        (("--n-way-range", 5, 2), "smallest <= largest"),
        (("--within-group", 2), "between 0 and 1"),
        (("extra",), "unexpected argument 'extra'"),
    ],
)
def test_wrong_value(refused, tmp_path, flags, said):
    assert said in refused("train", "protonet", "--data", "glyphs", *flags, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists(), "a run that cannot begin takes no folder"


def test_no_algorithm_and_no_data(refused):
    assert "expected an algorithm" in refused("train", "--data", "glyphs")
    assert "expected a data set" in refused("train", "protonet")


def test_method_that_cannot_learn_such_data(refused):
    assert "protonet learns classification" in refused("train", "protonet", "--data", "sinusoid")


def test_more_ways_than_classes(refused, tmp_path):
    message = refused("train", "protonet", "--data", "glyphs", "--n-way", 9000, "--out", tmp_path / "run")
    assert "expected at least n_way=9000 classes, got" in message
    assert not (tmp_path / "run").exists()


def test_more_test_ways_than_test_classes(refused, tmp_path):
    """Found before the folder is taken, though it concerns the end of the run."""
    refused("train", "protonet", "--data", "glyphs", "--eval-n-way", 9000, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_examples_than_a_class_has(refused):
    message = refused("train", "protonet", "--data", "glyphs", "--n-shot", 20, "--n-query", 10)
    assert "n_shot + n_query = 20 + 10 = 30" in message


def test_absent_data_offline(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    message = refused("train", "protonet", "--data", "omniglot", *TINY)
    assert str(tmp_path / "omniglot" / "images_background.zip") in message
    assert "https://" in message


def test_damaged_archive(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path))
    (tmp_path / "omniglot").mkdir()
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / "omniglot" / name).write_bytes(b"PK\x03\x04 cut short")
    message = refused("train", "protonet", "--data", "omniglot", *TINY)
    assert "images_background.zip" in message


def test_archive_with_other_contents(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path))
    (tmp_path / "omniglot").mkdir()
    for name in ("images_background.zip", "images_evaluation.zip"):
        with zipfile.ZipFile(tmp_path / "omniglot" / name, "w") as archive:
            archive.writestr("readme.txt", "no drawings here")
    assert "images_background.zip" in refused("data", "verify", "omniglot")


def test_verify_without_files(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path))
    assert "kshot data fetch omniglot" in refused("data", "verify", "omniglot")


def test_data_root_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused("train", "protonet", "--data", "omniglot", "--data-root", tmp_path / "file")
    assert "expected a folder as data root" in message


@pytest.mark.needs_data
def test_images_of_other_sizes(refused, glyphs_run, data_root):
    message = refused("evaluate", glyphs_run, "--data", "omniglot", "--image-size", 105, "--data-root", data_root)
    assert "(1, 28, 28)" in message
    assert "(1, 105, 105)" in message


def _images(images, labels, n_classes=2):
    import torch

    names = tuple(f"class {c}" for c in range(n_classes))
    return ImageSet(images, torch.tensor(labels), names, torch.zeros(n_classes, dtype=torch.int64), ("all",))


def test_own_data_with_labels_out_of_range():
    import torch

    with pytest.raises(UserError, match=r"labels 0\.\.1 .*got 0\.\.7"):
        _images(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), [0, 0, 1, 7])


def test_own_data_with_nan():
    import torch

    with pytest.raises(UserError, match="uint8"):
        _images(torch.full((4, 1, 28, 28), float("nan")), [0, 0, 1, 1])


def test_own_data_with_too_few_examples():
    import torch

    with pytest.raises(UserError, match="class 1"):
        ImageTasks(_images(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), [0, 0, 0, 1]), name="own", n_way=2, n_query=1)


def test_out_that_holds_another_run(refused, sinusoid_run):
    before = (sinusoid_run / "config.toml").read_bytes()
    message = refused("train", *SINUSOID, *SHORT, "--seed", 7, "--out", sinusoid_run)
    assert "holds another run" in message
    assert (sinusoid_run / "config.toml").read_bytes() == before


def test_out_with_parts_of_a_run(refused, sinusoid_run, tmp_path):
    shutil.copytree(sinusoid_run, tmp_path / "run")
    (tmp_path / "run" / "config.toml").unlink()
    assert "choose another --out" in refused("train", *SINUSOID, *SHORT, "--out", tmp_path / "run")


def test_out_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refused("train", *SINUSOID, *SHORT, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_disk_that_is_full(refused, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = refused("train", *SINUSOID, *SHORT, "--out", tmp_path / "run")
    assert "No space left" in message
    assert "free some space" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ("[train]\nstep = 5", "did you mean 'steps'"),
        ('[train]\nsteps = "many"', "train: steps: expected int, got str 'many'"),
        ("[train]\ndeterministic = 1", "expected bool, got int 1"),
        ('[network]\nhidden = ["a"]', "expected int, got str 'a'"),
        ("task = 3", "expected dict, got int 3"),
        ("algorithm = ", "cannot be read as TOML"),
        ('data = "sinusoid"', "algorithm"),
        ('[options]\ninner_lr = "fast"', "option inner_lr of maml: expected float, got str 'fast'"),
        ("[options]\ninner = 1", "unknown option of maml 'inner'"),
        ("[data_options]\nscheme = 1", "unknown option of sinusoid 'scheme'"),
    ],
)
def test_config_that_is_wrong(refused, tmp_path, text, said):
    names = 'algorithm = "maml"\ndata = "sinusoid"\n'
    whole = text if text.startswith(("algorithm", "data =")) else names + text
    (tmp_path / "c.toml").write_text(whole)
    assert said in refused("train", "--config", tmp_path / "c.toml", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_config_with_a_wrong_data_option(refused, tmp_path):
    (tmp_path / "c.toml").write_text('algorithm = "protonet"\ndata = "glyphs"\n[data_options]\nn_way_range = [2]\n')
    assert "expected 2 values, got 1" in refused("train", "--config", tmp_path / "c.toml")


def test_config_that_is_absent(refused, tmp_path):
    assert "found none" in refused("train", "--config", tmp_path / "none.toml")


def test_device_that_is_not_there(refused, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused("train", *SINUSOID, *SHORT, "--device", "cuda")
    assert "device 'cuda' is not on this machine; there are: cpu" in message


def test_device_that_does_not_exist(refused):
    assert "expected a device such as" in refused("train", *SINUSOID, *SHORT, "--device", "abacus")


def test_resume_without_a_run(refused, tmp_path):
    assert "nothing to resume" in refused("train", "--resume", "--out", tmp_path / "none")
    assert "expected the folder of the run" in refused("train", "--resume")


def test_resume_with_settings_of_another_run(refused, sinusoid_run):
    message = refused("train", "--resume", "--out", sinusoid_run, "--outer-lr", 0.5, "--inner-lr", 0.2)
    assert "--outer-lr 0.5 (the run has 0.001)" in message
    assert "--inner-lr 0.2 (the run has 0.01)" in message


def test_resume_with_a_config(refused, sinusoid_run):
    config = sinusoid_run / "config.toml"
    assert "leave --config out" in refused("train", "--resume", "--out", sinusoid_run, "--config", config)


def test_resume_with_damaged_checkpoints(refused, sinusoid_run, tmp_path):
    shutil.copytree(sinusoid_run, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert "usable checkpoint" in refused("train", "--resume", "--out", tmp_path / "run")


def test_diverged_training_says_where_and_what_to_do(kshot, tmp_path):
    ran = kshot("train", *SINUSOID, "--steps", 500, "--inner-lr", 1e30, "--out", tmp_path / "run")
    assert ran.status == 2
    assert "is not finite at step 1;" in ran.err
    assert "Try a smaller outer_lr or inner_lr" in ran.err
    assert "another --out" in ran.err
    assert "Traceback" not in ran.err


def test_evaluate_what_is_no_run(refused, tmp_path):
    assert "config.toml" in refused("evaluate", tmp_path)
    assert "expected the folder of a run" in refused("evaluate", "--n-way", 5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--split", "test"), "invalid choice 'test'"),
        (("--n-shot", 0), "expected n_shot >= 1, got 0"),
        (("--n-episodes", 1), "at least 2 episodes"),
        (("--data", "glyphs"), "built for regression"),
        (("--normalisation", "batch"), "unknown normalisation"),
        (("--n-inner-steps-eval", -1), "n_inner_steps"),
        (("--distance", "cosine"), "It is an option of protonet"),
    ],
)
def test_evaluate_with_wrong_values(refused, sinusoid_run, flags, said):
    assert said in refused("evaluate", sinusoid_run, *flags)


def test_evaluate_writes_to_no_place(refused, glyphs_run, tmp_path):
    (tmp_path / "file").write_text("")
    ran = ("evaluate", glyphs_run, "--n-episodes", 2, "--json", tmp_path / "file" / "x.json")
    assert f"the JSON cannot be written to {tmp_path / 'file' / 'x.json'}" in refused(*ran)


def test_report_of_nothing(refused, sinusoid_run, tmp_path):
    assert "expected the folder of a run" in refused("report")
    assert "only once" in refused("report", sinusoid_run, sinusoid_run)
    assert "config.toml" in refused("report", tmp_path)


def test_a_report_is_written_over_an_older_one_alone(refused, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name, content in (("config.toml", "seed = 1\n"), ("record.json", "{}")):
        (run / name).write_text(content)
        assert f"{name} is there and is something else" in refused("report", run, "--out", run / name)
        assert (run / name).read_text() == content
    page = run / "report.html"
    page.write_text("<!doctype html>")
    assert f"got {page} twice" in refused("report", page, "--out", page)
    assert "is something else" not in refused("report", run)


@pytest.mark.parametrize("command", ["fit", "predict", "report", "heads", "bench", "reproduce"])
def test_a_negative_number_of_threads(refused, command):
    assert "expected --threads of at least 0, got -3; 0 leaves" in refused(command, "--threads", -3)


def test_list_and_data_of_nothing(refused):
    assert "unknown list 'algorithm'" in refused("list", "algorithm")
    assert "unknown action 'fetsch'" in refused("data", "fetsch", "omniglot")
    assert "expected a data set" in refused("data", "fetch")
    assert "unknown data set" in refused("data", "fetch", "imagenet")


def test_saved_config_can_be_read(sinusoid_run):
    held = load_config(sinusoid_run / "config.toml")
    assert held.algorithm == "maml"
    assert held.options["inner_lr"] == 0.01
