"""Content-addressed bytes between nodes: delta payloads, dataset chunks, learners' checkpoints.

A blob is named by BLOB.hash of its bytes, so whoever fetches it can tell a liar from a friend.
A checkpoint is named by the state hash that its manifest claims; its reader recomputes it. What is
kept, and for how long, is for node/services/blob_keeping.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from chain import limits
from chain.errors import StorageError, UnreachableError, VerifyError
from chain.hashes import BLOB, Hash32
from chain.types import BlobId
from node.net.priority import Priority
from node.services.peer_rates import PeerRates
from node.services.peers import Peers
from node.services.threads import Workers

log = logging.getLogger("blyan.blobs")
PROTOCOL = "/blyan/blob/1"
_TOO_SLOW = "too slow"
_BLOB, _CHECKPOINT = b"\x00", b"\x01"
ANSWER_S = 600.0  # the longest that one blob may take: 64 MiB at 112 kB/s
SILENCE_S = 20.0  # a peer that sends nothing for so long is given up
SLOW_AFTER_S = 2.0  # a peer shows its speed by then
SLOW_RATE = 64 * 1024  # bytes a second below which another peer is tried first
_TICK_S = 0.25
READING = 2  # answers at a time that are read and hashed: each may have 64 MiB
MAX_STORE_BYTES = 8 * 1024**3  # what a node keeps of others' blobs
GRACE_S = 24 * 3600.0  # what was handed in here stays for so long, named by the chain or not


class _TooMuch(UnreachableError):
    """A peer answers with more than was asked for. What a blob should have is said by somebody
    else, on the chain or in a manifest, so that is nobody's proven lie."""


