"""Readers beside the store's writer: other threads, and other processes without the lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chain.errors import InputError, LockedError, StorageError
from tests.kit.tile_shards import SPEC, SPECS, TILE, change, put, random, root_of
from tiles.store import Disk, TileReader, TileStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TileStore]:
    with TileStore(tmp_path, SPECS) as opened:
        yield opened


def test_a_reader_beside_sees_what_is_there_then(store: TileStore) -> None:
    reader = TileReader(store.directory, SPECS)
    assert reader.versions(0) == ()
    data, root = put(store, 1)
    assert reader.versions(0) == (root,)
    assert reader.read_tile(0, root, 1) == data[TILE : 2 * TILE]
    opened = reader.open(0, root, verify=False)
    new, changed = change(store, data, root, 1, 2)
    assert reader.read_shard(0, changed) == new
    store.drop_tile(0, changed, 1)
    assert reader.presence(0, changed) == (True, False, True)
    store.put_tile(0, changed, 1, new[TILE : 2 * TILE])
    store.drop(0, root)
    with pytest.raises(InputError, match="not held here"):
        reader.read_tile(0, root, 0)
    assert opened.data == data
    assert reader.read_tile(0, changed, 0) == data[:TILE]
    with pytest.raises(InputError, match="no shard 9"):
        reader.versions(9)


def test_a_reader_beside_marks_nothing(store: TileStore) -> None:
    data, root = put(store, 1)
    with store.path(0, root).open("r+b") as file:
        file.seek(4096)
        file.write(b"damage")
    reader = TileReader(store.directory, SPECS)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"tile 0, subtile 0, is damaged .* scrub"):
            reader.read_tile(0, root, 0)
    assert store.presence(0, root) == (True, True, True)
    assert reader.read_tile(0, root, 2) == data[2 * TILE :]


def test_a_tile_that_is_dropped_before_it_is_mapped(store: TileStore) -> None:
    """A reader beside knows it as present, and would map the hole in its place."""

    class LateDisk(Disk):
        dropping = False

        def open(self, path: Path | str, *, write: bool = False) -> int:
            if self.dropping:
                self.dropping = False
                store.drop_tile(0, root, 1)
            return super().open(path, write=write)

    data, root = change(store, *put(store, 1), 1, 2)
    disk = LateDisk()
    reader = TileReader(store.directory, SPECS, disk=disk)
    for verify in (True, False):
        assert reader.has_tile(0, root, 1)
        disk.dropping = True
        with pytest.raises(InputError, match="not whole"):
            reader.open(0, root, verify=verify)
        store.put_tile(0, root, 1, data[TILE : 2 * TILE])
    assert reader.open(0, root, verify=False).data == data


def test_a_reader_waits_while_room_is_given_back(tmp_path: Path) -> None:
    """The kernel refuses to open a file without waiting while another holds a lease on it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    opened: list[int] = []
    with path.open("r+b") as holder:
        fcntl.fcntl(holder, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        reader = threading.Thread(target=lambda: opened.append(Disk().open(path)))
        reader.start()
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        reader.join(120)
        assert not Disk().punch(holder.fileno(), 0, 1 << 19)  # the reader has it open
        os.close(opened.pop())
        assert Disk().punch(holder.fileno(), 0, 1 << 19)
    assert path.stat().st_blocks * 512 <= (1 << 19) + 4096
    assert path.stat().st_size == 1 << 20


def test_readers_and_a_writer_at_once(store: TileStore) -> None:
    """Threads map and read versions while they are made, shared, compacted and dropped."""
    data, root = put(store, 1)
    versions = {root: data}
    wrong: list[str] = []
    done = threading.Event()
    beside = TileReader(store.directory, SPECS)

    def read(source: TileStore | TileReader) -> None:
        held = []
        while not done.is_set():
            for version in source.versions(0):
                try:
                    opened = source.open(0, version, verify=False)
                    tile = source.read_tile(0, version, 1)
                except InputError:
                    continue  # dropped meanwhile
                expected = versions[version]
                if tile != expected[TILE : 2 * TILE]:
                    wrong.append("tile")
                held.append((opened, expected))
            for opened, expected in held[-4:]:
                if opened.data[:: 256 * 1024] != expected[:: 256 * 1024]:
                    wrong.append("mapping")
            del held[:-4]

    readers = [threading.Thread(target=read, args=(s,)) for s in (store, store, beside)]
    for reader in readers:
        reader.start()
    try:
        for seed in range(12):
            start, end = SPEC.tile_range(seed % 3)
            new = data[:start] + random(end - start, seed + 10) + data[end:]
            versions[root_of(new)] = new
            newest = store.apply(0, root, {seed % 3: new[start:end]})
            if seed % 4 == 3:
                store.compact(0, newest)
            store.retain(0, [newest])
            data, root = new, newest
    finally:
        done.set()
        for reader in readers:
            reader.join(120)
    assert wrong == []
    assert store.scrub() == []


def test_room_is_counted_while_drafts_get_their_names(
    store: TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a listing of the folder and a look at what was listed, a file may have gone."""
    data, root = put(store, 1)
    used, listed = store.used_bytes, os.scandir

    def scandir(path: Path) -> object:
        draft = Path(path) / "draft.tmp"
        draft.write_bytes(b"x")
        entries = listed(path)
        monkeypatch.setattr(os, "scandir", listed)
        first = list(entries)
        draft.unlink()
        return contextlib.nullcontext(first)

    change(store, data, root, 1, 2)
    store.drop(0, root)
    expected = store.used_bytes
    store._catalogs[0].changed()
    monkeypatch.setattr(os, "scandir", scandir)
    assert store.used_bytes == expected > used / 2


# --- files that somebody removes from under a store ------------------------------------------


def test_a_file_that_was_removed_is_missing_and_can_be_stored_again(store: TileStore) -> None:
    data, root = put(store, 1)
    store.path(0, root).unlink()
    with pytest.raises(StorageError, match="No such file"):
        store.read_tile(0, root, 1)
    assert store.presence(0, root) == (False, False, False)
    store.put_tile(0, root, 1, data[TILE : 2 * TILE])
    assert store.read_tile(0, root, 1) == data[TILE : 2 * TILE]
    assert [(d.shard, d.tile) for d in store.scrub()] == []


@pytest.mark.parametrize("reads", [True, False])
def test_a_directory_that_was_removed_is_made_anew(tmp_path: Path, reads: bool) -> None:
    with TileStore(tmp_path / "tiles", SPECS) as store:
        data, root = put(store, 1)
        tile_roots = store.tile_roots(0, root)
        shutil.rmtree(store.directory)
        if reads:
            with pytest.raises(StorageError, match="No such file"):
                store.read_tile(0, root, 0)
            assert store.versions(0) == store.partial_versions(0) == ()
        assert store.begin(0, root, tile_roots) == [0, 1, 2]
        store.put_shard(0, data, root)
        assert store.read_shard(0, root) == data
        with pytest.raises(LockedError):
            TileStore(store.directory, SPECS)
    with TileStore(tmp_path / "tiles", SPECS) as store:
        assert store.read_shard(0, root) == data


def test_a_scrub_of_a_directory_that_was_removed_ends(tmp_path: Path) -> None:
    with TileStore(tmp_path / "tiles", SPECS) as store:
        put(store, 1)
        shutil.rmtree(store.directory)
        assert {d.shard for d in store.scrub()} == {0}
        assert store.versions(0) == store.partial_versions(0) == ()
        assert store.scrub() == []
