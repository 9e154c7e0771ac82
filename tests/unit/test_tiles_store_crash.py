"""The store is cut short at every durable step of everything it does, by a killed process and by
a power failure. It must open again, hold all that was acknowledged, and claim nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from chain.errors import StorageError
from chain.hashes import Hash32
from chain.types import ShardIndex, TileIndex
from tests.kit.faulty_disk import Crash, FaultyDisk
from tests.kit.small_tiles import PATCHES, TILE
from tiles import merkle
from tiles.layout import ShardSpec, TensorSpec
from tiles.steps import TileStep
from tiles.store import Disk, TileStore

POWER_SEEDS = (1, 2)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where the system has one: thousands of stores come and go."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=shared) as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for patch in PATCHES:
        monkeypatch.setattr(*patch)


@dataclass
class Model:
    """What was acknowledged: the bytes of versions, and which of their tiles are there."""

    data: dict[Hash32, bytes] = field(default_factory=dict)
    held: dict[Hash32, set[int]] = field(default_factory=dict)
    gone: set[Hash32] = field(default_factory=set)  # versions that were dropped
    hurt: set[tuple[Hash32, int]] = field(default_factory=set)  # tiles with a flipped bit
    chain: list[Hash32] = field(default_factory=list)  # versions made before the test

    def make(self, seed: int, base: Hash32 | None = None, tiles: tuple[int, ...] = ()) -> Hash32:
        """A version: all of its own, or the base's with some tiles of its own."""
        size = SPEC.data_bytes
        data = bytearray(np.random.default_rng(seed).integers(0, 256, size, "u1").tobytes())
        if base is not None:
            for tile in set(range(SPEC.tile_count)) - set(tiles):
                part = slice(*SPEC.tile_range(tile))
                data[part] = self.data[base][part]
        return self.enter(bytes(data))

    def enter(self, data: bytes) -> Hash32:
        root = merkle.shard_root(merkle.tile_roots(data), len(data))
        self.data[root] = data
        return root

    def tile(self, root: Hash32, tile: int) -> bytes:
        return self.data[root][slice(*SPEC.tile_range(tile))]

    def roots(self, root: Hash32) -> tuple[Hash32, ...]:
        return merkle.tile_roots(self.data[root])

    def acknowledge(self, root: Hash32, *tiles: int) -> None:
        self.held.setdefault(root, set()).update(tiles or range(SPEC.tile_count))


SPEC = ShardSpec(0, "s", "dense", (TensorSpec("w", "U8", (2 * TILE + 5000,)),))
Act = Callable[[TileStore, Model], None]


# --- what is there before -------------------------------------------------------------------


def nothing(store: TileStore, model: Model) -> None:
    pass


def one(store: TileStore, model: Model) -> None:
    root = model.make(1)
    store.put_shard(0, model.data[root], root)
    model.acknowledge(root)
    model.chain.append(root)


def follow(store: TileStore, model: Model, number: int) -> None:
    """A version that changes tiles 0 and 2 of the newest, and the steps to it."""
    base = model.chain[-1]
    data, steps = bytearray(model.data[base]), []
    for tile in (0, 2):
        part = slice(*SPEC.tile_range(tile))
        old = bytes(data[part])
        data[part] = (np.frombuffer(old, "u1") ^ number).tobytes()
        roots = merkle.tile_root(old), merkle.tile_root(data[part])
        parts = ((b"x" * 900,),)
        steps.append(TileStep(ShardIndex(0), TileIndex(tile), *roots, (1,), (number,), parts))
    root = model.enter(bytes(data))
    assert store.apply(0, base, {t: model.tile(root, t) for t in (0, 2)}) == root
    model.acknowledge(root)
    store.put_steps(0, root, base, steps)
    model.chain.append(root)


def three(store: TileStore, model: Model) -> None:
    one(store, model)
    for number in (1, 2):
        follow(store, model, number)


def three_with_a_thin_one(store: TileStore, model: Model) -> None:
    three(store, model)
    store.thin(0, model.chain[1])


def four_with_two_thin_ones(store: TileStore, model: Model) -> None:
    three_with_a_thin_one(store, model)
    follow(store, model, 4)
    store.thin(0, model.chain[2])


def there_and_back(store: TileStore, model: Model) -> None:
    """Steps that lead back to where they began."""
    one(store, model)
    follow(store, model, 1)
    follow(store, model, 1)
    assert model.chain[2] == model.chain[0]


# --- what is cut short ----------------------------------------------------------------------


def put_shard(store: TileStore, model: Model) -> None:
    root = model.make(2)
    store.put_shard(0, model.data[root], root)
    model.acknowledge(root)


def put_shard_that_shares(store: TileStore, model: Model) -> None:
    root = model.make(3, model.chain[0], (1,))
    store.put_shard(0, model.data[root], root)
    model.acknowledge(root)


