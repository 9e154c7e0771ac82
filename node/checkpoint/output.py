"""A file written under a hidden name and hashed on the way: it appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from blake3 import blake3

from chain.errors import InputError, LockedError, QuotaError
from node.checkpoint.lane import Lane

Buffer = bytes | memoryview
_LONGEST_NAME = 255  # bytes, as file systems have it
_WAITING = 4  # buffers that may wait to be hashed or written


class OutputFile:
    """Bytes in order into one new file; hashing and writing go on while more are fetched."""

    def __init__(self, path: Path) -> None:
        """`path` is where the bytes go now: the caller gives the file its name."""
        self._path, self.size_bytes = path, 0
        self._hasher = blake3()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _lock(self._descriptor, path)
        except LockedError:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        self._hashing, self._writing = Lane("hash", _WAITING), Lane("write", _WAITING)

    def append(self, data: Buffer) -> None:
        """The next bytes, which must not change. Raises what earlier ones met."""
        self._hashing.do(partial(_update, self._hasher, data))
        self._writing.do(partial(self._write, data, self.size_bytes))
        self.size_bytes += len(data)

    def finish(self) -> str:
        """Wait until all is on disk; BLAKE3 of the bytes."""
        self._hashing.close()
        self._writing.close()
        os.fsync(self._descriptor)
        return self._hasher.hexdigest()

    def close(self) -> None:
        self._hashing.cancel()
        self._writing.cancel()
        os.close(self._descriptor)

    def _write(self, data: Buffer, offset: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._descriptor, view, offset)
            view, offset = view[done:], offset + done


def _update(hasher: blake3, data: Buffer) -> None:
    hasher.update(data)


@contextmanager
def output_file(path: Path) -> Iterator[OutputFile]:
    """Write `path`, whole and durably, replacing what is there; on an error nothing changes.

    A link is followed. A pipe or a device is refused: the file would take its place.
    """
    with refusals(path):
        if path.is_dir():
            raise InputError(f"{path} is a directory; name the file to write")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is a pipe or a device; name a file to write")
        path = _followed(path)
        part = _hidden(path, ".part")
        file = OutputFile(part)
        try:
            yield file
            file.finish()
            part.replace(path)
            sync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            file.close()


@contextmanager
def output_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes `path`, whole; `path` is new or empty."""
    with refusals(path):
        path = _followed(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"{path} exists; this model is several files: name a new or empty directory"
            )
        part = _hidden(path, ".parts")
        part.mkdir(exist_ok=True)
        descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(descriptor, part)
            for leftover in part.iterdir():  # of an export that was killed
                leftover.unlink()
            yield part
            part.replace(path)
            sync_folder(path.parent)
        except LockedError:
            raise
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError(
            f"another export is writing {path}; wait for it to end, or choose another name"
        ) from None


def _followed(path: Path) -> Path:
    """Where a path leads to: a link stays, and what it names is written."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _hidden(path: Path, end: str) -> Path:
    """The name that what will be `path` has while it is written. A file's is never a directory's:
    either may be left by an export that was killed.
    """
    path = path.absolute()
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME - len("." + end):
        name = blake3(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}{end}")


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Put into words why the operating system does not let `path` be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QuotaError(f"{path}: the disk is full; nothing was left there") from None
        if error.errno == errno.ENOENT:
            raise InputError(f"{path}: the directory {path.parent} does not exist") from None
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
