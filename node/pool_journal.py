"""The transactions that this node has acknowledged, on disk (docs/spec/storage.md, "The journal").

A client that was told that its transaction waits may go away: what it handed in survives this
process, and so does why it was dropped. Nothing here is consensus and nothing is signed, so unlike
the write-ahead log a damaged journal is no reason to stop: what holds of it is used.

File: the 13 bytes `BLYAN-POOL-1\\n`, then frames (`node.log_frames`). Record: `T`, height (8 bytes
big-endian), transaction; or `R`, transaction id (32 bytes), UTF-8 `code: reason`. Of one id the
later counts. Whatever else there is, is left out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from collections import OrderedDict
from pathlib import Path

from chain.errors import QuotaError, StorageError, VersionError
from chain.hashes import TX
from chain.types import TxId, u64_be
from node.log_frames import all_records, framed
from node.wal_files import DirectoryFiles, LogFiles

log = logging.getLogger("blyan.pool")
NAME = "mempool.log"
_NEW_NAME, _BAD_NAME = NAME + ".new", NAME + ".damaged"
VERSION = 1
_MAGIC = b"BLYAN-POOL-%d\n" % VERSION
_ANY_MAGIC = re.compile(rb"BLYAN-POOL-([1-9][0-9]{0,5})\n")
_TX, _REFUSED = b"T", b"R"
SLACK_BYTES = 4 * 1024 * 1024  # of what no longer counts, before the file is written anew
MAX_REFUSED = 4096  # reasons that are kept: what the mempool remembers
_FULL = (errno.ENOSPC, errno.EDQUOT)


class PoolJournal:
    """The journal in a directory that is this process's. Opening fails only for a file of a newer
    program (VersionError), which may say what this one would lose; `flush` raises StorageError
    while the disk takes nothing, and tries again each time."""

    def __init__(self, directory: Path, *, files: LogFiles | None = None) -> None:
        """`files` stands for the directory where that is not the real one."""
        self.path = directory / NAME
        self._files = DirectoryFiles(directory) if files is None else files
        self._live: dict[TxId, bytes] = {}  # records of what waits, the oldest first
        self._refused: OrderedDict[TxId, bytes] = OrderedDict()
        self._bytes = 0  # of these
        self._new: list[bytes] = []  # records that are not on disk yet
        self._file: int | None = None  # None: the next flush writes the file anew
        self._end = 0
        self._writing: asyncio.Task[None] | None = None
        self.syncs = self.lost_bytes = 0
        self._load()

    # --- what is there ----------------------------------------------------------------------

    def txs(self) -> list[tuple[int, bytes]]:
        """(height at which it came, transaction), the oldest first."""
        return [(int.from_bytes(r[1:9], "big"), r[9:]) for r in self._live.values()]

    def refused(self) -> list[tuple[TxId, str]]:
        return [(tx_id, r[33:].decode(errors="replace")) for tx_id, r in self._refused.items()]

    def _load(self) -> None:
        try:
            data = self._files.read(NAME) if self._files.exists(NAME) else b""
        except OSError as error:
            log.error("%s cannot be read (%s): starting without it", self.path, error.strerror)
            return
        other = _ANY_MAGIC.match(data)
        if other is not None and int(other[1]) > VERSION:
            raise VersionError(self.path, "journal", int(other[1]), VERSION)
        start = len(_MAGIC) if data.startswith(_MAGIC) else 0
        records, self.lost_bytes, torn = all_records(data, start)
        for record in records:
            if record[:1] == _TX and len(record) > 9:
                self._put(TxId(TX.hash(record[9:])), record)
            elif record[:1] == _REFUSED and len(record) >= 33:
                self._put(TxId(record[1:33]), record)
        if torn:
            log.info("%s: cut %d bytes of an append that a crash interrupted", NAME, torn)
        if self.lost_bytes:
            log.warning(
                "%s: %d bytes that are no whole entry are left out, %d transactions were read",
                *(NAME, self.lost_bytes, len(self._live)),
            )
            self._put_aside()

    def _put_aside(self) -> None:
        """Keep a copy of a file with bad bytes for whoever looks into it; the next flush replaces
        the file itself."""
        try:
            self._write_whole(_BAD_NAME, self._files.read(NAME))
        except OSError as error:
            log.warning("no copy of the damaged %s was made: %s", NAME, error.strerror)

    # --- what comes -------------------------------------------------------------------------

    def add(self, tx_id: TxId, height: int, raw: bytes) -> None:
        """A transaction waits; on disk after the next flush."""
        self._say(tx_id, _TX + u64_be(height) + raw)

    def refuse(self, tx_id: TxId, reason: str) -> None:
        """It was dropped for this reason (`code: text`)."""
        self._say(tx_id, _REFUSED + tx_id + reason.encode())

    def forget(self, tx_id: TxId) -> None:
        """It is final: the chain knows, so nothing is written."""
        self._take(tx_id)

    def _say(self, tx_id: TxId, record: bytes) -> None:
        self._put(tx_id, record)
        self._new.append(record)

    def _put(self, tx_id: TxId, record: bytes) -> None:
        self._take(tx_id)
        self._bytes += len(record)
        if record[:1] == _TX:
            self._live[tx_id] = record
            return
        self._refused[tx_id] = record
        while len(self._refused) > MAX_REFUSED:
            self._bytes -= len(self._refused.popitem(last=False)[1])

    def _take(self, tx_id: TxId) -> None:
        for records in (self._live, self._refused):
            record = records.pop(tx_id, None)
            self._bytes -= 0 if record is None else len(record)

    # --- onto the disk ----------------------------------------------------------------------

    async def flush(self) -> None:
        """Return when all that was said before is on disk: one sync for all who wait meanwhile.
        QuotaError if the disk is full, StorageError if it fails otherwise."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
        if self._new:
            if self._writing is None:
                self._writing = asyncio.get_running_loop().create_task(self._write())
                self._writing.add_done_callback(_look)  # also if nobody waits any more
            await asyncio.shield(self._writing)

    async def _write(self) -> None:
        records, self._new = self._new, []
        try:
            await asyncio.to_thread(self._write_now, *self._job(records))
        except OSError as error:
            self._new = records + self._new  # whoever waits for them is refused; they are tried
            self._close()  # again with all else: nobody knows what is on disk
            reason = f"{self.path}: cannot be written ({error.strerror})"
            text = f"{reason}; free space or replace the disk, and send it again"
            raise (QuotaError if error.errno in _FULL else StorageError)(text) from None
        finally:
            self._writing = None

    def _job(self, records: list[bytes]) -> tuple[bool, list[bytes]]:
        """(whether the file is written anew, what is written)."""
        if self._file is None or self._end > 2 * self._bytes + SLACK_BYTES:
            return True, [*self._refused.values(), *self._live.values()]
        return False, records

    def _write_now(self, anew: bool, records: list[bytes]) -> None:
        """In a thread of its own; one at a time."""
        if anew:
            frame = framed(records, len(_MAGIC))
            self._close()
            self._write_whole(NAME, _MAGIC + frame)
            self._file = self._files.open(NAME)
            self._end = len(_MAGIC) + len(frame)
        elif self._file is not None:
            frame = framed(records, self._end)
            self._files.write(self._file, self._end, frame)
            self._files.sync(self._file)
            self._end += len(frame)
        self.syncs += 1

    def _write_whole(self, name: str, data: bytes) -> None:
        file = self._files.create(_NEW_NAME)
        try:
            self._files.write(file, 0, data)
            self._files.sync(file)
        finally:
            self._files.close(file)
        self._files.rename(_NEW_NAME, name)
        self._files.sync_directory()

    async def close(self) -> None:
        """Write what was said and not waited for, if the disk takes it."""
        try:
            await self.flush()
        except StorageError as error:
            log.warning("%s", error)
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._files.close(self._file)
            self._file = None


def _look(task: asyncio.Task[None]) -> None:
    """Take note of how it ended: those who wait are told, and nobody else has to be."""
    if not task.cancelled():
        task.exception()
