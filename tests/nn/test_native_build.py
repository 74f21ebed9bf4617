import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kshot.nn import native
from kshot.nn.native import build

needs_compiler = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.why_not()}")
unix = pytest.mark.skipif(os.name != "posix", reason="the stand-in for a compiler is a shell script")
LOAD = "from kshot.nn import native as n; d = n.Design(); print(n.available(design=d), n.why_not(design=d))"


def _stand_in(folder, compile_):
    """A compiler that runs one shell line; $OUT is where the library should go."""
    script = folder / "stand-in"
    script.write_text(
        f"""#!/bin/sh
if [ "$1" = --version ]; then echo stand-in 1; exit 0; fi
while [ "$1" != -o ]; do shift; done
OUT="$2"
echo called >> "{folder}/calls"
{compile_}
"""
    )
    script.chmod(0o755)
    return script


def _run(tmp_path, compiler):
    env = {**os.environ, "KSHOT_CACHE": str(tmp_path / "cache"), "CXX": str(compiler)}
    return subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True, env=env)


def _said(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.strip()


@pytest.fixture
def real_library():
    return Path(build.library(torch.float32, native.Design())._name)


@unix
@needs_compiler
def test_compiled_once_and_a_damaged_file_is_made_again(tmp_path, real_library):
    compiler = _stand_in(tmp_path, f'cp "{real_library}" "$OUT"')
    for _ in range(2):
        assert _said(_run(tmp_path, compiler)) == "True"
    assert (tmp_path / "calls").read_text().count("called") == 1
    (library,) = (tmp_path / "cache" / "native").iterdir()
    library.write_bytes(b"damaged")
    assert _said(_run(tmp_path, compiler)) == "True"
    assert library.stat().st_size == real_library.stat().st_size


@unix
@needs_compiler
def test_processes_that_compile_at_once_do_not_disturb_each_other(tmp_path, real_library):
    compiler = _stand_in(tmp_path, f'head -c 1000 "{real_library}" > "$OUT"; sleep 1; cp "{real_library}" "$OUT"')
    processes = [_run(tmp_path, compiler) for _ in range(3)]
    assert [_said(p) for p in processes] == ["True"] * 3
    assert len(list((tmp_path / "cache" / "native").iterdir())) == 1


@unix
def test_a_compiler_that_fails_is_quoted(tmp_path):
    said = _said(_run(tmp_path, _stand_in(tmp_path, "echo no such flag >&2; exit 1")))
    assert said.startswith("False")
    assert "no such flag" in said
    assert list((tmp_path / "cache" / "native").iterdir()) == []


@unix
@needs_compiler
def test_a_library_that_computes_something_else_is_refused(tmp_path):
    c_compiler = shutil.which("cc")
    if c_compiler is None:
        pytest.skip("needs a C compiler named cc")
    source = tmp_path / "wrong.c"
    names = ("trunk_delete", "trunk_forward", "trunk_backward", "maml_delete", "maml_run")
    makers = "void *trunk_new(void) { return &x; } void *maml_new(void) { return &x; }"
    source.write_text("static int x; " + makers + " ".join(f"int {n}(void) {{ return 0; }}" for n in names))
    said = _said(_run(tmp_path, _stand_in(tmp_path, f'"{c_compiler}" -shared -fPIC "{source}" -o "$OUT"')))
    assert said.startswith("False")
    assert "wrong answers" in said


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    said = _said(_run(tmp_path, compiler))
    assert said.startswith("False")
    assert str(tmp_path / "cache") in said


@needs_compiler
def test_the_name_depends_on_the_command():
    compiler = build._compiler()
    assert build._key([compiler, "-O3"]) != build._key([compiler, "-O2"])
    assert build._key([compiler, "-O3"]) == build._key([compiler, "-O3"])


@needs_compiler
def test_only_two_types_are_known():
    assert native.available(torch.float64)
    assert not native.available(torch.float16)
    assert "float16" in native.why_not(torch.float16)
    assert isinstance(build.library(torch.float32), ctypes.CDLL)
