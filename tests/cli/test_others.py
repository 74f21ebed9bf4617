"""``kshot list``, ``data`` and ``report``."""

import json

import pytest

from kshot.core import DivergedError
from kshot.core.registry import methods
from kshot.data.catalog import datasets
from kshot.experiment.recipes import recipes


@pytest.mark.parametrize(("what", "names"), [("algorithms", methods), ("datasets", datasets), ("recipes", recipes)])
def test_list_names_all_there_is(kshot, what, names):
    ran = kshot("list", what)
    assert ran.status == 0
    rows = [line.split()[0] for line in ran.out.splitlines() if line and not line.startswith(" ")]
    assert set(names()) <= set(rows)
    assert all(line == line.rstrip() for line in ran.out.splitlines())


def test_list_of_everything(kshot):
    ran = kshot("list")
    assert all(name in ran.out for names in (methods, datasets, recipes) for name in names())
    assert "--inner-lr" in ran.out
    assert "arXiv:1703.03400" in ran.out


def test_data_path(kshot, tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path))
    assert kshot("data", "path").out == f"{tmp_path}\n"
    assert kshot("data", "path", "--data-root", tmp_path / "other").out == f"{tmp_path / 'other'}\n"


def test_data_says_what_is_absent(kshot, tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path))
    ran = kshot("data")
    assert ran.status == 0
    assert ran.out.count("absent: kshot data fetch") == sum(len(d.archives) for d in datasets().values())
    assert "made here: needs no file" in ran.out


def test_data_that_needs_no_file(kshot):
    for action in ("fetch", "verify"):
        assert "needs no file" in kshot("data", action, "sinusoid").out


@pytest.mark.needs_data
@pytest.mark.slow
def test_data_verify(kshot, data_root):
    ran = kshot("data", "verify", "omniglot", "--data-root", data_root)
    assert ran.status == 0
    assert "images_background.zip  verified" in ran.out


def test_report_of_one_run(kshot, glyphs_run, tmp_path):
    ran = kshot("report", glyphs_run, "--out", tmp_path / "r.html", "--n-episodes", 4)
    assert ran.status == 0
    assert ran.out == f"{tmp_path / 'r.html'}\n"
    html = (tmp_path / "r.html").read_text()
    for part in ("protonet", "<svg", "glyphs", "kshot train protonet"):
        assert part in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_report_of_two_runs_and_an_evaluation(kshot, glyphs_run, tmp_path, monkeypatch):
    """Runs that saw identical episodes are compared episode by episode."""
    monkeypatch.chdir(tmp_path)
    kshot("evaluate", glyphs_run, "--normalisation", "episode", "--n-episodes", 8, "--json", "leaky.json")
    assert json.loads((tmp_path / "leaky.json").read_text())["transductive"] is True
    ran = kshot("report", glyphs_run, "leaky.json", "--n-episodes", 4)
    assert ran.status == 0
    html = (tmp_path / "report.html").read_text()
    assert "identical episodes" in html
    assert "transductive" in html


def test_report_of_a_run_that_was_stopped(kshot, tmp_path):
    from tests.cli.conftest import SHORT, SINUSOID

    kshot("train", *SINUSOID, *SHORT, "--eval-episodes", 0, "--out", tmp_path / "run")
    ran = kshot("report", tmp_path / "run", "--n-episodes", 4)
    assert ran.status == 0
    assert (tmp_path / "run" / "report.html").exists()


def test_a_recipe_whose_training_diverges_is_told_in_a_line(kshot, monkeypatch, tmp_path):
    def diverging(*args: object, **options: object) -> None:
        raise DivergedError(7, "the outer loss", "try less")

    monkeypatch.setattr("kshot.cli.reproduce.reproduce", diverging)
    ran = kshot("reproduce", "cnp-sinusoid", "--out", tmp_path / "run")
    assert ran.status == 2
    assert "error: the outer loss is not finite at step 7; try less" in ran.err
    assert "try other --seeds" in ran.err
    assert "Traceback" not in ran.err
