"""The writing half of the store: versions enter, share tiles, shrink and go (docs/spec/tiles.md).

Bytes are on the disk before the hashes that make them present are, so whatever a crash tears is
simply not there, and no flag exists that could lie. One writer at a time has a store, and never
disturbs who reads: what is written in place was missing, new versions are new files, and room
inside a file is given back only when nobody else has that file open.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from chain.codec import encode
from chain.errors import InputError, LockedError, QuotaError, VerifyError
from chain.hashes import TILE_STEP, Hash32
from tiles import merkle
from tiles.layout import ShardSpec
from tiles.steps import TileStep
from tiles.store import records, scrubbing, upkeep
from tiles.store.catalog import Catalog, Container, Slot, Step, StepFile
from tiles.store.disk import Buffer, Disk, Draft, refusals
from tiles.store.load import load_catalog
from tiles.store.reader import Reading
from tiles.store.scrubbing import Damage, Progress
from tiles.store.writer import ShardWriter
from tiles.store.writing import NewTile, Writing, new_tile, patched_tile

T = TypeVar("T")
_LOCK = "lock"


class TileStore(Reading):
    """Shard versions by shard root. Safe to call from several threads of one process."""

    advice = "the tile counts as missing now and can be fetched again"

    def __init__(
        self,
        directory: Path,
        specs: Sequence[ShardSpec],
        *,
        disk: Disk | None = None,
        quota_bytes: int | None = None,
    ) -> None:
        """Open or make the store; what a crash left unfinished is removed or still partial.

        Raises LockedError while another store has the directory, in this process or another;
        StorageError if the directory cannot be read or holds links.
        """
        super().__init__(directory, specs, disk or Disk())
        self.quota_bytes = quota_bytes
        self._writing = Writing(self._disk, self._lock, self._need_room)
        self._catalogs: dict[int, Catalog] = {}
        with refusals(f"open {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            self._unlock = weakref.finalize(self, os.close, _lock(directory))
            try:
                for spec in specs:
                    folder = self._folder(spec.index)
                    self._catalogs[spec.index] = load_catalog(spec, folder, self._disk, mend=True)
                for catalog in self._catalogs.values():
                    upkeep.collect(self._writing, catalog)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let another writer have the directory. What was mapped stays mapped."""
        self._writing.is_closed = True
        self._unlock()

    def __enter__(self) -> TileStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- entering ---------------------------------------------------------------------------

    def put_shard(self, shard: int, data: Buffer, expected_root: Hash32) -> None:
        """Store a whole version, atomically. Raises VerifyError if `data` is not `expected_root`.

        `data` is the data section. Putting what is there already does nothing; tiles that another
        version has are not written again. Raises QuotaError if there is no room.
        """
        spec = self._spec(shard)
        if len(data) != spec.data_bytes:
            raise VerifyError(f"shard {spec.name}: {len(data)} bytes, expected {spec.data_bytes}")
        view = memoryview(data).cast("B")
        tiles = [new_tile(view[slice(*spec.tile_range(i))]) for i in range(spec.tile_count)]
        roots = tuple(tile.root for tile in tiles)
        if merkle.shard_root(roots, spec.data_bytes) != expected_root:
            raise VerifyError(
                f"shard {spec.name}: its bytes do not have the root {expected_root.hex()}"
            )
        with self._changing(shard, f"write shard {spec.name}") as catalog:
            self._writing.add(catalog, expected_root, roots, dict(enumerate(tiles)))

    def begin(self, shard: int, shard_root: Hash32, tile_roots: Sequence[Hash32]) -> list[int]:
        """Make room for a version of which tiles will come one by one; its missing tiles.

        Tiles that another version here has under the same tile root are shared. Raises VerifyError
        if the tile roots do not lead to the shard root. May be called again.
        """
        spec = self._spec(shard)
        if merkle.shard_root(tile_roots, spec.data_bytes) != shard_root:
            raise VerifyError(f"shard {spec.name}: tile roots do not lead to {shard_root.hex()}")
        with self._changing(shard, f"begin shard {spec.name}") as catalog:
            self._writing.add(catalog, shard_root, tuple(tile_roots), {})
            with self._lock:
                presence = catalog.presence(catalog.versions[shard_root])
            return [tile for tile, here in enumerate(presence) if not here]

    def put_tile(self, shard: int, shard_root: Hash32, tile: int, data: Buffer) -> None:
        """Add one tile to a version that was begun, or mend it. Raises VerifyError if it is not
        that tile, InputError if the version was not begun, QuotaError if there is no room.
        """
        spec, roots = self._spec(shard), self.tile_roots(shard, shard_root)
        expected = spec.tile_bytes(tile)
        if len(data) != expected:
            raise VerifyError(f"tile {tile}: {len(data)} bytes, expected {expected}")
        new = new_tile(memoryview(data).cast("B"))
        if new.root != roots[tile]:
            raise VerifyError(f"tile {tile} of {spec.name} has not the root {roots[tile].hex()}")
        with self._changing(shard, f"write tile {tile} of shard {spec.name}") as catalog:
            if shard_root not in catalog.versions:
                raise InputError(f"shard {spec.name}: {shard_root.hex()} has just been dropped")
            self._writing.add(catalog, shard_root, roots, {tile: new})

    def add_shard(self, spec: ShardSpec) -> None:
        """Know one more shard, as if it had been named at the opening."""
        with self._writing.changing(f"open shard {spec.name}"):
            catalog = load_catalog(spec, self._folder(spec.index), self._disk, mend=True)
            upkeep.collect(self._writing, catalog)
            with self._lock:
                self._specs[spec.index], self._catalogs[spec.index] = spec, catalog

    def forget_shard(self, shard: int) -> None:
        """Free what is known of a shard, about 1 kB a tile; what is on disk stays as it is."""
        with self._writing.changing(f"forget shard {shard}"), self._lock:
            self._spec(shard)
            del self._specs[shard], self._catalogs[shard]

    def writer(self, shard: int) -> ShardWriter:
        """Take a shard's data section in sequential parts, as an import reads it."""
        self._spec(shard)
        return ShardWriter(self._writing, self._catalogs[shard])

    def apply(
        self,
        shard: int,
        base_root: Hash32,
        tiles: Mapping[int, Buffer],
        subtiles: Mapping[tuple[int, int], Buffer] | None = None,
    ) -> Hash32:
        """The base version with whole tiles and (tile, subtile)s replaced, as a new version; its
        root. Hashed and written is only what is given, and for a subtile the rest of its tile
        is copied; all other tiles are shared with the base. The base may be partial.
        """
        spec = self._spec(shard)
        roots = list(self.tile_roots(shard, base_root))
        new: dict[int, NewTile] = {}
        for tile, data in tiles.items():
            if len(data) != spec.tile_bytes(tile):
                raise VerifyError(
                    f"tile {tile}: {len(data)} bytes, expected {spec.tile_bytes(tile)}"
                )
            new[tile] = new_tile(memoryview(data).cast("B"))
        patches: dict[int, dict[int, Buffer]] = {}
        for (tile, subtile), data in (subtiles or {}).items():
            patches.setdefault(tile, {})[subtile] = data
        for tile, parts in patches.items():
            if tile in new:
                raise InputError(f"tile {tile} is given as a whole and in subtiles")
            new[tile] = patched_tile(*self._tile_as_it_is(shard, base_root, tile), parts)
        for tile, entry in new.items():
            roots[tile] = entry.root
        root = merkle.shard_root(roots, spec.data_bytes)
        with self._changing(shard, f"write a version of shard {spec.name}") as catalog:
            self._writing.add(catalog, root, tuple(roots), new)
        return root

    def put_steps(
        self, shard: int, shard_root: Hash32, base_root: Hash32, steps: Sequence[TileStep]
    ) -> None:
        """Keep how tiles of a version follow from those of its base, so that they may be dropped.

        At most one step a tile; tiles without one are shared or stay. Raises VerifyError if a step
        leads elsewhere. Putting steps again does nothing.
        """
        spec = self._spec(shard)
        base, new = (self.tile_roots(shard, root) for root in (base_root, shard_root))
        steps = sorted(steps, key=lambda step: step.tile)
        for step in steps:
            spec.tile_range(step.tile)
            if (step.shard, step.base_root, step.new_root) != (
                *(shard, base[step.tile], new[step.tile]),
            ):
                raise VerifyError(f"shard {spec.name}: a step of tile {step.tile} leads elsewhere")
        if len({step.tile for step in steps}) != len(steps):
            raise InputError(f"shard {spec.name}: two steps of one tile")
        raw = [encode(step) for step in steps]
        header, places = records.steps_layout(
            [(step.tile, len(data)) for step, data in zip(steps, raw, strict=True)]
        )
        rows = [
            (step.base_root, step.new_root, TILE_STEP.hash(data))
            for step, data in zip(steps, raw, strict=True)
        ]
        with self._changing(shard, f"write the steps of shard {spec.name}") as catalog:
            if shard_root in catalog.step_files:
                return
            table = [part for row in rows for part in row]
            size = len(header) + sum(len(data) for data in [*raw, *table])
            self._need_room(catalog, size)
            name = shard_root.hex() + records.STEPS
            with Draft(self._disk, catalog.folder) as draft:
                draft.add(name, [header, *raw, *table])
                draft.publish()
            file = StepFile(shard_root, name, header, size)
            file.steps += [Step(file, place, *row) for place, row in zip(places, rows, strict=True)]
            with self._lock:
                catalog.add_steps(file)

    # --- going ------------------------------------------------------------------------------

    def thin(self, shard: int, shard_root: Hash32) -> None:
        """Drop the tiles that only this version needs and that steps lead to; see `put_steps`."""
        with self._changing(shard, f"thin a version of shard {shard}") as catalog:
            upkeep.thin(self._writing, catalog, shard_root)

    def drop(self, shard: int, shard_root: Hash32) -> None:
        """Remove a version, and what only it needed. Who has it mapped keeps what they mapped."""
        with self._changing(shard, f"drop a version of shard {shard}") as catalog:
            upkeep.drop(self._writing, catalog, [shard_root])

    def retain(self, shard: int, roots: Sequence[Hash32]) -> None:
        """Remove all versions of a shard but these."""
        with self._changing(shard, f"drop versions of shard {shard}") as catalog:
            upkeep.drop(self._writing, catalog, sorted(catalog.versions.keys() - set(roots)))

    def drop_tile(self, shard: int, shard_root: Hash32, tile: int) -> None:
        """Give a tile's room back: it is missing then, in every version that shares it."""
        spec, roots = self._spec(shard), self.tile_roots(shard, shard_root)
        spec.tile_range(tile)
        with self._changing(shard, f"drop tile {tile} of shard {spec.name}") as catalog:
            upkeep.drop_tile(self._writing, catalog, roots[tile])

    def compact(self, shard: int, shard_root: Hash32) -> None:
        """Make a version a snapshot, a file of its own, and let go of what nobody else needs.

        Raises InputError if tiles are missing, StorageError if one is damaged.
        """
        with self._changing(shard, f"compact a version of shard {shard}") as catalog:
            upkeep.compact(self._bytes, self._writing, catalog, shard_root)

    def scrub(self, progress: Progress | None = None) -> list[Damage]:
        """Read everything once; the damaged subtiles, one a tile. Damaged tiles become missing.
        Roots, hashes and headers that have rotted since the store was opened are written again.

        `progress(done, total)` in tiles. Writers may go on meanwhile.
        """
        return scrubbing.scrub(self._bytes, self._writing, list(self._catalogs.values()), progress)

    @property
    def used_bytes(self) -> int:
        """What the store takes on the disk; holes of partial versions take nothing."""
        with self._lock:
            return sum(self._used(catalog) for catalog in self._catalogs.values())

    # --- inside -----------------------------------------------------------------------------

    def _attempt(self, shard: int, action: Callable[[Catalog], T]) -> T:
        self._spec(shard)
        return action(self._catalogs[shard])

    @contextmanager
    def _changing(self, shard: int, what: str) -> Iterator[Catalog]:
        """The right to change one shard, with refusals of the system put into words."""
        self._spec(shard)
        with self._writing.changing(what):
            catalog = self._catalogs[shard]
            if catalog.versions and not catalog.folder.exists():
                with self._lock:
                    upkeep.forget(catalog)
            yield catalog

    def _used(self, catalog: Catalog) -> int:
        if catalog.used_bytes is None:
            used = 0
            with suppress(FileNotFoundError), os.scandir(catalog.folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # a draft, which has its name by now
                        used += entry.stat(follow_symlinks=False).st_blocks * 512
            catalog.used_bytes = used
        return catalog.used_bytes

    def _need_room(self, catalog: Catalog, size_bytes: int) -> None:
        """Raises QuotaError if so much more would exceed the quota. Makes the folder."""
        if self.quota_bytes is not None:
            used = self.used_bytes
            if used + size_bytes > self.quota_bytes:
                raise QuotaError(
                    f"shard {catalog.spec.name}: {size_bytes} bytes more than the {used} used do "
                    f"not fit the quota of {self.quota_bytes}; raise it or hold fewer tiles"
                )
        if not catalog.folder.exists():
            if not self.directory.exists():  # removed from under us, with the lock in it
                self.directory.mkdir(parents=True)
                unlock, lock = self._unlock, _lock(self.directory)
                self._unlock = weakref.finalize(self, os.close, lock)
                unlock()
            self._disk.make_folder(catalog.folder)
            self._disk.sync_folder(self.directory)

    def _damaged(self, catalog: Catalog, slot: Slot, hashes: bytes) -> bool:
        return scrubbing.mark_damaged(self._writing, catalog, slot, hashes)

    def _gone(self, catalog: Catalog, file: Container | StepFile) -> None:
        for each in self._catalogs.values():
            if each is catalog or not each.folder.exists():
                upkeep.forget(each, file)

    def _tile_as_it_is(self, shard: int, shard_root: Hash32, tile: int) -> tuple[bytearray, bytes]:
        """A tile's bytes and subtile hashes, not compared: damage stays what it is, and is found
        when the copy is read.
        """
        catalog = self._catalogs[shard]
        slot, steps = self._way(catalog, shard_root, tile)
        if steps:
            data = self._bytes.tile(catalog, (slot, steps))
            return bytearray(data), b"".join(merkle.subtile_hashes(data))
        fd, hashes = self._bytes.open_slot(catalog, slot)
        try:
            buffer = bytearray(slot.size_bytes)
            with refusals(f"read shard {catalog.spec.name}"):
                os.preadv(fd, [buffer], slot.offset)
        finally:
            self._disk.close(fd)
        return buffer, hashes


def _lock(directory: Path) -> int:
    """Take the directory's lock, which goes with the descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(directory / _LOCK, flags, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise LockedError(
            f"{directory} is in use by another store, of this process or another; stop that node, "
            "or read beside it"
        ) from None
    return fd
