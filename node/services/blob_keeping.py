"""Which blobs a node keeps, and which make room for others (docs/spec/storage.md, "Blobs").

    kept     payloads of deltas of the newest rounds; manifests and chunks of datasets on the chain
             that are not rejected; what this node's owner handed in of late (BlobService.GRACE_S)
    dropped  the rest, when a round has begun; and if there is no room payloads, too, those of the
             oldest rounds first, but not of the round in progress

What is kept follows from the chain and the disk alone, so nothing here has to survive a restart.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from chain import datasets
from chain import records as r
from chain.errors import BlyanError
from chain.hashes import Hash32
from chain.state import State
from chain.types import BlobId
from corpus.dataset import MAX_MANIFEST_BYTES
from node.data import manifest_of
from node.services import blobs as store
from node.services.blobs import BlobService

log = logging.getLogger("blyan.blobs")
BEHIND_S = 3600.0  # a node so far behind drops nothing: it has not yet seen what names its blobs
HASH_BYTES = 32
FREED_AT_ONCE = 16  # a sixteenth of the store, so that not each blob has all the others looked at


class ChainPort(Protocol):
    def state(self) -> State: ...

    def finalized(self, callback: Callable[..., None]) -> object: ...


class BlobKeeping:
    """Drops what no one needs. `run` until cancelled. `clock` gives the Unix time in seconds."""

    def __init__(
        self,
        blobs: BlobService,
        chain: ChainPort,
        retention_rounds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._blobs, self._chain, self._clock = blobs, chain, clock
        self._rounds = max(1, retention_rounds)  # what the last round made is still to be written
        self._payloads: dict[int, frozenset[BlobId]] = {}  # of rounds that are over
        self._chunks: dict[Hash32, frozenset[BlobId]] = {}  # of datasets whose manifest was here
        self._looking = threading.Lock()
        self._full: tuple[int, int] | None = None  # round and phase in which nothing more could go
        self._wake = asyncio.Event()
        self._done = -1  # the round in which everything was looked at
        self._lists = blobs.directory / "chunks"  # what a manifest that was here has named
        self._lists.mkdir(exist_ok=True)
        self.dropped = 0
        blobs.make_room = self.make_room
        chain.finalized(self._committed)

    def _committed(self, *_: object) -> None:
        if self._chain.state().head.round != self._done:
            self._wake.set()

    async def run(self) -> None:
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._done = self._chain.state().head.round
            try:
                await asyncio.to_thread(self.tidy)
            except (BlyanError, OSError) as error:
                log.warning("blobs stay as they are for now: %s", error)

    def tidy(self) -> int:
        """Drop what is not kept; how many. For a thread."""
        with self._looking:
            before, held = self.dropped, self._blobs.held()  # before the state: what comes is kept
            state = self._chain.state()
            if self._is_behind(state):
                return 0
            needed, rounds = self.kept(state)
            needed = needed.union(*rounds.values())
            self._drop((name for name in held if name not in needed), None)
        if self.dropped > before:
            log.info("dropped %d blobs that nothing names any more", self.dropped - before)
        return self.dropped - before

    def make_room(self, size: int) -> None:
        """Drop so many bytes at least, if there are; in any thread."""
        with self._looking:
            state = self._chain.state()
            now = state.head.round, int(state.round().phase)
            if self._full == now or self._is_behind(state):
                return
            held = self._blobs.held()
            needed, rounds = self.kept(state)
            current = rounds.pop(state.head.round)
            least = max(size, store.MAX_STORE_BYTES // FREED_AT_ONCE)
            paid = needed.union(current, *rounds.values())
            free = self._drop((name for name in held if name not in paid), None)
            for number in sorted(rounds):
                paid = needed.union(current, *(rounds[n] for n in rounds if n > number))
                old = [name for name in rounds[number] - paid if name in held]
                free += self._drop(old, least - free)
            if free < size:
                self._full = now
            log.warning("the blob store is full: %d bytes were freed", free)

    def _is_behind(self, state: State) -> bool:
        return self._clock() > state.head.time_ms / 1000 + BEHIND_S

    def kept(self, state: State) -> tuple[frozenset[BlobId], dict[int, frozenset[BlobId]]]:
        """Blobs of datasets, and payloads by round, that the chain names. For a thread."""
        current = state.head.round
        rounds = {}
        for number in range(max(0, current - self._rounds), current + 1):
            rounds[number] = self._payloads.get(number) or _payloads(state, number)
        self._payloads = {n: names for n, names in rounds.items() if n < current}
        needed: set[BlobId] = set()
        chunks = {}
        for record in datasets.all_datasets(state):
            if record.status != r.DatasetStatus.REJECTED:
                needed.add(record.manifest)
                found = self._chunks.get(record.id)
                if found is None:
                    found = self._chunks_of(record)
                if found is not None:
                    chunks[record.id] = found
                    needed |= found
        if chunks.keys() != self._chunks.keys():
            self._forget_lists(chunks)
        self._chunks = chunks
        return frozenset(needed), rounds

    def _chunks_of(self, record: r.DatasetRecord) -> frozenset[BlobId] | None:
        """None while the manifest is not here and never was: then no chunk was fetched either."""
        listed = self._lists / record.id.hex()
        raw = None
        if 0 < self._blobs.size(record.manifest) <= MAX_MANIFEST_BYTES:
            raw = self._blobs.local(record.manifest)
        if raw is None:  # it may have rotted: its chunks are as good as they were
            return _read_list(listed)
        try:
            found = frozenset(manifest_of(record, raw).chunks)
        except BlyanError as error:
            log.debug("dataset %s has no chunks to keep: %s", record.id.hex(), error)
            return frozenset()
        _write_list(listed, found)
        return found

    def _forget_lists(self, kept: Iterable[Hash32]) -> None:
        names = {dataset.hex() for dataset in kept}
        for path in self._lists.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _drop(self, names: Iterable[BlobId], least: int | None) -> int:
        """Drop these until `least` bytes are free, or all; the bytes that are."""
        free = 0
        for name in names:
            if least is not None and free >= least:
                break
            size = self._blobs.drop(name)
            free += size
            self.dropped += size > 0
        return free


def _read_list(path: Path) -> frozenset[BlobId] | None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    cuts = range(0, len(raw) - len(raw) % HASH_BYTES, HASH_BYTES)
    return frozenset(BlobId(Hash32(raw[at : at + HASH_BYTES])) for at in cuts)


def _write_list(path: Path, names: frozenset[BlobId]) -> None:
    """All of it or nothing."""
    part = path.with_suffix(".part")
    part.write_bytes(b"".join(sorted(names)))
    part.replace(path)


def _payloads(state: State, number: int) -> frozenset[BlobId]:
    return frozenset(state.delta(delta).blob for delta in state.round(number).deltas)
