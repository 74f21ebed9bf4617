"""The downloader against a server on this machine that cuts, refuses, stalls and lies."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.core import UserError
from kshot.data.download import download, file_md5

DATA = bytes(i * i % 251 for i in range(300_000))
MD5 = hashlib.md5(DATA).hexdigest()
QUICK = {"pause": 0.001, "timeout": 5.0}


@dataclass
class Server:
    """What the server does, request by request, and what was asked of it."""

    url: str = ""
    data: bytes = DATA
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes sent before the connection is cut, for the first requests
    codes: list[int] = field(default_factory=list)  # status of the first requests, 0 for the usual one
    says_length: int | None = None
    stall: float = 0.0
    asked: list[str | None] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append(wanted)
        time.sleep(self.stall)
        code = self.codes.pop(0) if self.codes else 0
        if code:
            handler.send_error(code)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(self.data) and start:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.data)}")
            handler.end_headers()
            return
        body = self.data[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        handler.send_header("Content-Length", str(self.says_length or len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the machine names would be asked for our own server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def listening() -> Iterator[list[Server]]:
    current: list[Server] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            current[-1].answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that hangs up on purpose is no news

    http = Quiet(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    current.append(Server(url=f"http://127.0.0.1:{http.server_address[1]}/a.zip"))
    yield current
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def server(listening: list[Server]) -> Server:
    listening.append(Server(url=listening[0].url))
    return listening[-1]


def test_whole_file_with_progress_and_nothing_left_beside(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = tmp_path / "new" / "folder" / "a.zip"
    download(server.url, path, md5=MD5, on_progress=lambda *p: seen.append(p), **QUICK)
    assert path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == ["a.zip"]
    assert seen[-1] == ("a.zip", len(DATA), len(DATA))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_goes_on_where_a_part_ends(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(DATA[:1000])
    seen: list[int] = []
    download(server.url, tmp_path / "a.zip", md5=MD5, on_progress=lambda _, done, total: seen.append(done), **QUICK)
    assert server.asked == ["bytes=1000-"]
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert seen[0] > 1000


def test_cut_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000, 1, 2, 3]
    download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert server.asked == [None, *(f"bytes={n}-" for n in (100_000, 150_000, 150_001, 150_003, 150_006))]


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 2000), max_size=6), ranges=st.booleans(), had=st.integers(0, 1500))
def test_any_pattern_of_cuts_ends_in_the_same_bytes(
    listening: list[Server], tmp_path_factory: pytest.TempPathFactory, cuts: list[int], ranges: bool, had: int
) -> None:
    data = DATA[:1200]
    # Without ranges a cut always starts over, and two in a row without progress may be all there is patience for.
    server = Server(url=listening[0].url, data=data, cuts=cuts, ranges=ranges)
    listening.append(server)
    path = tmp_path_factory.mktemp("cuts") / "a.zip"
    if had:
        path.with_name("a.zip.part").write_bytes(DATA[:had])
    download(server.url, path, md5=hashlib.md5(data).hexdigest(), attempts=10, pause=0, timeout=5.0)
    assert path.read_bytes() == data


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "a.zip.part").write_bytes(DATA[:1000])
    download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"expected MD5 {'0' * 32}.*got {MD5}.*by another way"):
        download(server.url, tmp_path / "a.zip", md5="0" * 32, **QUICK)
    assert not list(tmp_path.glob("a.zip*"))


def test_part_of_another_version_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)
    download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)
    assert server.asked == ["bytes=1000-", None]
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_part_that_is_complete_needs_no_byte(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(DATA)
    download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)
    assert server.asked == [f"bytes={len(DATA)}-"]
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_part_that_is_too_long_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(DATA + b"more")
    download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_not_found_is_said_at_once(server: Server, tmp_path: Path) -> None:
    server.codes = [404, 404]
    with pytest.raises(UserError, match="answered 404"):
        download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)
    assert len(server.asked) == 1


def test_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429]
    download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(UserError, match=r"could not be reached.*check the network"):
        download(f"http://127.0.0.1:{port}/a.zip", tmp_path / "a.zip", md5=MD5, **QUICK)


def test_silent_server_counts_as_cut(server: Server, tmp_path: Path) -> None:
    server.stall = 0.5
    with pytest.raises(UserError, match=r"could not be reached .*timed out"):
        download(server.url, tmp_path / "a.zip", md5=MD5, attempts=2, pause=0, timeout=0.05)
    assert len(server.asked) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full, a disk that is always full")
def test_full_disk(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*disk is full.*KSHOT_DATA"):
        download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)


def test_too_little_room_is_known_beforehand(server: Server, tmp_path: Path) -> None:
    server.says_length = 1 << 60
    with pytest.raises(UserError, match=r"MB free, but .* MB are to come"):
        download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)
    assert not (tmp_path / "a.zip.part").exists()


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*KSHOT_DATA"):
        download(server.url, tmp_path / "file" / "a.zip", md5=MD5, **QUICK)
    assert not server.asked


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root and Windows may write to read-only folders")
def test_folder_without_permission(server: Server, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match=r"cannot write .*make it writable"):
        download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)


def test_interrupted_download_keeps_what_came(server: Server, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url, tmp_path / "a.zip", md5=MD5, on_progress=stop, **QUICK)
    kept = (tmp_path / "a.zip.part").stat().st_size
    assert kept > 0
    download(server.url, tmp_path / "a.zip", md5=MD5, **QUICK)
    assert server.asked == [None, f"bytes={kept}-"]
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.stall = 0.1
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(download, server.url, tmp_path / "a.zip", md5=MD5, **QUICK) for _ in range(3)]
        for one in waiting:
            one.result()
    assert server.asked == [None]
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_md5_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_md5(tmp_path / "a") == "900150983cd24fb0d6963f7d28e17f72"
