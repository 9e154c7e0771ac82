"""The reading half of the store, and readers that stand beside a store and its lock."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from chain import limits
from chain.errors import BlyanError, InputError, StorageError
from chain.hashes import Hash32
from tiles import merkle
from tiles.layout import ShardSpec, subtile_count
from tiles.shardfile import ShardFile
from tiles.store import records
from tiles.store.catalog import Catalog, Container, Slot, Step, StepFile, Version
from tiles.store.disk import TEMP, Disk, refusals
from tiles.store.load import load_catalog
from tiles.store.slots import SlotReader

T = TypeVar("T")
_RELOADS = 8  # of a catalog in one call, while a writer keeps changing what is read


class Reading(ABC):
    """Versions, presence and bytes of shards, by shard index and shard root.

    InputError says that something is not here or cannot be; StorageError that the disk does not
    return what was put there.
    """

    advice = "`blyan tile scrub` finds all damage, and a node fetches it again"

    def __init__(self, directory: Path, specs: Sequence[ShardSpec], disk: Disk) -> None:
        self.directory, self._disk = directory, disk
        self._specs = {spec.index: spec for spec in specs}
        self._lock = threading.RLock()  # what is known of the disk, and the names on it
        self._bytes = SlotReader(disk, self._lock, self._damaged, self._gone, self.advice)

    # --- what is here -----------------------------------------------------------------------

    def versions(self, shard: int) -> tuple[Hash32, ...]:
        """Shard roots of the whole versions, in ascending order."""
        return self._roots(shard, whole=True)

    def partial_versions(self, shard: int) -> tuple[Hash32, ...]:
        """Shard roots of the versions with tiles missing, in ascending order."""
        return self._roots(shard, whole=False)

    def presence(self, shard: int, shard_root: Hash32) -> tuple[bool, ...]:
        """For each tile whether it can be read here; empty for an unknown version.

        A tile that has to be made from steps counts: `read_tile` gives it.
        """

        def ask(catalog: Catalog) -> tuple[bool, ...]:
            version = catalog.versions.get(shard_root)
            return catalog.presence(version) if version else ()

        return self._ask(shard, ask)

    def has_tile(self, shard: int, shard_root: Hash32, tile: int) -> bool:
        """Whether one tile can be read here; False for an unknown version or tile."""

        def ask(catalog: Catalog) -> bool:
            version = catalog.versions.get(shard_root)
            if version is None or not 0 <= tile < len(version.tile_roots):
                return False
            return catalog.way(version.tile_roots[tile], version.own) is not None

        return self._ask(shard, ask)

    def tile_roots(self, shard: int, shard_root: Hash32) -> tuple[Hash32, ...]:
        """Tile roots of a version, whole or partial. Raises InputError for an unknown one."""
        return self._ask(shard, lambda catalog: _version(catalog, shard_root).tile_roots)

    def path(self, shard: int, shard_root: Hash32) -> Path:
        """The .safetensors file of a version that is a snapshot, for readers of other libraries.

        What they have mapped stays as it is, also when the version is dropped.
        """

        def ask(catalog: Catalog) -> Path:
            version = _version(catalog, shard_root)
            if not catalog.is_whole(version):
                raise InputError(f"shard {catalog.spec.name}: this version is not whole")
            if version.own is None or version.own.missing:
                raise InputError(
                    f"shard {catalog.spec.name}: this version shares its tiles with others and is "
                    "no file of its own; `compact` makes it one, `open` maps it as it is"
                )
            return catalog.folder / version.own.data_name

        return self._ask(shard, ask)

    def containers(self, shard: int, shard_root: Hash32) -> int:
        """How many files a version's tiles are spread over: what compaction brings down to 1."""
        return self._ask(
            shard, lambda catalog: len(catalog.used_containers(_version(catalog, shard_root)))
        )

    def has_steps(self, shard: int, shard_root: Hash32) -> bool:
        """Whether steps to this version are kept."""
        return self._ask(shard, lambda catalog: shard_root in catalog.step_files)

    def is_thin(self, shard: int, shard_root: Hash32) -> bool:
        """Whether the version needs no tiles of its own where steps lead to them."""
        return self._ask(shard, lambda catalog: _version(catalog, shard_root).is_thin)

    # --- bytes ------------------------------------------------------------------------------

    def subtile_hashes(self, shard: int, shard_root: Hash32, tile: int) -> tuple[Hash32, ...]:
        """Leaf hashes of a tile that is here, as they stand on disk beside it."""

        def read(catalog: Catalog) -> tuple[Hash32, ...]:
            slot, steps = self._way(catalog, shard_root, tile)
            if steps:
                return merkle.subtile_hashes(self._bytes.tile(catalog, (slot, steps)))
            return records.hashes_in(slot.hashes)

        return self._attempt(shard, read)

    def read_tile(self, shard: int, shard_root: Hash32, tile: int) -> bytes:
        """The verified bytes of a tile. Raises InputError if it is not here, and StorageError
        naming the subtile if the disk returns something else; the tile then counts as missing.
        """

        def read(catalog: Catalog) -> bytes:
            return self._bytes.tile(catalog, self._way(catalog, shard_root, tile))

        return self._attempt(shard, read)

    def read_subtiles(
        self, shard: int, shard_root: Hash32, tile: int, first: int, count: int
    ) -> bytes:
        """Verified bytes of `count` subtiles of a tile from subtile `first`; fewer at its end.

        Raises as `read_tile` does.
        """

        def read(catalog: Catalog) -> bytes:
            slot, steps = self._way(catalog, shard_root, tile)
            size = catalog.spec.tile_bytes(tile)
            if not 0 <= first < subtile_count(size) or count < 1:
                raise InputError(
                    f"tile {tile} has {subtile_count(size)} subtiles, not {count} from {first}"
                )
            start = first * limits.SUBTILE_BYTES
            end = min(start + count * limits.SUBTILE_BYTES, size)
            if steps:
                return self._bytes.tile(catalog, (slot, steps))[start:end]
            return self._bytes.read_slot(catalog, slot, start, end)

        return self._attempt(shard, read)

    def read_shard(self, shard: int, shard_root: Hash32) -> bytes:
        """The verified data section of a whole version. Raises as `read_tile` does."""
        tiles = range(len(self.tile_roots(shard, shard_root)))
        return b"".join([self.read_tile(shard, shard_root, tile) for tile in tiles])

    def open(self, shard: int, shard_root: Hash32, verify: bool = True) -> ShardFile:
        """Map a whole version without a copy. With `verify`, after one pass that checks it.

        Tiles that only steps lead to are made in memory. Raises as `read_tile` does. The mapping
        stays as it is whatever happens to the version.
        """

        def read(catalog: Catalog) -> ShardFile:
            return self._bytes.map(catalog, _version(catalog, shard_root), verify=verify)

        return self._attempt(shard, read)

    # --- inside -----------------------------------------------------------------------------

    @abstractmethod
    def _attempt(self, shard: int, action: Callable[[Catalog], T]) -> T:
        """Do `action` on what is known of a shard, which may change while it reads bytes."""

    def _ask(self, shard: int, action: Callable[[Catalog], T]) -> T:
        """Do `action`, which reads no bytes, on a catalog that stays as it is meanwhile."""
        with self._lock:
            return self._attempt(shard, action)

    def _damaged(self, catalog: Catalog, slot: Slot, hashes: bytes) -> bool:
        """Told of a tile that is not what its hashes say; False if it has gone meanwhile."""
        return True

    def _gone(self, catalog: Catalog, file: Container | StepFile) -> None:
        """Told of a file that is not there any more."""
        return

    def _spec(self, shard: int) -> ShardSpec:
        try:
            return self._specs[shard]
        except KeyError:
            raise InputError(f"the model has no shard {shard}") from None

    def _folder(self, shard: int) -> Path:
        return self.directory / f"{shard:05d}"

    def _roots(self, shard: int, *, whole: bool) -> tuple[Hash32, ...]:
        def ask(catalog: Catalog) -> tuple[Hash32, ...]:
            held = catalog.versions.values()
            return tuple(sorted(v.root for v in held if catalog.is_whole(v) == whole))

        with self._lock:
            return self._ask(shard, ask)

    def _way(self, catalog: Catalog, shard_root: Hash32, tile: int) -> tuple[Slot, list[Step]]:
        with self._lock:
            version = _version(catalog, shard_root)
            catalog.spec.tile_range(tile)  # refuses an index beyond the shard
            way = catalog.way(version.tile_roots[tile], version.own)
        if way is None:
            raise InputError(f"tile {tile} of shard {catalog.spec.name} is not held here")
        return way


