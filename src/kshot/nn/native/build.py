"""Compile the native libraries once, keep them in the user's cache folder, and load them.

There is one of the cells with a memory, and one of networks for each shape that is asked for. One call of a C++
compiler, some fifteen seconds; no headers of PyTorch or Python are needed. The file's name is a hash of all that went
into it, so a new version, compiler or processor never meets an old library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import platformdirs
import torch

from kshot.nn.native.design import REALS, Design
from kshot.nn.native.selftest import failure

SOURCES = Path(__file__).parent / "cpp"
OPTIMISE = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp")
FLAGS = (*OPTIMISE, "-fvisibility=hidden", "-shared", "-fPIC")
# For the processor at hand; others get the compiler's default.
X86_FLAGS, ARM_FLAGS = ("-march=native", "-mprefer-vector-width=512"), ("-mcpu=native",)
PROCESSOR_FLAGS = {"x86_64": X86_FLAGS, "AMD64": X86_FLAGS, "aarch64": ARM_FLAGS, "arm64": ARM_FLAGS}
COMPILERS = ("c++", "g++", "clang++")
COMPILE_SECONDS = 300


class NativeUnavailableError(RuntimeError):
    """There is no native library here; the message says why."""


@cache
def _attempt(dtype: torch.dtype, design: Design | None) -> ctypes.CDLL | str:
    try:
        return _load(dtype, design)
    except NativeUnavailableError as error:
        return str(error)


def available(dtype: torch.dtype = torch.float32, design: Design | None = None) -> bool:
    """Tell whether a native library works here; the first call compiles it.

    Args:
        dtype: type of the numbers.
        design: of the network; None for the library of cells with a memory.

    Returns:
        False without a compiler, with ``KSHOT_NATIVE=0``, for a type that is neither float32 nor float64, or for a
        design that the kernels do not know.
    """
    return not isinstance(_attempt(dtype, design), str)


def ready(dtype: torch.dtype, design: Design | None = None) -> bool:
    """Tell whether a native library works here without being compiled first, which takes some fifteen seconds.

    Args:
        dtype: type of the numbers.
        design: see ``available``.

    Returns:
        True where ``available`` found it to work, in this process or in an earlier one.
    """
    try:
        _, path = _place(dtype, design)
    except NativeUnavailableError:
        return False
    return path.exists() and available(dtype, design)


def why_not(dtype: torch.dtype = torch.float32, design: Design | None = None) -> str:
    """Say why a native library is not available.

    Args:
        dtype: type of the numbers.
        design: see ``available``.

    Returns:
        The reason; "" if it is available.
    """
    found = _attempt(dtype, design)
    return found if isinstance(found, str) else ""


def library(dtype: torch.dtype, design: Design | None = None) -> ctypes.CDLL:
    """Return the library for one type of number.

    Args:
        dtype: float32 or float64.
        design: see ``available``.

    Returns:
        Its functions; see ``cpp/conv4.cpp`` and ``cpp/memory.cpp``.

    Raises:
        NativeUnavailableError: it is not available; check ``available()`` first.
    """
    found = _attempt(dtype, design)
    if isinstance(found, str):
        raise NativeUnavailableError(found)
    return found


@cache
def _place(dtype: torch.dtype, design: Design | None) -> tuple[list[str], Path]:
    """Say by which command a library is made, and where it lies.

    Returns:
        The command, but for where the library goes, and the file.

    Raises:
        NativeUnavailableError: there is no compiler, or no such library.
    """
    if os.environ.get("KSHOT_NATIVE", "1") == "0":
        raise NativeUnavailableError("KSHOT_NATIVE=0 switches native kernels off")
    if dtype not in REALS:
        raise NativeUnavailableError(f"native kernels know {', '.join(map(str, REALS))}, not {dtype}")
    if design is not None and not design.possible:
        raise NativeUnavailableError(f"native kernels cannot be compiled for {design}")
    command = [_compiler(), *FLAGS, *PROCESSOR_FLAGS.get(platform.machine(), ()), f"-DKSHOT_REAL={REALS[dtype]}"]
    command += [*(design.defines if design else ()), str(SOURCES / ("conv4.cpp" if design else "memory.cpp"))]
    return command, _folder() / f"kshot-{REALS[dtype]}-{_key(command)}.so"


def _load(dtype: torch.dtype, design: Design | None) -> ctypes.CDLL:
    command, path = _place(dtype, design)
    if not path.exists():
        _compile(command, path)
    try:
        loaded = _open(path)
    except NativeUnavailableError:  # a damaged file, perhaps of a disk that was full
        _compile(command, path)
        loaded = _open(path)
    wrong = failure(loaded, dtype, design) if design else ""
    if wrong:
        raise NativeUnavailableError(f"what {command[0]} compiled gives wrong answers ({wrong}); name another by CXX")
    return loaded


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"the compiled library does not load: {error}") from error


def _compiler() -> str:
    named = os.environ.get("CXX", "")
    for name in (named,) if named else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise NativeUnavailableError(f"no C++ compiler found (looked for {named or ', '.join(COMPILERS)})")


def _compile(command: list[str], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix="building-", suffix=".so")
        os.close(handle)
    except OSError as error:
        raise NativeUnavailableError(f"the cache folder {path.parent} cannot be written: {error}") from error
    try:
        _run([*command, "-o", name], COMPILE_SECONDS)
        # Atomic: of several processes that compile at once, each leaves a whole file.
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _folder() -> Path:
    named = os.environ.get("KSHOT_CACHE", "")
    root = Path(named).expanduser() if named else platformdirs.user_cache_path("kshot", appauthor=False)
    return root / "native"


def _key(command: list[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".cpp", ".hpp"):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for part in (*command, _run([command[0], "--version"], 60), _processor()):
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
