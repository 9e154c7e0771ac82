"""Tiles between nodes: held or fetched, kept, mended, served; a lying peer is charged."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chain import limits
from chain import records as r
from chain.errors import InputError, StorageError, UnreachableError, VerifyError
from chain.hashes import Hash32
from chain.types import ShardIndex, TileIndex
from node.genesis import build_genesis
from node.net.requests import parts_of
from node.services.tile_fetch import TileFetcher
from node.services.tile_serve import READING
from node.services.tile_wire import TileRequest
from node.services.tiles import TileService, chain_roots
from tests.kit.local_chain import LocalChain
from tests.kit.waiting import reached
from tests.kit.wire import Wire
from tiles import merkle
from tiles.layout import ShardSpec, TensorSpec
from tiles.store import TileStore

SIZE = 2 * limits.TILE_BYTES + 300_000
SPEC = ShardSpec(0, "layers.0.experts.0", "sparse", (TensorSpec("w", "F32", (SIZE // 4,)),))
DATA = random.Random(1).randbytes(SIZE)
ROOTS = merkle.tile_roots(DATA)
ROOT = merkle.shard_root(ROOTS, SIZE)


def roots_of(shard: int, root: Hash32) -> Sequence[Hash32]:
    if root != ROOT:
        raise VerifyError(f"shard {shard} never had the root {root.hex()}")
    return ROOTS


class Nodes:
    """Named nodes over one store each; whoever is `connected` is asked by the others."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.wires = {name: Wire() for name in names}
        self.stores = {name: TileStore(directory / name, [SPEC]) for name in names}
        self.services = {
            name: TileService(self.stores[name], [SPEC], self.wires[name], roots_of)
            for name in names
        }

    def connect(self, asker: str, *others: str) -> None:
        for other in others:
            self.wires[asker].servers[other] = self.wires[other].handler

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


@pytest.fixture
def nodes(tmp_path: Path):
    made = Nodes(tmp_path, "full", "empty", "other")
    made.services["full"].put_shard(0, DATA, ROOT)
    yield made
    made.close()


def damage(store: TileStore, at: int = -1) -> None:
    """Flip a bit on disk."""
    path = store.path(0, ROOT)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def ask(tile: int, first: int, count: int, hashes: int, root: Hash32 = ROOT) -> bytes:
    return TileRequest(ShardIndex(0), root, TileIndex(tile), first, count, hashes).encoded()


def test_what_is_not_here_comes_from_a_peer_verified(nodes: Nodes) -> None:
    empty = nodes.services["empty"]
    with pytest.raises(UnreachableError, match="none of 0 connected peers"):
        asyncio.run(empty.shard(0, ROOT))
    nodes.connect("empty", "full")
    assert asyncio.run(empty.shard(0, ROOT)) == DATA
    assert empty.fetched == 3
    assert empty.store.versions(0) == (ROOT,)
    assert empty.metrics()["tiles_fetched_bytes"] == SIZE


def test_only_what_is_asked_for_is_fetched(nodes: Nodes) -> None:
    nodes.connect("empty", "full")
    empty = nodes.services["empty"]
    asyncio.run(empty.ensure(0, ROOT, [2]))
    assert empty.store.presence(0, ROOT) == (False, False, True)
    assert asyncio.run(empty.tile(0, ROOT, 0)) == DATA[: limits.TILE_BYTES]
    assert empty.store.presence(0, ROOT) == (True, False, True)
    asyncio.run(empty.ensure(0, ROOT))
    assert empty.fetched == 3


def test_askers_of_one_tile_share_one_fetch(nodes: Nodes) -> None:
    nodes.connect("empty", "full")
    empty = nodes.services["empty"]

    async def act() -> None:
        got = await asyncio.gather(*(empty.tile(0, ROOT, 1) for _ in range(5)))
        assert got == [DATA[limits.TILE_BYTES : 2 * limits.TILE_BYTES]] * 5

    asyncio.run(act())
    assert nodes.wires["empty"].asked == ["full"]


