"""Versions of a model on disk through many rounds: written from steps, thinned, compacted, dropped,
and given back to the byte."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from chain.errors import InputError, StorageError, UnreachableError, VerifyError
from chain.hashes import Hash32
from chain.limits import TILE_BYTES
from node.api.app import create_app
from node.client import Client
from node.query import Query
from node.services.retention import MAX_FILES, Retention, retained_from
from node.services.retention_plan import Keep, RetentionRule
from node.services.versions import ShardVersion, VersionHistory
from node.verified import VerifiedReader
from tests.kit.follower import Follower
from tests.kit.local_chain import LocalChain
from tests.kit.waiting import reached
from tiles import merkle
from tiles.layout import ShardSpec, TensorSpec
from tiles.store import TileStore

ROUNDS = 8


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """Eight rounds. Nobody changes it."""
    with LocalChain(tmp_path_factory.mktemp("chain")) as made:
        for _ in range(ROUNDS):
            made.learn()
        yield made


@pytest.fixture(scope="module")
def lived(chain: LocalChain, tmp_path_factory: pytest.TempPathFactory) -> Follower:
    """A node that has followed all of them. Read only."""
    follower = Follower(chain, tmp_path_factory.mktemp("lived"))
    follower.follow(ROUNDS)
    return follower


def test_every_retained_model_is_what_it_was(lived: Follower) -> None:
    # rounds 4 to 8 had the models 4 to 8 as their base, and 4 is made from the snapshot 3
    assert lived.retained() == lived.past[3:]
    lived.check()
    for model in lived.past[:3]:
        with pytest.raises(InputError):
            lived.shards(model)


def test_it_is_kept_as_the_rule_says(lived: Follower) -> None:
    none, steps, snapshot, whole = Keep.NOTHING, Keep.STEPS, Keep.SNAPSHOT, Keep.WHOLE
    for spec in lived.chain.specs:
        plan = lived.retention.plan(spec.index, lived.round)
        kept = [plan.get(m.roots[spec.index], none) for m in lived.past]
        assert kept == [*[none] * 3, snapshot, steps, steps, snapshot, whole, whole]
        for model, keep in zip(lived.past, kept, strict=True):
            root = model.roots[spec.index]
            assert bool(lived.store.presence(spec.index, root)) == (keep != none)
            if keep == snapshot:
                assert lived.store.path(spec.index, root).exists()
            elif keep == steps:
                assert lived.store.is_thin(spec.index, root)


def test_what_is_thinned_takes_no_room(lived: Follower) -> None:
    """Tiles of these few kilobytes are smaller than a page, so files are counted instead."""
    for spec in lived.chain.specs:
        names = [p.name for p in (lived.directory / f"{spec.index:05d}").iterdir()]
        steps = [n for n in names if n.endswith((".steps.safetensors", ".thin.safetensors"))]
        tiles = [n for n in names if n.endswith(".safetensors") and n not in steps]
        # of a dense shard no step is shorter than its tile, so its tiles stay beside the steps
        assert len(tiles) == (4 if spec.coding == "sparse" else 6), sorted(names)
        assert len(steps) == 6


def test_an_export_of_each_retained_height(lived: Follower) -> None:
    """Through the API, verified, as `blyan model export --height` reads it."""
    kept, lived.chain.tiles.store = lived.chain.tiles.store, lived.store
    try:
        asyncio.run(_read_all(lived))
    finally:
        lived.chain.tiles.store = kept


async def _read_all(lived: Follower) -> None:
    transport = httpx.ASGITransport(create_app(lived.chain))
    async with Client("http://127.0.0.1:8645", None, transport) as client:
        reader = VerifiedReader(client, lived.chain.genesis)
        assert (await client.model())["retained_from"] == lived.past[3].height
        for height in range(lived.past[3].height, lived.chain.chain.tip.height + 1, 3):
            model = [m for m in lived.past if m.height <= height][-1]
            answer = await client.model(height)
            root = Hash32(bytes.fromhex(answer["root"]))
            assert await reader.shards(reader.check_model(answer, root)) == list(model.shards)


def test_without_payloads_whole_versions_only(chain: LocalChain, tmp_path: Path) -> None:
    follower = Follower(chain, tmp_path, payloads=False)
    follower.follow(ROUNDS)
    for spec in chain.specs:
        roots = {m.roots[spec.index]: i for i, m in enumerate(follower.past)}
        held = [root for root in roots if follower.store.presence(spec.index, root)]
        assert sorted(roots[root] for root in held) == [3, 6, 7, 8]
        assert not any(follower.store.has_steps(spec.index, root) for root in held)
    assert retained_from(follower.store, follower.history) == follower.past[6].height


def test_steps_that_come_late_make_a_chain_again(chain: LocalChain, tmp_path: Path) -> None:
    follower = Follower(chain, tmp_path, payloads=False)
    follower.follow(2)
    follower.payloads = True
    follower.follow(5)
    assert follower.retained() == follower.past[3:8]
    follower.check()


def test_readers_keep_what_they_mapped(chain: LocalChain, tmp_path: Path) -> None:
    """Whatever becomes of the version: thinned, compacted, dropped."""
    follower = Follower(chain, tmp_path, RetentionRule(1, 2, 2))
    mapped = []
    for _ in range(ROUNDS):
        follower.follow()
        model = follower.newest
        files = [follower.store.open(i, root) for i, root in enumerate(model.roots)]
        mapped.append((model, files))
        for seen, held in mapped:
            assert [bytes(file.data) for file in held] == list(seen.shards)
    assert not follower.store.presence(0, mapped[0][0].roots[0])


def test_what_was_asked_for_of_late_is_not_dropped(chain: LocalChain, tmp_path: Path) -> None:
    follower = Follower(chain, tmp_path, RetentionRule(1, 1, 2))
    follower.follow()
    model = follower.newest
    follower.retention.used(3, model.roots[3])
    follower.follow(6)
    assert follower.store.read_shard(3, model.roots[3]) == model.shards[3]
    assert not follower.store.presence(4, model.roots[4])


def test_a_version_that_custody_asks_for_stays(chain: LocalChain, tmp_path: Path) -> None:
    follower = Follower(chain, tmp_path, RetentionRule(1, 1, 2))
    follower.follow()
    model = follower.newest
    for _ in range(6):
        follower.advance()
        follower.write()
        follower.retention.tidy(3, follower.round, {model.roots[3]})
        assert not follower.store.is_thin(3, model.roots[3])
    assert follower.store.read_shard(3, model.roots[3]) == model.shards[3]
    follower.retention.tidy(3, follower.round)
    assert not follower.store.presence(3, model.roots[3])


class Told(VersionHistory):
    """A history without a chain."""

    versions: list[ShardVersion]

    def newest_first(self, shard: int) -> Iterator[ShardVersion]:
        yield from reversed(self.versions)


def test_versions_of_many_files_are_compacted(chain: LocalChain, tmp_path: Path) -> None:
    """Each round changes another tile of a shard of twelve."""
    spec = ShardSpec(0, "wide", "sparse", (TensorSpec("w", "F32", (12 * TILE_BYTES // 4,)),))
    data = bytearray(spec.data_bytes)
    store = TileStore(tmp_path / "wide", [spec])
    roots = list(merkle.tile_roots(data))
    first = merkle.shard_root(roots, spec.data_bytes)
    store.put_shard(0, data, first)
    history = Told(chain.store, [spec], [tuple(roots)])
    history.versions = [ShardVersion(0, first, -1, 0, tuple(roots))]
    retention = Retention(store, history, chain.chain, RetentionRule(1, 1, 1000))
    for number in range(1, 13):
        tile = bytes([number]) * TILE_BYTES
        data[(number - 1) * TILE_BYTES : number * TILE_BYTES] = tile
        root = store.apply(0, history.versions[-1].root, {number - 1: tile})
        roots[number - 1] = merkle.tile_root(tile)
        history.versions.append(ShardVersion(number, root, number - 1, number, tuple(roots)))
        assert retention.tidy(0, number) in (0, spec.data_bytes)
        assert store.containers(0, root) <= MAX_FILES
    assert retention.compacted >= 1
    assert store.read_shard(0, history.versions[-1].root) == data
    assert retention.tidy(0, 12, budget_bytes=0) == 0


def test_a_node_that_lost_its_store_lacks_the_newest_and_goes_on(
    chain: LocalChain, tmp_path: Path
) -> None:
    follower = Follower(chain, tmp_path, RetentionRule(2, 4, 3))
    follower.follow()
    assert list(follower.retention.missing()) == []
    shutil.rmtree(follower.store.directory)
    follower.advance()
    made = follower._made()
    for shard, root in enumerate(follower.newest.roots):
        made.write(shard, root)  # without its base nothing can be made, nor steps be kept
    wanted = [(s.index, t) for s in chain.specs for t in range(s.tile_count)]
    assert [(p[0], p[2]) for p in follower.retention.missing()] == wanted
    assert {p[1] for p in follower.retention.missing()} == set(follower.newest.roots)
    follower.write()
    follower.follow()
    assert list(follower.retention.missing()) == []
    assert follower.newest in follower.retained()


# --- in the background ---------------------------------------------------------------------


def behind(chain: LocalChain, directory: Path) -> Follower:
    """A node that has written all versions and let go of none."""
    follower = Follower(chain, directory)
    for _ in range(ROUNDS):
        follower.advance()
        follower.write()
    return follower


async def run_until(retention: Retention, done: Callable[[], bool]) -> None:
    task = asyncio.create_task(retention.run())
    try:
        await reached(lambda: done() or None, 120, "the pass")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_pass_follows_a_round(chain: LocalChain, tmp_path: Path) -> None:
    follower, count = behind(chain, tmp_path), len(chain.specs)
    retention = follower.retention
    asyncio.run(
        run_until(retention, lambda: retention.dropped + retention.thinned == 5 * count)
    )  # each version is a file of its own: no tile of these stayed the same
    figures = {"thinned": 2 * count, "dropped": 3 * count, "compacted": 0, "failed": 0}
    assert retention.metrics() == {f"versions_{name}": n for name, n in figures.items()}
    assert follower.retained() == follower.past[3:]
    follower.check()


def test_a_disk_that_refuses_ends_nothing(
    chain: LocalChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = behind(chain, tmp_path)
    retention, drop = follower.retention, follower.store.drop

    def refuse(shard: int, root: Hash32) -> None:
        if shard == 2:
            raise StorageError("cannot drop a version: Input/output error")
        drop(shard, root)

    monkeypatch.setattr(follower.store, "drop", refuse)
    last = len(chain.specs) - 1
    gone = follower.past[2].roots[last]
    asyncio.run(run_until(retention, lambda: not follower.store.presence(last, gone)))
    assert retention.failed == 1
    assert follower.store.presence(2, follower.past[1].roots[2])


def test_without_room_only_what_rounds_in_progress_need_stays(
    chain: LocalChain, tmp_path: Path
) -> None:
    follower = behind(chain, tmp_path)
    retention, newest, before = follower.retention, *follower.past[:-3:-1]
    retention.used(4, follower.past[1].roots[4])
    used = follower.store.used_bytes
    assert retention.shed()
    assert not retention.shed()  # once a round
    assert follower.store.used_bytes < used / 2
    for shard in range(len(chain.specs)):
        kept = {newest.roots[shard], before.roots[shard]}
        if shard == 4:
            kept.add(follower.past[1].roots[4])  # somebody asked for it of late
        assert set(follower.store.versions(shard)) == kept
    assert follower.retained() == follower.past[-2:]


# --- tiles that need nobody ----------------------------------------------------------------


def test_genesis_is_made_from_its_seed(lived: Follower) -> None:
    first = lived.past[0]
    for spec in lived.chain.specs:
        root = first.roots[spec.index]
        assert not lived.store.presence(spec.index, root)
        made = [lived.rebuild.tile(spec.index, root, t) for t in range(spec.tile_count)]
        assert b"".join(part or b"" for part in made) == first.shards[spec.index]
    assert lived.rebuild.tile(0, lived.past[1].roots[0], 0) is None
    with pytest.raises(VerifyError):
        lived.rebuild.tile(0, Hash32(bytes(32)), 0)


def test_steps_may_start_from_a_lost_genesis_tile(chain: LocalChain, tmp_path: Path) -> None:
    follower = Follower(chain, tmp_path)
    follower.follow(4)
    model = follower.past[2]
    root = model.roots[0]
    assert follower.store.is_thin(0, root)
    follower.store.drop_tile(0, follower.past[0].roots[0], 0)
    assert not follower.store.has_tile(0, root, 0)
    assert follower.rebuild.tile(0, root, 0) == model.shards[0]
    assert follower.store.read_shard(0, root) == model.shards[0]


def test_who_asks_for_a_model_that_is_gone_hears_from_when_on_there_is_one(
    lived: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> bytes:
        raise UnreachableError("none of 0 connected peers has tile 0")

    monkeypatch.setattr(lived.chain.tiles, "store", lived.store)
    monkeypatch.setattr(lived.chain.tiles, "tile", refuse)
    with pytest.raises(UnreachableError, match=f"from height {lived.past[3].height} on"):
        asyncio.run(Query(lived.chain).tile_data("0", "0", lived.past[1].roots[0].hex()))
