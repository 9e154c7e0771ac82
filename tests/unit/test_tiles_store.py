"""The tile store: whole and partial versions, crashes, damage, a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from chain import limits
from chain.errors import InputError, QuotaError, StorageError, VerifyError
from tiles import merkle
from tiles.layout import ShardSpec, TensorSpec
from tiles.store import Damage, TileStore

SMALL = ShardSpec(
    0, "small", "dense", (TensorSpec("w", "F32", (300, 7)), TensorSpec("b", "F32", (7,)))
)
TALL = ShardSpec(1, "tall", "sparse", (TensorSpec("w", "F32", (2 * 1024 * 1024 + 100_000,)),))
SPECS = (SMALL, TALL)


def make(spec: ShardSpec, seed: int) -> tuple[bytes, tuple, bytes]:
    data = np.random.default_rng(seed).standard_normal(spec.elements, "f4").tobytes()
    roots = merkle.tile_roots(data)
    return data, roots, merkle.shard_root(roots, len(data))


def tile(spec: ShardSpec, data: bytes, index: int) -> bytes:
    return data[slice(*spec.tile_range(index))]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def reopened(held: TileStore) -> TileStore:
    """What a restart of the node finds."""
    held.close()
    return TileStore(held.directory, SPECS)


def test_whole_shard_round_trip_and_reopen(tmp_path: Path) -> None:
    data, roots, root = make(TALL, 1)
    held = TileStore(tmp_path, SPECS)
    assert held.versions(1) == ()
    held.put_shard(1, data, root)
    held.put_shard(1, data, root)
    for _ in range(2):
        assert held.versions(1) == (root,)
        assert held.partial_versions(1) == ()
        assert held.tile_roots(1, root) == roots
        assert held.presence(1, root) == (True, True, True)
        assert held.read_tile(1, root, 2) == tile(TALL, data, 2)
        assert held.read_shard(1, root) == data
        assert held.scrub() == []
        held = reopened(held)
    assert sorted(p.suffix for p in (tmp_path / "00001").iterdir()) == [".roots", ".safetensors"]


def test_files_are_ordinary_safetensors_and_map_without_a_copy(tmp_path: Path) -> None:
    data, _, root = make(SMALL, 2)
    held = TileStore(tmp_path, SPECS)
    held.put_shard(0, data, root)
    tensors = load_file(held.path(0, root))
    assert tensors["w"].shape == (300, 7)
    assert tensors["w"].tobytes() + tensors["b"].tobytes() == data
    mapped = held.open(0, root)
    arrays = mapped.arrays()
    assert np.array_equal(arrays["b"], tensors["b"])
    arrays["b"][0] = 99.0  # private mapping: the file is untouched
    held.drop(0, root)  # and the reader's mapping outlives the version
    assert np.array_equal(arrays["w"], tensors["w"])
    assert held.versions(0) == ()


def test_partial_version_grows_tile_by_tile_over_restarts(tmp_path: Path) -> None:
    data, roots, root = make(TALL, 3)
    held = TileStore(tmp_path, SPECS)
    assert held.begin(1, root, roots) == [0, 1, 2]
    held.put_tile(1, root, 2, tile(TALL, data, 2))
    held = reopened(held)
    assert (held.versions(1), held.partial_versions(1)) == ((), (root,))
    assert held.presence(1, root) == (False, False, True)
    assert held.has_tile(1, root, 2)
    assert not held.has_tile(1, root, 9)
    assert held.read_tile(1, root, 2) == tile(TALL, data, 2)
    with pytest.raises(InputError, match="not held here"):
        held.read_tile(1, root, 0)
    with pytest.raises(InputError, match="not whole"):
        held.path(1, root)
    assert held.begin(1, root, roots) == [0, 1]
    held.put_tile(1, root, 0, tile(TALL, data, 0))
    held.put_tile(1, root, 1, tile(TALL, data, 1))
    held.put_tile(1, root, 1, tile(TALL, data, 1))
    assert held.versions(1) == (root,)
    assert load_file(held.path(1, root))["w"].tobytes() == data


def test_a_new_version_takes_unchanged_tiles_from_the_old(tmp_path: Path) -> None:
    data, _, root = make(TALL, 4)
    held = TileStore(tmp_path, SPECS)
    held.put_shard(1, data, root)
    changed = bytearray(data)
    changed[0] ^= 1
    roots = merkle.tile_roots(changed)
    new = merkle.shard_root(roots, len(changed))
    assert held.begin(1, new, roots) == [0]
    held.put_tile(1, new, 0, tile(TALL, bytes(changed), 0))
    assert held.read_shard(1, new) == changed
    assert held.read_shard(1, root) == data


def test_put_shard_completes_a_partial_version(tmp_path: Path) -> None:
    data, roots, root = make(TALL, 5)
    held = TileStore(tmp_path, SPECS)
    held.begin(1, root, roots)
    held.put_shard(1, data, root)
    assert reopened(held).read_shard(1, root) == data
    assert not list(tmp_path.rglob("*.partial"))


def test_wrong_bytes_never_enter(tmp_path: Path) -> None:
    data, roots, root = make(TALL, 6)
    bad = bytearray(data)
    bad[5_000_000] ^= 4
    held = TileStore(tmp_path, SPECS)
    with pytest.raises(VerifyError, match="do not have the root"):
        held.put_shard(1, bad, root)
    with pytest.raises(VerifyError, match="expected"):
        held.put_shard(1, data[:-4], root)
    with pytest.raises(VerifyError, match="tile roots do not lead"):
        held.begin(1, root, roots[::-1])
    with pytest.raises(VerifyError, match="do not make a shard"):
        held.begin(1, root, roots[:2])
    held.begin(1, root, roots)
    with pytest.raises(VerifyError, match="has not the root"):
        held.put_tile(1, root, 1, tile(TALL, bytes(bad), 1))
    with pytest.raises(VerifyError, match="bytes, expected"):
        held.put_tile(1, root, 1, b"short")
    with pytest.raises(InputError, match="not a tile 3"):
        held.put_tile(1, root, 3, b"")
    with pytest.raises(InputError, match="no shard 7"):
        held.put_shard(7, data, root)
    with pytest.raises(InputError, match="not held here"):
        held.put_tile(1, bytes(32), 0, b"")
    assert held.presence(1, root) == (False, False, False)


def test_a_flipped_byte_on_disk_is_named_and_can_be_repaired(tmp_path: Path) -> None:
    data, _, root = make(TALL, 7)
    held = TileStore(tmp_path, SPECS)
    held.put_shard(1, data, root)
    flip(held.path(1, root), 4096 + limits.TILE_BYTES + 3 * limits.SUBTILE_BYTES + 17)
    assert held.read_tile(1, root, 0) == tile(TALL, data, 0)
    with pytest.raises(StorageError, match="tile 1, subtile 3, is damaged"):
        held.read_tile(1, root, 1)
    held = reopened(held)  # remembered over a restart
    assert held.versions(1) == ()
    assert held.begin(1, root, held.tile_roots(1, root)) == [1]
    held.put_tile(1, root, 1, tile(TALL, data, 1))
    assert held.read_shard(1, root) == data


def test_scrub_finds_each_damaged_tile(tmp_path: Path) -> None:
    data, _, root = make(TALL, 8)
    other, _, small_root = make(SMALL, 8)
    held = TileStore(tmp_path, SPECS)
    held.put_shard(1, data, root)
    held.put_shard(0, other, small_root)
    path = held.path(1, root)
    flip(path, 4096)
    flip(path, 4096 + 2 * limits.TILE_BYTES)
    os.truncate(held.path(0, small_root), 5000)
    assert sorted(held.scrub(), key=lambda d: (d.shard, d.tile)) == [
        Damage(0, small_root, 0, 0),
        Damage(1, root, 0, 0),
        Damage(1, root, 2, 0),
    ]
    assert held.presence(1, root) == (False, True, False)
    assert held.scrub() == []


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    data, roots, root = make(TALL, 9)
    held = TileStore(tmp_path, SPECS)
    held.begin(1, root, roots)
    folder = tmp_path / "00001"
    (folder / f"{root.hex()}.safetensors.tmp").write_bytes(b"half")
    (folder / f"{bytes(32).hex()}.partial").write_bytes(b"no hashes")
    (folder / f"{bytes(32).hex()}.roots").write_bytes(b"short")
    (folder / "zz.roots").write_bytes(b"")
    held = reopened(held)
    assert held.partial_versions(1) == (root,)
    assert sorted(p.name for p in folder.iterdir()) == [
        f"{root.hex()}.partial",
        f"{root.hex()}.roots",
    ]
    # a torn write of the hashes: the tile's bytes are there, but it does not count as present
    held.put_tile(1, root, 0, tile(TALL, data, 0))
    flip(folder / f"{root.hex()}.roots", 32 * 3 + 5)
    assert reopened(held).presence(1, root) == (False, False, False)


@pytest.mark.parametrize("step", ["pwrite", "fsync", "rename", "ftruncate"])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    data, roots, root = make(TALL, 10)
    held = TileStore(tmp_path, SPECS)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for begun in (False, True):
        if begun:
            held.begin(1, root, roots)
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            if step != "ftruncate" or not begun:
                with pytest.raises(QuotaError, match="the disk is full; free some space"):
                    held.put_shard(1, data, root)
        if (step, begun) != ("rename", True):  # else only the last name is missing
            assert held.versions(1) == ()
            assert held.presence(1, root) == ((False,) * 3 if begun else ())
            held = reopened(held)
            assert held.versions(1) == ()
        assert not list(tmp_path.rglob("*.tmp"))
    held.put_shard(1, data, root)
    assert held.read_shard(1, root) == data
    assert load_file(held.path(1, root))["w"].tobytes() == data
    assert held.path(1, root).suffix == ".safetensors"


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot open"):
        TileStore(tmp_path / "file", SPECS)
