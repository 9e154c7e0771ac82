"""Payloads of a round's revealed deltas, out of memory: 64 of them may have 4 GiB.

Each is decrypted once into a file without a name in the home, however many duties want it, and
read from there section by section. The file is this process's alone and goes with its last reader,
so a kill leaves nothing, and what is known here has been written whole.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from chain import limits
from chain.errors import StorageError, VerifyError
from chain.records import DeltaRecord
from chain.types import BlobId, TxId
from node.sealed import unseal
from tiles.layout import ShardSpec
from tiles.stored import StoredPayload

log = logging.getLogger("blyan.duties")
AT_ONCE = 2  # blobs in memory, one of them being decrypted: at most 64 MiB each, three times
ROUNDS = 2  # whose files are kept: the one in hand, and one that a version is still written of
_PREFIX = ".part-"  # of a file's name, which it has for a moment


class PayloadBlobs(Protocol):
    def local(self, blob_id: BlobId) -> bytes | None: ...

    async def get(self, blob_id: BlobId, most: int = ...) -> bytes: ...


class RoundPayloads:
    """Decrypted payloads by delta. `get` within one event loop, `local` in threads beside it."""

    def __init__(self, directory: Path, specs: Sequence[ShardSpec], blobs: PayloadBlobs) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in directory.glob(f"{_PREFIX}*"):  # killed in that moment
            left.unlink(missing_ok=True)
        self._directory, self._specs, self._blobs = directory, specs, blobs
        self._lock = threading.Lock()  # one is decrypted at a time; who waits finds it done
        self._rounds: dict[int, _Round] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._opening: dict[TxId, asyncio.Task[StoredPayload]] = {}

    async def get(self, record: DeltaRecord, most: int = limits.MAX_BLOB_BYTES) -> StoredPayload:
        """The payload of a revealed delta, from a blob that is here or a peer's, of which no more
        than `most` bytes are fetched.

        UnreachableError if nobody has the blob, VerifyError if it does not open with the salt or is
        not the payload that the manifest names, DecodeError if it is no delta of the model,
        StorageError if the disk refuses. All can be tried again: what failed is not kept.
        """
        known = self._known(record)
        if known is not None:
            return known
        task = self._opening.get(record.id)
        if task is None:
            task = asyncio.create_task(self._fetch(record, most))
            self._opening[record.id] = task
            task.add_done_callback(partial(self._fetched, record.id))
        return await asyncio.shield(task)

    def local(self, record: DeltaRecord) -> StoredPayload | None:
        """The same from a blob that is here, else None; for a thread."""
        known = self._known(record)
        if known is not None:
            return known
        blob = self._blobs.local(record.blob)
        return None if blob is None else self._open(record, blob)

    def forget_before(self, round_: int) -> None:
        """Drop the files of rounds before this one. Who still reads one keeps it until then."""
        for number in [n for n in list(self._rounds) if n < round_]:
            self._rounds.pop(number, None)

    async def close(self) -> None:
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        self._rounds.clear()

    def _known(self, record: DeltaRecord) -> StoredPayload | None:
        held = self._rounds.get(record.round)
        found = None if held is None else held.payloads.get(record.id)
        return None if found is None or found.is_damaged else found

    async def _fetch(self, record: DeltaRecord, most: int) -> StoredPayload:
        async with self._room:
            blob = await self._blobs.get(record.blob, most=most)
            return await asyncio.to_thread(self._open, record, blob)

    def _fetched(self, delta: TxId, task: asyncio.Task[StoredPayload]) -> None:
        self._opening.pop(delta, None)
        if not task.cancelled():
            task.exception()  # whoever still waits raises it; perhaps nobody does

    def _open(self, record: DeltaRecord, blob: bytes) -> StoredPayload:
        with self._lock:
            known = self._known(record)
            if known is not None:
                return known
            payload = unseal(blob, record.salt)
            held = self._round(record.round)
            stored = StoredPayload(payload, self._specs, partial(held.file.read, held.file.size))
            manifest = record.manifest
            if manifest is None or stored.root != manifest.payload_root:
                raise VerifyError(
                    f"the payload of delta {record.id.hex()[:16]} is not the one that its manifest "
                    "names"
                )
            held.file.append(payload)
            held.payloads[record.id] = stored
            return stored

    def _round(self, number: int) -> _Round:
        """A round's file; those of the earliest others go."""
        held = self._rounds.get(number)
        if held is None:
            for other in sorted(self._rounds)[: max(len(self._rounds) - ROUNDS + 1, 0)]:
                self._rounds.pop(other, None)
            held = self._rounds[number] = _Round(_NamelessFile(self._directory))
        return held


class _Round:
    """What is decrypted of one round: one file, so that 64 payloads take one descriptor."""

    def __init__(self, file: _NamelessFile) -> None:
        self.file = file
        self.payloads: dict[TxId, StoredPayload] = {}


class _NamelessFile:
    """Private, appended to, read anywhere; its space is free once nobody holds it."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.size = directory, 0
        try:
            self._fd, name = tempfile.mkstemp(dir=directory, prefix=_PREFIX)
            os.unlink(name)
        except OSError as error:
            raise StorageError(f"no file can be made in {directory}: {error.strerror}") from None
        weakref.finalize(self, os.close, self._fd)

    def append(self, data: bytes) -> None:
        """All of it, or StorageError and nothing."""
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._fd, memoryview(data)[written:], self.size + written)
        except OSError as error:
            with suppress(OSError):  # its space would be used by the next, anyway
                os.ftruncate(self._fd, self.size)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(
                    f"the disk is full: {len(data)} bytes of a payload do "
                    f"not fit into {self._directory}; free some space"
                ) from None
            raise StorageError(
                f"a payload cannot be written in {self._directory}: {error.strerror}"
            ) from None
        self.size += len(data)

    def read(self, start: int, offset: int, count: int) -> bytes:
        """Fewer bytes where the file ends before."""
        try:
            return os.pread(self._fd, count, start + offset)
        except OSError as error:
            raise StorageError(
                f"a payload in {self._directory} cannot be read: {error.strerror}"
            ) from None
