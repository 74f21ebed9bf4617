"""Vectors on disk: each example encoded once, never a wrong vector, never in the way."""

import hashlib
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kshot.apps.tables import VectorEncoder
from kshot.core import Encoder, OnProgress, UserError
from kshot.data import CacheWarning
from kshot.estimator import encode as module
from kshot.estimator.encode import encode


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vectors"


class Counting:
    """Gives each text a vector of its own, and remembers what it was asked."""

    kind, name, dim = "text", "text:counting/one", 6

    def __init__(self, fingerprint: str = "f") -> None:
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def key(self, example: Any) -> str:
        if not isinstance(example, str):
            raise UserError(f"expected text, got {example!r}; pass text")
        return hashlib.sha256(example.encode()).hexdigest()

    def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
        self.asked += examples
        if on_progress is not None:
            on_progress(len(examples), len(examples))
        digests = [hashlib.sha256(f"{self.fingerprint} {e}".encode()).digest() for e in examples]
        return torch.tensor([list(d[: self.dim]) for d in digests]).float() / 7

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def tensors(self) -> dict[str, Tensor]:
        return {}


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def texts(n: int, start: int = 0) -> list[str]:
    return [f"text {i}" for i in range(start, start + n)]


def test_what_was_encoded_is_not_encoded_again(folder: Path) -> None:
    assert isinstance(Counting(), Encoder)
    first, second = Counting(), Counting()
    x = encode(first, texts(50))
    assert first.asked == texts(50)
    assert torch.equal(x, Counting().encode(texts(50)))
    y = encode(second, texts(70)[::-1])
    assert second.asked == texts(20, 50)[::-1]
    assert torch.equal(y.flip(0), Counting().encode(texts(70)))
    assert y.dtype == torch.float32
    assert only_file(folder).name.startswith("text-counting-one-")


def test_the_same_example_is_encoded_once() -> None:
    encoder = Counting()
    x = encode(encoder, ["a", "b", "a", "c", "b", "a"], cache=False)
    assert encoder.asked == ["a", "b", "c"]
    assert torch.equal(x, Counting().encode(["a", "b", "a", "c", "b", "a"]))
    assert torch.equal(encode(Counting(), ["b", "a", "b"]), x[[1, 0, 1]])


def test_without_cache_the_disk_is_left_alone(folder: Path) -> None:
    encoder = Counting()
    encode(encoder, texts(3), cache=False)
    encode(encoder, texts(3), cache=False)
    assert len(encoder.asked) == 6
    assert not folder.exists()


def test_another_fingerprint_is_another_file(folder: Path) -> None:
    a, b = encode(Counting("a"), texts(3)), encode(Counting("b"), texts(3))
    assert not torch.equal(a, b)
    assert len(list(folder.iterdir())) == 2
    assert torch.equal(encode(Counting("a"), texts(3)), a)


def test_cheap_encoders_are_asked_directly(folder: Path) -> None:
    x = torch.arange(6.0).view(3, 2)
    assert torch.equal(encode(VectorEncoder(2), x.numpy()), x)
    assert not folder.exists()


def test_no_examples() -> None:
    assert encode(Counting(), []).shape == (0, 6)


def test_progress_counts_what_was_found_at_once() -> None:
    encode(Counting(), texts(10))
    told: list[tuple[int, int]] = []
    encode(Counting(), [*texts(1300), "text 0"], on_progress=lambda *at: told.append(at))
    # 10 found and one repetition; then 512 new ones, then twice as many at most.
    assert told == [(11, 1301), (523, 1301), (1301, 1301)]
    told.clear()
    encode(Counting(), texts(1300), on_progress=lambda *at: told.append(at))
    assert told == [(1300, 1300)]


def test_an_interruption_costs_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Counting):
        def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
            if self.asked:
                raise KeyboardInterrupt
            return super().encode(examples, on_progress)

    with pytest.raises(KeyboardInterrupt):
        encode(Interrupted(), texts(1000))
    encoder = Counting()
    encode(encoder, texts(1000))
    assert encoder.asked == texts(488, 512)


