"""Reading everything once, to find what the disk does not return as it was put there.

A tile that is damaged counts as missing from then on. What stands beside the tiles (roots, hashes,
headers) is known while the store is open: where it has rotted it is written again, so that the next
start finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chain.errors import InputError, StorageError
from chain.hashes import ZERO_HASH, Hash32
from tiles.store import records
from tiles.store.catalog import Catalog, Container, Slot, StepFile
from tiles.store.disk import Draft
from tiles.store.slots import SlotReader, bad_subtile
from tiles.store.upkeep import forget
from tiles.store.writing import Writing, record_of

Progress = Callable[[int, int], None]  # tiles done, of how many
_CHECKSUM_AT = 2 * records.HASH_BYTES  # in a row of the table of steps


@dataclass(frozen=True, slots=True)
class Damage:
    """One bad subtile found on disk. The tile it stands in is no longer present.

    Of versions that share the tile, one is named. A damaged step to a tile counts as its subtile 0.
    """

    shard: int
    shard_root: Hash32
    tile: int
    subtile: int


def scrub(
    reading: SlotReader, writing: Writing, catalogs: Sequence[Catalog], progress: Progress | None
) -> list[Damage]:
    damages: list[Damage] = []
    with writing.lock:
        total = sum(len(c.slots) for catalog in catalogs for c in catalog.containers.values())
    done = 0
    for catalog in catalogs:
        with writing.lock:
            containers = list(catalog.containers.values())
            files = list(catalog.step_files.values())
        for container in containers:
            for slot in container.slots:
                found = _check(reading, writing, catalog, slot)
                if found is not None:
                    damages.append(found)
                done += 1
                if progress is not None:
                    progress(done, total)
        for file in files:
            damages += _check_steps(reading, writing, catalog, file)
        with writing.changing(f"check the records of shard {catalog.spec.name}"):
            _mend_records(writing, catalog)
    return damages


def _check(reading: SlotReader, writing: Writing, catalog: Catalog, slot: Slot) -> Damage | None:
    with writing.lock:
        if not slot.hashes or slot not in catalog.slots_of(slot.root):
            return None
        named = _name(catalog, slot)
        if not (catalog.folder / slot.container.data_name).exists():
            forget(catalog, slot.container)
            return Damage(catalog.spec.index, *named, 0)
        fd, hashes = reading.open_slot(catalog, slot)
    try:
        bad = bad_subtile(fd, slot, hashes)
    finally:
        reading.disk.close(fd)
    if bad is None or not mark_damaged(writing, catalog, slot, hashes):
        return None
    return Damage(catalog.spec.index, *named, bad)


def mark_damaged(writing: Writing, catalog: Catalog, slot: Slot, hashes: bytes) -> bool:
    """A tile found damaged is missing from now on, also after a restart. False if it went, or
    was mended, since its hashes were looked at.
    """
    with writing.changing(f"mark a tile of shard {catalog.spec.name} as missing"):
        if slot.hashes is not hashes or slot not in catalog.slots_of(slot.root):
            return False
        try:
            writing.mark_missing(catalog, [slot])
        except FileNotFoundError:
            with writing.lock:
                forget(catalog, slot.container)
    return True


def _name(catalog: Catalog, slot: Slot) -> tuple[Hash32, int]:
    """A version and tile that a slot is known by: of its snapshot, else the first that has it."""
    own = [v for v in catalog.versions.values() if v.own is slot.container]
    if own:
        return own[0].root, slot.container.slots.index(slot)
    for version in sorted(catalog.versions.values(), key=lambda version: version.root):
        if slot.root in version.tile_roots:
            return version.root, version.tile_roots.index(slot.root)
    return Hash32(bytes.fromhex(slot.container.stem)), slot.container.slots.index(slot)


def _check_steps(
    reading: SlotReader, writing: Writing, catalog: Catalog, file: StepFile
) -> list[Damage]:
    damages: list[Damage] = []
    steps = list(file.steps)
    for step in steps:
        there = (catalog.folder / file.name).exists()
        try:
            reading.read_step(catalog, step)
        except InputError:
            return damages  # dropped meanwhile
        except StorageError:
            if not there:
                return [Damage(catalog.spec.index, file.root, s.place.tile, 0) for s in steps]
            with writing.changing(f"mark a step of shard {catalog.spec.name} as missing"):
                if catalog.step_files.get(file.root) is not file:
                    return damages  # dropped meanwhile
                with writing.lock:
                    catalog.remove_step(step)
                at = step.place.row_at + _CHECKSUM_AT
                writing.disk.write_at(catalog.folder / file.name, [(at, ZERO_HASH)])
            damages.append(Damage(catalog.spec.index, file.root, step.place.tile, 0))
    return damages


# --- what stands beside the tiles ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """What stands in a file beside tiles and steps, and where; `owner`: what the file holds."""

    name: str
    size_bytes: int
    parts: list[tuple[int, bytes]]
    owner: Container | StepFile | None = None


def _mend_records(writing: Writing, catalog: Catalog) -> None:
    """Write what is known of a shard's files again where it does not stand there any more."""
    disk = writing.disk
    with writing.lock:
        found = list(_known(catalog))
    for known in found:
        try:
            with disk.opened(catalog.folder / known.name, write=True) as fd:
                rotten = [p for p in known.parts if os.pread(fd, len(p[1]), p[0]) != p[1]]
                for at, raw in rotten:
                    disk.write(fd, at, raw)
                is_cut = os.fstat(fd).st_size != known.size_bytes
                if is_cut:
                    disk.truncate(fd, known.size_bytes)
                if rotten or is_cut:
                    disk.sync(fd)
        except FileNotFoundError:
            if known.owner is not None or not catalog.folder.exists():
                with writing.lock:
                    forget(catalog, known.owner)
                continue
            with Draft(disk, catalog.folder) as draft:
                draft.add(known.name, [raw for _, raw in known.parts])
                draft.publish()


def _known(catalog: Catalog) -> Iterator[_Known]:
    for version in catalog.versions.values():
        if version.own is None:
            raw = b"".join(version.tile_roots)
            yield _Known(version.root.hex() + records.ROOTS, len(raw), [(0, raw)])
    for container in catalog.containers.values():
        raw = record_of(container)
        if container.is_pack:
            at = container.slots[0].record_at - records.HASH_BYTES * len(container.slots)
            parts = [(0, container.header), (at, raw)]
            yield _Known(container.data_name, at + len(raw), parts, container)
        else:
            yield _Known(container.record_name, len(raw), [(0, raw)])
            size = len(catalog.header) + catalog.spec.data_bytes
            yield _Known(container.data_name, size, [(0, catalog.header)], container)
    for file in catalog.step_files.values():
        rows = [(s.place.row_at, s.base + s.new + s.checksum) for s in file.steps]
        yield _Known(file.name, file.size_bytes, [(0, file.header), *rows], file)
