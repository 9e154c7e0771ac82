"""Versions that share tiles: packs, mappings over several files, steps, compaction, room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from chain import limits
from chain.codec import decode
from chain.errors import InputError, QuotaError, StorageError, VerifyError
from chain.hashes import Hash32
from tests.kit.tile_shards import SMALL, SPEC, SPECS, TILE, change, put, random, root_of
from tiles import merkle
from tiles.aggregate import aggregate_tile
from tiles.delta import decode_tile, encode_delta
from tiles.steps import DeltaSections, TileStep, make_step
from tiles.store import Damage, TileStore
from tiles.store.catalog import Catalog, Container, Slot, Step, StepFile, Version
from tiles.store.records import StepPlace


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TileStore]:
    with TileStore(tmp_path, SPECS) as opened:
        yield opened


def names(store: TileStore, shard: int = 0) -> list[str]:
    return sorted(path.name[64:] for path in (store.directory / f"{shard:05d}").iterdir())


def reopened(store: TileStore) -> TileStore:
    store.close()
    return TileStore(store.directory, SPECS)


def test_a_version_stores_what_it_changes_and_shares_the_rest(store: TileStore) -> None:
    data, root = put(store, 1)
    before = store.used_bytes
    new, changed = change(store, data, root, 1, 2)
    assert changed == root_of(new)
    assert before + TILE <= store.used_bytes < before + TILE + 65536
    assert names(store) == [".pack.safetensors", ".roots", ".roots", ".safetensors"]
    assert (store.containers(0, root), store.containers(0, changed)) == (1, 2)
    store = reopened(store)
    for version, expected in ((root, data), (changed, new)):
        assert store.read_shard(0, version) == expected
        assert store.open(0, version).data == expected
        assert store.subtile_hashes(0, version, 1) == merkle.subtile_hashes(
            expected[TILE : 2 * TILE]
        )
    with pytest.raises(InputError, match="`compact` makes it one"):
        store.path(0, changed)
    (pack,) = store.directory.glob("*/*.pack.safetensors")
    assert load_file(pack)["tile.00001"].tobytes() == new[TILE : 2 * TILE]
    store.close()


def test_nothing_changed_is_no_new_version_and_equal_tiles_are_stored_once(
    store: TileStore,
) -> None:
    data, root = put(store, 1)
    assert store.apply(0, root, {0: data[:TILE]}) == root
    both = store.apply(0, root, {0: bytes(TILE), 1: bytes(TILE)})
    (pack,) = store.directory.glob("*/*.pack.safetensors")
    assert pack.stat().st_size < TILE + 65536
    assert store.read_shard(0, both) == bytes(2 * TILE) + data[2 * TILE :]
    assert store.open(0, both).data[TILE - 4 : TILE + 4] == bytes(8)


def test_only_the_subtiles_given_are_hashed(
    store: TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, root = put(store, 1)
    hashed = []
    real = merkle.subtile_hash
    monkeypatch.setattr(merkle, "subtile_hash", lambda i, d: hashed.append(i) or real(i, d))
    part, last = random(limits.SUBTILE_BYTES, 2), random(300_000 - limits.SUBTILE_BYTES, 3)
    changed = store.apply(0, root, {}, {(0, 5): part, (2, 1): last})
    assert hashed == [5, 1]
    monkeypatch.undo()
    new = bytearray(data)
    new[5 * limits.SUBTILE_BYTES : 6 * limits.SUBTILE_BYTES] = part
    new[-len(last) :] = last
    assert changed == root_of(bytes(new))
    assert store.read_shard(0, changed) == new
    for wrong in ({(0, 16): part}, {(0, -1): part}, {(3, 0): part}):
        with pytest.raises(InputError, match=r"no subtile|not a tile"):
            store.apply(0, root, {}, wrong)
    with pytest.raises(VerifyError, match="expected 262144"):
        store.apply(0, root, {}, {(0, 1): last})
    with pytest.raises(InputError, match="as a whole and in subtiles"):
        store.apply(0, root, {0: data[:TILE]}, {(0, 1): part})
    with pytest.raises(VerifyError, match="expected 4194304"):
        store.apply(0, root, {0: b"short"})


def test_a_reader_of_subtiles_gets_those(store: TileStore) -> None:
    data, root = put(store, 1)
    size = limits.SUBTILE_BYTES
    assert store.read_subtiles(0, root, 1, 3, 2) == data[TILE + 3 * size : TILE + 5 * size]
    assert store.read_subtiles(0, root, 2, 1, 9) == data[2 * TILE + size :]
    for first, count in ((-1, 1), (16, 1), (0, 0)):
        with pytest.raises(InputError, match="has 16 subtiles"):
            store.read_subtiles(0, root, 0, first, count)


# --- mappings -------------------------------------------------------------------------------


def mapped_parts() -> int:
    """Parts of files of a store that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(".safetensors" in line or ".partial" in line for line in lines)


