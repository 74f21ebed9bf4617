"""The documentation, held to the code: programs run, commands parse, links lead somewhere, names exist."""

import ast
import contextlib
import importlib
import io
import re
import shlex
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kshot.bench.cases import CASES
from kshot.cli import main as cli
from kshot.cli.reproduce import TRIALS
from kshot.cli.train import read as read_train
from kshot.core import methods, registry
from kshot.data import datasets
from kshot.data.catalog import dataset
from kshot.experiment.config import save_config
from kshot.experiment.recipes import recipes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
CHINESE = [name for name in NAMES if name.endswith(".zh-CN.md")]

# A method's sketch in CONTRIBUTING leaves its bodies out. Chinese pages hold the same programs as the English ones.
RUNS = [name for name in NAMES if name not in (*CHINESE, "CONTRIBUTING.md")]
NEEDS_DATA = {"docs/do/data.md"}
# Flags of torchrun, and of the method that the page writes.
FOREIGN = {("docs/do/distributed.md", "--node-rank"), ("docs/do/own-learner.md", "--sharpness")}
SLOW = {"README.md", "docs/learn/01-tasks-and-prototypes.md", "docs/learn/02-maml-on-sinusoids.md"}


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        if not languages or fence[2] in languages:
            found.append(Block(fence[2], fence[3], text[: fence.start(3)].count("\n")))
    return found


def prose(page: Path) -> str:
    return re.sub(r"^( *)```\w*\n.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> list[tuple[int, str]]:
    return [(len(m[1]), m[2]) for m in re.finditer(r"^(#+) (.+)$", prose(page), re.MULTILINE)]


def programs() -> list[Any]:
    found = []
    for name in RUNS:
        if not blocks(ROOT / name, "python"):
            continue
        marks = [pytest.mark.slow] if name in SLOW else []
        marks += [pytest.mark.needs_data] if name in NEEDS_DATA else []
        found.append(pytest.param(name, marks=marks, id=name))
    return found


# What the text says about the numbers that the reader sees.
def _says_lesson_1(seen: dict[str, Any]) -> None:
    assert not seen["train_classes"] & seen["test_classes"]
    assert seen["untrained"].low > 0.2, "random convolutions do better than chance"
    assert seen["trained"].low > seen["untrained"].high + 0.1


def _says_lesson_2(seen: dict[str, Any]) -> None:
    maml, plain = seen["maml"], seen["plain"]
    assert maml[1].high < maml[0].low / 2, "one step takes most of the error away"
    assert maml[10].mean < maml[5].mean < maml[1].mean, "further steps go on helping"
    assert plain[0].mean < maml[0].high, "plain training starts no worse"
    assert plain[10].low > maml[1].high, "ten steps take it less far than one step took the other"


CLAIMS = {
    "docs/learn/01-tasks-and-prototypes.md": _says_lesson_1,
    "docs/learn/02-maml-on-sinusoids.md": _says_lesson_2,
}


@pytest.mark.parametrize("name", programs())
def test_the_programs_of_a_page_run(name, request, tmp_path, monkeypatch):
    if name in NEEDS_DATA:
        request.getfixturevalue("data_root")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))  # a page may register a method of its own
    seen: dict[str, Any] = {"__name__": "page"}
    for block in blocks(ROOT / name, "python"):
        # Empty lines before it, so that a traceback names the line of the page.
        exec(compile("\n" * block.line + block.text, name, "exec"), seen)
    if name in CLAIMS:
        CLAIMS[name](seen)


@pytest.mark.parametrize("name", CHINESE)
def test_a_chinese_page_keeps_step_with_the_english_one(name):
    chinese, english = ROOT / name, ROOT / name.replace(".zh-CN", "")
    assert [level for level, _ in headings(chinese)] == [level for level, _ in headings(english)]
    assert [b.language for b in blocks(chinese)] == [b.language for b in blocks(english)]
    for ours, theirs in zip(blocks(chinese), blocks(english), strict=True):
        if ours.language == "python":  # comments are translated, code is not
            assert ast.dump(ast.parse(ours.text)) == ast.dump(ast.parse(theirs.text))
        else:
            assert ours.text == theirs.text
    rows = [len(re.findall(r"^\|", prose(page), re.MULTILINE)) for page in (chinese, english)]
    assert rows[0] == rows[1], "tables differ in their number of rows"
    items = [len(re.findall(r"^(?:- |\d+\. )", prose(page), re.MULTILINE)) for page in (chinese, english)]
    assert items[0] == items[1], "lists differ in their number of items"


