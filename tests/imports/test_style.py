"""House rules that no linter knows: import contracts, sizes, drawers, words, and what a method's file must say."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kshot
import kshot.algorithms  # noqa: F401  registers all of ours
from kshot.core import methods

ROOM = Path(kshot.__file__).parent
ROOT = Path(__file__).parents[2]
FILES = sorted(ROOM.rglob("*.py"))
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc", "tools", "shared", "base"}
#: Sections of the docstring of a method's module.
SECTIONS = ("Paper:", "Idea:", "Differs from the paper:", "Checked by:")


def test_the_house_is_here() -> None:
    assert len(FILES) > 30


def test_import_contracts_are_kept() -> None:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("no pyproject.toml beside the tests: the contracts stand there")
    lint = Path(sys.executable).with_name("lint-imports")
    env = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, env=env, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    return path.relative_to(ROOM).as_posix()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_and_functions_are_small(path: Path) -> None:
    limit = 250 if "algorithms" in path.parts else 400
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit, f"{named(path)} has {lines} lines"
    for function, length in functions(parsed(path)):
        assert length <= 50, f"{function} of {named(path)} has {length} lines without its docstring"


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            doc = ast.get_docstring(node) is not None
            yield node.name, node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if doc else 0)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_is_nested_deeper_than_three(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            assert depth(node.body) <= 3, f"{node.name} of {named(path)}"


NESTING = (ast.If, ast.For, ast.While, ast.With, ast.Try)


def depth(body: list[ast.stmt]) -> int:
    """Blocks within blocks; ``elif`` is no deeper than its ``if``, and functions within count for themselves."""
    deepest = 0
    for node in body:
        if not isinstance(node, NESTING):
            continue
        own = node.body
        other = [n for part in ("handlers", "finalbody") for n in getattr(node, part, [])]
        inner = [*own, *(s for h in other for s in (h.body if isinstance(h, ast.ExceptHandler) else [h]))]
        orelse = getattr(node, "orelse", [])
        chained = isinstance(node, ast.If) and len(orelse) == 1 and isinstance(orelse[0], ast.If)
        deepest = max(deepest, 1 + depth(inner), depth(orelse) if chained else 1 + depth(orelse))
    return deepest


@pytest.mark.parametrize("path", FILES, ids=named)
def test_library_code_does_not_print_nor_catch_everything_nor_seed(path: Path) -> None:
    in_cli = "cli" in path.relative_to(ROOM).parts
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Assert):
            pytest.fail(f"assert in {named(path)}:{node.lineno}; raise an error that says what to do")
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"{named(path)}:{node.lineno}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert in_cli or called != "print", f"print in {named(path)}:{node.lineno}"
            assert called not in ("random.seed", "np.random.seed"), f"{named(path)}:{node.lineno}"


#: The only places that seed the global generator, each within ``fork_rng``.
SEEDERS = {"engine/train.py", "testing/case.py"}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_the_global_generator_is_seeded_in_a_fork_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if re.search(r"torch\.(cuda\.)?manual_seed(_all)?\(", text):
        assert "fork_rng" in text, f"{named(path)} seeds the global generator without torch.random.fork_rng"


def test_there_are_no_drawers() -> None:
    assert not [named(p) for p in FILES if p.stem.strip("_") in DRAWERS]


def test_nothing_tells_of_one_machine() -> None:
    folders = ("src", "tests", "examples", "benchmarks", "docs")
    texts = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".md", ".toml", ".html", ".json")]
    found = [p for p in texts if re.search(r"/(work|root|tmp)/|/home/\w", p.read_text(encoding="utf-8"))]
    assert not found


def test_methods_are_here() -> None:
    assert {"maml", "protonet"} <= set(methods())


@pytest.mark.parametrize("name", methods())
def test_the_file_of_a_method_says_what_it_must(name: str) -> None:
    found = methods()[name]
    module = importlib.import_module(found.learner.__module__)
    doc = inspect.getdoc(module) or ""
    at = [doc.find(f"\n{section}") for section in SECTIONS]
    assert min(at) > 0, f"{module.__name__} lacks {[s for s, i in zip(SECTIONS, at, strict=True) if i < 0]}"
    assert at == sorted(at), f"sections of {module.__name__} stand in another order than {SECTIONS}"
    assert f".algorithms.{found.family}." in module.__name__
    # The paper of the list and that of the file are the same one.
    (year,) = set.intersection(*(set(re.findall(r"(?<!:)\b(?:19|20)\d\d\b(?!\.\d)", t)) for t in (found.paper, doc)))
    assert year
    assert re.findall(r"arXiv:[\w./-]+\d", found.paper) == re.findall(r"arXiv:[\w./-]+\d", doc)[:1]
    # A table from the paper's symbols to the code's.
    assert re.search(r"^=+ +=+$", doc, re.MULTILINE)
    assert re.search(r"^paper +here$", doc, re.MULTILINE)


@pytest.mark.parametrize("name", methods())
def test_what_checks_a_method_is_there(name: str) -> None:
    module = importlib.import_module(methods()[name].learner.__module__)
    named_tests = re.findall(r"tests/[\w/]+\.py", (inspect.getdoc(module) or "").partition("Checked by:")[2])
    assert named_tests
    assert all((ROOT / path).exists() for path in named_tests), named_tests