def test_a_mapping_takes_no_memory_and_goes_with_its_last_view(store: TileStore) -> None:
    data, root = put(store, 1)
    _, changed = change(store, data, root, 0, 2)
    before = mapped_parts()
    opened = store.open(0, changed)
    assert mapped_parts() == before + 2
    array = opened.arrays()["w"]
    tensor = torch.frombuffer(opened.data, dtype=torch.uint8)  # warnings would be errors
    del opened
    tensor[TILE + 1] = 7  # the reader's own copy of a page
    assert array[TILE + 1] == 7
    assert store.read_shard(0, changed)[TILE + 1] == data[TILE + 1]
    del array
    assert mapped_parts() >= before + 2
    del tensor
    assert mapped_parts() == before
    opened = store.open(0, changed, verify=False)
    view = opened.arrays()["w"]
    opened.close()
    assert view.tobytes() == store.read_shard(0, changed)
    assert mapped_parts() > before
    del view
    assert mapped_parts() == before


def test_no_writer_disturbs_a_mapping(store: TileStore) -> None:
    """Whatever happens to a version, who has it mapped reads what they mapped."""
    data, root = put(store, 1)
    new, changed = change(store, data, root, 1, 2)
    first, second = store.open(0, root), store.open(0, changed, verify=False)
    with safe_open(store.path(0, root), "pt") as foreign:
        theirs = foreign.get_tensor("w")
    store.drop(0, root)  # its snapshot stays for tiles 0 and 2, tile 1 is not needed any more
    store.drop_tile(0, changed, 2)
    store.put_tile(0, changed, 2, new[2 * TILE :])
    store.compact(0, changed)
    newest = store.apply(0, changed, {0: bytes(TILE)})
    store.retain(0, [newest])
    assert (first.data, second.data) == (data, new)
    assert theirs.numpy().tobytes() == data
    assert store.read_shard(0, newest) == bytes(TILE) + new[TILE:]


def test_room_in_a_file_comes_back_when_nobody_maps_it(store: TileStore) -> None:
    data, root = put(store, 1)
    _, changed = change(store, data, root, 1, 2)
    opened = store.open(0, root)
    used = store.used_bytes
    store.drop(0, root)
    assert store.used_bytes > used - 65536  # still mapped
    assert opened.data == data
    opened.close()
    store = reopened(store)
    assert store.used_bytes < used - TILE + 65536
    assert store.scrub() == []
    assert store.read_shard(0, changed)[:TILE] == data[:TILE]
    store.drop(0, changed)
    assert names(store) == []
    store.close()


def test_a_dropped_version_comes_back_from_what_is_left_of_it(store: TileStore) -> None:
    data, root = put(store, 1)
    _, changed = change(store, data, root, 1, 2)
    store.drop(0, root)
    assert names(store) == [".kept", ".pack.safetensors", ".partial", ".roots"]
    store = reopened(store)
    assert store.versions(0) == (changed,)
    assert store.partial_versions(0) == ()
    assert store.begin(0, root, merkle.tile_roots(data)) == [1]
    store.put_tile(0, root, 1, data[TILE : 2 * TILE])
    assert load_file(store.path(0, root))["w"].tobytes() == data
    store.close()


# --- steps ----------------------------------------------------------------------------------


def trained(store: TileStore, base: bytes, base_root: Hash32, seed: int) -> tuple[bytes, Hash32]:
    """A version made of its base by two deltas, with its steps."""
    values = [
        np.random.default_rng(seed + i).standard_normal(SMALL.elements).astype("f4") * 1e-3
        for i in range(2)
    ]
    payloads = [encode_delta(base_root, {2: v}, SPECS, 32)[0] for v in values]
    done = aggregate_tile(base, [decode_tile(p, SPECS, 2, 0) for p in payloads])
    deltas = [DeltaSections(p, SPECS) for p in payloads]
    step = make_step(SMALL, 0, merkle.tile_root(base), done.new_root, deltas, done.weights)
    assert step is not None
    root = store.apply(2, base_root, {0: done.new_tile})
    store.put_steps(2, root, base_root, [step])
    return done.new_tile, root


