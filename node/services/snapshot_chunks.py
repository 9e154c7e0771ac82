"""The chunks of one snapshot, from many peers at once, on disk by their hashes.

Each is verified alone: one that does not hold is its sender's, who is not asked again, and is asked
of another. What was fetched before a restart, or for an earlier snapshot, is not fetched again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chain.codec import encode
from chain.errors import DecodeError, QuotaError, StorageError, UnreachableError, VerifyError
from chain.snapshot import (
    MESSAGE_BYTES,
    Leaf,
    Place,
    SnapshotManifest,
    SnapshotPart,
    WrongSize,
    check_chunk,
    places,
    read_chunk,
)
from node.services.peer_rates import PeerRates
from node.services.peers import Peers
from node.services.snapshot_wire import PROTOCOL, ChunkRequest
from node.services.threads import to_the_end

log = logging.getLogger("blyan.sync")
ANSWER_S = 10.0  # for the first byte, and
LEAST_RATE = 64 * 1024  # bytes a second from then on: slower is as good as not at all
FAILURES = 3  # in a row, after which a peer is left alone
HEDGE_S = 1.0  # a chunk that is waited for so long, with nothing else to do, is asked of another
POINTS_LIE = 50.0


class ChunkFiles:
    """Verified chunks in a directory, by hash; for any thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self, manifest: SnapshotManifest, *, drop: bool) -> None:
        """Make the directory, and `drop` what this snapshot has not."""
        wanted = {part.hash.hex() for part in manifest.parts}
        with _reported("prepare"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._directory.iterdir():
                if drop and path.name not in wanted:
                    path.unlink()

    def put(self, part: SnapshotPart, data: bytes) -> None:
        path = self._directory / part.hash.hex()
        new = path.with_suffix(".new")
        with _reported("keep a chunk"):
            new.write_bytes(data)
            new.replace(path)

    def read(self, part: SnapshotPart, place: Place) -> tuple[Leaf, ...] | None:
        """The leaves of a part, None if it is not here or not what it was."""
        path = self._directory / part.hash.hex()
        try:
            return check_chunk(part, place, path.read_bytes())
        except FileNotFoundError:
            return None
        except WrongSize:
            raise
        except (DecodeError, VerifyError):
            path.unlink()  # torn by a crash
            return None

    def again(self, part: SnapshotPart) -> tuple[Leaf, ...]:
        """The leaves of a part that was here, not verified again."""
        with _reported("read a chunk"):
            return read_chunk((self._directory / part.hash.hex()).read_bytes())


@contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QuotaError(
                f"the disk is full: cannot {what} of the snapshot; free some room, and it goes on "
                "where it was"
            ) from None
        raise StorageError(f"cannot {what} of the snapshot: {error.strerror}") from None


class ChunkFetch:
    """One fetch. `done` of `total` chunks are here."""

    def __init__(
        self, net: Peers, rates: PeerRates, files: ChunkFiles, manifest: SnapshotManifest
    ) -> None:
        """VerifyError if the manifest does not hold."""
        self._net, self._rates, self._files = net, rates, files
        self._height = manifest.header.height
        found = zip(manifest.parts, places(manifest), strict=True)
        self._parts = [(part, place) for part, place in found if part.size]
        self._missing: set[int] = set(range(len(self._parts)))
        self._asked: dict[int, dict[str, float]] = {}  # since when each is asked of whom
        self._refused: dict[int, set[str]] = {}
        self._changed = asyncio.Event()
        self._busy: set[str] = set()
        self.total = len(self._parts)
        self.lies = 0

    @property
    def done(self) -> int:
        return self.total - len(self._missing)

    async def run(self, peers: Sequence[str]) -> None:
        """Until all is here. UnreachableError if these peers do not have it, WrongSize if the
        manifest lies, QuotaError if the disk is full."""
        await to_the_end(asyncio.to_thread(self._resume))
        if not self._missing:
            return
        now = time.monotonic()
        asked = [p for p in peers if self._rates[p].banned_until <= now]
        self._busy = set(asked)
        tasks = [asyncio.create_task(self._from(peer)) for peer in asked]
        for task in tasks:
            task.add_done_callback(lambda _: self._changed.set())
        try:
            while self._missing:
                for task in tasks:
                    if task.done():
                        task.result()  # what ends the whole fetch
                self._check_hope()
                self._changed.clear()
                await self._changed.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def forgive(self) -> None:
        """Ask those again who had not what they were asked for."""
        self._refused.clear()

    def _resume(self) -> None:
        for index, (part, place) in enumerate(self._parts):
            if self._files.read(part, place) is not None:
                self._missing.discard(index)

    def _check_hope(self) -> None:
        if self._busy and not self._refused:
            return
        for index in self._missing:
            if not self._busy - self._refused.get(index, set()):
                part = self._parts[index][0]
                raise UnreachableError(f"no peer has the part {part.hash.hex()} of the snapshot")

    def _next(self, peer: str) -> int | None:
        """What to ask a peer for: what nobody is asked for, else what another is slow with."""
        now, slow = time.monotonic(), []
        for index in sorted(self._missing):
            if peer in self._refused.get(index, ()):
                continue
            asked = self._asked.get(index, {})
            if not asked:
                return index
            if peer not in asked and len(asked) == 1:
                since = next(iter(asked.values()))
                if now - since >= HEDGE_S:
                    slow.append((since, index))
        return min(slow)[1] if slow else None

    async def _from(self, peer: str) -> None:
        failures = 0
        try:
            while self._missing and failures < FAILURES:
                index = self._next(peer)
                if index is None:
                    await asyncio.sleep(HEDGE_S / 4)
                    continue
                self._asked.setdefault(index, {})[peer] = time.monotonic()
                try:
                    good = await self._one(peer, index)
                finally:
                    self._asked[index].pop(peer, None)
                if good is None:
                    return
                failures = 0 if good else failures + 1
                if not good:
                    self._refused.setdefault(index, set()).add(peer)
                self._changed.set()
        finally:
            self._busy.discard(peer)

    async def _one(self, peer: str, index: int) -> bool | None:
        """Whether a chunk came. None: its sender lies."""
        part, place = self._parts[index]
        rate = self._rates[peer]
        rate.began(time.monotonic(), part.size)
        left = part.size
        try:
            data = await self._net.request(
                peer,
                PROTOCOL,
                encode(ChunkRequest(self._height, part.hash)),
                timeout_s=ANSWER_S + part.size / LEAST_RATE,
                most=MESSAGE_BYTES,
            )
            rate.arrived(time.monotonic(), part.size)
            left = 0
            if index in self._missing:
                await to_the_end(asyncio.to_thread(check_chunk, part, place, data))
                await to_the_end(asyncio.to_thread(self._files.put, part, data))
                self._missing.discard(index)
        except UnreachableError as error:
            log.debug("%s gives no chunk: %s", peer, error)
            rate.failed(time.monotonic())
            return False
        except WrongSize:
            raise
        except (VerifyError, DecodeError) as error:
            self.lies += 1
            rate.lied(time.monotonic())
            log.warning("%s sent a chunk that does not hold: %s", peer, error)
            self._net.report(peer, f"snapshot: {error}", POINTS_LIE)
            return None
        finally:
            rate.ended(time.monotonic(), left)
        rate.gave()
        return True

    def leaves(self) -> Iterator[tuple[Leaf, ...]]:
        """All leaves in the order of their paths, as they are on the disk: whoever builds the tree
        of them compares its root."""
        for part, _ in self._parts:
            yield self._files.again(part)
