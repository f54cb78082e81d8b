"""A file of fixed size, owned by one process, whose writes outlive it and can neither fail loudly nor end it.

A write through a mapping of memory costs a tenth of a microsecond, but where the system has no room left for the page
it ends the process with SIGBUS. So all of the file is allocated before anything is written, and it is mapped only on
file systems that keep what they have allocated; elsewhere each write is a system call, which can fail and be caught.
On network file systems there is no file at all: a lost server would stop or end the user's process either way.
"""

import contextlib
import errno
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import Final

from mfu_sdk.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl

MAPPED: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "tmpfs"})
"""File systems that write allocated blocks in place. Those that copy on write (btrfs, zfs, bcachefs) need room for
each write anew, and what lies under an overlay or a name that is not here is not known."""
NETWORK: Final = frozenset({
    "nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "9p", "afs", "gpfs", "beegfs", "glusterfs",
    "gfs2", "ocfs2", "wekafs", "virtiofs", "fuse", "fuse.sshfs", "fuse.glusterfs", "fuse.juicefs", "fuse.s3fs",
    "fuse.gcsfuse", "fuse.ceph", "fuse.rclone",
})  # fmt: skip

_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE of Linux 5.14 (`man 2 madvise`), for which `mmap` has no name."""

UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
"""What `posix_fallocate` says where the file system cannot do it."""


class FlightFile:
    """One open file: mode 0600, locked, allocated, zero at first. Made by `create` or `take`.

    The lock is that of the open file, which a forked child shares: `close` it there, and the parent alone has it.
    """

    def __init__(self, path: Path, descriptor: int, mapped: mmap.mmap | None) -> None:
        self.path = path
        self._descriptor = descriptor
        self.mapped = mapped
        """Its memory, for whoever writes often; None where writes are system calls."""
        # Closed with the last reference and not before: a write in another thread must never meet a descriptor that
        # is someone else's by now. At the end of the process the system does it.
        self._close = weakref.finalize(self, _release, descriptor, mapped)
        self._close.atexit = False

    @classmethod
    def create(cls, path: Path, size: int) -> "FlightFile":
        """A new file. Raises OSError where it cannot be made, allocated or locked, and leaves none then.

        Raises `ConfigurationError` on a network file system and where there is no flock.
        """
        if sys.platform == "win32":
            raise ConfigurationError("flight recorders need flock, which this system has not")
        kind = file_system(path.parent)
        if kind in NETWORK:
            raise ConfigurationError(
                f"{path.parent} lies on {kind}, whose server could stop or end the process; "
                "name a local directory in MFU_RECORDER_DIR"
            )
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            allocate(descriptor, size)
            mapped = _mapped(descriptor, size) if kind in MAPPED else None
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return cls(path, descriptor, mapped)

    @classmethod
    def take(cls, path: Path) -> "FlightFile | None":
        """A file that a run has left; None while a run of this or another process has it. Raises OSError."""
        if sys.platform == "win32":
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return cls(path, descriptor, None)

    def write(self, at: int, data: bytes) -> None:
        """Put `data` at this place. Raises OSError or ValueError, where a signal would be worse."""
        if self.mapped is not None:
            self.mapped[at : at + len(data)] = data
        else:
            os.pwrite(self._descriptor, data, at)

    def read(self, most: int) -> bytes:
        """The file's bytes, `most` at most. Raises OSError."""
        return os.pread(self._descriptor, most, 0)

    def remove(self) -> None:
        """Delete the file; what is still written to it goes nowhere."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Let go of it: others may take it from here on. Nothing may be written after."""
        self._close()


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    found = mmap.mmap(descriptor, size)
    # Its pages now, in some milliseconds: a step that meets the first write to one of them takes 20 µs longer. An
    # older system does not know this.
    with contextlib.suppress(OSError):
        found.madvise(_POPULATE_WRITE)
    return found


def _release(descriptor: int, mapped: mmap.mmap | None) -> None:
    if mapped is not None:
        # It has a descriptor of its own, which holds the lock too.
        mapped.close()
    os.close(descriptor)


def allocate(descriptor: int, size: int) -> None:
    """Give the file all its blocks now, by zeros where the file system has no call for it. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        else:
            return
    written = 0
    while written < size:
        written += os.pwrite(descriptor, bytes(size - written), written)
    # What has no room fails here at the latest, and not when the pages are written back.
    os.fsync(descriptor)


def file_system(directory: Path) -> str:
    """The name of the file system that `directory` lies on, as Linux tells it; "" where nothing does."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    where, best, kind = directory.resolve(), -1, ""
    for line in mounts:
        # 36 35 98:0 /root /mount/point options [optional …] - kind source options
        # (https://docs.kernel.org/filesystems/proc.html#proc-pid-mountinfo-information-about-mounts)
        left, dash, right = line.partition(" - ")
        fields = left.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = Path(_unescaped(fields[4]))
        # A later mount over the same point hides the earlier one.
        if where.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ")[0]
    return kind


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