def test_a_caller_that_goes_away_leaves_the_others_their_tile(nodes: Nodes) -> None:
    nodes.connect("empty", "full")
    empty = nodes.services["empty"]

    async def act() -> None:
        one = asyncio.create_task(empty.tile(0, ROOT, 1))
        other = asyncio.create_task(empty.tile(0, ROOT, 1))
        await asyncio.sleep(0)
        one.cancel()
        await asyncio.sleep(0)
        third = asyncio.create_task(empty.tile(0, ROOT, 1))
        assert await other == await third
        alone = asyncio.create_task(empty.tile(0, ROOT, 0))
        await asyncio.sleep(0)
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        assert await empty.tile(0, ROOT, 0) == DATA[: limits.TILE_BYTES]
        await empty.close()

    asyncio.run(act())


def test_a_buffer_is_not_reused_while_the_disk_still_reads_it(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller goes away while its tile is written: the next tile waits for the buffer."""
    nodes.connect("empty", "full")
    empty = nodes.services["empty"]
    empty.fetcher = TileFetcher(nodes.wires["empty"], buffers=1)
    started, go_on = threading.Event(), threading.Event()
    put_tile = empty.store.put_tile

    def slow(*args: Any) -> None:
        started.set()
        assert go_on.wait(60)
        put_tile(*args)

    async def act() -> None:
        monkeypatch.setattr(empty.store, "put_tile", slow)
        one = asyncio.create_task(empty.tile(0, ROOT, 0))
        await asyncio.to_thread(started.wait, 10)
        one.cancel()
        other = asyncio.create_task(empty.tile(0, ROOT, 1))
        for _ in range(50):
            await asyncio.sleep(0)
        assert nodes.wires["empty"].asked == ["full"]
        go_on.set()
        await other
        assert empty.store.presence(0, ROOT) == (True, True, False)
        await empty.close()

    asyncio.run(act())
    assert empty.store.scrub() == []


def test_a_version_that_is_dropped_meanwhile(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.connect("empty", "full")
    empty = nodes.services["empty"]

    def dropped(*_: object) -> None:
        raise InputError("shard layers.0.experts.0: it has just been dropped")

    monkeypatch.setattr(empty.store, "put_tile", dropped)
    with pytest.raises(InputError, match="just been dropped"):
        asyncio.run(empty.ensure(0, ROOT))


def test_a_flipped_byte_is_charged_to_its_sender(nodes: Nodes) -> None:
    async def lie(peer: str, request: bytes) -> bytes:
        data = bytearray(b"".join(parts_of(await nodes.wires["full"].handler(peer, request))))
        data[len(data) // 2] ^= 1
        return bytes(data)

    empty = nodes.services["empty"]
    nodes.wires["empty"].servers["liar"] = lie
    with pytest.raises(UnreachableError, match="liar: lied: subtile"):
        asyncio.run(empty.shard(0, ROOT))
    assert set(nodes.wires["empty"].reported) == {"liar"}
    nodes.connect("empty", "full")
    assert asyncio.run(empty.shard(0, ROOT)) == DATA
    assert empty.lies >= 1


def test_damage_on_disk_is_never_served_and_mended_by_itself(nodes: Nodes) -> None:
    nodes.connect("full", "other")
    nodes.services["other"].put_shard(0, DATA, ROOT)
    damage(nodes.stores["full"])
    full = nodes.services["full"]

    async def act() -> None:
        handler = nodes.wires["full"].handler
        assert parts_of(await handler("asker", ask(2, 0, 2, 1))) == []
        assert not full.store.has_tile(0, ROOT, 2)
        await asyncio.gather(*full._mending)
        assert full.store.has_tile(0, ROOT, 2)
        assert b"".join(parts_of(await handler("asker", ask(2, 0, 2, 0)))) == DATA[-300_000:]

    asyncio.run(act())
    assert full.damaged == 1
    assert nodes.wires["full"].reported == []


def test_damage_found_while_reading_is_mended(nodes: Nodes) -> None:
    nodes.connect("full", "other")
    nodes.services["other"].put_shard(0, DATA, ROOT)
    full = nodes.services["full"]
    damage(nodes.stores["full"])
    assert asyncio.run(full.shard(0, ROOT)) == DATA
    damage(nodes.stores["full"])
    assert asyncio.run(full.tile(0, ROOT, 2)) == DATA[2 * limits.TILE_BYTES :]
    assert full.damaged == 2
    assert nodes.stores["full"].scrub() == []


def test_damage_that_nobody_can_mend_is_said(nodes: Nodes) -> None:
    damage(nodes.stores["full"])
    full = nodes.services["full"]

    async def act() -> None:
        await nodes.wires["full"].handler("asker", ask(2, 0, 2, 0))
        await asyncio.gather(*full._mending)

    asyncio.run(act())
    assert full.store.presence(0, ROOT) == (True, True, False)


def test_a_disk_that_refuses(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever needs the bytes has them; whoever wants them kept is told."""
    nodes.connect("empty", "full")
    empty = nodes.services["empty"]

    def refuse(*_: object) -> None:
        raise StorageError("the disk is full; free some space")

    asyncio.run(empty.ensure(0, ROOT, []))
    monkeypatch.setattr(empty.store, "put_tile", refuse)
    assert asyncio.run(empty.tile(0, ROOT, 2)) == DATA[2 * limits.TILE_BYTES :]
    with pytest.raises(StorageError, match="disk is full"):
        asyncio.run(empty.ensure(0, ROOT))
    assert asyncio.run(empty.shard(0, ROOT)) == DATA


def test_a_disk_that_takes_no_repair_is_read_around(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only from some moment on, and damaged: what cannot be marked is fetched each time."""
    full = nodes.services["full"]
    nodes.services["other"].put_shard(0, DATA, ROOT)
    nodes.connect("full", "other")
    damage(full.store)

    def refuse(*_: object) -> None:
        raise StorageError("Read-only file system")

    for name in ("begin", "put_tile"):
        monkeypatch.setattr(full.store, name, refuse)
    monkeypatch.setattr(full.store._bytes, "_damaged", refuse)
    assert asyncio.run(full.shard(0, ROOT)) == DATA
    assert asyncio.run(full.tile(0, ROOT, 2)) == DATA[2 * limits.TILE_BYTES :]


def test_what_is_dropped_while_it_is_read_is_fetched(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = nodes.services["full"]
    nodes.services["other"].put_shard(0, DATA, ROOT)
    nodes.connect("full", "other")
    for name, ask in (("read_shard", full.shard(0, ROOT)), ("read_tile", full.tile(0, ROOT, 2))):
        reads = getattr(full.store, name)

        def dropped(*place: Any, name: str = name, reads: Any = reads) -> Any:
            full.store.drop(0, ROOT)
            monkeypatch.setattr(full.store, name, reads)
            return reads(*place)

        monkeypatch.setattr(full.store, name, dropped)
        expected = DATA if name == "read_shard" else DATA[2 * limits.TILE_BYTES :]
        assert asyncio.run(ask) == expected
    assert full.damaged == 0


def test_every_part_of_a_tile_can_be_asked_for(nodes: Nodes) -> None:
    async def answer(data: bytes) -> bytes:
        return b"".join(parts_of(await nodes.wires["full"].handler("asker", data)))

    async def act() -> None:
        step = limits.SUBTILE_BYTES
        hashes = b"".join(merkle.subtile_hashes(DATA[: limits.TILE_BYTES]))
        for _ in range(3):  # from disk, from disk into the cache, from the cache
            for first in range(0, 16, 5):
                for count in (1, 16 - first):
                    part = DATA[first * step : (first + count) * step]
                    assert await answer(ask(0, first, count, 0)) == part
                    assert await answer(ask(0, first, count, 1)) == hashes + part
            assert await answer(ask(0, 0, 0, 1)) == hashes
        assert await answer(ask(2, 1, 1, 0)) == DATA[2 * limits.TILE_BYTES + step :]
        assert await answer(ask(0, 0, 1, 0, Hash32(bytes(32)))) == b""

    asyncio.run(act())
    assert nodes.services["full"].metrics()["tiles_served"] > 0


def test_the_cache_is_bounded(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.services.tile_serve.CACHE_BYTES", limits.TILE_BYTES + 400_000)
    server = nodes.services["full"]._server

    async def act() -> None:
        for _ in range(4):
            for tile in range(3):
                await nodes.wires["full"].handler("asker", ask(tile, 0, 1, 1))
                assert server._cached_bytes <= limits.TILE_BYTES + 400_000
                assert server._cached_bytes == sum(len(h.data) for h in server._cache.values())

    asyncio.run(act())
    assert server._cache


def test_asking_and_taking_back_takes_few_threads(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread goes on when its asker has gone; the places of the service are free by then."""
    store, go_on = nodes.stores["full"], threading.Event()
    lock, begun = threading.Lock(), 0

    def slow(shard: int, root: Hash32, tile: int) -> bytes:
        nonlocal begun
        with lock:
            begun += 1
        assert go_on.wait(60)
        return DATA[slice(*SPEC.tile_range(tile))]

    monkeypatch.setattr(store, "read_tile", slow)

    async def act() -> None:
        handler, tasks = nodes.wires["full"].handler, []
        for i in range(3 * READING):
            tasks.append(asyncio.ensure_future(handler("fickle", ask(i % 2, 0, 16, 0))))
            due = min(i + 1, READING)
            await reached(lambda due=due: begun >= due or None, 120, "a thread reads")
            tasks[-1].cancel()
        assert begun == READING
        go_on.set()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        (part,) = await handler("patient", ask(0, 0, 16, 0))
        assert bytes(part) == DATA[: limits.TILE_BYTES]

    asyncio.run(act())
    assert begun == READING + 1


def test_requests_that_cannot_be_meant_cost_their_sender(nodes: Nodes) -> None:
    bad = [
        b"",
        b"x" * 40,
        ask(3, 0, 1, 0),
        ask(2, 1, 2, 0),
        ask(0, 0, 17, 0),
        ask(0, 16, 1, 0),
        ask(0, 0, 0, 0),
        ask(0, 0, 1, 2),
        TileRequest(ShardIndex(1), ROOT, TileIndex(0), 0, 1, 0).encoded(),
    ]
    for request in bad:
        assert parts_of(asyncio.run(nodes.wires["full"].handler("fool", request))) == []
    assert nodes.wires["full"].reported == ["fool"] * len(bad)


def test_versions_and_shards_that_never_were_are_refused(nodes: Nodes) -> None:
    empty = nodes.services["empty"]
    with pytest.raises(VerifyError, match="never had the root"):
        asyncio.run(empty.shard(0, Hash32(bytes(32))))
    with pytest.raises(VerifyError, match="has no shard 1"):
        asyncio.run(empty.shard(1, ROOT))
    with pytest.raises(VerifyError, match="has no tile 3"):
        asyncio.run(empty.tile(0, ROOT, 3))


def test_the_chain_says_which_roots_there_were(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        start = build_genesis(chain.genesis)
        genesis = [s.tile_roots for s in start.rooted]
        ask_chain = chain_roots(chain.store, start.specs, genesis)
        root = chain.state.need(r.ShardRecord, r.shard_key(0)).root
        assert ask_chain(0, root) == genesis[0]
        with pytest.raises(VerifyError, match="never had the root"):
            ask_chain(0, Hash32(bytes(32)))
