"""Who tampers with a store's directory: links, pipes, a second writer, files that lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chain.errors import LockedError, StorageError
from tests.kit.tile_shards import SPECS, TILE, change, put
from tiles import merkle
from tiles.store import TileReader, TileStore


def test_two_writers_of_one_process(tmp_path: Path) -> None:
    with TileStore(tmp_path, SPECS) as first:
        with pytest.raises(LockedError, match="is in use by another store"):
            TileStore(tmp_path, SPECS)
        put(first, 1)
    with TileStore(tmp_path, SPECS) as second:
        assert len(second.versions(0)) == 1


def test_two_writers_of_two_processes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from chain.errors import LockedError\n"
        "from tiles.store import TileStore\n"
        "try: TileStore(Path(sys.argv[1]), [])\n"
        "except LockedError as error: sys.exit(error.exit_code)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with TileStore(tmp_path, SPECS):
        assert subprocess.run(command, check=False, timeout=180).returncode == 77
    assert subprocess.run(command, check=False, timeout=180).returncode == 0


@pytest.mark.parametrize("suffix", [".safetensors", ".roots", ".pack.safetensors"])
def test_links_in_a_store_are_refused(tmp_path: Path, suffix: str) -> None:
    """Found at the start, or put there while the store is open."""
    secret = tmp_path / "secret"
    with TileStore(tmp_path / "tiles", SPECS) as store:
        _, changed = change(store, *(made := put(store, 1)), 1, 2)
        root = made[1]
        (path,) = (
            path
            for path in (tmp_path / "tiles").glob("*/*")
            if path.name[64:] == suffix and (suffix != ".roots" or path.name[:64] == root.hex())
        )
        path.rename(secret)
        path.symlink_to(secret)
        kept = secret.read_bytes()
        tile = 1 if suffix.startswith(".pack") else 0
        if suffix != ".roots":
            with pytest.raises(StorageError, match="is a symbolic link, and the store follows"):
                store.read_tile(0, changed, tile)
            with pytest.raises(StorageError, match="symbolic link"):
                store.open(0, changed)
            with pytest.raises(StorageError, match="symbolic link"):
                store.scrub()
        with pytest.raises(StorageError, match="symbolic link"):
            store.drop_tile(0, changed if tile else root, tile)
        assert secret.read_bytes() == kept
    for reader in (TileStore, TileReader):
        with pytest.raises(StorageError, match=r"is no regular file; .* remove it"):
            reader(tmp_path / "tiles", SPECS).versions(0)
    for link in path.parent.iterdir():
        if link.is_symlink():
            link.unlink()
    with TileStore(tmp_path / "tiles", SPECS) as store:
        assert (root in store.versions(0)) == (suffix == ".pack.safetensors")
        assert secret.read_bytes() == kept


def test_a_link_to_another_store_is_not_a_shards_folder(tmp_path: Path) -> None:
    with TileStore(tmp_path / "one", SPECS) as store:
        put(store, 1)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "00000").symlink_to(tmp_path / "one" / "00000")
    for reader in (TileStore, TileReader):
        with pytest.raises(StorageError, match="is a symbolic link, and the store follows none"):
            reader(tmp_path / "two", SPECS).versions(0)


def test_a_link_in_place_of_the_lock(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="lock: is a symbolic link"):
        TileStore(tmp_path / "tiles", SPECS)
    assert not (tmp_path / "elsewhere").exists()


def test_a_link_in_place_of_what_is_about_to_be_written(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    with TileStore(tmp_path / "tiles", SPECS) as store:
        data, root = put(store, 1)
        _, changed = change(store, data, root, 1, 2)
        folder = tmp_path / "tiles" / "00000"
        for name in (f"{changed.hex()}.safetensors.tmp", f"{changed.hex()}.safetensors"):
            (folder / name).symlink_to(victim)
        store.compact(0, changed)
        assert not store.path(0, changed).is_symlink()
        assert victim.read_bytes() == b"precious"


def test_a_pipe_in_a_store_does_not_hang_it(tmp_path: Path) -> None:
    with TileStore(tmp_path, SPECS) as store:
        _, root = put(store, 1)
        path = store.path(0, root)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(StorageError, match="no regular file"):
            store.read_tile(0, root, 0)
    with pytest.raises(StorageError, match="no regular file"):
        TileStore(tmp_path, SPECS)


def test_records_that_claim_what_is_not_there(tmp_path: Path) -> None:
    """Hashes that lead to a root make a tile present; its bytes are compared when it is read."""
    with TileStore(tmp_path, SPECS) as store:
        _, root = put(store, 1)
        path = store.path(0, root)
    path.write_bytes(path.read_bytes()[:4096].ljust(path.stat().st_size, b"\0"))
    with TileStore(tmp_path, SPECS) as store:
        assert store.versions(0) == (root,)
        assert {damage.tile for damage in store.scrub()} == {0, 1, 2}
        assert store.presence(0, root) == (False, False, False)


def test_a_pack_with_another_tile_under_its_name(tmp_path: Path) -> None:
    """A subtile swapped with its neighbour, hashes and all: no root fits them any more."""
    with TileStore(tmp_path, SPECS) as store:
        data, root = put(store, 1)
        new, changed = change(store, data, root, 1, 2)
        (pack,) = tmp_path.glob("*/*.pack.safetensors")
    raw = bytearray(pack.read_bytes())
    size = 1 << 18
    one, two = raw[4096 : 4096 + size], raw[4096 + size : 4096 + 2 * size]
    raw[4096 : 4096 + 2 * size] = two + one
    at = 4096 + TILE + 32
    raw[at : at + 64] = raw[at + 32 : at + 64] + raw[at : at + 32]
    pack.write_bytes(raw)
    with TileStore(tmp_path, SPECS) as store:
        assert store.presence(0, changed) == (True, False, True)
        assert store.begin(0, changed, merkle.tile_roots(new)) == [1]
        store.put_tile(0, changed, 1, new[TILE : 2 * TILE])
        assert store.read_shard(0, changed) == new


@pytest.mark.parametrize("cut", [0, 7, 4096, 4096 + TILE, -1])
def test_a_truncated_pack_is_no_pack(tmp_path: Path, cut: int) -> None:
    with TileStore(tmp_path, SPECS) as store:
        data, root = put(store, 1)
        _, changed = change(store, data, root, 1, 2)
        (pack,) = tmp_path.glob("*/*.pack.safetensors")
    pack.write_bytes(pack.read_bytes()[:cut])
    with TileStore(tmp_path, SPECS) as store:
        assert store.presence(0, changed) == (True, False, True)
        assert store.read_shard(0, root) == data
        assert not pack.exists()
