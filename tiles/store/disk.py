"""Every step by which the store changes a disk, one method each, so that a test can crash at
any of them and lose what was not synced (docs/spec/tiles.md, "The store").

What is written in place is read only once hashes that were synced after it say so; what is new
is written under a temporary name, synced, and then given its name. A folder is synced after
names in it changed and before anything relies on that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from chain.errors import QuotaError, StorageError
from tiles.store import libc

Buffer = bytes | bytearray | memoryview
TEMP = ".tmp"
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # no link, and no pipe that would hang
_LARGE_BYTES = 1024 * 1024  # a write that is worth a call more
_READ_AHEAD_BYTES = 128 * 1024  # what Linux reads ahead by itself
_EXPECT_BYTES = 256 * 1024  # asked of a device at a time: what is hashed at a time
_IGNORED_SIGNAL = 23  # SIGURG, which does nothing unless a program asks for it


class Disk:
    """The file system. Methods raise OSError; `refusals` puts it into words."""

    def open(self, path: Path | str, *, write: bool = False) -> int:
        """A descriptor of an existing regular file."""
        flags = _FLAGS | (os.O_RDWR if write else os.O_RDONLY)
        try:
            fd = os.open(path, flags)
        except BlockingIOError:  # `punch` has its lease just now: wait until it is returned
            fd = os.open(path, flags & ~os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    def create(self, path: Path) -> int:
        """A descriptor of a new, empty file."""
        return os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)

    def read(self, fd: int, offset: int, size_bytes: int) -> bytes:
        """Bytes of a file, fewer at its end."""
        self.expect(fd, offset, size_bytes)
        return os.pread(fd, size_bytes, offset)

    def expect(self, fd: int, offset: int, size_bytes: int) -> None:
        """Ask the device for all that will be read, instead of the little that Linux reads ahead:
        in parts, of which the first is soon there while the others are under way."""
        if size_bytes > _READ_AHEAD_BYTES and hasattr(os, "posix_fadvise"):
            for at in range(offset, offset + size_bytes, _EXPECT_BYTES):
                size = min(_EXPECT_BYTES, offset + size_bytes - at)
                os.posix_fadvise(fd, at, size, os.POSIX_FADV_WILLNEED)

    def allocate(self, fd: int, size_bytes: int) -> None:
        """Make room for a new file that will be written whole: the disk may write each part as
        it comes, and a disk that is full says so before anything is written."""
        libc.allocate(fd, size_bytes)

    def write(self, fd: int, offset: int, data: Buffer) -> None:
        """Write bytes; the disk begins at once with many, while the next ones are made ready."""
        view, start = memoryview(data).cast("B"), offset
        size_bytes = len(view)
        while len(view):
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done
        if size_bytes >= _LARGE_BYTES:
            libc.start_writing(fd, start, size_bytes)

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def punch(self, fd: int, offset: int, size_bytes: int) -> bool:
        """Free a part of a file, unless anybody else has the file open or mapped; says whether.

        The kernel knows: it gives a write lease only on a file that nobody else holds, and makes
        newcomers wait until the lease is returned. Where there are no leases nothing is freed.
        """
        if not hasattr(fcntl, "F_SETLEASE"):
            return False
        try:
            fcntl.fcntl(fd, fcntl.F_SETSIG, _IGNORED_SIGNAL)  # else a newcomer would kill us
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return False
        try:
            return libc.punch_hole(fd, offset, size_bytes)
        finally:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)

    def make_folder(self, path: Path) -> None:
        with suppress(FileExistsError):
            os.mkdir(path)

    def sync_folder(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- made of the above --------------------------------------------------------------

    @contextmanager
    def opened(self, path: Path, *, write: bool = False) -> Iterator[int]:
        fd = self.open(path, write=write)
        try:
            yield fd
        finally:
            self.close(fd)

    def write_at(self, path: Path, parts: Sequence[tuple[int, Buffer]]) -> None:
        """Overwrite parts of a file, each at its offset, and sync them."""
        with self.opened(path, write=True) as fd:
            for offset, data in parts:
                self.write(fd, offset, data)
            self.sync(fd)


class Draft:
    """New files of one folder, which get their names one after the other and all durably.

    Use as a context: on the way out, what has no name yet is removed.
    """

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk, self._folder = disk, folder
        self._names: list[str] = []

    def add(self, name: str, parts: Sequence[Buffer], size_bytes: int | None = None) -> None:
        """Write a file and sync it; with `size_bytes`, what follows the parts is a hole."""
        with self.writing(name) as fd:
            at = 0
            for part in parts:
                self._disk.write(fd, at, part)
                at += memoryview(part).nbytes
            if size_bytes is not None:
                self._disk.truncate(fd, size_bytes)
            self._disk.sync(fd)

    @contextmanager
    def writing(self, name: str) -> Iterator[int]:
        fd = self.create(name)
        try:
            yield fd
        finally:
            self._disk.close(fd)

    def create(self, name: str) -> int:
        """A descriptor of one of the files, which the caller writes, syncs and closes."""
        self._disk.unlink(self._temp(name))
        self._names.append(name)
        return self._disk.create(self._temp(name))

    def publish(self, rename: dict[str, str] | None = None) -> None:
        """Give the files their names, in the order of `add`, and make that durable.

        `rename`: other names than the ones they were added under.
        """
        if not self._names:
            return
        while self._names:
            name = self._names[0]
            self._disk.rename(self._temp(name), self._folder / (rename or {}).get(name, name))
            self._names.pop(0)
        self._disk.sync_folder(self._folder)

    def discard(self) -> None:
        """Remove what has no name yet."""
        for name in self._names:
            with suppress(OSError):
                self._disk.unlink(self._temp(name))
        self._names.clear()

    def _temp(self, name: str) -> Path:
        return self._folder / (name + TEMP)

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into ours, in words an operator can act on."""
    try:
        yield
    except OSError as error:
        raise refusal(what, error) from error


def refusal(what: str, error: OSError) -> StorageError:
    """The error of `refusals`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QuotaError(f"cannot {what}: the disk is full; free some space or hold fewer tiles")
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ELOOP:
        return StorageError(
            f"cannot {what}: {where}is a symbolic link, and the store follows none; remove it"
        )
    return StorageError(f"cannot {what}: {where}{error.strerror}")
