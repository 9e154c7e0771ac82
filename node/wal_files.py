"""Where the write-ahead log lies: the few steps it needs of a directory, so that the same log runs
on a disk that fails (tests/sim/disk.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class LogFiles(Protocol):
    """One directory. Files are named within it; an open file is a number. Every step may raise
    OSError. Nothing is durable before `sync` (bytes) and `sync_directory` (names) return."""

    def exists(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes: ...

    def create(self, name: str) -> int:
        """Open an empty file for writing, whatever was there before."""

    def open(self, name: str) -> int:
        """Open an existing file for writing."""

    def write(self, file: int, offset: int, data: bytes) -> None:
        """Write all of `data`; after an error any part of it may be there."""

    def sync(self, file: int) -> None: ...

    def close(self, file: int) -> None: ...

    def rename(self, old: str, new: str) -> None: ...

    def sync_directory(self) -> None: ...


class DirectoryFiles:
    """A real directory, made if it is not there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def exists(self, name: str) -> bool:
        return (self._directory / name).exists()

    def read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return os.open(self._directory / name, flags, 0o600)

    def open(self, name: str) -> int:
        return os.open(self._directory / name, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, file: int, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(file, view, offset)
            view, offset = view[written:], offset + written

    def sync(self, file: int) -> None:
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def rename(self, old: str, new: str) -> None:
        (self._directory / old).replace(self._directory / new)

    def sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
