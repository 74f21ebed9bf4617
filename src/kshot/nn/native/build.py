"""Compile the native library once, keep it in the user's cache folder, and load it.

One call of a C++ compiler, a few seconds; no headers of PyTorch or Python are needed. The file's name is a hash of all
that went into it, so a new version, compiler or processor never meets an old library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import platformdirs

FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-ffp-contract=fast", "-fno-math-errno"),
    *("-fopenmp", "-shared", "-fPIC"),
)
COMPILERS = ("c++", "g++", "clang++")
COMPILE_SECONDS = 300


class NativeUnavailableError(RuntimeError):
    """There is no native library here; the message says why."""


@lru_cache(maxsize=1)
def _attempt() -> ctypes.CDLL | str:
    try:
        return _load()
    except NativeUnavailableError as error:
        return str(error)


def available() -> bool:
    """Tell whether the native library works here; the first call compiles it.

    Returns:
        False without a compiler, or with ``KSHOT_NATIVE=0``.
    """
    return not isinstance(_attempt(), str)


def why_not() -> str:
    """Say why the native library is not available.

    Returns:
        The reason; "" if it is available.
    """
    found = _attempt()
    return found if isinstance(found, str) else ""


def library() -> ctypes.CDLL:
    """Return the library.

    Returns:
        Its functions; see ``api.cpp``.

    Raises:
        NativeUnavailableError: it is not available; check ``available()`` first.
    """
    found = _attempt()
    if isinstance(found, str):
        raise NativeUnavailableError(found)
    return found


def _load() -> ctypes.CDLL:
    if os.environ.get("KSHOT_NATIVE", "1") == "0":
        raise NativeUnavailableError("KSHOT_NATIVE=0 switches native kernels off")
    path = _compiled(_compiler())
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"the compiled library does not load: {error}") from error
    from kshot.nn.native.selftest import failure

    wrong = failure(loaded)
    if wrong:
        raise NativeUnavailableError(f"the compiled library gives wrong answers ({wrong}); another compiler may help")
    return loaded


def _compiler() -> str:
    named = os.environ.get("CXX", "")
    for name in (named,) if named else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise NativeUnavailableError(f"no C++ compiler found (looked for {named or ', '.join(COMPILERS)})")


def _compiled(compiler: str) -> Path:
    folder = _folder()
    path = folder / f"kshot-{_key(compiler)}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix="building-", suffix=".so")
        os.close(handle)
    except OSError as error:
        raise NativeUnavailableError(f"the cache folder {folder} cannot be written: {error}") from error
    try:
        _run([compiler, *FLAGS, str(Path(__file__).parent / "conv4.cpp"), "-o", name], COMPILE_SECONDS)
        # Atomic: of several processes that compile at once, each leaves a whole file.
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def _folder() -> Path:
    named = os.environ.get("KSHOT_CACHE", "")
    root = Path(named).expanduser() if named else platformdirs.user_cache_path("kshot", appauthor=False)
    return root / "native"


def _key(compiler: str) -> str:
    digest = hashlib.sha256()
    for source in sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".cpp", ".hpp")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for part in (*FLAGS, compiler, _run([compiler, "--version"], 60), _processor()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:20]


def _processor() -> str:
    # -march=native ties the library to the processor's instruction sets.
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    wanted = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(wanted)])


def _run(command: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except subprocess.CalledProcessError as error:
        last = "\n".join(error.stderr.strip().splitlines()[:5])
        raise NativeUnavailableError(f"{command[0]} failed: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]} failed: {error}") from error
    return done.stdout