def test_thin_versions_are_made_again_from_what_is_kept(store: TileStore) -> None:
    data = np.random.default_rng(1).standard_normal(SMALL.elements).astype("<f4").tobytes()
    chain = [(data, root_of(data))]
    store.put_shard(2, *chain[0])
    for seed in range(10, 60, 10):
        chain.append(trained(store, *chain[-1], seed))
    used = store.used_bytes
    for _, root in chain[1:-1]:
        store.thin(2, root)
    assert used - store.used_bytes > 3 * SMALL.data_bytes
    store = reopened(store)
    assert store.scrub() == []
    assert set(store.versions(2)) == {root for _, root in chain}
    for i, (expected, root) in enumerate(chain):
        assert store.read_tile(2, root, 0) == expected
        assert store.read_subtiles(2, root, 0, 0, 1) == expected
        assert store.open(2, root).data == expected
        assert store.subtile_hashes(2, root, 0) == merkle.subtile_hashes(expected)
        assert (store.has_steps(2, root), store.is_thin(2, root)) == (i > 0, 0 < i < 5)
    store.drop(2, chain[0][1])  # what the steps begin with stays, though no version has it
    store.drop(2, chain[2][1])
    assert store.read_tile(2, chain[3][1], 0) == chain[3][0]
    store.compact(2, chain[3][1])
    assert not store.is_thin(2, chain[3][1])
    store.retain(2, [chain[3][1]])
    assert names(store, 2) == [".roots", ".safetensors", ".steps.safetensors"]
    store.close()


def test_of_several_steps_to_a_tile_one_that_begins_here_is_taken(tmp_path: Path) -> None:
    """The first leads from a tile that nobody has, and which only leads back."""
    catalog = Catalog(SMALL, tmp_path)
    wanted, lost, here = (Hash32(bytes([n]) * 32) for n in (1, 2, 3))
    pack = Container("a" * 64, True, "pack", "pack")
    pack.slots.append(Slot(pack, here, SMALL.data_bytes, 4096, 0, b"hashes"))
    catalog.add_container(pack)
    for number, (base, new) in enumerate([(lost, wanted), (wanted, lost), (here, wanted)]):
        file = StepFile(Hash32(bytes([10 + number]) * 32), "steps", b"", 0)
        file.steps.append(Step(file, StepPlace(0, 1, 0, 0), base, new, wanted))
        catalog.add_steps(file)
    for root, count in ((here, 0), (wanted, 1), (lost, 2)):
        way = catalog.way(root)
        assert way is not None
        assert (way[0].root, len(way[1])) == (here, count)
        assert [step.new for step in way[1]] == [wanted, lost][:count]
    thin = catalog.versions[lost] = Version(lost, (lost,), is_thin=True)
    assert catalog.presence(thin) == (True,)
    slots, steps = catalog.needed()
    assert slots == {pack.slots[0]}
    assert {step.new for step in steps} == {wanted, lost}


def test_steps_that_somebody_removed_are_missing(store: TileStore) -> None:
    data = np.random.default_rng(1).standard_normal(SMALL.elements).astype("<f4").tobytes()
    store.put_shard(2, data, root_of(data))
    new, root = trained(store, data, root_of(data), 2)
    store.thin(2, root)
    assert store.read_shard(2, root) == new
    (store.directory / "00002" / f"{root.hex()}.thin.safetensors").unlink()
    assert [(d.shard, d.shard_root, d.tile) for d in store.scrub()] == [(2, root, 0)]
    assert store.presence(2, root) == (False,)
    assert not store.is_thin(2, root)
    assert store.scrub() == []
    store.put_tile(2, root, 0, new)
    assert store.read_shard(2, root) == new


def steps_of(path: Path) -> TileStep:
    """The one step in a file of them."""
    return decode(TileStep, load_file(path)["step.00000"].tobytes(), most=limits.MAX_STEP_BYTES)