def test_a_bad_example_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"example 2: expected text, got 7"):
        encode(Counting(), ["a", "b", 7])  # type: ignore[list-item]


@pytest.mark.parametrize("cheap", [False, True])
def test_what_encoders_give_is_checked(folder: Path, cheap: bool) -> None:
    class Wide(Counting):
        def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
            return torch.zeros(len(examples), 7)

    class NotFinite(Counting):
        def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
            return torch.tensor([[float("nan") if e == "bad" else 0.0] * 6 for e in examples])

    for encoder in (wide := Wide(), odd := NotFinite()):
        encoder.cheap = cheap  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"vectors of shape \(2, 6\), got \(2, 7\)"):
        encode(wide, ["a", "b"])
    with pytest.raises(UserError, match="NaN or infinity from text:counting/one for 'bad'"):
        encode(odd, ["good", "bad"])
    assert not folder.exists()


def damaged_end(data: bytes) -> bytes:
    return data[:-9000]


def damaged_header(data: bytes) -> bytes:
    return b"not a base " * 3 + data[33:]


def damaged_tree(data: bytes) -> bytes:
    return data[:16384] + b"\xff" * 16384 + data[32768:]


@pytest.mark.parametrize("damage", [damaged_end, damaged_header, damaged_tree, lambda d: b"PK\x03\x04"])
def test_a_damaged_file_is_made_anew(folder: Path, damage) -> None:
    right = encode(Counting(), texts(2000))
    path = only_file(folder)
    path.write_bytes(damage(path.read_bytes()))
    path.with_name(f"{path.name}-journal").write_bytes(b"left by a crash")
    encoder = Counting()
    with pytest.warns(CacheWarning, match="is damaged .* computed again"):
        assert torch.equal(encode(encoder, texts(2000)), right)
    assert len(encoder.asked) > 0
    encode(encoder, texts(2000))
    encoder.asked.clear()
    assert torch.equal(encode(encoder, texts(2000)), right)
    assert encoder.asked == []


def test_an_empty_file_is_filled(folder: Path) -> None:
    right = encode(Counting(), texts(5))
    only_file(folder).write_bytes(b"")
    assert torch.equal(encode(Counting(), texts(5)), right)
    encoder = Counting()
    encode(encoder, texts(5))
    assert encoder.asked == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE vectors SET vector = zeroblob(24) WHERE rowid = 2",
        "UPDATE vectors SET vector = substr(vector, 1, 20) WHERE rowid = 2",
        "UPDATE vectors SET vector = 'text' WHERE rowid = 2",
        "UPDATE vectors SET crc = NULL WHERE rowid = 2",
        "UPDATE vectors SET crc = (SELECT crc FROM vectors WHERE rowid = 1), "
        "vector = (SELECT vector FROM vectors WHERE rowid = 1) WHERE rowid = 2",
    ],
    ids=["bits", "short", "type", "checksum", "swapped"],
)
def test_a_damaged_vector_is_encoded_again(folder: Path, change: str) -> None:
    right = encode(Counting(), texts(5))
    base = sqlite3.connect(only_file(folder))
    with base:
        base.execute(change)
    base.close()
    for asked in (["text 1"], []):
        encoder = Counting()
        assert torch.equal(encode(encoder, texts(5)), right)
        assert encoder.asked == asked


def test_a_cache_that_cannot_be_made_is_said_once_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "file"))
    with pytest.warns(CacheWarning, match="cannot keep vectors .* set KSHOT_CACHE") as told:
        x = encode(Counting(), texts(2000))
    assert len(told) == 1
    assert torch.equal(x, Counting().encode(texts(2000)))


