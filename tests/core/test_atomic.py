"""Files that are written whole or not at all."""

import os
import stat
import threading
from pathlib import Path

import pytest

from mfu_sdk import atomic


def test_replaces_whole(tmp_path: Path) -> None:
    """The new text stands alone, with the permissions of an ordinary new file, and nothing else is left."""
    path = tmp_path / "report"
    path.write_text("a much longer text that was there before")
    atomic.write_text(path, "new")
    assert path.read_text() == "new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert list(tmp_path.iterdir()) == [path]


def test_follows_links(tmp_path: Path) -> None:
    """A link stays one; what it points to is replaced."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    atomic.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    """What is no regular file is written to: `-o /dev/stdout` must not replace the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    atomic.write_text(pipe, "through")
    reader.join(10)
    assert got == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The error is the operating system's own."""
    with pytest.raises(FileNotFoundError):
        atomic.write_text(tmp_path / "nowhere" / "file", "text")