def test_every_lesson_is_there_in_both_languages():
    lessons = {p.name.replace(".zh-CN", "") for p in ROOT.glob("docs/learn/*.md")}
    assert lessons
    assert all((ROOT / "docs/learn" / lesson).exists() for lesson in lessons)
    assert all((ROOT / "docs/learn" / lesson.replace(".md", ".zh-CN.md")).exists() for lesson in lessons)


def test_the_readmes_are_short():
    for name in ("README.md", "README.zh-CN.md"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) < 160


# Commands


def commands(text: str) -> list[list[str]]:
    """Find what stands after ``kshot`` (or ``-m kshot``) in lines of a shell."""
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if "kshot" in words and (words[0] == "kshot" or "-m" in words or "=" in words[0]):
            after = words[words.index("kshot") + 1 :]
            found.append(after[: after.index("|")] if "|" in after else after)
    return [c for c in found if c]


def spans(page: Path) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def help_of(*words: str) -> str:
    # What help says of a run depends on the folder it lies in.
    return _help(words, Path.cwd() if any("/" in w for w in words) else None)


@lru_cache
def _help(words: tuple[str, ...], folder: Path | None) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.main([*words, "--help"]) == 0
    return said.getvalue()


def has_flag(flag: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text) is not None


def check_flags(words: list[str]) -> None:
    """Check that a command exists and that its help lists every flag; words in capitals stand for something."""
    assert words[0] in cli.COMMANDS, f"kshot {words[0]}"
    named = [w for w in words[1:2] if w in methods() or Path(w, "config.toml").exists()]
    for i, word in enumerate(words):
        # Options come with the data set or the settings that are named.
        if word in ("--data", "--config") and not words[i + 1].isupper():
            named += words[i : i + 2]
    text = help_of(words[0], *named)
    for flag in (w.partition("=")[0] for w in words[1:] if w.startswith("--")):
        assert has_flag(flag, text) or flag == "--help", f"kshot {shlex.join(words)}: {flag} is unknown"


def check_command(words: list[str]) -> None:
    """Check a whole command; a run that it would train is there for the commands after it."""
    check_flags(words)
    if words[0] == "reproduce" and len(words) > 1 and not words[1].startswith("--"):
        assert words[1] in (*recipes(), *TRIALS)
    if words[0] == "bench" and len(words) > 1:
        assert words[1] in CASES
    if words[0] == "evaluate" and not (words[1] in methods() and methods()[words[1]].learner.trained_on == "nothing"):
        assert Path(words[1], "config.toml").exists(), f"{words[1]} is trained by no command before it on the page"
    if words[0] == "report":
        assert all(Path(w, "config.toml").exists() for w in words[1:] if w.startswith("runs/"))
    if words[0] == "train" and "--help" not in words:
        asked = read_train(words[1:])
        assert asked.out is not None, "an example names its folder"
        save_config(asked.out / "config.toml", asked.config)


