"""How the store changes one shard's folder: new versions, packs and snapshots, tiles that come
and tiles that go. Each method leaves a folder that opens wherever it is cut short.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from chain.errors import InputError, StorageError, VerifyError
from chain.hashes import ZERO_HASH, Hash32
from tiles import merkle
from tiles.layout import subtile_count
from tiles.store import records
from tiles.store.catalog import Catalog, Container, Slot, Version
from tiles.store.disk import Buffer, Disk, Draft, refusals


@dataclass(frozen=True, slots=True)
class NewTile:
    """A tile to be stored; without `data` and `hashes` only room for it."""

    root: Hash32
    size_bytes: int
    data: Buffer = b""
    hashes: bytes = b""


def new_tile(data: Buffer) -> NewTile:
    """A tile and its hashes."""
    hashes = merkle.subtile_hashes(data)
    return NewTile(merkle.tile_root_of(hashes, len(data)), len(data), data, b"".join(hashes))


def patched_tile(data: bytearray, hashes: bytes, parts: Mapping[int, Buffer]) -> NewTile:
    """A tile with some subtiles replaced in place, and only those hashed.

    Raises InputError for a subtile that the tile has not, VerifyError for one of a wrong size.
    """
    leaves = list(records.hashes_in(hashes))
    places = list(merkle.subtiles(data))
    for index, part in parts.items():
        if not 0 <= index < len(places):
            raise InputError(f"a tile with {len(places)} subtiles has no subtile {index}")
        if len(part) != len(places[index]):
            raise VerifyError(f"subtile {index}: {len(part)} bytes, expected {len(places[index])}")
        places[index][:] = part
        leaves[index] = merkle.subtile_hash(index, part)
    return NewTile(merkle.tile_root_of(leaves, len(data)), len(data), data, b"".join(leaves))


class Writing:
    """Changes of catalogs and of their folders, one at a time: call all else within `changing`.

    `lock` is held wherever what readers look at changes: the catalog, and names of files.
    `need_room(catalog, bytes)` refuses what would exceed the quota and makes the folder.
    """

    def __init__(
        self, disk: Disk, lock: threading.RLock, need_room: Callable[[Catalog, int], None]
    ) -> None:
        self.disk, self.lock, self.need_room = disk, lock, need_room
        self._turn = threading.RLock()
        self.is_closed = False

    @contextmanager
    def changing(self, what: str) -> Iterator[None]:
        """The turn to change something; the system's refusals are put into words meanwhile."""
        with self._turn, refusals(what):
            if self.is_closed:
                raise StorageError(f"cannot {what}: the store is closed")
            yield

    # --- versions -----------------------------------------------------------------------------

    def add(
        self,
        catalog: Catalog,
        root: Hash32,
        tile_roots: tuple[Hash32, ...],
        tiles: Mapping[int, NewTile],
    ) -> None:
        """See to it that a version with these tile roots is here, and `tiles` of it are.

        A new one is a snapshot if it shares nothing, else a pack of what it does not share.
        """
        with self.lock:
            version = catalog.versions.get(root) or self.revive(catalog, root, tile_roots)
            shares = any(catalog.way(tile_root) for tile_root in tile_roots)
        if version is None and not shares:
            version = self._add_snapshot(catalog, root, tile_roots, tiles)
        with self.lock:
            absent = {t: e for t, e in sorted(tiles.items()) if catalog.way(e.root) is None}
            places = self._places(catalog, absent)
        rest = {t: e for t, e in absent.items() if e.root not in places}
        self.need_room(catalog, sum(entry.size_bytes for entry in absent.values()))
        self.fill(catalog, [(places[e.root], e) for e in absent.values() if e.root in places])
        if version is not None and not rest:
            if version.own is not None:  # the disk may have been full when it became whole
                with self.lock:
                    self._settle_name(catalog, version.own)
            return
        with Draft(self.disk, catalog.folder) as draft:
            if version is None:
                rest = self._with_room(catalog, tile_roots, rest)
                draft.add(root.hex() + records.ROOTS, [b"".join(tile_roots)])
            pack = self._draft_pack(catalog, draft, rest)
            draft.publish()
        with self.lock:
            if pack is not None:
                catalog.add_container(pack)
            catalog.versions.setdefault(root, Version(root, tile_roots))
            catalog.changed()

    def revive(
        self, catalog: Catalog, root: Hash32, tile_roots: tuple[Hash32, ...]
    ) -> Version | None:
        """A dropped version whose snapshot is still here for others becomes a version again."""
        container = catalog.containers.get(root.hex())
        if container is None:
            return None
        if tuple(slot.root for slot in container.slots) == tile_roots:
            name = root.hex() + records.ROOTS
            self.disk.rename(catalog.folder / container.record_name, catalog.folder / name)
            container.record_name = name
            self.disk.sync_folder(catalog.folder)
        else:
            container = self._write_record_again(catalog, container, tile_roots)
        catalog.versions[root] = Version(root, tile_roots, container)
        catalog.changed()
        return catalog.versions[root]

    def _write_record_again(
        self, catalog: Catalog, old: Container, tile_roots: tuple[Hash32, ...]
    ) -> Container:
        """A snapshot whose record was damaged: its tile roots did not lead to its name."""
        new = snapshot_of(catalog, Hash32(bytes.fromhex(old.stem)), tile_roots, [])
        new.data_name = old.data_name
        for slot, known in zip(new.slots, old.slots, strict=True):
            if slot.root == known.root:
                slot.hashes, slot.stale = known.hashes, known.stale
        with Draft(self.disk, catalog.folder) as draft:
            draft.add(new.record_name, [record_of(new)])
            draft.publish()
        catalog.remove_container(old)
        catalog.add_container(new)
        self.disk.unlink(catalog.folder / old.record_name)
        self._settle_name(catalog, new)
        return new

    # --- snapshots ------------------------------------------------------------------------------

    def _add_snapshot(
        self,
        catalog: Catalog,
        root: Hash32,
        tile_roots: tuple[Hash32, ...],
        tiles: Mapping[int, NewTile],
    ) -> Version:
        """A version that is a file of its own, with all of its tiles or with none yet."""
        whole = [tiles[t] for t in sorted(tiles)] if len(tiles) == len(tile_roots) else []
        self.need_room(catalog, sum(len(entry.data) for entry in whole))
        hashes = [entry.hashes for entry in whole]
        container = snapshot_of(catalog, root, tile_roots, hashes)
        with Draft(self.disk, catalog.folder) as draft:
            size = len(catalog.header) + catalog.spec.data_bytes
            draft.add(container.data_name, [catalog.header, *(e.data for e in whole)], size)
            draft.add(container.record_name, [record_of(container)])
            draft.publish()
        return self.know_snapshot(catalog, container, tile_roots)

    def know_snapshot(
        self, catalog: Catalog, container: Container, tile_roots: tuple[Hash32, ...]
    ) -> Version:
        """A snapshot's files have their names now: enter it, and its version."""
        root = Hash32(bytes.fromhex(container.stem))
        with self.lock:
            version = catalog.versions.setdefault(root, Version(root, tile_roots))
            version.own = container
            catalog.add_container(container)
        return version

    # --- packs ----------------------------------------------------------------------------------

    def _places(self, catalog: Catalog, tiles: Mapping[int, NewTile]) -> dict[Hash32, Slot]:
        """Room that is there already for some of the tiles, by tile root."""
        found = {entry.root: catalog.slots_of(entry.root) for entry in tiles.values()}
        return {root: slots[0] for root, slots in found.items() if slots}

    def _with_room(
        self, catalog: Catalog, tile_roots: Sequence[Hash32], tiles: Mapping[int, NewTile]
    ) -> dict[int, NewTile]:
        """`tiles`, and room for each tile of the version that is neither given nor has a slot."""
        room = dict(tiles)
        given = {entry.root for entry in tiles.values()}
        with self.lock:
            for tile, root in enumerate(tile_roots):
                if root not in given and not catalog.slots_of(root) and not catalog.way(root):
                    given.add(root)
                    room[tile] = NewTile(root, catalog.spec.tile_bytes(tile))
        return room

    def _draft_pack(
        self, catalog: Catalog, draft: Draft, tiles: Mapping[int, NewTile]
    ) -> Container | None:
        """A pack of these tiles, of which some may come later; None if there are none."""
        once: dict[Hash32, int] = {}
        for tile in sorted(tiles):
            once.setdefault(tiles[tile].root, tile)
        if not once:
            return None
        entries = [tiles[tile] for tile in once.values()]
        layout = records.pack_layout([(tile, tiles[tile].size_bytes) for tile in once.values()])
        name = records.pack_name(list(once))
        container = Container(name[:64], True, name, name, layout.header)
        with draft.writing(name) as fd:
            if all(entry.hashes for entry in entries):
                self.disk.allocate(fd, layout.file_bytes)
            self.disk.write(fd, 0, layout.header)
            for place, entry in zip(layout.tiles, entries, strict=True):
                at, size = place.record_at, place.size_bytes
                slot = Slot(container, entry.root, size, place.offset, at, entry.hashes)
                container.slots.append(slot)
                if entry.hashes:
                    self.disk.write(fd, place.offset, entry.data)
            table = [*once, *(_hashes_or_zeros(slot) for slot in container.slots)]
            self.disk.write(fd, layout.roots_at, b"".join(table))
            self.disk.sync(fd)
        return container

    # --- tiles ----------------------------------------------------------------------------------

    def fill(self, catalog: Catalog, tiles: Sequence[tuple[Slot, NewTile]]) -> None:
        """Write tiles into their places: bytes, sync, subtile hashes, sync."""
        groups: dict[str, list[tuple[Slot, NewTile]]] = {}
        for slot, entry in tiles:
            groups.setdefault(slot.container.data_name, []).append((slot, entry))
        for group in groups.values():
            container = group[0][0].container
            for slot, _ in group:
                slot.stale = False  # their hashes may be on the disk even if this fails
            self.disk.write_at(
                catalog.folder / container.data_name,
                [(slot.offset, entry.data) for slot, entry in group],
            )
            self.disk.write_at(
                catalog.folder / container.record_name,
                [(slot.record_at, entry.hashes) for slot, entry in group],
            )
            with self.lock:
                for slot, entry in group:
                    catalog.set_hashes(slot, entry.hashes)
                self._settle_name(catalog, container)

    def mark_missing(self, catalog: Catalog, slots: Sequence[Slot]) -> None:
        """Tiles that are damaged or not needed: their hashes go, durably; their bytes may too.

        They are forgotten first: if the disk refuses, nobody knows what stands on it.
        """
        container = slots[0].container
        zeros = [(slot.record_at, bytes(len(slot.hashes))) for slot in slots]
        with self.lock:
            for slot in slots:
                catalog.set_hashes(slot, b"")
        self.disk.write_at(catalog.folder / container.record_name, zeros)
        with self.lock:
            for slot in slots:
                slot.stale = True
            self._settle_name(catalog, container)

    def reclaim(self, catalog: Catalog) -> None:
        """Give back the room of missing tiles in files that nobody else has open or mapped."""
        for container, slots in list(catalog.stale()):
            with self.disk.opened(catalog.folder / container.data_name, write=True) as fd:
                for slot in slots:
                    slot.stale = not self.disk.punch(fd, slot.offset, slot.size_bytes)
            catalog.used_bytes = None

    def _settle_name(self, catalog: Catalog, container: Container) -> None:
        """A snapshot is called `.safetensors` exactly while all of its tiles are there."""
        name = container.stem + (records.PARTIAL if container.missing else records.WHOLE)
        if not container.is_pack and name != container.data_name:
            self.disk.rename(catalog.folder / container.data_name, catalog.folder / name)
            container.data_name = name
            self.disk.sync_folder(catalog.folder)


def snapshot_of(
    catalog: Catalog, root: Hash32, tile_roots: Sequence[Hash32], hashes: Sequence[bytes]
) -> Container:
    """The container of a snapshot, with the subtile hashes of all tiles or of none."""
    suffix = records.WHOLE if len(hashes) == len(tile_roots) else records.PARTIAL
    container = Container(root.hex(), False, root.hex() + suffix, root.hex() + records.ROOTS)
    places = records.record_places(catalog.spec)
    for tile, (tile_root, (at, _)) in enumerate(zip(tile_roots, places, strict=True)):
        start, end = catalog.spec.tile_range(tile)
        have = hashes[tile] if hashes else b""
        offset = len(catalog.header) + start
        container.slots.append(Slot(container, tile_root, end - start, offset, at, have))
    return container


def record_of(container: Container) -> bytes:
    """The `.roots` file of a snapshot: tile roots, then each tile's subtile hashes or zeros."""
    return b"".join(
        [*(slot.root for slot in container.slots), *map(_hashes_or_zeros, container.slots)]
    )


def _hashes_or_zeros(slot: Slot) -> bytes:
    return slot.hashes or ZERO_HASH * subtile_count(slot.size_bytes)
