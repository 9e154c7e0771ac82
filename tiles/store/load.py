"""Reading a shard's folder into a catalog, and mending what a crash left in it.

Everything follows from what the files say and from hashes: a tile is present if its subtile
hashes lead to its root, a version is one if its tile roots lead to its name. What is no part of a
version, because a call was cut short, is removed; a reader beside the writer mends nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from chain.errors import DecodeError, StorageError, VerifyError
from chain.hashes import Hash32
from tiles import merkle
from tiles.layout import ShardSpec, subtile_count
from tiles.shardfile import header_length
from tiles.store import records
from tiles.store.catalog import Catalog, Container, Slot, Step, StepFile, Version
from tiles.store.disk import TEMP, Disk, Draft

_LENGTH_BYTES = 8


def load_catalog(spec: ShardSpec, folder: Path, disk: Disk, *, mend: bool) -> Catalog:
    """The catalog of a folder, which may not exist yet. Raises StorageError, OSError."""
    catalog = Catalog(spec, folder)
    _Loader(catalog, disk, mend).load()
    return catalog


class _Loader:
    def __init__(self, catalog: Catalog, disk: Disk, mend: bool) -> None:
        self._catalog, self._disk, self._mend = catalog, disk, mend
        self._spec, self._folder = catalog.spec, catalog.folder
        self._places = records.record_places(self._spec)
        self._names: set[str] = set()
        self._is_changed = False

    def load(self) -> None:
        self._names = set(self._list())
        for name in sorted(self._names):
            if name.endswith(TEMP) or not self._is_ours(name):
                self._remove(name)
        for stem in sorted({name[:64] for name in self._names}):
            self._version(stem)
            self._snapshot(stem)
            self._pack(stem)
            self._steps(stem)
        if self._is_changed:
            self._disk.sync_folder(self._folder)

    def _list(self) -> list[str]:
        """Names of the folder's files. A link among them is refused, or it would be followed."""
        try:
            if self._folder.is_symlink():
                raise StorageError(
                    f"{self._folder} is a symbolic link, and the store follows none; put the "
                    "folder itself there"
                )
            with os.scandir(self._folder) as entries:
                found = list(entries)
        except FileNotFoundError:
            return []
        for entry in found:
            if not entry.is_file(follow_symlinks=False):
                raise StorageError(
                    f"{entry.path} is no regular file; the store follows no links: remove it"
                )
        return [entry.name for entry in found]

    @staticmethod
    def _is_ours(name: str) -> bool:
        """False for what ends like our files and is none; files of others are left alone."""
        return not name.endswith(records.SUFFIXES) or records.split_name(name) is not None

    # --- one stem at a time ---------------------------------------------------------------

    def _version(self, stem: str) -> None:
        if stem + records.ROOTS not in self._names or len(stem) != 64:
            return
        raw = self._read(stem + records.ROOTS)
        root = Hash32(bytes.fromhex(stem))
        short, full = records.record_bytes(self._spec)
        roots = records.hashes_in(raw[:short])
        if len(raw) in (short, full) and self._leads(roots, root):
            self._catalog.versions[root] = Version(root, roots)
        elif len(raw) == full and self._data_name(stem):
            self._rename(stem + records.ROOTS, stem + records.KEPT)  # others may need its tiles
        else:
            self._remove(stem + records.ROOTS)

    def _leads(self, roots: tuple[Hash32, ...], root: Hash32) -> bool:
        try:
            return merkle.shard_root(roots, self._spec.data_bytes) == root
        except VerifyError:
            return False

    def _data_name(self, stem: str) -> str | None:
        names = [stem + records.WHOLE, stem + records.PARTIAL]
        return next((name for name in names if name in self._names), None)

    def _snapshot(self, stem: str) -> None:
        """The container `<stem>.safetensors` or `.partial`, with `.roots` or `.kept` beside it."""
        short, full = records.record_bytes(self._spec)
        record = next(
            (
                name
                for name in (stem + records.ROOTS, stem + records.KEPT)
                if name in self._names and len(self._read(name)) == full
            ),
            None,
        )
        data = self._data_name(stem)
        if stem + records.KEPT in self._names and (record != stem + records.KEPT or data is None):
            self._remove(stem + records.KEPT)
            record = None if record == stem + records.KEPT else record
        if record is None or data is None:
            for suffix in (records.WHOLE, records.PARTIAL):
                self._remove(stem + suffix)  # a crash came before its hashes were written
            if record is not None and full > short:
                self._shorten(record)
            return
        container = Container(stem, False, data, record)
        self._fill_snapshot(container, self._read(record))
        version = self._catalog.versions.get(Hash32(bytes.fromhex(stem)))
        if version is not None and record.endswith(records.ROOTS):
            version.own = container
        self._catalog.add_container(container)
        self._settle_name(container)

    def _fill_snapshot(self, container: Container, raw: bytes) -> None:
        """Slots from a record. One of bytes beyond the file's end is missing."""
        header = self._catalog.header
        size = len(header) + self._spec.data_bytes
        with self._disk.opened(self._folder / container.data_name) as fd:
            found = os.fstat(fd).st_size
            is_sound = found == size and os.pread(fd, len(header), 0) == header
            for tile, (at, length) in enumerate(self._places):
                root = Hash32(raw[32 * tile : 32 * tile + 32])
                start, end = self._spec.tile_range(tile)
                slot = Slot(container, root, end - start, len(header) + start, at)
                hashes = raw[at : at + length]
                if len(header) + end <= found and records.leads_to(hashes, root, end - start):
                    slot.hashes = hashes
                else:
                    slot.stale = _has_data(fd, slot)
                container.slots.append(slot)
        if not is_sound and self._mend:  # the header follows from the model; the tiles are checked
            torn = [
                (s.record_at, bytes(self._places[t][1]))
                for t, s in enumerate(container.slots)
                if not s.hashes
            ]
            if torn:  # or the room that they get back would count as theirs at the next start
                self._disk.write_at(self._folder / container.record_name, torn)
            with self._disk.opened(self._folder / container.data_name, write=True) as fd:
                self._disk.write(fd, 0, header)
                self._disk.truncate(fd, size)
                self._disk.sync(fd)

    def _settle_name(self, container: Container) -> None:
        """A snapshot is called `.safetensors` exactly while all of its tiles are there."""
        suffix = records.PARTIAL if container.missing else records.WHOLE
        other = records.WHOLE if container.missing else records.PARTIAL
        if container.data_name.endswith(other):
            if container.stem + suffix in self._names:
                self._remove(container.data_name)
            else:
                self._rename(container.data_name, container.stem + suffix)
        else:
            self._remove(container.stem + other)
        if self._mend:
            container.data_name = container.stem + suffix

    def _pack(self, stem: str) -> None:
        name = stem + records.PACK
        if name not in self._names or len(stem) != 64:
            return
        try:
            prefix, size = self._prefix(name)
            layout = records.parse_pack(prefix, size, self._spec)
        except DecodeError:
            self._remove(name)
            return
        container = Container(stem, True, name, name, layout.header)
        with self._disk.opened(self._folder / name) as fd:
            table = os.pread(fd, layout.file_bytes - layout.roots_at, layout.roots_at)
            for i, place in enumerate(layout.tiles):
                root = Hash32(table[32 * i : 32 * i + 32])
                slot = Slot(container, root, place.size_bytes, place.offset, place.record_at)
                at = place.record_at - layout.roots_at
                hashes = table[at : at + 32 * subtile_count(place.size_bytes)]
                if records.leads_to(hashes, root, place.size_bytes):
                    slot.hashes = hashes
                else:
                    slot.stale = _has_data(fd, slot)
                container.slots.append(slot)
        self._catalog.add_container(container)

    def _steps(self, stem: str) -> None:
        names = [stem + records.STEPS, stem + records.THIN]
        found = [name for name in names if name in self._names]
        if not found or len(stem) != 64:
            return
        for name in found[1:]:
            self._remove(name)
        root, name = Hash32(bytes.fromhex(stem)), found[0]
        try:
            prefix, size = self._prefix(name)
            places = records.parse_steps(prefix, size, self._spec)
        except DecodeError:
            self._remove(name)
            return
        file = StepFile(root, name, prefix, size)
        with self._disk.opened(self._folder / name) as fd:
            for place in places:
                row = records.hashes_in(os.pread(fd, records.STEP_ROW_BYTES, place.row_at))
                if len(row) == 3 and any(row[2]):
                    file.steps.append(Step(file, place, *row))
        self._catalog.add_steps(file)
        if root in self._catalog.versions:
            self._catalog.versions[root].is_thin = name.endswith(records.THIN)

    # --- files ------------------------------------------------------------------------------

    def _read(self, name: str) -> bytes:
        """All of a `.roots` or `.kept`, or one byte more than it may have."""
        most = records.record_bytes(self._spec)[1] + 1
        with self._disk.opened(self._folder / name) as fd:
            return os.pread(fd, most, 0)

    def _prefix(self, name: str) -> tuple[bytes, int]:
        """A file's header and size. Raises DecodeError."""
        with self._disk.opened(self._folder / name) as fd:
            length = header_length(os.pread(fd, _LENGTH_BYTES, 0))
            return os.pread(fd, _LENGTH_BYTES + length, 0), os.fstat(fd).st_size

    def _remove(self, name: str) -> None:
        if name in self._names:
            self._names.discard(name)
            if self._mend:
                self._disk.unlink(self._folder / name)
                self._is_changed = True

    def _rename(self, old: str, new: str) -> None:
        if self._mend:
            self._disk.rename(self._folder / old, self._folder / new)
            self._names.discard(old)
            self._names.add(new)
            self._is_changed = True

    def _shorten(self, record: str) -> None:
        """Cut the hashes off a record whose snapshot is gone: they would lie about the next."""
        short, _ = records.record_bytes(self._spec)
        if self._mend:
            with Draft(self._disk, self._folder) as draft:
                draft.add(record, [self._read(record)[:short]])
                draft.publish()


def _has_data(fd: int, slot: Slot) -> bool:
    """Whether a missing tile's place takes room on the disk."""
    try:
        return os.lseek(fd, slot.offset, os.SEEK_DATA) < slot.offset + slot.size_bytes
    except OSError:  # no data from there to the end of the file
        return False
