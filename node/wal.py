"""The write-ahead log of consensus: what was signed and certified, on disk before it leaves
(docs/spec/consensus.md).

File: the 12 bytes `BLYAN-WAL-2\\n`, then frames (`node.log_frames`). One append is one frame, so an
append is there as a whole or not at all. Version 1 had no checksum of a frame's length; such a log
is read, and written anew. A newer one is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chain.errors import StorageError, VersionError
from node.log_frames import (
    HEAD_BYTES,
    MARK,
    MAX_FRAME_BYTES,
    any_after,
    checksum,
    framed,
    is_torn,
    payload_at,
    split,
)
from node.wal_files import DirectoryFiles, LogFiles

_log = logging.getLogger(__name__)

LOG_NAME = "consensus.log"
BEGUN_NAME = "consensus.begun"  # says that the log has held something
_NEW_NAME = LOG_NAME + ".new"  # a rotation writes here first
VERSION = 2
_MAGIC, _MAGIC_1 = b"BLYAN-WAL-%d\n" % VERSION, b"BLYAN-WAL-1\n"
_ANY_MAGIC = re.compile(rb"BLYAN-WAL-([1-9][0-9]{0,5})\n")
_HEAD_BYTES_1 = len(MARK) + 4 + 32


class WriteAheadLog:
    """The log `consensus.log` in a directory. `append` and `rotate` return when the disk has it.

    Opening cuts a torn tail, the trace of a crash during an append, with a warning: that append
    never returned, so nothing of it has left. What is kept is written anew: a killed process or a
    failed sync may have left it in memory only, under a name that is not durable. Damage before the
    last frame is no crash's trace: StorageError (exit 65), because a node that forgot a vote may
    sign against it. The directory must be locked by the caller (one process, one log).

    Where an append that did return may be forgotten, `abstain`, the records that forbid to sign,
    are added by one atomic write: if records are `expected` and there are none, or if the last
    frame was written to its end and does not hold. `loss` then says which. Records are expected in
    any case once there have been some: a file beside the log, there before the first append
    returns, keeps that in mind, also of a chain at genesis.
    """

    def __init__(
        self,
        directory: Path,
        *,
        abstain: Sequence[bytes] = (),
        expected: bool = False,
        files: LogFiles | None = None,
    ) -> None:
        """`files` stands for the directory where that is not the real one."""
        self.path = directory / LOG_NAME
        self._broken = False
        self.loss = ""
        with self._reported("open"):
            self._files = DirectoryFiles(directory) if files is None else files
            data = self._files.read(LOG_NAME) if self._files.exists(LOG_NAME) else _MAGIC
            self._has_begun = self._files.exists(BEGUN_NAME)
        self._records, self._end = parse(self.path, data)
        cut = len(data) - self._end
        is_old = data.startswith(_MAGIC_1)
        if cut and (_is_torn_1 if is_old else is_torn)(data, self._end):
            _log.warning("%s: cut %d bytes of an append that a crash interrupted", LOG_NAME, cut)
        elif cut:
            _log.warning("%s: cut %d bytes that are no interrupted append", LOG_NAME, cut)
            self.loss = "has lost its last entry"
        if (expected or self._has_begun) and not self._records:
            self.loss = "is missing or empty"
        with self._reported("open"):
            if self.loss and abstain:
                self._records = (*self._records, *abstain)
                self._rewrite(self._records)
            elif is_old:
                self._rewrite(self._records)
            else:
                self._replace(data[len(_MAGIC) : self._end])
            if self._records:
                self._begin()
            self._file = self._files.open(LOG_NAME)

    def records(self) -> tuple[bytes, ...]:
        """What the log held when it was opened, in the order it was written."""
        return self._records

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._end

    def append(self, records: Iterable[bytes]) -> None:
        """Add records, all or none, and sync. StorageError if the disk refuses; the log is then
        unusable until reopened, since nobody knows what a failed sync has kept."""
        frame = framed(list(records), self._end)
        self._check_usable()
        with self._reported("write"):
            self._files.write(self._file, self._end, frame)
            self._files.sync(self._file)
            self._begin()
        self._end += len(frame)

    def rotate(self, records: Iterable[bytes]) -> None:
        """Replace the whole log by `records`, atomically: a crash leaves the old or the new."""
        self._check_usable()
        with self._reported("replace"):
            self._rewrite(list(records))
            self._files.close(self._file)
            self._file = self._files.open(LOG_NAME)

    def close(self) -> None:
        if not self._broken:
            self._broken = True
            self._files.close(self._file)

    def _check_usable(self) -> None:
        if self._broken:
            raise StorageError(f"{self.path}: closed, or a write failed before; start again")

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._broken = True
            raise StorageError(
                f"{self.path}: cannot {what} ({error.strerror}); free space or replace the disk, "
                "then start the node again"
            ) from None

    def _rewrite(self, records: Sequence[bytes]) -> None:
        frame = framed(list(records), len(_MAGIC))
        self._replace(frame)
        self._end = len(_MAGIC) + len(frame)

    def _replace(self, frames: bytes) -> None:
        file = self._files.create(_NEW_NAME)
        try:
            self._files.write(file, 0, _MAGIC + frames)
            self._files.sync(file)
        finally:
            self._files.close(file)
        self._files.rename(_NEW_NAME, LOG_NAME)
        self._files.sync_directory()

    def _begin(self) -> None:
        """Keep in mind that there were records. Only once they are on disk: a crash before leaves a
        new home, which has signed nothing that left."""
        if self._has_begun:
            return
        file = self._files.create(BEGUN_NAME)
        try:
            self._files.sync(file)
        finally:
            self._files.close(file)
        self._files.sync_directory()
        self._has_begun = True


def parse(path: Path, data: bytes) -> tuple[tuple[bytes, ...], int]:
    """(records, where the valid part ends) of a log's bytes. StorageError for damage that no crash
    leaves, VersionError for a newer format. `path` is what it is called."""
    if not data.startswith((_MAGIC, _MAGIC_1)):
        other = _ANY_MAGIC.match(data)
        if other is not None and int(other[1]) > VERSION:
            raise VersionError(path, "log", int(other[1]), VERSION)
        raise _damage(path, 0)
    is_old = data.startswith(_MAGIC_1)
    read_at, head_bytes = payload_at, HEAD_BYTES
    if is_old:
        read_at, head_bytes = _payload_at_1, _HEAD_BYTES_1
    records: list[bytes] = []
    at = len(_MAGIC)
    while at < len(data):
        payload = read_at(data, at)
        if payload is None:
            # Only the last frame can be torn: each was synced before the next was written.
            if (_any_frame_after_1 if is_old else any_after)(data, at):
                raise _damage(path, at)
            break
        found = split(payload)
        if found is None:
            raise _damage(path, at)
        records += found
        at += head_bytes + len(payload)
    return tuple(records), at


def _damage(path: Path, at: int) -> StorageError:
    return StorageError(
        f"{path} is damaged at byte {at}, before its last entry: no crash does that. "
        "It keeps this node from signing twice. Check the disk; then restore the file, or move "
        "it away: the node then signs nothing until its chain's next epoch, and keeps up"
    )


# --- version 1: the length of a frame is only as good as the payload that it leads to -------------


def _payload_at_1(data: bytes, at: int) -> bytes | None:
    if data[at : at + 4] != MARK or len(data) < at + _HEAD_BYTES_1:
        return None
    start = at + _HEAD_BYTES_1
    end = start + int.from_bytes(data[at + 4 : at + 8], "big")
    if end > len(data) or checksum(at, data[start:end]) != data[at + 8 : start]:
        return None
    return data[start:end]


def _any_frame_after_1(data: bytes, at: int) -> bool:
    while (at := data.find(MARK, at + 1)) >= 0:
        if _payload_at_1(data, at) is not None:
            return True
    return False


def _is_torn_1(data: bytes, at: int) -> bool:
    tail = data[at:]
    if tail[:4] != MARK[: len(tail)]:
        return False
    size, payload = int.from_bytes(tail[4:8], "big"), tail[_HEAD_BYTES_1:]
    if len(tail) < _HEAD_BYTES_1:
        return len(tail) < 8 or size <= MAX_FRAME_BYTES
    whole = checksum(at, payload) == tail[8:_HEAD_BYTES_1]
    return len(payload) < size <= MAX_FRAME_BYTES and not whole
