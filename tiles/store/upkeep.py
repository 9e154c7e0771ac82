"""What keeps a store small and sound: dropping, thinning, compacting.

A container goes when no version needs it any more. Of one that stays, tiles that nobody needs are
marked as missing, durably, and then give their room back once nobody has the file mapped.
"""

from __future__ import annotations

from collections.abc import Sequence

from chain.errors import InputError
from chain.hashes import Hash32
from tiles import merkle
from tiles.store import records
from tiles.store.catalog import Catalog, Container, Slot, StepFile, Version
from tiles.store.disk import Draft
from tiles.store.slots import SlotReader
from tiles.store.writing import NewTile, Writing, record_of, snapshot_of

# --- going ----------------------------------------------------------------------------------


def drop(writing: Writing, catalog: Catalog, roots: Sequence[Hash32]) -> None:
    """Versions go first, durably; then what no other needs."""
    disk, folder = writing.disk, catalog.folder
    for root in roots:
        version = catalog.versions.get(root)
        if version is None:
            continue
        name = root.hex() + records.ROOTS
        with writing.lock:
            set_thin(writing, catalog, version, False)
            if version.own is None:
                disk.unlink(folder / name)
            else:  # others may need its tiles
                kept = root.hex() + records.KEPT
                disk.rename(folder / name, folder / kept)
                version.own.record_name = kept
            del catalog.versions[root]
            catalog.changed()
    if folder.exists():
        disk.sync_folder(folder)
    collect(writing, catalog)


def thin(writing: Writing, catalog: Catalog, shard_root: Hash32) -> None:
    version = catalog.versions.get(shard_root)
    if version is None or shard_root not in catalog.step_files:
        raise InputError(f"shard {catalog.spec.name}: no steps to {shard_root.hex()} are kept here")
    set_thin(writing, catalog, version, True)
    writing.disk.sync_folder(catalog.folder)
    collect(writing, catalog)


def set_thin(writing: Writing, catalog: Catalog, version: Version, is_thin: bool) -> None:
    """The name of its steps says that a version is thin."""
    file = catalog.step_files.get(version.root)
    if file is not None and version.is_thin != is_thin:
        name = version.root.hex() + (records.THIN if is_thin else records.STEPS)
        with writing.lock:
            writing.disk.rename(catalog.folder / file.name, catalog.folder / name)
            file.name, version.is_thin = name, is_thin
            catalog.changed()


def drop_tile(writing: Writing, catalog: Catalog, root: Hash32) -> None:
    for slot in catalog.slots_of(root):
        if slot.hashes:
            writing.mark_missing(catalog, [slot])
    writing.reclaim(catalog)


def collect(writing: Writing, catalog: Catalog) -> None:
    """Remove what no version needs."""
    slots, steps = catalog.needed()
    wanted = catalog.wanted()
    used = {step.file.root for step in steps} | catalog.versions.keys()
    disk, folder = writing.disk, catalog.folder
    idle = [file for file in catalog.step_files.values() if file.root not in used]
    gone = []
    for container in list(catalog.containers.values()):
        spare = [slot for slot in container.slots if slot.hashes and slot not in slots]
        if _stays(catalog, container, slots, wanted):
            if spare:
                writing.mark_missing(catalog, spare)
        else:
            gone.append(container)
    for file in idle:
        with writing.lock:
            disk.unlink(folder / file.name)
            catalog.remove_steps(file)
    for container in gone:
        with writing.lock:
            catalog.remove_container(container)
            disk.unlink(folder / container.record_name)
            disk.unlink(folder / container.data_name)
    if idle or gone:
        disk.sync_folder(folder)
    writing.reclaim(catalog)


def _stays(catalog: Catalog, container: Container, slots: set[Slot], wanted: set[Hash32]) -> bool:
    if any(version.own is container for version in catalog.versions.values()):
        return True
    return any(s in slots or (not s.hashes and s.root in wanted) for s in container.slots)


# --- compacting -----------------------------------------------------------------------------


def compact(reading: SlotReader, writing: Writing, catalog: Catalog, shard_root: Hash32) -> None:
    version = catalog.versions.get(shard_root)
    if version is None or not catalog.is_whole(version):
        raise InputError(
            f"shard {catalog.spec.name}: only a whole version can be compacted; fetch what "
            f"{shard_root.hex()} lacks first"
        )
    if version.own is not None and not version.own.missing and not version.is_thin:
        return
    set_thin(writing, catalog, version, False)
    if version.own is None:
        _write_snapshot(reading, writing, catalog, version)
    else:
        for tile, slot in enumerate(version.own.slots):
            if not slot.hashes:
                data, hashes = _tile(reading, catalog, version, tile)
                entry = NewTile(slot.root, slot.size_bytes, data, hashes)
                writing.need_room(catalog, slot.size_bytes)
                writing.fill(catalog, [(slot, entry)])
    collect(writing, catalog)


def _write_snapshot(
    reading: SlotReader, writing: Writing, catalog: Catalog, version: Version
) -> None:
    """The version's tiles, each verified on its way, in a file of its own."""
    disk, spec = writing.disk, catalog.spec
    writing.need_room(catalog, spec.data_bytes)
    hashes = []
    name = version.root.hex() + records.WHOLE
    with Draft(disk, catalog.folder) as draft:
        with draft.writing(name) as fd:
            disk.write(fd, 0, catalog.header)
            for tile in range(spec.tile_count):
                data, leaves = _tile(reading, catalog, version, tile)
                disk.write(fd, len(catalog.header) + spec.tile_range(tile)[0], data)
                hashes.append(leaves)
            disk.sync(fd)
        container = snapshot_of(catalog, version.root, version.tile_roots, hashes)
        draft.add(container.record_name, [record_of(container)])
        draft.publish()
    writing.know_snapshot(catalog, container, version.tile_roots)


def _tile(
    reading: SlotReader, catalog: Catalog, version: Version, tile: int
) -> tuple[bytes, bytes]:
    """Verified bytes of a tile, and its subtile hashes."""
    way = catalog.way(version.tile_roots[tile])
    if way is None:
        raise InputError(f"tile {tile} of shard {catalog.spec.name} has just been dropped")
    data = reading.tile(catalog, way)
    return data, way[0].hashes if not way[1] else b"".join(merkle.subtile_hashes(data))


# --- what others removed -------------------------------------------------------------------


def forget(catalog: Catalog, file: Container | StepFile | None = None) -> None:
    """Somebody removed a file: what was in it is missing, as it would be after a restart. With the
    whole folder all versions are gone, so that they can be begun anew."""
    everything = not catalog.folder.exists()
    for steps in list(catalog.step_files.values()):
        if everything or steps is file:
            catalog.remove_steps(steps)
            if steps.root in catalog.versions:
                catalog.versions[steps.root].is_thin = False
    for container in list(catalog.containers.values()):
        if everything or container is file:
            for version in catalog.versions.values():
                if version.own is container:
                    version.own = None
            for slot in container.slots:
                catalog.set_hashes(slot, b"")
            catalog.remove_container(container)
    if everything:
        catalog.versions.clear()
        catalog.changed()