def test_a_read_only_cache_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    right = encode(Counting(), texts(5))
    connect = sqlite3.connect
    # As if the file system refused to write; permissions would not stop a superuser.
    monkeypatch.setattr(sqlite3, "connect", lambda path, **o: connect(f"{path.as_uri()}?mode=ro", uri=True, **o))
    encoder = Counting()
    with pytest.warns(CacheWarning, match="cannot keep vectors .*readonly"):
        assert torch.equal(encode(encoder, texts(6))[:5], right)
    assert encoder.asked == ["text 5"]


def test_a_full_disk_is_said_and_done_without(folder: Path) -> None:
    right = Counting().encode(texts(5000))
    encode(Counting(), texts(100))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow beyond this: the nearest to a full disk that a test can make.
    resource.setrlimit(resource.RLIMIT_FSIZE, (only_file(folder).stat().st_size, before[1]))
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            x = encode(Counting(), texts(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(x, right)
    assert [w.category for w in told] == [CacheWarning]
    # What was there before is still right, and with space the rest is kept.
    encoder = Counting()
    assert torch.equal(encode(encoder, texts(5000)), right)
    assert not set(encoder.asked) & set(texts(100))


def test_a_file_that_stays_locked_is_done_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.05)
    encode(Counting(), texts(3))
    base = sqlite3.connect(only_file(folder), isolation_level=None)
    base.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.warns(CacheWarning, match="locked"):
            x = encode(Counting(), texts(3))
    finally:
        base.close()
    assert torch.equal(x, Counting().encode(texts(3)))


def test_the_oldest_vectors_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100 * (4 * 6 + 128))
    encode(Counting(), texts(90))
    encode(Counting(), texts(20, 90))
    encoder = Counting()
    encode(encoder, texts(110), cache=True)
    # 110 were more than 100: those beyond, and a tenth more, were dropped, the oldest.
    assert encoder.asked == texts(20)


def test_files_unused_for_longest_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fingerprint in ("old", "older", "new"):
        encode(Counting(fingerprint), texts(3))
    size = only_size(folder)
    monkeypatch.setattr(module, "MAX_TOTAL_BYTES", 2 * size)
    days = {"old": 2, "older": 3, "new": 0}
    paths = {name: module.VectorShelf(Counting(name)).path for name in days}
    now = paths["new"].stat().st_mtime
    for name, path in paths.items():
        os.utime(path, (now - days[name] * 86_400, now - days[name] * 86_400))
    # Reading is using.
    encode(Counting("older"), texts(3))
    encode(Counting("next"), texts(3))
    assert {name for name, path in paths.items() if path.exists()} == {"older", "new"}


def only_size(folder: Path) -> int:
    (size,) = {p.stat().st_size for p in folder.iterdir()}
    return size


def test_threads_share_a_file(folder: Path) -> None:
    right = Counting().encode(texts(600))
    results: list[Tensor] = []

    def work(start: int) -> None:
        results.append(encode(Counting(), texts(600)[start:] + texts(start)).roll(start, 0))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 150, 300, 450)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(x, right) for x in results)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.slow
def test_processes_share_a_file(folder: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_encode import Counting, encode, texts\n"
        "import torch\n"
        "x = encode(Counting(), texts(3000))\n"
        "raise SystemExit(0 if torch.equal(x, Counting().encode(texts(3000))) else 3)"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=env) for _ in range(2)]
    assert [process.wait(240) for process in running] == [0, 0]
    encoder = Counting()
    encode(encoder, texts(3000))
    assert encoder.asked == []


def test_vectors_come_back_to_the_last_bit() -> None:
    class Odd(Counting):
        def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
            self.asked += examples
            return torch.tensor(
                np.array([[0.1, -0.0, 1e-45, 3.4e38, -1e-20, 1 / 3]] * len(examples)), dtype=torch.float64
            )

    first, second = encode(Odd(), ["a"]), encode(odd := Odd(), ["a"])
    assert odd.asked == []
    assert first.numpy().tobytes() == second.numpy().tobytes()
