"""The bytes of tiles: read from their slots, made by steps, mapped; checked on the way in.

Every byte is compared with its subtile hash, straight from the buffer that it was read into.
Files are opened while their names are known to be right and read afterwards: an open file
outlives its name, and nothing is cut out of it while it is open.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from chain import limits
from chain.codec import decode
from chain.errors import DecodeError, InputError, StorageError, VerifyError
from chain.hashes import TILE_STEP, Hash32
from tiles import merkle
from tiles.layout import subtile_count
from tiles.shardfile import ShardFile
from tiles.steps import TileStep, apply_step
from tiles.store import libc
from tiles.store.catalog import Catalog, Container, Run, Slot, Step, StepFile, Version
from tiles.store.disk import Disk, refusal, refusals
from tiles.store.mapping import Extent, map_extents

_MADE_TILES = 4  # tiles made by steps that are kept in memory
Way = tuple[Slot, list[Step]]  # a tile that is here, and the steps from it to the one wanted
Damaged = Callable[[Catalog, Slot, bytes], bool]
Gone = Callable[[Catalog, Container | StepFile], None]


class SlotReader:
    """Reads what a catalog says is here.

    `damaged(catalog, slot, hashes)` is told of a tile that is not what its hashes said, and says
    whether it still was to be there; `gone(catalog, file)` of a file that somebody removed;
    `advice` tells the user what to do about it. `lock` guards the catalog and the names of files.
    """

    def __init__(
        self, disk: Disk, lock: threading.RLock, damaged: Damaged, gone: Gone, advice: str
    ) -> None:
        self.disk, self._lock, self._advice = disk, lock, advice
        self._damaged, self._gone = damaged, gone
        self._made: dict[Hash32, bytes] = {}  # tiles made by steps, the newest last

    def tile(self, catalog: Catalog, way: Way) -> bytes:
        """Verified bytes of a tile. Raises StorageError, and InputError if it has gone."""
        slot, steps = way
        if steps:
            return self.rebuild(catalog, slot, steps)
        return self.read_slot(catalog, slot, 0, slot.size_bytes)

    def map(self, catalog: Catalog, version: Version, *, verify: bool) -> ShardFile:
        """All tiles of a version as one buffer. Raises InputError if some are missing."""
        files: dict[Container, int] = {}
        try:
            with self._lock:
                runs = catalog.runs(version)
                if runs is None:
                    raise InputError(f"shard {catalog.spec.name}: this version is not whole")
                for run in runs:
                    if run.container not in files:
                        files[run.container] = self.open_slot(catalog, run.slots[0])[0]
                hashes = [slot.hashes for run in runs for slot in run.slots] if verify else []
            if verify:
                self._verify(catalog, runs, files, hashes)
            extents = [self._extent(catalog, run, files[run.container]) for run in runs]
            data = map_extents(catalog.spec.data_bytes, extents)
        except OSError as error:
            raise refusal(f"map shard {catalog.spec.name}", error) from error
        finally:
            for fd in files.values():
                self.disk.close(fd)
        return ShardFile(data, catalog.tensors)

    def open_slot(self, catalog: Catalog, slot: Slot) -> tuple[int, bytes]:
        """A descriptor of a slot's file, and the slot's hashes at that moment."""
        with self._lock, refusals(f"read shard {catalog.spec.name}"):
            if not slot.hashes:
                raise InputError(f"a tile of shard {catalog.spec.name} has just been dropped")
            try:
                return self.disk.open(catalog.path(slot.container)), slot.hashes
            except FileNotFoundError:
                self._gone(catalog, slot.container)
                raise

    def read_slot(self, catalog: Catalog, slot: Slot, start: int, end: int) -> bytes:
        """Verified bytes [start, end) of a tile, from one subtile's border to another's."""
        fd, hashes = self.open_slot(catalog, slot)
        data, view = libc.new_bytes(end - start)
        try:
            with refusals(f"read shard {catalog.spec.name}"):
                self.disk.expect(fd, slot.offset + start, end - start)
                first = start // limits.SUBTILE_BYTES
                bad = read_checked(fd, slot.offset + start, view, first, hashes)
        finally:
            view.release()
            self.disk.close(fd)
        if bad is not None:
            self._refuse(catalog, slot, hashes, bad)
        return data

    def _refuse(self, catalog: Catalog, slot: Slot, hashes: bytes, subtile: int) -> None:
        """Mark a damaged tile as missing, and say so."""
        name = catalog.spec.name
        if not self._damaged(catalog, slot, hashes):
            raise InputError(f"a tile of shard {name} has just been dropped")
        raise StorageError(
            f"shard {name}, {_tile_of(catalog, slot)}, subtile {subtile}, is damaged on disk; "
            + self._advice
        )

    def rebuild(self, catalog: Catalog, slot: Slot, steps: Sequence[Step]) -> bytes:
        """A tile made by steps from one that is here; each result is checked by its root.

        The last few are kept: who streams a tile asks for it part by part.
        """
        root = steps[-1].new
        with self._lock:
            if root in self._made:
                return self._made[root]
        data = self.read_slot(catalog, slot, 0, slot.size_bytes)
        for step in steps:
            try:
                data = apply_step(catalog.spec, self.read_step(catalog, step), data)
            except VerifyError as error:
                raise StorageError(f"shard {catalog.spec.name}: {error}") from None
        with self._lock:
            self._made[root] = data
            while len(self._made) > _MADE_TILES:
                del self._made[next(iter(self._made))]
        return data

    def read_step(self, catalog: Catalog, step: Step) -> TileStep:
        """A step as it stands on disk. Raises StorageError unless it is what was put there."""
        with refusals(f"read the steps of shard {catalog.spec.name}"):
            with self._lock:
                if catalog.step_files.get(step.file.root) is not step.file:
                    raise InputError(f"steps of shard {catalog.spec.name} have just been dropped")
                try:
                    fd = self.disk.open(catalog.folder / step.file.name)
                except FileNotFoundError:
                    self._gone(catalog, step.file)
                    raise
            try:
                raw = os.pread(fd, step.place.size_bytes, step.place.offset)
            finally:
                self.disk.close(fd)
        try:
            if TILE_STEP.hash(raw) == step.checksum:
                step_read: TileStep = decode(TileStep, raw, most=limits.MAX_STEP_BYTES)
                return step_read
        except DecodeError as error:
            raise StorageError(f"shard {catalog.spec.name}: a step: {error}") from None
        raise StorageError(
            f"shard {catalog.spec.name}, tile {step.place.tile}: the step to it is damaged on disk"
        )

    def _extent(self, catalog: Catalog, run: Run, fd: int) -> Extent:
        """What a run of tiles is mapped from: a file that is long enough, or memory."""
        if run.steps:
            data = self.rebuild(catalog, run.slots[0], run.steps)
            return Extent(run.place, len(data), fd, 0, data)
        if os.fstat(fd).st_size < run.offset + run.size_bytes:
            raise StorageError(  # touching what is not there would be a bus error
                f"{run.container.data_name}: the file was cut; `blyan tile scrub` finds what is "
                "missing"
            )
        return Extent(run.place, run.size_bytes, fd, run.offset)

    def _verify(
        self,
        catalog: Catalog,
        runs: Sequence[Run],
        files: dict[Container, int],
        hashes: Sequence[bytes],
    ) -> None:
        """Compare all tiles with `hashes`; those that steps are to make are checked then."""
        left = iter(hashes)
        for run in runs:
            for slot in run.slots:
                expected = next(left)
                bad = None if run.steps else bad_subtile(files[run.container], slot, expected)
                if bad is not None:
                    self._refuse(catalog, slot, expected, bad)


def read_checked(fd: int, offset: int, into: memoryview, first: int, hashes: bytes) -> int | None:
    """Fill a buffer from a file, subtile by subtile from number `first` on, comparing each as
    soon as it is there: the device brings the next ones meanwhile, and what is hashed is still in
    the cache. The first bad subtile ends it."""
    for index, part in enumerate(merkle.subtiles(into), first):
        if not _is_good(fd, offset, part, index, hashes):
            return index
        offset += len(part)
    return None


def bad_subtile(fd: int, slot: Slot, hashes: bytes) -> int | None:
    """First bad subtile of a tile in its file, read in a buffer that stays in the cache."""
    buffer = memoryview(bytearray(min(slot.size_bytes, limits.SUBTILE_BYTES)))
    for index in range(subtile_count(slot.size_bytes)):
        start = index * limits.SUBTILE_BYTES
        part = buffer[: slot.size_bytes - start]
        with refusals("read a tile"):
            is_good = _is_good(fd, slot.offset + start, part, index, hashes)
        if not is_good:
            return index
    return None


def _is_good(fd: int, offset: int, part: memoryview, index: int, hashes: bytes) -> bool:
    """Read a subtile, and say whether it is whole and what its hash says."""
    got = os.preadv(fd, [part], offset)
    expected = hashes[32 * index : 32 * index + 32]
    return got == len(part) and merkle.subtile_hash(index, part) == expected


def _tile_of(catalog: Catalog, slot: Slot) -> str:
    """Which tile a slot is, for a text: that of the first version that has it."""
    for version in catalog.versions.values():
        if slot.root in version.tile_roots:
            return f"tile {version.tile_roots.index(slot.root)}"
    return f"a tile of root {slot.root.hex()}"