class TileReader(Reading):
    """Reads a store's directory beside its writer, without a lock, from any process.

    Each call sees what is there then: what it knew of the folder is read again when that changed.
    """

    def __init__(
        self, directory: Path, specs: Sequence[ShardSpec], *, disk: Disk | None = None
    ) -> None:
        super().__init__(directory, specs, disk or Disk())
        self._known: dict[int, tuple[object, Catalog]] = {}

    def open(self, shard: int, shard_root: Hash32, verify: bool = True) -> ShardFile:
        """As `Reading.open`. What nobody compares may have been dropped before it was mapped: if
        the folder has changed meanwhile it is mapped again. From then on nothing is taken away.
        """
        for _ in range(_RELOADS):
            state = None if verify else self._state(shard)
            file = super().open(shard, shard_root, verify)
            if verify or self._state(shard) == state:
                return file
        raise self._restless(shard)

    def _attempt(self, shard: int, action: Callable[[Catalog], T]) -> T:
        for _ in range(_RELOADS):
            state = self._state(shard)
            try:
                return action(self._load(shard, state))
            except BlyanError:
                if self._state(shard) == state:
                    raise
        raise self._restless(shard)

    def _restless(self, shard: int) -> StorageError:
        return StorageError(f"{self._folder(shard)}: changes faster than it can be read; try again")

    def _state(self, shard: int) -> object:
        """Changes whenever a file comes, goes or is written to; what is being made has none."""
        folder = self._folder(self._spec(shard).index)
        with refusals(f"read {folder}"):
            try:
                with os.scandir(folder) as found:
                    names = [entry for entry in found if not entry.name.endswith(TEMP)]
            except FileNotFoundError:
                return None
            try:
                entries = [(entry.name, entry.stat(follow_symlinks=False)) for entry in names]
            except FileNotFoundError:
                return object()  # it is changing: equal to no other state
        return sorted((n, s.st_ino, s.st_size, s.st_mtime_ns) for n, s in entries)

    def _load(self, shard: int, state: object) -> Catalog:
        with self._lock:
            known = self._known.get(shard)
            if known is None or known[0] != state:
                folder = self._folder(shard)
                with refusals(f"read {folder}"):
                    catalog = load_catalog(self._spec(shard), folder, self._disk, mend=False)
                known = self._known[shard] = state, catalog
            return known[1]


def _version(catalog: Catalog, shard_root: Hash32) -> Version:
    version = catalog.versions.get(shard_root)
    if version is None:
        raise InputError(f"shard {catalog.spec.index}: version {shard_root.hex()} is not held here")
    return version
