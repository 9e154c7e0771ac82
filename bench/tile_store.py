"""Rows of `bench.tiles` about tiles on disk: loading, verifying, mapping, new versions.

Every figure goes through `tiles.store`, as the node does it; every floor does the same work with
bare system calls or libraries, in turns with it.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from safetensors import safe_open

from bench.measure import (
    MIB,
    Row,
    Sizes,
    at_least,
    at_most,
    in_turns,
    make_cold,
    memory_mib,
    quantile,
    seconds,
)
from chain import limits
from chain.hashes import Hash32
from tiles import aggregate, merkle
from tiles.layout import ShardSpec, TensorSpec
from tiles.store import TileStore
from tiles.tree import ShardTree

TILE = limits.TILE_BYTES


def noise(size_bytes: int) -> bytearray:
    """Random fp32 in (-1, 1), little-endian."""
    values = np.random.default_rng(1).random(size_bytes // 4, np.float32) * 2 - 1
    return bytearray(values.astype("<f4").tobytes())


def expert(size_mib: int) -> ShardSpec:
    """An expert of so many MiB in four tensors."""
    shape = (size_mib * MIB // 16, 1) if size_mib < 4 else (size_mib // 4, MIB // 4)
    names = ("w1", "w2", "w3", "w4")
    tensors = tuple(TensorSpec(f"layers.0.experts.0.{n}.weight", "F32", shape) for n in names)
    return ShardSpec(0, "layers.0.experts.0", "sparse", tensors)


def filled(directory: Path, spec: ShardSpec) -> tuple[TileStore, Hash32, bytearray]:
    """A store with one version of one shard; its root and bytes."""
    data = noise(spec.data_bytes)
    root = ShardTree.of_data(data).root
    store = TileStore(directory, [spec])
    store.put_shard(0, data, root)
    return store, root, data


def load_warm(sizes: Sizes) -> Iterator[Row]:
    """Open one 4 MiB tile's file and add its numbers up, against `safetensors.safe_open`."""
    torch.set_num_threads(1)
    spec = ShardSpec(0, "tile", "sparse", (TensorSpec("w", "F32", (1024, 1024)),))
    store, root, _ = filled(sizes.directory / "warm", spec)
    path = store.path(0, root)

    def ours() -> float:
        file = store.open(0, root, verify=False)
        return float(torch.from_numpy(file.arrays()["w"]).sum())

    def theirs() -> float:
        with safe_open(path, "pt") as file:
            return float(file.get_tensor("w").sum())

    def opening() -> None:
        store.open(0, root, verify=False).arrays()

    def mapping() -> None:
        with path.open("rb") as file:
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY).close()

    if ours() != theirs():
        raise RuntimeError("the two loads differ")
    mine, other = (quantile(t, 0.95) * 1e3 for t in in_turns(sizes.samples * 4, ours, theirs))
    yield at_most("load_warm_p95", mine, "ms", 0.9 * other, other)
    taken = in_turns(sizes.samples * 4, opening, mapping)
    opened, mapped = (quantile(t, 0.95) * 1e3 for t in taken)
    yield at_most("open_p95", opened, "ms", 0.05, mapped)
    store.close()


def load_cold(sizes: Sizes) -> Iterator[Row]:
    """Read and verify one 4 MiB tile that the kernel has forgotten, against a bare read and
    BLAKE3; and the verification alone, of bytes in memory."""
    spec = ShardSpec(0, "tile", "sparse", (TensorSpec("w", "F32", (1024, 1024)),))
    store, root, data = filled(sizes.directory / "cold", spec)
    path = store.path(0, root)
    buffer = bytearray(TILE + 4096)

    def bare() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        os.preadv(descriptor, [buffer], 0)
        os.close(descriptor)
        blake3(buffer).digest()

    taken = in_turns(
        sizes.samples, lambda: store.read_tile(0, root, 0), bare, before=lambda: make_cold(path)
    )
    ours, floor = (quantile(t, 0.95) * 1e3 for t in taken)
    yield at_most("load_cold_p95", ours, "ms", 2.0, floor)
    hashes = merkle.subtile_hashes(data)

    def verify() -> None:
        if merkle.subtile_hashes(data) != hashes:
            raise RuntimeError("a tile has changed")

    # The undisturbed tenth of each: whatever else the processor does only takes from them.
    taken = in_turns(sizes.samples, verify, lambda: blake3(data).digest())
    ours, floor = (TILE / 1e9 / quantile(t, 0.1) for t in taken)
    yield at_least("verify_speed", ours, "GB/s", 0.9 * floor, floor)
    store.close()


