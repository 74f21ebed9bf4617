"""Tables from committed results: what the documentation shows is what the results say."""

import json
from pathlib import Path

import pytest

from kshot.cli.main import main
from kshot.core import UserError
from kshot.experiment.recipes import recipes
from kshot.experiment.recipes.recipe import verdict
from kshot.experiment.recipes.tables import (
    TABLES,
    between_marks,
    challenge_table,
    omniglot_table,
    read_results,
    short_table,
    table,
)
from kshot.experiment.recipes.ways import WAYS_SHOTS, ways_table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/know/omniglot.md"


def _row(name, algorithm, way, shot, mean, **more):
    record = {"algorithm": algorithm, "data": "omniglot", "n_way": way, "n_shot": shot, "n_query": 15}
    record |= {"n_episodes": 1000, "transductive": False, "options": {}} | more.pop("record", {})
    found = {"name": name, "mean": mean, "ci95_episodes": 0.001, "ci95_seeds": None, "published": None, "source": ""}
    return {**found, **more, "records": [record]}


def _result(recipe, *rows, seeds=(0,)):
    return {recipe: {"recipe": recipe, "seeds": list(seeds), "train_seconds": [600.0] * len(seeds), "rows": list(rows)}}


def _line(text, start):
    (line,) = [one for one in text.splitlines() if one.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_of_omniglot():
    rows = [_row("", "relation", 5, 1, 0.99, published=0.996, source="S"), _row("", "relation", 20, 5, 0.9)]
    rows[1]["ci95_seeds"] = 0.02
    text = omniglot_table(_result("relation-omniglot", *rows, seeds=(0, 1)), recipes())
    assert _line(text, "| [`relation`]") == [
        *("[`relation`](methods/relation.md)", "inductive", "99.00 ± 0.10 (99.6)", "", "", "90.00 ± 2.00"),
        *("2", "10 min"),
    ]
    assert "Published: S." in text
    assert "`relation-omniglot`" not in text.split("Without a record yet")[1]
    assert "`r2d2-omniglot`" in text.split("Without a record yet")[1]


def test_kinds_of_inference_variants_and_heads_are_lines_of_their_own():
    def tests(transductive, way=5):
        return {"transductive": transductive, "options": {"first_order": True}, "n_way": way}

    maml = [_row("", "maml", 5, 1, 0.98, record=tests(True)), _row("", "maml", 5, 1, 0.96, record=tests(False))]
    heads = [_row("", head, 5, 1, 0.9, record={"n_episodes": 100}) for head in ("tim", "simpleshot")]
    heads.append(_row("", "hausdorff", 5, 1, 0.9, record={"n_query": 1}))
    heads.append(_row("", "lstm", 5, 1, 0.4, record={"data_options": {"image_size": 20, "augment": "affine"}}))
    heads.append(_row("", "ntm", 5, 1, 0.4, record={"data_options": {"image_size": 28, "augment": "none"}}))
    text = omniglot_table({**_result("fomaml-omniglot", *maml), **_result("heads-omniglot", *heads)}, recipes())
    lines = [one for one in text.splitlines() if one.startswith("| [`maml`]")]
    assert len(lines) == 2
    assert "first order | **transductive** | 98.00" in lines[0]
    assert "first order | inductive | 96.00" in lines[1]
    assert _line(text, "| [`tim`]")[0] == "[`tim`](methods/tim.md), 100 tasks"
    assert _line(text, "| [`tim`]")[-1] == "as `baseline`"
    assert _line(text, "| [`hausdorff`]")[0] == "[`hausdorff`](methods/hausdorff.md), queries: 1 a class"
    assert _line(text, "| [`lstm`]")[0] == "[`lstm`](methods/lstm.md), 20 × 20, distorted images"
    assert _line(text, "| [`ntm`]")[0] == "[`ntm`](methods/ntm.md)"


def test_numbers_of_queries_are_lines_of_their_own_and_a_milestone_is_none():
    one = _row("", "maml", 5, 1, 0.97, published=0.987, source="S", record={"n_query": 1})
    until = {**one, "metric": "seconds", "records": [{"metric": "seconds", "mean": 390.0}]}
    text = omniglot_table(_result("maml-omniglot", one, _row("", "maml", 5, 1, 0.96), until), recipes())
    assert _line(text, "| [`maml`](methods/maml.md), queries: 1 a class")[2] == "97.00 ± 0.10 (98.7)"
    assert _line(text, "| [`maml`](methods/maml.md) |")[2] == "96.00 ± 0.10"
    assert text.count("`maml`]") == 2


def test_lines_of_the_challenge_are_errors():
    row = _row("challenge, 9 views of each image", "protonet", 20, 1, 0.9, record={"data": "omniglot_challenge"})
    other = _row("validation", "protonet", 20, 1, 0.5)
    text = challenge_table(_result("challenge-small2", row, other), recipes())
    assert _line(text, "| `challenge-small2`") == [
        *("`challenge-small2`, 9 views of each image", "minimal set 2 (five)", "10.00 ± 0.10", "1", "10 min")
    ]
    assert "50.00" not in text
    assert _line(text, "| people")[2] == "4.5"


@pytest.mark.parametrize(("seeds", "shown"), [((0,), False), ((0, 1), True)])
def test_one_training_does_not_answer_together(seeds, shown):
    row = _row("challenge, the seeds together", "protonet", 20, 1, 0.9, record={"data": "omniglot_challenge"})
    text = challenge_table(_result("challenge-small2", row, seeds=seeds), recipes())
    assert ("the seeds together" in text) is shown


PAGES = dict.fromkeys(("omniglot", "challenge", "ways"), "docs/know/omniglot.md")
PAGES |= {"front": "README.md", "front-zh": "README.zh-CN.md"}
PAGES |= {"sinusoid": "docs/know/sinusoid.md", "sequences": "docs/do/sequences.md"}


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_what_the_results_say(name):
    text = (ROOT / PAGES[name]).read_text(encoding="utf-8")
    made = table(name, ROOT / "benchmarks/quality", recipes())
    assert between_marks(text, name, made) == text, f"kshot reproduce --table {name} --page {PAGES[name]}"


def test_the_command_writes_into_its_place(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table challenge -->\nold\n<!-- /table challenge -->\nafter\n")
    line = ["reproduce", "--table", "challenge", "--record", str(ROOT / "benchmarks/quality")]
    assert main([*line, "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- table challenge -->\n| who |")
    assert text.endswith("<!-- /table challenge -->\nafter\n")
    assert "old" not in text
    capsys.readouterr()
    assert main(line) == 0
    assert capsys.readouterr().out in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--table", "omniglots"), "did you mean 'omniglot'"),
        (("maml-omniglot", "--table", "omniglot"), "leave one out"),
        (("--table", "omniglot", "--record", "nowhere"), "expected a folder of results at nowhere"),
        (("--table", "omniglot", "--page", "nowhere.md"), "cannot read nowhere.md"),
    ],
)
def test_doors(args, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["reproduce", *args]) == 2
    assert message in capsys.readouterr().err


def test_pages_without_a_place_and_damaged_results(tmp_path):
    with pytest.raises(UserError, match="expected the lines <!-- table omniglot -->"):
        between_marks("text", "omniglot", "table")
    (tmp_path / "other.json").write_text(json.dumps({"schema": 1}))
    assert read_results(tmp_path) == {}
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a result"):
        read_results(tmp_path)


def test_a_grid_of_ways_and_shots():
    cells = [_row(row.name, "protonet", row.test["n_way"], row.test["n_shot"], 0.9) for row in WAYS_SHOTS.rows]
    cells[-1]["mean"] = 0.5
    result = _result(WAYS_SHOTS.name, *cells)
    result[WAYS_SHOTS.name]["protocol"] = "P."
    text = ways_table(result, recipes())
    assert _line(text, "| 50-way") == ["50-way", *["90.00 ± 0.10"] * 4, "50.00 ± 0.10"]
    assert "`protonet-omniglot-ways`. P." in text
    assert "Without a record yet" not in text
    assert "protonet-omniglot-ways" not in omniglot_table(result, recipes())


def test_the_front_page_has_what_papers_have_once():
    def one(shot, mean, **more):
        return _row("", "maml", 5, shot, mean, published=0.987, source="S", record={"transductive": True, **more})

    first = [one(1, 0.98, n_query=1), one(1, 0.97), one(5, 0.99), _row("", "maml", 5, 1, 0.9)]
    text = table_of_front(_result("maml-omniglot", *first), recipes())
    assert text.splitlines()[2:] == ["| `maml` | T | 98.00 ± 0.10 (98.7) | 99.00 ± 0.10 (98.7) |  |  |"]


def test_a_star_on_the_front_page_is_for_distorted_images():
    bent = {"data_options": {"augment": "affine"}, "steps_together": [1, 2, 3]}
    rows = [
        _row("", "mamlpp", 5, 1, 0.99, published=0.995, source="S", record=bent),
        _row("", "mamlpp", 20, 1, 0.92, published=0.977, source="S"),
    ]
    text = table_of_front(_result("mamlpp-omniglot", *rows), recipes())
    assert text.splitlines()[2:] == [r"| `mamlpp` | I | 99.00 ± 0.10 (99.5)\* |  | 92.00 ± 0.10 (97.7) |  |"]


def test_what_was_trained_on_all_characters_goes_before_what_was_not():
    """Whichever comes first, and with a line of its own in the long table."""
    every = {"data_options": {"augment": "affine", "trainval": True}}
    rows = [
        _row("", "protonet", 5, 1, 0.98, published=0.988, source="S"),
        _row("", "protonet", 5, 1, 0.97, published=0.988, source="S", record=every),
        _row("", "protonet", 20, 1, 0.95, published=0.96, source="S"),
    ]
    for given in (rows, rows[::-1]):
        results = _result("protonet-omniglot", *given)
        assert table_of_front(results, recipes()).splitlines()[2:] == [
            r"| `protonet` | I | 97.00 ± 0.10 (98.8)\*† |  | 95.00 ± 0.10 (96.0) |  |"
        ]
        named = [text for text in omniglot_table(results, recipes()).splitlines() if "all 1,200 characters" in text]
        assert len(named) == 1
        assert ", distorted images, all 1,200 characters | inductive | 97.00" in named[0]


def table_of_front(results, known):
    return short_table(results, known, ("m", "i", "I", "T"))


def test_what_a_record_was_asked_for_is_what_its_recipe_asks_for():
    """A bar that moved would leave an old verdict behind."""
    known = recipes()
    for name, result in read_results(ROOT / "benchmarks/quality").items():
        asked = {row.name: row for row in known[name].rows} if name in known else {}
        for row in result["rows"]:
            if row["name"] in asked:
                bar = asked[row["name"]]
                assert row["least"] == bar.least, f"{name}, {row['name']}"
                assert row["passed"] == verdict(bar, row["metric"], row["mean"]), f"{name}, {row['name']}"
