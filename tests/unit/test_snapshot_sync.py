"""Nodes that begin with a snapshot: which they take, what they charge, and how they go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from chain.codec import decode, encode
from chain.errors import UnreachableError
from chain.snapshot import SnapshotChunk
from chain.transactions import Transfer
from chain.types import Grains, Height
from node.services import snapshot_chunks, snapshot_entry, sync, sync_plan
from node.services.snapshot_wire import PROTOCOL as SNAPSHOT
from node.services.snapshot_wire import ChunkRequest, ManifestRequest, SnapshotRequest
from node.services.sync_wire import SyncRequest
from tests.kit.local_chain import LocalChain, key
from tests.kit.snapshots import small_chunks
from tests.kit.sync_nodes import SyncNode, SyncPort, serve_chain

BLOCKS, INTERVAL = 310, 32
NEWEST = BLOCKS // INTERVAL * INTERVAL


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """A chain of many blocks; read only."""
    path = tmp_path_factory.mktemp("source")
    with LocalChain(path, epoch_blocks=8, snapshot_epochs=4) as made:
        for i in range(BLOCKS):
            for j in range(3):
                made.send(Transfer(key(f"{i}/{j}").public, Grains(i + 1)), made.learners[0])
            made.block(certify=i % 3 == 1 or (i + 1) % 8 == 0 or i == BLOCKS - 1)
        yield made


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> dict[str, SyncPort]:
    small_chunks(monkeypatch, 12_000)  # one value has nearly as much
    monkeypatch.setattr(snapshot_chunks, "HEDGE_S", 0.05)
    monkeypatch.setattr(sync_plan, "HEDGE_S", 0.05)
    monkeypatch.setattr(sync, "HEDGE_S", 0.05)
    return {}


def node(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort], **options: str
) -> SyncNode:
    return SyncNode(tmp_path / "node", source, SyncPort("node", others), **options)  # type: ignore[arg-type]


def servers(source: LocalChain, others: dict[str, SyncPort], count: int) -> list[SyncPort]:
    return [serve_chain(source, f"server {i}", others) for i in range(count)]


def has_all(new: SyncNode, source: LocalChain) -> None:
    assert new.chain.tip_hash == source.chain.tip_hash
    assert new.chain.state().tree.root == source.state.tree.root
    assert list(new.chain.state().tree.items()) == list(source.state.tree.items())


async def a_wrong_value(protocol: str, request: bytes, answer: bytes) -> bytes:
    if protocol == SNAPSHOT and isinstance(decode(SnapshotRequest, request), ChunkRequest):
        items = decode(SnapshotChunk, answer).items
        return encode(SnapshotChunk((*items[:-1], items[-1] + b"x")))
    return answer


def test_a_fresh_node_begins_with_the_newest_snapshot(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    """One of four servers lies, one never answers."""
    liar, slow, *_ = servers(source, others, 4)
    liar.spoil = a_wrong_value

    async def dawdle(protocol: str, request: bytes, answer: bytes) -> bytes:
        if protocol == SNAPSHOT and isinstance(decode(SnapshotRequest, request), ChunkRequest):
            await asyncio.Event().wait()  # others take over what is asked of it
        return answer

    slow.spoil = dawdle
    new = node(tmp_path, source, others)
    new.catch_up()
    assert new.adopted
    assert new.store.first_height() == NEWEST
    has_all(new, source)
    assert set(new.port.reported) <= {"server 0"}
    assert liar.asked[ChunkRequest] <= 1  # its own chunk, and it is not asked again
    assert not (tmp_path / "node" / "sync").exists()
    new.close()
    new.open()  # the file holds together
    has_all(new, source)
    new.close()


def test_a_node_that_serves_what_it_began_with(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    first = servers(source, others, 1)
    new = node(tmp_path, source, others)
    asyncio.run(new.sync._catch_up())
    new.close()
    new.open()
    assert new.server.heights == (NEWEST,)
    del others["server 0"], first
    second = SyncNode(tmp_path / "second", source, SyncPort("second", others))
    asyncio.run(new.sync._catch_up())
    second.catch_up()
    assert second.store.first_height() == NEWEST
    assert second.chain.tip_hash == new.chain.tip_hash
    new.close()
    second.close()


def test_a_snapshot_that_goes_away_is_replaced_by_blocks(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    served = 0

    async def vanish(protocol: str, request: bytes, answer: bytes) -> bytes:
        nonlocal served
        if protocol == SNAPSHOT and isinstance(decode(SnapshotRequest, request), ChunkRequest):
            served += 1
            if served > 4:
                raise UnreachableError("there is no such snapshot here any more")
        return answer

    for server in servers(source, others, 2):
        server.spoil = vanish
    new = node(tmp_path, source, others)
    new.catch_up()
    assert not new.entered
    assert new.store.first_height() == 0
    has_all(new, source)
    info = new.sync.info()["snapshot"]
    assert "no peer" in info["problem"]
    assert new.port.reported == []
    new.close()


def test_a_restart_goes_on_where_it_was(
    tmp_path: Path,
    source: LocalChain,
    others: dict[str, SyncPort],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot_entry, "TRIES", 1)
    (server,) = servers(source, others, 1)

    async def stop(protocol: str, request: bytes, answer: bytes) -> bytes:
        if server.asked[ChunkRequest] > 5:
            raise UnreachableError("it is being restarted")
        return answer

    new = node(tmp_path, source, others)
    server.spoil = stop
    assert not asyncio.run(new.entry.enter())
    done = new.entry.info()
    assert done is not None
    assert 0 < done["chunks_done"] < done["chunks_total"]
    kept = sorted((tmp_path / "node" / "sync" / "chunks").iterdir())
    kept[0].write_bytes(kept[0].read_bytes()[:-3])  # torn by a crash
    new.close()
    new.open()
    server.spoil = None
    server.asked.clear()
    assert asyncio.run(new.entry.enter())
    assert server.asked[ChunkRequest] == done["chunks_total"] - done["chunks_done"] + 1
    new.close()


def test_who_was_left_behind_enters_again(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    server = servers(source, others, 1)[0]
    new = node(tmp_path, source, others, mode="blocks")
    short = source.store.blocks(Height(1), Height(16), 16)
    asyncio.run(new.sync._take(short))
    assert new.chain.tip.height == 16
    new.close()
    new.mode = "auto"
    new.open()
    new.catch_up()
    assert new.adopted
    assert new.store.first_height() == NEWEST
    has_all(new, source)
    info = new.sync.info()
    assert info["first_height"] == NEWEST
    assert server.asked[ManifestRequest] == 1
    new.close()


def test_blocks_alone_if_the_operator_says_so(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    all_servers = servers(source, others, 3)
    new = node(tmp_path, source, others, mode="blocks")
    new.catch_up()
    assert not new.entered
    has_all(new, source)
    assert all(server.asked[SyncRequest] for server in all_servers)  # from all of them
    new.close()


def test_a_snapshot_or_nothing_if_the_operator_says_so(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    (server,) = servers(source, others, 1)
    server.spoil = a_wrong_value
    new = node(tmp_path, source, others, mode="snapshot")
    new.catch_up()
    assert new.chain.tip.height == 0
    new.close()


# --- what is trusted ---------------------------------------------------------------------------


def test_a_genesis_that_is_too_old_needs_a_newer_block_that_is_known(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    servers(source, others, 2)
    header = source.store.header(Height(280))
    assert header is not None
    late = source.genesis.time_ms + source.genesis.params.evidence_ms
    new = SyncNode(
        tmp_path / "old", source, SyncPort("old", others), mode="snapshot", now_ms=lambda: late
    )
    new.catch_up()
    assert not new.entered
    problem = new.sync.info()["snapshot"]["problem"]
    assert "older than the trust period" in problem
    assert "--trust HEIGHT:HASH" in problem
    new.close()
    del others["old"]
    named = SyncNode(
        tmp_path / "named",
        source,
        SyncPort("named", others),
        trust=f"280:{header.hash().hex()}",
        now_ms=lambda: late,
    )
    assert asyncio.run(named.entry.enter())
    info = named.entry.info()
    assert info is not None
    assert (info["trusted_height"], info["trusted_from"]) == (280, "--trust")
    named.close()
    wrong = SyncNode(
        tmp_path / "wrong", source, SyncPort("wrong", others), trust=f"280:{'ab' * 32}"
    )
    assert not asyncio.run(wrong.entry.enter())
    assert "is it right?" in str(wrong.entry.problem)
    assert wrong.port.reported == []  # it may be the operator who is wrong
    wrong.close()