def test_steps_that_lead_elsewhere_are_refused(store: TileStore) -> None:
    data = np.random.default_rng(1).standard_normal(SMALL.elements).astype("<f4").tobytes()
    root = root_of(data)
    store.put_shard(2, data, root)
    _, new = trained(store, data, root, 10)
    with pytest.raises(InputError, match="no steps to"):
        store.thin(2, root)
    (path,) = store.directory.glob("*/*.steps.safetensors")
    _, other = trained(store, data, root, 20)
    step = steps_of(path)
    with pytest.raises(VerifyError, match="leads elsewhere"):
        store.put_steps(2, other, root, [step])
    with pytest.raises(InputError, match="two steps"):
        store.put_steps(2, new, root, [step, step])
    store.put_steps(2, new, root, [step])  # once more changes nothing
    raw = bytearray(path.read_bytes())
    raw[4096 + 20] ^= 1
    store.thin(2, new)
    path.with_name(path.name.replace(".steps.", ".thin.")).write_bytes(raw)
    with pytest.raises(StorageError, match="the step to it is damaged"):
        store.read_tile(2, new, 0)
    assert store.scrub() == [Damage(2, new, 0, 0)]
    assert store.partial_versions(2) == (new,)


# --- room and refusals ----------------------------------------------------------------------


def test_a_quota_is_kept_and_says_what_to_do(tmp_path: Path) -> None:
    quota = SPEC.data_bytes + 2 * TILE
    with TileStore(tmp_path, SPECS, quota_bytes=quota) as store:
        data, root = put(store, 1)
        _, second = change(store, data, root, 0, 2)
        refused = (
            lambda: put(store, 3),
            lambda: store.writer(0),
            lambda: change(store, data, root, 1, 4),
            lambda: store.compact(0, second),
        )
        for attempt in refused:
            with pytest.raises(QuotaError, match=r"do not fit the quota of .* hold fewer tiles"):
                attempt()
        assert set(store.versions(0)) == {root, second}
        assert not list(tmp_path.rglob("*.tmp"))
        other = random(SPEC.data_bytes, 5)
        assert store.begin(0, root_of(other), merkle.tile_roots(other)) == [0, 1, 2]  # a hole
        with pytest.raises(QuotaError, match="quota"):
            store.put_tile(0, root_of(other), 0, other[:TILE])
        store.drop(0, second)
        store.put_tile(0, root_of(other), 0, other[:TILE])
        store.drop_tile(0, root, 1)
        assert store.presence(0, root) == (True, False, True)
        assert store.read_tile(0, root, 2) == data[2 * TILE :]
        store.put_tile(0, root_of(other), 1, other[TILE : 2 * TILE])
        assert store.used_bytes <= quota


def test_a_writer_takes_parts_of_any_size(store: TileStore) -> None:
    data, cuts = random(SPEC.data_bytes, 1), np.random.default_rng(2)
    with store.writer(0) as writer, store.writer(0) as other:
        at = 0
        while at < len(data):
            size = int(cuts.integers(1, 700_000))
            writer.write(memoryview(data)[at : at + size])
            at += size
        with pytest.raises(VerifyError, match="more than its"):
            writer.write(b"x")
        assert writer.finish() == root_of(data)
        other.write(data[:-1])
        with pytest.raises(VerifyError, match="bytes, expected"):
            other.finish()
        other.write(data[-1:])
        assert other.finish() == root_of(data)
    with store.writer(0) as writer:
        writer.write(data)
    assert names(store) == [".roots", ".safetensors"]
    assert store.read_shard(0, root_of(data)) == data


def test_a_shard_without_bytes_is_a_file_too(store: TileStore) -> None:
    root = merkle.shard_root((), 0)
    store.put_shard(1, b"", root)
    with store.writer(1) as writer:
        assert writer.finish() == root
    store = reopened(store)
    assert store.versions(1) == (root,)
    assert store.read_shard(1, root) == store.open(1, root).data == b""
    assert load_file(store.path(1, root))["n"].shape == (0, 4)
    assert store.open(1, root).arrays()["n"].shape == (0, 4)
    assert store.begin(1, root, ()) == []
    store.drop(1, root)
    assert store.begin(1, root, ()) == []
    assert store.versions(1) == (root,)
    store.close()


# --- mending --------------------------------------------------------------------------------


def test_a_home_of_the_first_layout_opens(store: TileStore) -> None:
    """One data file and one `.roots` a version: what a snapshot still is."""
    data, root = put(store, 1)
    held = (store.directory / "00000" / f"{root.hex()}.roots").read_bytes()
    leaves = [merkle.subtile_hashes(data[slice(*SPEC.tile_range(t))]) for t in range(3)]
    assert held == b"".join([*merkle.tile_roots(data), *(h for part in leaves for h in part)])
    data_file = store.path(0, root)
    assert data_file.name == f"{root.hex()}.safetensors"
    assert data_file.read_bytes()[4096:] == data
    store.close()
    (store.directory / "lock").unlink()
    data_file.rename(data_file.with_suffix(".partial"))  # as a crash could leave it
    with TileStore(store.directory, SPECS) as again:
        assert again.read_shard(0, root) == data
        assert again.path(0, root).suffix == ".safetensors"