def write_in_parts(store: TileStore, model: Model) -> None:
    root = model.make(4)
    with store.writer(0) as writer:
        for at in range(0, SPEC.data_bytes, 50_000):
            writer.write(model.data[root][at : at + 50_000])
        assert writer.finish() == root
    model.acknowledge(root)


def write_in_parts_what_was_begun(store: TileStore, model: Model) -> None:
    root = model.make(4)
    store.begin(0, root, model.roots(root))
    model.held.setdefault(root, set())
    write_in_parts(store, model)


def tile_by_tile(store: TileStore, model: Model) -> None:
    root = model.make(5)
    for tile in store.begin(0, root, model.roots(root)):
        model.held.setdefault(root, set())
        store.put_tile(0, root, tile, model.tile(root, tile))
        model.acknowledge(root, tile)


def tile_by_tile_that_shares(store: TileStore, model: Model) -> None:
    root = model.make(6, model.chain[0], (0, 2))
    assert store.begin(0, root, model.roots(root)) == [0, 2]
    model.acknowledge(root, 1)
    for tile in (2, 0):
        store.put_tile(0, root, tile, model.tile(root, tile))
        model.acknowledge(root, tile)


def complete_a_partial(store: TileStore, model: Model) -> None:
    root = model.make(7)
    store.begin(0, root, model.roots(root))
    model.held.setdefault(root, set())
    store.put_tile(0, root, 1, model.tile(root, 1))
    model.acknowledge(root, 1)
    store.put_shard(0, model.data[root], root)
    model.acknowledge(root)


def apply(store: TileStore, model: Model) -> None:
    root = model.make(8, model.chain[0], (1, 2))
    changed = {tile: model.tile(root, tile) for tile in (1, 2)}
    assert store.apply(0, model.chain[0], changed) == root
    model.acknowledge(root)


def apply_to_subtiles(store: TileStore, model: Model) -> None:
    data = bytearray(model.data[model.chain[0]])
    data[TILE + 4096 : TILE + 8192] = bytes(4096)
    root = model.enter(bytes(data))
    assert store.apply(0, model.chain[0], {}, {(1, 1): bytes(4096)}) == root
    model.acknowledge(root)


def put_steps(store: TileStore, model: Model) -> None:
    follow(store, model, 8)


def thin(store: TileStore, model: Model) -> None:
    for root in model.chain[1:]:
        store.thin(0, root)
        assert store.read_shard(0, root) == model.data[root]


def drop(store: TileStore, model: Model, root: Hash32) -> None:
    model.held.pop(root, None)
    store.drop(0, root)
    model.gone.add(root)


def drop_the_first(store: TileStore, model: Model) -> None:
    drop(store, model, model.chain[0])


def drop_the_last(store: TileStore, model: Model) -> None:
    drop(store, model, model.chain[-1])


def drop_all(store: TileStore, model: Model) -> None:
    for root in model.chain:
        drop(store, model, root)


def drop_and_take_again(store: TileStore, model: Model) -> None:
    root = model.chain[0]
    drop(store, model, root)
    model.gone.clear()
    store.put_shard(0, model.data[root], root)
    model.acknowledge(root)


def retain(store: TileStore, model: Model) -> None:
    for root in model.chain[:-1]:
        del model.held[root]
    store.retain(0, model.chain[-1:])
    model.gone.update(model.chain[:-1])


def compact(store: TileStore, model: Model) -> None:
    for root in model.chain[1:]:
        store.compact(0, root)
        assert store.path(0, root).name == f"{root.hex()}.safetensors"
    drop(store, model, model.chain[0])


def drop_tiles(store: TileStore, model: Model) -> None:
    """Tile 1 is every version's, tile 2 the first one's alone; one of them comes back."""
    for tile, held in ((1, model.chain), (2, model.chain[:1])):
        for version in held:
            model.held[version].discard(tile)
        store.drop_tile(0, model.chain[0], tile)
        assert not any(store.has_tile(0, version, tile) for version in held)
    store.put_tile(0, model.chain[0], 1, model.tile(model.chain[0], 1))
    for version in model.chain:
        model.acknowledge(version, 1)


def damage(store: TileStore, model: Model) -> None:
    """A bit flips in a snapshot and in a pack; both tiles are found and mended."""
    folder = store.directory / "00000"
    pack = next(
        path
        for path in folder.glob("*.pack.safetensors")
        if model.tile(model.chain[1], 0) in path.read_bytes()
    )
    for path, number, tile in ((store.path(0, model.chain[0]), 0, 1), (pack, 1, 0)):
        users = model.chain if tile == 1 else model.chain[1:2]
        for version in users:
            model.held[version].discard(tile)
            model.hurt.add((version, tile))
        flip(path, 4096 + tile * TILE + 5)
        with pytest.raises(StorageError, match="is damaged on disk"):
            store.read_tile(0, model.chain[number], tile)
        assert not any(store.has_tile(0, version, tile) for version in users if tile == 1)
        root = model.chain[number]
        store.put_tile(0, root, tile, model.tile(root, tile))
        for version in users:
            model.acknowledge(version, tile)


