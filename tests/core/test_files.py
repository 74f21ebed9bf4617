import errno
import os
import threading
from pathlib import Path

import pytest

from kshot.core import UserError
from kshot.core.files import replace_file, write_atomically


def test_a_file_is_replaced_or_left_alone(tmp_path: Path):
    path = tmp_path / "new" / "a"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    blocked = tmp_path / "folder"
    (blocked / "inside").mkdir(parents=True)
    with pytest.raises(OSError):  # noqa: PT011 (which one depends on the system)
        replace_file(blocked, b"three")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "new"]
    assert [p.name for p in path.parent.iterdir()] == ["a"]


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a"
    write_atomically(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_in_utf8(tmp_path: Path):
    write_atomically(tmp_path / "a", "少样本")
    assert (tmp_path / "a").read_bytes().decode("utf-8") == "少样本"


@pytest.mark.skipif(os.name != "posix", reason="links and permissions as POSIX has them")
def test_a_link_stays_a_link_and_a_file_keeps_its_permissions(tmp_path: Path):
    held = tmp_path / "elsewhere" / "held"
    held.parent.mkdir()
    held.write_text("old")
    held.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(held)
    replace_file(link, b"new")
    assert link.is_symlink()
    assert held.read_bytes() == b"new"
    assert held.stat().st_mode & 0o7777 == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "made" / "here")
    replace_file(dangling, b"first")
    assert dangling.is_symlink()
    assert (tmp_path / "made" / "here").read_bytes() == b"first"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_written_into_and_stays_a_pipe(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    replace_file(pipe, b"told")
    assert pipe.is_fifo()
    reader.join(timeout=20)
    assert read == [b"told"]
    assert list(tmp_path.iterdir()) == [pipe]
