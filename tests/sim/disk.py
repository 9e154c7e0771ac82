"""An in-memory disk that fails: what the product's write-ahead log meets in a simulated machine.

Every durable step is a numbered crash point, and so is the middle of a write. A killed process
leaves the page cache; a power failure leaves what was synced, any beginning of the unsynced
changes of names (a journal keeps their order), and of each unsynced write nothing, all, or a part
that ends at a sector. A rotten disk may also write whole sectors to a wrong place, and keep
arbitrary sectors of an unsynced write.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from chain.types import Block, Certificate

SECTOR_BYTES = 512
IO_POINTS = ("create", "write", "sync", "rename", "sync_directory", "commit")
POINTS = ("in write", *(f"{at} {step}" for step in IO_POINTS for at in ("before", "after")))


class Crash(BaseException):
    """The process is gone: nothing may catch it but the machine it ran on."""


@dataclass(eq=False)
class Inode:
    cache: bytearray = field(default_factory=bytearray)  # what a reader sees
    durable: bytearray = field(default_factory=bytearray)  # what a power failure leaves
    dirty: list[tuple[int, int]] = field(default_factory=list)  # sectors, written since the sync
    astray: bool = False  # the next sync puts the sectors somewhere else


class FaultyDisk:
    """A `node.wal_files.LogFiles`, and the chain's store, whose commits are atomic (SQLite)."""

    def __init__(self, genesis: Block, dice: random.Random, counts: Counter[str]) -> None:
        self.blocks: list[Block] = [genesis]
        self.certificates: dict[int, Certificate] = {}
        self.fuse: int | None = None  # crash points left until the next crash
        self.refusals = 0  # writes that will fail because the disk is full
        self.failing_syncs = 0
        self.strays = 0  # writes that will land somewhere else
        self.is_rotten = False  # has broken a promise: what was synced may be gone
        self._dice, self._counts = dice, counts
        self._names: dict[str, Inode] = {}
        self._durable_names: dict[str, Inode] = {}
        self._renames: list[Callable[[dict[str, Inode]], object]] = []
        self._open: dict[int, Inode] = {}

    # --- the chain's store --------------------------------------------------------

    def commit(self, blocks: tuple[Block, ...], certificate: Certificate) -> None:
        self._point("before commit")
        self.blocks += blocks
        self.certificates[len(self.blocks) - 1] = certificate
        self._point("after commit")

    # --- files, for the log -------------------------------------------------------

    def exists(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str) -> bytes:
        return bytes(self._names[name].cache)

    def create(self, name: str) -> int:
        self._point("before create")
        inode = self._names[name] = Inode()
        self._renames.append(lambda names: names.__setitem__(name, inode))
        file = self._opened(inode)
        self._point("after create")
        return file

    def open(self, name: str) -> int:
        return self._opened(self._names[name])

    def _opened(self, inode: Inode) -> int:
        file = max(self._open, default=2) + 1
        self._open[file] = inode
        return file

    def write(self, file: int, offset: int, data: bytes) -> None:
        self._point("before write")
        inode = self._open[file]
        if self.refusals:
            self.refusals -= 1
            self._put(inode, offset, data[: self._dice.randrange(len(data))])
            self._counts["disk full"] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.fuse == 0:
            self._put(inode, offset, data[: self._dice.randrange(len(data))])
        self._point("in write")
        self._put(inode, offset, data)
        if self.strays:
            self.strays -= 1
            inode.astray = True
        self._point("after write")

    def _put(self, inode: Inode, offset: int, data: bytes) -> None:
        inode.cache.extend(bytes(max(0, offset - len(inode.cache))))
        inode.cache[offset : offset + len(data)] = data
        inode.dirty.append((offset // SECTOR_BYTES, -(-(offset + len(data)) // SECTOR_BYTES)))

    def sync(self, file: int) -> None:
        self._point("before sync")
        inode = self._open[file]
        if self.failing_syncs:
            self.failing_syncs -= 1
            inode.dirty.clear()  # the kernel gives up, and the cache looks as if it were clean
            self._counts["failed syncs"] += 1
            raise OSError(errno.EIO, "Input/output error")
        self._write_back(inode)
        self._point("after sync")

    def _write_back(self, inode: Inode) -> None:
        """The size, and the dirty sectors, each to its place; if astray, all of them elsewhere."""
        _resize(inode.durable, len(inode.cache))
        for low, high in inode.dirty:
            sectors = inode.cache[low * SECTOR_BYTES : high * SECTOR_BYTES]
            place = low
            if inode.astray:
                place = self._dice.randrange(len(inode.cache) // SECTOR_BYTES + 2)
                if place == low:
                    place += 1
                self.is_rotten = True
                self._counts["misdirected writes"] += 1
                sectors = sectors.ljust(-(-len(sectors) // SECTOR_BYTES) * SECTOR_BYTES, b"\0")
            _resize(inode.durable, max(len(inode.durable), place * SECTOR_BYTES))
            inode.durable[place * SECTOR_BYTES : place * SECTOR_BYTES + len(sectors)] = sectors
        inode.dirty.clear()
        inode.astray = False

    def close(self, file: int) -> None:
        del self._open[file]

    def rename(self, old: str, new: str) -> None:
        self._point("before rename")
        _rename(self._names, old, new)
        self._renames.append(lambda names: _rename(names, old, new))
        self._point("after rename")

    def sync_directory(self) -> None:
        self._point("before sync_directory")
        for change in self._renames:
            change(self._durable_names)
        self._renames.clear()
        self._point("after sync_directory")

    def remove(self, name: str) -> None:
        """By an operator, or by an accident: gone for good."""
        for names in (self._names, self._durable_names):
            names.pop(name, None)
        self._renames.clear()

    # --- faults -------------------------------------------------------------------

    def _point(self, where: str) -> None:
        if self.fuse is None:
            return
        if self.fuse == 0:
            self.fuse = None
            self._counts[f"crash {where}"] += 1
            raise Crash
        self.fuse -= 1

    def die(self, *, power: bool, torn_anywhere: bool = False) -> None:
        """The process ends; with `power`, so does the machine."""
        self._open.clear()
        self.fuse = None
        if not power:
            return
        self._counts["power failures"] += 1
        names = self._durable_names
        for change in self._renames[: self._dice.randint(0, len(self._renames))]:
            change(names)
        self._renames.clear()
        for inode in {id(i): i for i in names.values()}.values():
            if inode.dirty:
                self._lose(inode, torn_anywhere)
            inode.cache = bytearray(inode.durable)
        self._names = dict(names)

    def _lose(self, inode: Inode, torn_anywhere: bool) -> None:
        """Of what was not synced, whatever the disk has happened to write."""
        fate = self._dice.randrange(4 if torn_anywhere else 3)
        if fate == 0:
            self._counts["unsynced writes lost"] += 1
        elif fate == 1:
            self._write_back(inode)
        elif fate == 2:
            first = min(low for low, _ in inode.dirty)
            last = -(-len(inode.cache) // SECTOR_BYTES)
            cut = self._dice.randint(first, max(first, last)) * SECTOR_BYTES
            if cut > len(inode.durable):
                inode.durable[first * SECTOR_BYTES :] = inode.cache[first * SECTOR_BYTES : cut]
            self._counts["torn tails"] += 1
        else:
            _resize(inode.durable, len(inode.cache))
            for low, high in inode.dirty:
                for sector in range(low, high):
                    at = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
                    if self._dice.random() < 0.5:
                        inode.durable[at] = inode.cache[at]
            self._counts["torn sectors"] += 1
        inode.dirty.clear()
        inode.astray = False

    def holds(self, name: str, record: bytes) -> bool:
        """Whether a power failure now would leave `record` in the file: nothing else counts."""
        inode = self._durable_names.get(name)
        return inode is not None and record in inode.durable


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


def _rename(names: dict[str, Inode], old: str, new: str) -> None:
    if old in names:
        names[new] = names.pop(old)