def damaged_step(store: TileStore, model: Model) -> None:
    root = model.chain[1]
    (path,) = (store.directory / "00000").glob("*.thin.safetensors")
    model.held[root].discard(0)
    model.hurt.add((root, 0))
    flip(path, 4096 + 100)
    assert [(d.shard_root, d.tile) for d in store.scrub()] == [(root, 0)]
    assert store.presence(0, root) == (False, True, True)
    store.put_tile(0, root, 0, model.tile(root, 0))
    model.acknowledge(root, 0)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


SCENARIOS: list[tuple[Act, Act]] = [
    *((nothing, act) for act in (put_shard, write_in_parts, write_in_parts_what_was_begun)),
    *((nothing, act) for act in (tile_by_tile, complete_a_partial)),
    *((one, act) for act in (put_shard_that_shares, tile_by_tile_that_shares, apply)),
    *((one, act) for act in (apply_to_subtiles, put_steps)),
    *((three, act) for act in (thin, drop_the_first, drop_all, drop_and_take_again, retain)),
    *((three, act) for act in (compact, drop_tiles, damage)),
    *((three_with_a_thin_one, act) for act in (compact, drop_the_first, retain, damaged_step)),
    *((four_with_two_thin_ones, act) for act in (drop_the_first, drop_the_last, drop_all, compact)),
    *((there_and_back, act) for act in (thin, drop_the_first)),
]


class FastDisk(Disk):
    """Where nothing is going to fail any more."""

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


def check(directory: Path, model: Model) -> None:
    """The store opens, what was acknowledged is there, and nothing that it claims is untrue."""
    with TileStore(directory, [SPEC], disk=FastDisk()) as store:
        assert {(d.shard_root, d.tile) for d in store.scrub()} <= model.hurt
        assert store.scrub() == []
        known = {*store.versions(0), *store.partial_versions(0)}
        assert known <= set(model.data)
        for root, tiles in model.held.items():
            assert root in known
            presence = store.presence(0, root)
            assert all(presence[tile] for tile in tiles)
        assert not model.gone & known
        for root in known:
            for tile, here in enumerate(store.presence(0, root)):
                if here:
                    assert store.read_tile(0, root, tile) == model.tile(root, tile)
        for root in store.versions(0):
            assert store.open(0, root).data == model.data[root]
            store.compact(0, root)
            assert store.path(0, root).read_bytes()[4096:] == model.data[root]
        assert not list(directory.rglob("*.tmp"))
        for root in known:
            store.drop(0, root)
    assert not any(path.name != "lock" for path in directory.glob("*/*"))


def run(directory: Path, disk: FaultyDisk, act: Act, model: Model) -> None:
    """Open the store and act, until the disk says that this is the end."""
    with suppress(Crash), TileStore(directory, [SPEC], disk=disk) as store:
        act(store, model)


def attempts(memory: Path, before: Act, act: Act) -> Iterator[tuple[Path, FaultyDisk, Model]]:
    """`act` cut short at its first step, its second and so on, until it comes through."""
    start, model = memory / "start", Model()
    start.mkdir()
    run(start, FaultyDisk(start), before, model)
    for stop_at in count(1):
        directory = memory / str(stop_at)
        shutil.copytree(start, directory)
        disk, known = FaultyDisk(directory, stop_at), deepcopy(model)
        run(directory, disk, act, known)
        yield directory, disk, known
        if not disk.is_dead:
            return


def cut_again(directory: Path, model: Model) -> None:
    """Opening mends what a crash left: it is cut short as well, at each of its steps."""
    for stop_at in count(1):
        again = directory.with_name(directory.name + "-again")
        shutil.copytree(directory, again)
        disk = FaultyDisk(again, stop_at)
        run(again, disk, lambda store, model: None, model)
        check(again, model)
        shutil.rmtree(again)
        if not disk.is_dead:
            return


@pytest.mark.parametrize(
    ("before", "act"), SCENARIOS, ids=[f"{a.__name__}-{b.__name__}" for a, b in SCENARIOS]
)
def test_a_crash_at_any_step(memory: Path, before: Act, act: Act) -> None:
    cut_short = 0
    for directory, disk, model in attempts(memory, before, act):
        cut_short += disk.is_dead
        for seed in POWER_SEEDS:
            failed = memory / f"{directory.name}-{seed}"
            failed.mkdir()
            disk.lose_power(seed, failed)
            check(failed, model)
            shutil.rmtree(failed)
        cut_again(directory, model)
        check(directory, model)
        shutil.rmtree(directory)
    assert cut_short
