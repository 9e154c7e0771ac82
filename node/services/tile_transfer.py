"""One tile on its way from several peers at once: what is verified, what is asked for of whom.

A tile has one buffer: room for its subtile hashes, then its bytes. A **run** is a range of
subtiles that one peer was asked for; runs of a tile never overlap, so each subtile has at most
one writer, and a verified one has none. Nothing here waits, and nothing reads a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chain import limits
from chain.errors import VerifyError, invariant
from chain.hashes import Hash32
from chain.types import ShardIndex, TileIndex
from node.services.tile_wire import HASH_BYTES, MAX_HASHES_BYTES, TileRequest
from tiles import merkle
from tiles.layout import subtile_count

BUFFER_BYTES = MAX_HASHES_BYTES + limits.TILE_BYTES
_MISSING, _ASKED, _VERIFIED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class TileWant:
    """One tile of one shard version. `root`: of the shard; `tile_root` is what it is checked by."""

    shard: int
    root: Hash32
    tile: int
    size_bytes: int
    tile_root: Hash32

    @property
    def subtiles(self) -> int:
        return subtile_count(self.size_bytes)

    def __str__(self) -> str:
        return f"tile {self.tile} of shard {self.shard} at {self.root.hex()[:16]}"


class Transfer:
    """The state of one tile. `buffer` is the transfer's own until it is over."""

    def __init__(self, want: TileWant, holders: Sequence[str], buffer: memoryview) -> None:
        invariant(len(buffer) == BUFFER_BYTES, "a tile's buffer of a wrong size")
        self.want = want
        self.holders = tuple(dict.fromkeys(holders))
        self.buffer = buffer
        self.hashes: tuple[Hash32, ...] | None = None
        self.runs: list[Run] = []
        self.failed: dict[str, str] = {}  # peers that are not asked again for this tile, and why
        self.slow: dict[str, str] = {}  # peers that are asked again only if all others failed
        self.tries: Counter[str] = Counter()  # failures of a peer that may yet answer
        self._state = bytearray(want.subtiles)

    @property
    def data(self) -> memoryview:
        """The bytes of the tile; only verified subtiles mean anything."""
        return self.buffer[MAX_HASHES_BYTES : MAX_HASHES_BYTES + self.want.size_bytes]

    @property
    def is_complete(self) -> bool:
        """Every subtile is verified."""
        return self._state.count(_VERIFIED) == len(self._state)

    @property
    def verified(self) -> int:
        """Number of verified subtiles."""
        return self._state.count(_VERIFIED)

    @property
    def missing(self) -> int:
        """Number of subtiles that nobody was asked for yet."""
        return self._state.count(_MISSING)

    def gap(self) -> tuple[int, int] | None:
        """The first range of subtiles that can be asked for now: first and end.

        Until the hashes are here one peer is asked for them, together with the first subtiles;
        bytes that nothing can be checked by are asked of nobody else.
        """
        if self.hashes is None and self.runs:
            return None
        first = self._state.find(_MISSING)
        if first < 0:
            return None
        end = first
        while end < len(self._state) and self._state[end] == _MISSING:
            end += 1
        return first, end

    def resume(self, holders: Sequence[str]) -> None:
        """Begin again with other holders and what is verified."""
        invariant(not self.runs, "resumed while peers still send")
        self.holders = tuple(dict.fromkeys(holders))
        self.failed, self.slow, self.tries = {}, {}, Counter()

    def ask(self, peer: str, first: int, end: int, now: float) -> Run:
        """Give a part of a gap to a peer."""
        invariant(not any(self._state[first:end]), "a subtile asked for twice")
        self._state[first:end] = bytes([_ASKED]) * (end - first)
        run = Run(self, peer, first, end, now)
        self.runs.append(run)
        return run

    def end(self, run: Run) -> None:
        """A run is over and nothing writes for it any more: what it lacks is missing again."""
        self.runs.remove(run)
        left = range(run.next, run.end)
        self._state[run.next : run.end] = bytes([_MISSING]) * len(left)

    def verify(self, subtile: int) -> None:
        """Check the bytes of one subtile in the buffer. Raises VerifyError."""
        invariant(self.hashes is not None, "a subtile checked before the hashes are here")
        start = subtile * limits.SUBTILE_BYTES
        part = self.data[start : start + limits.SUBTILE_BYTES]
        if self.hashes is None or merkle.subtile_hash(subtile, part) != self.hashes[subtile]:
            raise VerifyError(f"subtile {subtile} of {self.want} is not what its hash says")
        self._state[subtile] = _VERIFIED

    def take_hashes(self, raw: memoryview) -> None:
        """Believe subtile hashes that lead to the tile root. Raises VerifyError."""
        found = tuple(
            Hash32(bytes(raw[i : i + HASH_BYTES])) for i in range(0, len(raw), HASH_BYTES)
        )
        if merkle.tile_root_of(found, self.want.size_bytes) != self.want.tile_root:
            raise VerifyError(f"the subtile hashes of {self.want} do not lead to its root")
        self.hashes = found


class Run:
    """Subtiles `first` to `end - 1`, asked of one peer; verified in order as they arrive."""

    def __init__(self, transfer: Transfer, peer: str, first: int, end: int, now: float) -> None:
        self.transfer, self.peer = transfer, peer
        self.first, self.end = first, end
        self.next = first  # the first subtile that is not verified
        self.started = now
        self.moved = now  # when something was last verified
        self.received = 0  # bytes, verified or not
        self.verdict: str | None = None  # why it was ended from here
        want = transfer.want
        self._prefix = 0 if transfer.hashes else HASH_BYTES * want.subtiles
        invariant(not self._prefix or first == 0, "hashes come only before the first subtile")
        self._start = first * limits.SUBTILE_BYTES
        stop = min(end * limits.SUBTILE_BYTES, want.size_bytes)
        at = MAX_HASHES_BYTES + self._start
        self.into = transfer.buffer[at - self._prefix : MAX_HASHES_BYTES + stop]

    @property
    def size(self) -> int:
        """Bytes of the answer."""
        return len(self.into)

    @property
    def is_done(self) -> bool:
        return self.next == self.end

    def request(self) -> bytes:
        want = self.transfer.want
        count = self.end - self.first
        return TileRequest(
            ShardIndex(want.shard),
            want.root,
            TileIndex(want.tile),
            self.first,
            count,
            int(bool(self._prefix)),
        ).encoded()

    def arrived(self, count: int, now: float) -> bool:
        """The first `count` bytes of the answer are here; whether the tile's hashes came with
        them. Raises VerifyError for a lie.
        """
        self.received = max(self.received, count)
        transfer = self.transfer
        is_new = transfer.hashes is None
        if is_new:
            if count < self._prefix:
                return False
            transfer.take_hashes(self.into[: self._prefix])
            self.moved = now
        size, step = transfer.want.size_bytes, limits.SUBTILE_BYTES
        here = self._start + count - self._prefix
        while self.next < self.end and min((self.next + 1) * step, size) <= here:
            transfer.verify(self.next)
            self.next += 1
            self.moved = now
        return is_new
