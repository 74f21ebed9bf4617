"""The store: where archives lie, what is done when they do not, and how contents are checked."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kshot.core import UserError
from kshot.data import store
from kshot.data.store import Archive


def hash_contents(path: Path) -> str:
    """Contents of this test's archives: bytes after a packing mark."""
    packing, _, contents = path.read_bytes().partition(b":")
    if packing not in (b"packed", b"repacked"):
        raise UserError(f"{path} cannot be read")
    return hashlib.sha256(contents).hexdigest()


def archive(name: str, url: str) -> Archive:
    packed = f"packed:{name}".encode()
    md5, contents = hashlib.md5(packed).hexdigest(), hashlib.sha256(name.encode()).hexdigest()
    return Archive(f"set/{name}.zip", f"{url}/{name}.zip", md5, contents, hash_contents)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the machine names would be asked for our own server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def online(tmp_path: Path) -> Iterator[list[Archive]]:
    served = tmp_path / "served"
    served.mkdir()
    for name in "ab":
        (served / f"{name}.zip").write_bytes(f"packed:{name}".encode())

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served))) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield [archive(name, f"http://127.0.0.1:{http.server_address[1]}") for name in "ab"]
        http.shutdown()
        thread.join()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Archive]:
    monkeypatch.setattr("kshot.data.download.time.sleep", lambda seconds: None)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    return [archive(name, url) for name in "ab"]


def put(root: Path, name: str, content: str) -> Path:
    path = root / "set" / f"{name}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_data_root_argument_then_environment_then_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.data_root("elsewhere") == Path("elsewhere")
    assert store.data_root() == root
    monkeypatch.setenv("KSHOT_DATA", "")
    assert store.data_root().parts[-1] == "data"
    assert store.data_root().is_absolute()


def test_data_root_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("")
    with pytest.raises(UserError, match=r"expected a folder as data root, got the file .*a\.zip"):
        store.data_root(tmp_path / "a.zip")


def test_present_archives_need_no_network(root: Path, offline: list[Archive]) -> None:
    paths = [put(root, name, "whatever") for name in "ab"]
    assert store.provide(offline) == paths


def test_absent_archives_are_downloaded(root: Path, online: list[Archive]) -> None:
    put(root, "a", "repacked:a")
    seen: list[str] = []
    paths = store.provide(online, None, lambda name, done, total: seen.append(name))
    assert [p.read_text() for p in paths] == ["repacked:a", "packed:b"]
    assert set(seen) == {"b.zip"}


def test_offline_names_every_file_its_place_and_address(root: Path, offline: list[Archive]) -> None:
    with pytest.raises(UserError) as caught:
        store.provide(offline)
    for one in offline:
        assert f"{root / one.path} from {one.url}" in str(caught.value)
    assert "check the network" in str(caught.value)


def test_verify_accepts_another_packing_and_stamps_it(root: Path, offline: list[Archive]) -> None:
    path = put(root, "a", "repacked:a")
    assert not store.is_verified(offline[0], path)
    assert store.verify(offline[0]) == path
    assert store.is_verified(offline[0], path)
    assert not store.is_verified(offline[1], path)


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_loses_its_stamp(root: Path, offline: list[Archive], change: str) -> None:
    path = put(root, "a", "packed:a")
    store.verify(offline[0])
    if change == "size":
        before = path.stat()
        put(root, "a", "repacked:a")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(1, 1))
    assert not store.is_verified(offline[0], path)


def test_damaged_stamp_is_no_stamp(root: Path, offline: list[Archive], tmp_path: Path) -> None:
    path = put(root, "a", "packed:a")
    store.verify(offline[0])
    (stamp,) = (tmp_path / "cache" / "verified").iterdir()
    stamp.write_text("[")
    assert not store.is_verified(offline[0], path)


def test_verify_reads_the_file_whatever_the_stamp_says(root: Path, offline: list[Archive]) -> None:
    path = put(root, "a", "packed:a")
    store.verify(offline[0])
    before = path.stat()
    put(root, "a", "packed:x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"damaged or incomplete.*kshot data fetch"):
        store.verify(offline[0])
    assert not store.is_verified(offline[0], path)


def test_verify_of_an_absent_file(root: Path, offline: list[Archive]) -> None:
    with pytest.raises(UserError, match=r"a\.zip, which is absent; get it by `kshot data fetch` or put it there"):
        store.verify(offline[0])


def test_unwritable_cache_only_loses_the_stamp(
    root: Path, offline: list[Archive], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(root, "a", "packed:a")
    monkeypatch.setenv("KSHOT_CACHE", str(path))
    assert store.verify(offline[0]) == path
    assert not store.is_verified(offline[0], path)


@pytest.mark.parametrize("damage", ["packed:x", "garbage"])
def test_fetch_replaces_what_is_damaged(root: Path, online: list[Archive], damage: str) -> None:
    path = put(root, "a", damage)
    assert store.fetch(online[0]) == path
    assert path.read_text() == "packed:a"
    assert store.is_verified(online[0], path)


def test_fetch_leaves_what_is_right(root: Path, offline: list[Archive]) -> None:
    path = put(root, "a", "repacked:a")
    for _ in range(2):
        assert store.fetch(offline[0]) == path
    assert path.read_text() == "repacked:a"


def test_fetch_offline_keeps_the_damaged_file_and_says_what_to_do(root: Path, offline: list[Archive]) -> None:
    path = put(root, "a", "garbage")
    with pytest.raises(UserError, match=f"put there by hand: {path} from {offline[0].url}"):
        store.fetch(offline[0])
    assert path.read_text() == "garbage"


def test_fetch_refuses_an_official_file_with_other_contents(root: Path, online: list[Archive]) -> None:
    one = online[0]
    changed = Archive(one.path, one.url, one.md5, "0" * 64, one.hash_contents)
    with pytest.raises(UserError, match="damaged or incomplete"):
        store.fetch(changed)


def test_status(root: Path, offline: list[Archive]) -> None:
    path = put(root, "a", "packed:a")
    found = [store.status(one) for one in offline]
    assert [(s.present, s.verified, s.n_bytes) for s in found] == [(True, False, 8), (False, False, None)]
    assert [s.path for s in found] == [path, root / "set" / "b.zip"]
    store.verify(offline[0])
    assert store.status(offline[0]).verified