class BlobService:
    """Blobs on disk under `directory`, served to peers and fetched from them.

    `clock` gives the Unix time in seconds.
    """

    def __init__(self, directory: Path, net: Peers, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._net = net
        self._clock = clock
        self._fetching: dict[bytes, tuple[int, asyncio.Task[bytes]]] = {}  # name: most, fetch
        self._rates = PeerRates()
        self._reading = Workers(READING)
        self._lock = threading.RLock()  # of the next two: several threads write
        self._used = 0
        self._handed_in: dict[BlobId, float] = {}  # blobs, and until when they stay anyway
        # Called in any thread, with no lock held, when so many bytes would have to go first.
        self.make_room: Callable[[int], object] = lambda size: None
        self.fetched = self.lies = 0
        for kind in ("blob", "checkpoint"):
            (directory / kind).mkdir(parents=True, exist_ok=True)
        self._look_around()
        net.serve(PROTOCOL, self._serve, most=33, concurrent=8, priority=Priority.BULK)

    # --- local ---------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        return self._directory

    def put(self, data: bytes) -> BlobId:
        """Host what this node's owner hands in: it stays for GRACE_S, and then as long as the chain
        names it. The same bytes twice are one blob."""
        blob_id = self._checked(data)
        with self._lock:
            self._handed_in[blob_id] = self._clock() + GRACE_S
        path = self._path("blob", blob_id)
        if not self._write(path, data):
            with suppress(FileNotFoundError):
                os.utime(path, (self._clock(),) * 2)  # what a restart reads the grace from
        return blob_id

    def keep(self, data: bytes) -> BlobId:
        """Store what was fetched because the chain names it, and host it as long as it does."""
        blob_id = self._checked(data)
        self._write(self._path("blob", blob_id), data)
        return blob_id

    def put_checkpoint(self, state_hash: Hash32, data: bytes) -> None:
        """Store a learner's state under the hash that its manifest claims; readers verify it."""
        if len(data) > limits.MAX_BLOB_BYTES:
            raise StorageError(f"a checkpoint of {len(data)} bytes is over the limit")
        self._write(self._path("checkpoint", state_hash), data)

    def drop_checkpoints(self, before_s: float) -> int:
        """Remove checkpoints written before a time (Unix, seconds): their rounds have settled."""
        dropped = 0
        for path in (self._directory / "checkpoint").iterdir():
            size = path.stat()
            if size.st_mtime < before_s:
                self._remove(path)
                dropped += 1
        return dropped

    def held(self) -> dict[BlobId, int]:
        """The blobs that are here, and their bytes. For a thread: there may be many."""
        found = {}
        with os.scandir(self._directory / "blob") as entries:
            for entry in entries:
                with suppress(FileNotFoundError, ValueError):  # just dropped, or none of ours
                    found[BlobId(Hash32(bytes.fromhex(entry.name)))] = entry.stat().st_size
        return found

    def drop(self, blob_id: BlobId) -> int:
        """Remove a blob, unless it was handed in of late: the bytes that are free then."""
        with self._lock:
            until = self._handed_in.get(blob_id)
            if until is not None and until > self._clock():
                return 0
            self._handed_in.pop(blob_id, None)
            return self._remove(self._path("blob", blob_id))

    def has(self, blob_id: BlobId) -> bool:
        return self._path("blob", blob_id).exists()

    def size(self, blob_id: BlobId) -> int:
        """Bytes of the blob as it lies here, 0 if it does not."""
        try:
            return self._path("blob", blob_id).stat().st_size
        except OSError:
            return 0

    def local(self, blob_id: BlobId) -> bytes | None:
        """The blob if it is here and intact; a damaged one is removed so that it is refetched."""
        path = self._path("blob", blob_id)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:  # a bad disk ends no service: others have the blob
            log.warning("blob %s cannot be read: %s", blob_id.hex(), error)
            return None
        if BlobId(BLOB.hash(data)) != blob_id:
            log.warning("blob %s is damaged on disk; it will be fetched again", blob_id.hex())
            self._remove(path)
            return None
        return data

    def local_checkpoint(self, state_hash: Hash32) -> bytes | None:
        try:
            return self._path("checkpoint", state_hash).read_bytes()
        except FileNotFoundError:
            return None

    # --- from anywhere ----------------------------------------------------------------

    async def get(
        self, blob_id: BlobId, most: int = limits.MAX_BLOB_BYTES, *, keep: bool = True
    ) -> bytes:
        """The blob of at most `most` bytes from here or from a peer, verified; stored if `keep` and
        there is room. UnreachableError if nobody has it, VerifyError if it is here and longer."""
        held = await asyncio.to_thread(self.local, blob_id)
        if held is not None:
            if len(held) > most:
                raise VerifyError(
                    f"blob {blob_id.hex()} has {len(held)} bytes, expected at most {most}"
                )
            return held

        def check(data: bytes) -> bool:
            return BlobId(BLOB.hash(data)) == blob_id

        data = await self._once(_BLOB + blob_id, most, check)
        if keep:
            await self.host(data)
        return data

    async def host(self, data: bytes) -> None:
        """`keep` if there is room: whoever has just fetched it needs it all the same."""
        try:
            await asyncio.to_thread(self.keep, data)
        except StorageError as error:
            log.warning("a blob of %d bytes is passed on and not kept: %s", len(data), error)

    async def get_checkpoint(
        self,
        state_hash: Hash32,
        most: int = limits.MAX_BLOB_BYTES,
        check: Callable[[bytes], bool] = lambda data: bool(data),
    ) -> bytes:
        """A learner's state. `check` recomputes its hash; a peer that fails it is reported."""
        held = await asyncio.to_thread(self.local_checkpoint, state_hash)
        if held is not None and await asyncio.to_thread(check, held):
            return held
        return await self._fetch(_CHECKPOINT + state_hash, most, check)  # each with its own check

    async def _once(self, request: bytes, most: int, check: Callable[[bytes], bool]) -> bytes:
        """Concurrent askers of one blob share one fetch, if it takes as much as they do: else one
        who expects little would have all the others fail."""
        taken, task = self._fetching.get(request, (0, None))
        if task is None or taken < most:
            task = asyncio.create_task(self._fetch(request, most, check))
            self._fetching[request] = (most, task)
            task.add_done_callback(lambda done: self._fetched(request, done))
        data = await asyncio.shield(task)
        if len(data) > most:
            raise UnreachableError(
                f"{request[1:].hex()} has {len(data)} bytes, expected at most {most}"
            )
        return data

    def _fetched(self, request: bytes, task: asyncio.Task[bytes]) -> None:
        if self._fetching.get(request, (0, None))[1] is task:
            del self._fetching[request]
        if not task.cancelled():
            task.exception()  # whoever still waits raises it; perhaps nobody does

    async def _fetch(self, request: bytes, most: int, check: Callable[[bytes], bool]) -> bytes:
        """From the fastest peer that has it; those that are too slow once more, at the end.

        There is room for any answer, and `most` only ends a transfer: the network punishes who
        answers with more than there is room for, and here that may be an honest host.
        """
        order = self.ranked()
        reasons: dict[str, str] = {}
        # A mapping, because a bytearray is filled with zeros: the answer is seldom as large as
        # it may be, and here the system gives memory only for what is written.
        room = memoryview(mmap.mmap(-1, limits.MAX_BLOB_BYTES))
        slow = []
        for peer in order:
            hurried = peer != order[-1]
            data = await self.ask(peer, request, room, check, reasons, hurried=hurried, most=most)
            if data is not None:
                self.fetched += 1
                return data
            if reasons[peer] == _TOO_SLOW:
                slow.append(peer)
        for peer in slow:
            data = await self.ask(peer, request, room, check, reasons, hurried=False, most=most)
            if data is not None:
                self.fetched += 1
                return data
        why = "; ".join(f"{peer}: {reason}" for peer, reason in list(reasons.items())[:8])
        raise UnreachableError(
            f"none of {len(order)} connected peers has {request[1:].hex()}"
            f"{f' ({why})' if why else ''}; try again later"
        )

    def ranked(self, *, banned: bool = True) -> list[str]:
        """Connected peers, who is asked first first; without those banned if so told."""
        now = asyncio.get_running_loop().time()
        peers = [p.peer_id for p in self._net.peers() if p.connected]
        if not banned:
            peers = [p for p in peers if self._rates[p].banned_until <= now]
        return sorted(peers, key=lambda p: self._rank(p, now))

    def _rank(self, peer: str, now: float) -> tuple[bool, bool, float]:
        """Smaller is asked earlier: neither a liar, nor one that failed just now, and fast."""
        rate = self._rates[peer]
        return rate.banned_until > now, rate.paused_until > now, -self._rates.speed(rate, now)

    async def ask(
        self,
        peer: str,
        request: bytes,
        room: memoryview,
        check: Callable[[bytes], bool],
        reasons: dict[str, str],
        *,
        hurried: bool,
        protocol: str = PROTOCOL,
        most: int | None = None,
    ) -> bytes | None:
        """One peer's answer if it is the right one, else None and a reason. `most`: bytes after
        which it is taken no further, without blame; by default all that fits into `room`."""
        loop = asyncio.get_running_loop()
        rate = self._rates[peer]
        most = len(room) if most is None else most
        try:
            size = await self._receive(peer, protocol, request, room, most, hurried=hurried)
        except _TooMuch as error:
            log.debug("%s of %s: %s", request.hex(), peer, error)
            reasons[peer] = str(error)
            return None
        except UnreachableError as error:
            log.debug("%s did not answer for %s: %s", peer, request.hex(), error)
            rate.failed(loop.time())
            reasons[peer] = str(error)
            return None
        if not size:
            reasons[peer] = "does not have it"
            return None
        rate.gave()
        data = bytes(room[:size])
        if await asyncio.to_thread(check, data):
            return data
        self.lies += 1
        rate.lied(loop.time())
        reasons[peer] = "served other bytes"
        log.warning("%s served bytes that are not %s", peer, request[1:].hex())
        self._net.report(peer, "served bytes that are not what was asked for", 50)
        return None

    async def _receive(
        self,
        peer: str,
        protocol: str,
        request: bytes,
        room: memoryview,
        most: int,
        *,
        hurried: bool,
    ) -> int:
        """Bytes of one peer's answer in `room`. Raises UnreachableError, also for a peer that
        sends nothing, or (`hurried`) next to nothing, and _TooMuch for one that sends more."""
        loop = asyncio.get_running_loop()
        rate = self._rates[peer]
        received, moved = 0, loop.time()

        def progress(count: int) -> None:
            nonlocal received, moved
            moved = loop.time()
            rate.arrived(moved, count - received)
            received = count
            if count > most:
                raise _TooMuch(f"has more than {most} bytes")

        began = loop.time()
        rate.began(began, most)
        task = asyncio.ensure_future(
            self._net.fetch(
                peer,
                protocol,
                request,
                into=room,
                progress=progress,
                timeout_s=ANSWER_S,
                priority=Priority.BULK,
            )
        )
        try:
            while not (await asyncio.wait({task}, timeout=_TICK_S))[0]:
                now = loop.time()
                if now - moved > SILENCE_S:
                    raise UnreachableError(f"sent nothing for {SILENCE_S:g} s")
                if hurried and now - began > SLOW_AFTER_S and (rate.live(now) or 0) < SLOW_RATE:
                    raise UnreachableError(_TOO_SLOW)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # then nothing writes to `room`
            rate.ended(loop.time(), most - received)

    # --- serving -------------------------------------------------------------------------

    async def _serve(self, peer: str, request: bytes) -> bytes:
        if len(request) != 33:
            self._net.report(peer, "a blob request is 33 bytes", 10)
            return b""
        kind, name = request[:1], request[1:]
        if kind == _BLOB:
            return await self._reading.run(self.local, BlobId(name)) or b""
        return await self._reading.run(self.local_checkpoint, Hash32(name)) or b""

    # --- disk ------------------------------------------------------------------------------

    def _path(self, kind: str, name: bytes) -> Path:
        return self._directory / kind / name.hex()

    def _checked(self, data: bytes) -> BlobId:
        if len(data) > limits.MAX_BLOB_BYTES:
            raise StorageError(
                f"a blob of {len(data)} bytes; at most {limits.MAX_BLOB_BYTES} are allowed"
            )
        return BlobId(BLOB.hash(data))

    def _look_around(self) -> None:
        """What is here. Of blobs that came of late nobody knows any more who wanted them."""
        now = self._clock()
        for path in self._directory.iterdir():
            if path.is_file():  # a write that was cut short
                path.unlink()
        for path in self._directory.rglob("*"):
            if path.is_file():
                found = path.stat()
                self._used += found.st_size
                if path.parent.name == "blob" and found.st_mtime + GRACE_S > now:
                    with suppress(ValueError):  # a file that is none of ours
                        name = BlobId(Hash32(bytes.fromhex(path.name)))
                        self._handed_in[name] = found.st_mtime + GRACE_S

    def _remove(self, path: Path) -> int:
        """Bytes that are free then."""
        with self._lock:
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                return 0
            self._used -= size
        return size

    def _take(self, size: int) -> int:
        """Take room for so many bytes more; how many have to go first, 0 if it was taken."""
        with self._lock:
            over = max(0, self._used + size - MAX_STORE_BYTES)
            if not over:
                self._used += size
        return over

    def _write(self, path: Path, data: bytes) -> bool:
        """Whether it was not here before. Raises StorageError if it cannot be."""
        if path.exists():
            return False
        if over := self._take(len(data)):
            self.make_room(over)
            if self._take(len(data)):
                raise StorageError(
                    f"the blob store has reached its quota of {MAX_STORE_BYTES} bytes, and what is "
                    "in it is still needed; it takes more when rounds and datasets are over"
                )
        is_new = False
        try:
            is_new = self._put_file(path, data)
        finally:
            if not is_new:
                with self._lock:
                    self._used -= len(data)
        return is_new

    def _put_file(self, path: Path, data: bytes) -> bool:
        """All of the file or nothing, synced; whether nobody else has written it meanwhile."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    with self._lock:
                        is_new = not path.exists()
                        os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageError(
                    f"the disk is full: {len(data)} bytes could not be stored; free some space"
                ) from None
            raise StorageError(f"cannot store a blob: {error}") from None
        return is_new