def test_a_cut_or_overwritten_file_is_mended(store: TileStore) -> None:
    data, root = put(store, 1)
    path = store.path(0, root)
    with path.open("r+b") as file:
        file.write(b"not a header")
        file.truncate(4096 + TILE + 9)
    with pytest.raises(StorageError, match="the file was cut"):
        store.open(0, root, verify=False)
    store = reopened(store)
    assert store.presence(0, root) == (True, False, False)
    for tile in (1, 2):
        store.put_tile(0, root, tile, data[slice(*SPEC.tile_range(tile))])
    assert load_file(store.path(0, root))["w"].tobytes() == data
    store.close()


def test_a_record_that_rotted_costs_its_version_and_no_other(store: TileStore) -> None:
    data, root = put(store, 1)
    new, changed = change(store, data, root, 1, 2)
    record = store.directory / "00000" / f"{root.hex()}.roots"
    raw = bytearray(record.read_bytes())
    raw[32] ^= 1  # the root of tile 1
    record.write_bytes(raw)
    store = reopened(store)
    assert store.versions(0) == (changed,)
    assert store.read_shard(0, changed) == new
    assert store.begin(0, root, merkle.tile_roots(data)) == [1]
    store.put_tile(0, root, 1, data[TILE : 2 * TILE])
    store = reopened(store)
    assert store.read_shard(0, root) == data
    assert names(store) == [".pack.safetensors", ".roots", ".roots", ".safetensors"]
    store.close()


@pytest.mark.parametrize("at", [0, 20, -1, None])
@pytest.mark.parametrize("suffix", [".roots", ".pack.safetensors", ".steps.safetensors"])
def test_what_rots_beside_the_tiles_is_written_again(
    store: TileStore, suffix: str, at: int | None
) -> None:
    """Headers, roots, hashes and sizes are known while the store is open."""
    data = np.random.default_rng(1).standard_normal(SMALL.elements).astype("<f4").tobytes()
    first = root_of(data)
    store.put_shard(2, data, first)
    new, root = trained(store, data, first, 10)
    files = {p: p.read_bytes() for p in (store.directory / "00002").iterdir()}
    for path, raw in files.items():
        if path.name.endswith(suffix):
            spoiled = bytearray(raw)
            if at is not None:
                spoiled[at] ^= 1
            path.write_bytes(spoiled if at is not None else spoiled + b"more")
    assert store.scrub() == []
    assert {p: p.read_bytes() for p in files} == files
    for path in files:
        if path.name.endswith(".roots"):
            path.unlink()
    assert store.scrub() == []
    assert {p: p.read_bytes() for p in files} == files
    store = reopened(store)
    assert (store.read_shard(2, first), store.read_shard(2, root)) == (data, new)
    store.close()


def test_scrub_finds_damage_once_for_all_versions_and_goes_on(store: TileStore) -> None:
    data, root = put(store, 1)
    _, changed = change(store, data, root, 1, 2)
    with store.path(0, root).open("r+b") as file:
        file.seek(4096 + 5 * limits.SUBTILE_BYTES)
        file.write(b"damage")
    seen: list[tuple[int, int]] = []
    damages = store.scrub(lambda done, total: seen.append((done, total)))
    assert damages == [Damage(0, root, 0, 5)]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert store.presence(0, changed) == store.presence(0, root) == (False, True, True)
    store.put_tile(0, changed, 0, data[:TILE])
    assert store.versions(0) == tuple(sorted((root, changed)))
    assert store.scrub() == []


def test_upkeep_writes_nothing_when_there_is_nothing_to_do(store: TileStore) -> None:
    _, root = put(store, 1)
    states = [(p, os.stat(p).st_mtime_ns) for p in store.directory.glob("*/*")]
    store.compact(0, root)
    store.retain(0, [root])
    store.drop(0, Hash32(bytes(32)))
    assert [(p, os.stat(p).st_mtime_ns) for p in store.directory.glob("*/*")] == states
    with pytest.raises(InputError, match="only a whole version"):
        store.compact(0, Hash32(bytes(32)))
    store.close()
    with pytest.raises(StorageError, match="the store is closed"):
        store.drop(0, root)