def load_expert(sizes: Sizes) -> Iterator[Row]:
    """Open a whole expert without a copy; what stays in memory once every number was used."""
    spec = expert(sizes.shard_mib)
    store, root, data = filled(sizes.directory / "expert", spec)
    path = store.path(0, root)
    del data

    def ours() -> None:
        store.open(0, root, verify=False).arrays()

    def mapping() -> None:
        with path.open("rb") as file:
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY).close()

    taken = in_turns(sizes.samples, ours, mapping)
    mine, floor = (quantile(t, 0.95) * 1e3 for t in taken)
    yield at_most("expert_open_p95", mine, "ms", 5.0, floor)
    private, of_files = memory_mib("RssAnon", "RssFile")
    arrays = store.open(0, root, verify=False).arrays()
    total = sum(float(torch.from_numpy(array).sum()) for array in arrays.values())
    after, of_files_after = memory_mib("RssAnon", "RssFile")
    yield at_most("expert_private", after - private, "MiB", 0.02 * sizes.shard_mib + 4, None)
    yield at_most("expert_mapped", of_files_after - of_files, "MiB", None, float(sizes.shard_mib))
    if total != total:
        raise RuntimeError("the expert is not what was written")
    del arrays
    store.close()


def aggregated(sizes: Sizes) -> Iterator[Row]:
    """An aggregated update (a sixteenth of each chunk, every subtile) becomes a durable version:
    arithmetic, hashes, write, sync. Floor: hash, write, sync."""
    spec = ShardSpec(0, "tile", "sparse", (TensorSpec("w", "F32", (1024, 1024)),))
    store, root, data = filled(sizes.directory / "aggregated", spec)
    random = np.random.default_rng(2)
    units = np.zeros(TILE // 4, np.int32)
    units[random.choice(TILE // 4, TILE // 64, replace=False)] = 1 << 20
    made: list[Hash32] = []
    base, plain = bytes(data), sizes.directory / "plain"

    def ours() -> None:
        new = aggregate.apply(base, [units], [len(made) + 1])
        made.append(store.apply(0, root, {0: new}))

    def floor() -> None:
        blake3(base).digest()
        write_synced(plain, base)

    def forget() -> None:
        store.retain(0, [root])
        plain.unlink(missing_ok=True)

    taken = in_turns(max(10, sizes.samples // 4), ours, floor, before=forget)
    mine, bare = (quantile(t, 0.5) * 1e3 for t in taken)
    yield at_most("aggregate_durable", mine, "ms", 12.0, bare)
    store.close()


def write_synced(path: Path, data: bytes | bytearray) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def new_version(sizes: Sizes) -> Iterator[Row]:
    """5 % of an expert's tiles change: a durable new version, while a reader keeps the old one
    mapped. Floor: 5 % of copying and syncing the expert."""
    spec = expert(sizes.shard_mib)
    store, root, data = filled(sizes.directory / "version", spec)
    path, copy = store.path(0, root), sizes.directory / "copy"
    count = max(1, round(spec.tile_count / 20))
    chosen = [t * spec.tile_count // count for t in range(count)]
    tiles = {t: bytearray(data[t * TILE : (t + 1) * TILE]) for t in chosen}
    reader = store.open(0, root, verify=False)
    before = blake3(reader.data).digest()
    made = 0

    def ours() -> None:
        store.apply(0, root, tiles)

    def copying() -> None:
        shutil.copyfile(path, copy)
        with copy.open("rb") as file:
            os.fsync(file.fileno())

    def forget() -> None:
        nonlocal made
        made += 1
        for new in tiles.values():
            new[::4096] = bytes([made % 256]) * len(new[::4096])
        store.retain(0, [root])
        copy.unlink(missing_ok=True)

    taken = in_turns(3 * sizes.few, ours, copying, before=forget)
    mine, whole = (quantile(t, 0.5) * 1e3 for t in taken)
    if blake3(reader.data).digest() != before:
        raise RuntimeError("a reader's mapping has changed")
    yield at_most("version_5pct_tiles", mine, "ms", 0.08 * whole, 0.05 * whole)
    yield at_most("version_of_copy", 100 * mine / whole, "%", 8.0, 100.0 * count / spec.tile_count)
    del reader
    store.close()


def reroot(sizes: Sizes) -> Iterator[Row]:
    """5 % of an expert's subtiles are written: the new root, against hashing all of it."""
    data = noise(sizes.shard_mib * MIB)
    step = limits.SUBTILE_BYTES
    tree = ShardTree.of_data(data)
    subtiles = len(data) // step
    count = max(1, subtiles // 20)
    order = np.random.default_rng(3).permutation(subtiles)
    full = [seconds(lambda: ShardTree.of_data(data)) for _ in range(sizes.few)]
    whole = quantile(full, 0.5) * 1e3
    for name, places in (
        ("scattered", sorted(int(p) for p in order[:count])),
        ("run", list(range(count))),
    ):
        written = {
            (p // 16, p % 16): memoryview(data)[p * step : (p + 1) * step][::-1].tobytes()
            for p in places
        }
        taken = [seconds(lambda: tree.updated(written)) for _ in range(sizes.few * 4)]  # noqa: B023
        mine = quantile(taken, 0.5) * 1e3
        yield at_most(f"reroot_{name}", mine, "ms", whole / 10, whole * count / subtiles)