@pytest.mark.parametrize("name", [n for n in NAMES if commands("\n".join(b.text for b in blocks(ROOT / n, "console")))])
def test_the_commands_of_a_page_parse(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for block in blocks(ROOT / name, "console"):
        for words in commands(block.text):
            check_command(words)


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_flags_within_sentences_exist(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    for span in spans(ROOT / name):
        for words in commands(span):
            check_flags(words)
        flag = re.match(r"--[a-z][a-z-]*", span)
        if flag and (name, flag[0]) not in FOREIGN:
            assert any(has_flag(flag[0], text) for text in every_help()), f"{flag[0]} is a flag of no command"


def every_help() -> list[str]:
    # Each method and each data set once: all pairs of them would take minutes.
    fits = [
        (algorithm, data)
        for algorithm, found in methods().items()
        for data, entry in datasets().items()
        if entry.kind in found.learner.kinds
    ]
    pairs = set({algorithm: (algorithm, data) for algorithm, data in fits}.values())
    pairs |= set({data: (algorithm, data) for algorithm, data in fits}.values())
    train = [help_of("train", algorithm, "--data", data) for algorithm, data in sorted(pairs)]
    return [*train, *(help_of(command) for command in cli.COMMANDS)]


# Links


def slug(heading: str) -> str:
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return [target for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text) if "://" not in target]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in {slug(text) for _, text in headings(there)}, f"{name}: {target}"


def test_every_page_is_linked_from_the_index():
    index = ROOT / "docs/index.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in links(index)}
    assert not [name for name in NAMES if name.startswith("docs/") and (ROOT / name) not in {*linked, index}]


# Tests that a page names


def test_the_page_of_bad_input_names_tests_that_exist():
    page = (ROOT / "docs/know/bad-input.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", page)
    assert len(named) > 10
    for path, name in named:
        where = ROOT / (path or "tests/algorithms/test_bad_input.py")
        assert f"\ndef {name}(" in where.read_text(encoding="utf-8"), f"{where.name} has no {name}"
    ours = (ROOT / "tests/algorithms/test_bad_input.py").read_text(encoding="utf-8")
    kept = re.findall(r"^def (test_\w+)", ours, re.MULTILINE)
    assert set(kept) <= {name for _, name in named}


# Names


def api() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    module = ""
    for line in (ROOT / "docs/api/index.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## `([\w.]+)`", line):
            module = heading[1]
            found[module] = set()
        elif line.startswith("| `"):
            _, names, meaning, _ = line.split("|")
            assert meaning.strip(), f"{names} of {module} has no line"
            new = re.findall(r"`(\w+)`", names)
            assert not found[module] & set(new), f"{names} stands twice in {module}"
            found[module] |= set(new)
    return found


@pytest.mark.parametrize("module", api())
def test_the_names_of_the_api_page_import(module):
    home = importlib.import_module(module)
    assert api()[module], f"{module} has no names"
    assert not [name for name in api()[module] if not hasattr(home, name)]
    if hasattr(home, "__all__"):
        assert api()[module] == set(home.__all__)


@pytest.mark.parametrize("module", ["kshot", "kshot.core", "kshot.data", "kshot.evaluation", "kshot.testing"])
def test_the_api_page_has_every_public_room(module):
    assert module in api()


def test_every_method_has_a_page():
    missing = [name for name in methods() if not (ROOT / f"docs/know/methods/{name}.md").exists()]
    assert not missing


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/know/methods/*.md")), ids=lambda p: p.stem)
def test_a_methods_page_keeps_to_the_skeleton(page):
    assert [text for level, text in headings(page) if level == 2] == [
        "Idea",
        "Usage",
        "Options",
        "What is logged",
        "Implementation details",
        "Results",
        "References",
    ]


@pytest.mark.parametrize("recipe", recipes().values(), ids=lambda r: r.name)
def test_a_methods_page_quotes_what_its_recipes_quote(recipe):
    page = (ROOT / f"docs/know/methods/{recipe.config.algorithm}.md").read_text(encoding="utf-8")
    assert f"kshot reproduce {recipe.name}" in page
    for row in recipe.rows:
        if row.published is not None:
            kind = dataset(recipe.config.data).kind
            number = f"{100 * row.published:.1f}" if kind == "classification" else f"{row.published:.2f}"
            assert re.search(rf"^\|.*\| {number}\b", page, re.MULTILINE), f"{row.name}: {number}"


def test_every_dependency_has_a_line():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    asked += [one for extra in project["project"]["optional-dependencies"].values() for one in extra]
    names = {re.match(r"[\w-]+", one)[0] for one in asked} - {"kshot"}
    lines = [
        line for line in (ROOT / "docs/know/dependencies.md").read_text(encoding="utf-8").splitlines() if "|" in line
    ]
    assert not [name for name in names if not any(has_flag(name, line) for line in lines)]
