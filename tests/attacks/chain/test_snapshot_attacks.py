"""A server of snapshots that lies, in each way that there is: nothing of it is believed, it is
charged, and an honest server beside it is enough."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chain import snapshot
from chain.codec import decode, encode
from chain.errors import DecodeError, UnreachableError
from chain.hashes import ZERO_HASH, Hash32
from chain.light import LightBlock
from chain.snapshot import SnapshotChunk, SnapshotManifest, SnapshotPart
from chain.transactions import Transfer
from chain.types import Block, Epoch, Grains, Height, Stake, TimeMs
from node.cli.evidence import read_evidence
from node.services import snapshot_chunks, sync, sync_plan
from node.services.snapshot_wire import (
    PROTOCOL,
    ChunkRequest,
    LightRequest,
    ManifestRequest,
    Offers,
    OffersRequest,
    SnapshotRequest,
)
from node.services.sync_wire import SyncReply
from tests.kit.local_chain import LocalChain, key
from tests.kit.snapshots import small_chunks
from tests.kit.sync_nodes import Spoil, SyncNode, SyncPort, serve_chain
from tests.reference.snapshot import bits

BLOCKS, INTERVAL = 45, 8
NEWEST = BLOCKS // INTERVAL * INTERVAL

Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """A chain with some hundred accounts; read only."""
    path = tmp_path_factory.mktemp("source")
    with LocalChain(path, epoch_blocks=4, snapshot_epochs=2) as made:
        for i in range(BLOCKS):
            for j in range(10):
                made.send(Transfer(key(f"{i}/{j}").public, Grains(i + 1)), made.learners[0])
            made.block()
        yield made


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> dict[str, SyncPort]:
    small_chunks(monkeypatch, 12_000)  # one value has nearly as much
    for module in (snapshot_chunks, sync_plan, sync):
        monkeypatch.setattr(module, "HEDGE_S", 0.05)
    return {}


def lie(kind: type, change: Change) -> Spoil:
    """A server that changes its answers to one kind of question."""

    async def spoil(protocol: str, request: bytes, answer: bytes) -> bytes:
        if protocol == PROTOCOL and isinstance(decode(SnapshotRequest, request), kind):
            return change(answer)
        return answer

    return spoil


def chunk(change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> Spoil:
    return lie(
        ChunkRequest,
        lambda answer: encode(SnapshotChunk(change(decode(SnapshotChunk, answer).items))),
    )


def manifest(change: Callable[[SnapshotManifest], SnapshotManifest]) -> Spoil:
    return lie(ManifestRequest, lambda a: encode(change(decode(SnapshotManifest, a))))


def light(change: Callable[[LightBlock], LightBlock]) -> Spoil:
    return lie(LightRequest, lambda answer: encode(change(decode(LightBlock, answer))))


def in_order(items: tuple[bytes, ...]) -> tuple[bytes, ...]:
    pairs = sorted(zip(items[::2], items[1::2], strict=True), key=lambda pair: bits(pair[0]))
    return tuple(item for pair in pairs for item in pair)


def first_part(listed: SnapshotManifest, **changes: object) -> SnapshotManifest:
    part = replace(listed.parts[0], **changes)  # type: ignore[arg-type]
    return replace(listed, parts=(part, *listed.parts[1:]))


def halved(listed: SnapshotManifest) -> SnapshotManifest:
    """The first part given as two, whose hashes are made up."""
    depth = listed.parts[0].depth + 1
    halves = (SnapshotPart(depth, Hash32(b"h" * 32), 9_000),) * 2
    return replace(listed, parts=(*halves, *listed.parts[1:]))


def of_nobody(block: LightBlock) -> LightBlock:
    """Stake that one validator would like to have."""
    members = block.validators.members
    rich = replace(members[0], stake=Stake(2**60))
    return replace(block, validators=replace(block.validators, members=(rich, *members[1:])))


def header(**changes: object) -> Callable[[LightBlock], LightBlock]:
    def change(block: LightBlock) -> LightBlock:
        first = replace(block.headers[0], **changes)  # type: ignore[arg-type]
        return replace(block, headers=(first, *block.headers[1:]))

    return change


LIES: dict[str, Spoil] = {
    "an extra key": chunk(lambda items: (*items, b"acct/extra", b"grains")),
    "an extra key in order": chunk(lambda items: in_order((*items, b"acct/extra", b"grains"))),
    "a missing key": chunk(lambda items: items[2:]),
    "a missing last key": chunk(lambda items: items[:-2]),
    "a wrong order": chunk(lambda items: items[2:4] + items[:2] + items[4:]),
    "a key twice": chunk(lambda items: items[:2] + items),
    "a changed value": chunk(lambda items: (items[0], items[1] + b"0", *items[2:])),
    "a key without a value": chunk(lambda items: items[:-1]),
    "an empty chunk": chunk(lambda items: ()),
    "another value type": lie(ChunkRequest, lambda answer: b"\x92\x54\xa5hello"),
    "a longer encoding": lie(ChunkRequest, lambda answer: b"\xdc\x00\x02" + answer[1:]),
    "bytes behind": lie(ChunkRequest, lambda answer: answer + b"\x00"),
    "a manifest of another header": manifest(
        lambda m: replace(m, header=replace(m.header, state_root=Hash32(b"s" * 32)))
    ),
    "a part left out": manifest(lambda m: replace(m, parts=m.parts[1:])),
    "a part twice": manifest(lambda m: replace(m, parts=m.parts[:1] + m.parts)),
    "another hash": manifest(lambda m: first_part(m, hash=Hash32(b"x" * 32))),
    "a size beyond a chunk's": manifest(lambda m: first_part(m, size=2**32 - 1)),
    "a full part said to be empty": manifest(lambda m: first_part(m, size=0)),
    "a size that is not the chunk's": manifest(lambda m: first_part(m, size=m.parts[0].size + 1)),
    "parts of parts": manifest(halved),
    "no parts": manifest(lambda m: replace(m, parts=())),
    "a forged state root": light(header(state_root=Hash32(b"r" * 32))),
    "a forged time": light(header(time_ms=TimeMs(1))),
    "a forged set": light(of_nobody),
    "a certificate of another epoch": light(
        lambda b: replace(b, finalization=replace(b.finalization, epoch=Epoch(0)))
    ),
    "a certificate of another view": light(
        lambda b: replace(b, finalization=replace(b.finalization, view=b.finalization.view + 1))  # type: ignore[arg-type]
    ),
    "too few signers": light(
        lambda b: replace(
            b,
            finalization=replace(
                b.finalization,
                signers=b"\x01",
                signatures=b.finalization.signatures[:1],
            ),
        )
    ),
    "a header of another height": lie(
        LightRequest, lambda answer: encode(header(height=7)(decode(LightBlock, answer)))
    ),
}


async def another_body(protocol: str, request: bytes, answer: bytes) -> bytes:
    """The right header, with no transactions below it."""
    if protocol == PROTOCOL:
        return answer
    reply: SyncReply = decode(SyncReply, answer, most=len(answer))
    bare = tuple(replace(b, block=Block(b.block.header, (), ())) for b in reply.blocks)
    return encode(replace(reply, blocks=bare))


CHUNK_LIES = list(LIES.values())[:12]
LIES["another body of the block"] = another_body


@pytest.mark.parametrize("name", LIES)
def test_a_liar_alone_gives_nothing_and_is_charged(
    name: str, tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    serve_chain(source, "liar", others).spoil = LIES[name]
    new = SyncNode(tmp_path / "node", source, SyncPort("node", others))
    assert not asyncio.run(new.entry.enter())
    assert set(new.port.reported) == {"liar"}
    assert not (tmp_path / "node" / "sync" / "chain.db").exists()
    new.close()


@pytest.mark.parametrize("name", LIES)
def test_an_honest_server_beside_it_is_enough(
    name: str, tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    liar = serve_chain(source, "a liar", others)  # the first to be asked
    serve_chain(source, "honest", others)
    liar.spoil = LIES[name]
    new = SyncNode(tmp_path / "node", source, SyncPort("node", others))
    assert asyncio.run(new.entry.enter())
    assert set(new.port.reported) <= {"a liar"}
    if LIES[name] in CHUNK_LIES:
        assert liar.asked[ChunkRequest] <= 1  # its own chunk, and no other
    new.close()
    new.open()
    assert new.store.first_height() == NEWEST
    tree = source.chain.tree_at(NEWEST)
    assert tree is not None
    assert list(new.chain.state().tree.items()) == list(tree.items())
    new.close()


def test_two_histories_that_all_have_signed_are_written_down(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    """Nothing of either is taken; the file is what `blyan evidence submit` sends."""
    (tmp_path / "rival").mkdir()
    with LocalChain(tmp_path / "rival", epoch_blocks=4, snapshot_epochs=2) as rival:
        for _ in range(BLOCKS):
            rival.block()
        assert rival.genesis.chain_id == source.genesis.chain_id
        serve_chain(source, "one", others)
        serve_chain(rival, "other", others)
        new = SyncNode(tmp_path / "node", source, SyncPort("node", others))
        assert not asyncio.run(new.entry.enter())
        told = new.entry.info()
        assert told is not None
        assert f"two final blocks of height {NEWEST}" in told["problem"]
        path = tmp_path / "node" / f"blyan-attack-{NEWEST}.json"
        assert f"`blyan evidence submit {path}`" in told["problem"]
        item = read_evidence(path)
        assert set(item.first.indices()) & set(item.second.indices())  # whom it convicts
        found = json.loads(path.read_text())["blocks"]
        shown = {decode(LightBlock, bytes.fromhex(raw)).header.hash() for raw in found}
        blocks = [made.store.block(Height(NEWEST)) for made in (source, rival)]
        assert shown == {b.hash() for b in blocks if b is not None}
        assert not (tmp_path / "node" / "sync" / "chain.db").exists()
        new.close()


def test_a_manifest_of_smaller_parts_with_false_sizes(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It folds up to the state root, and only its maker has its parts: its sizes are what lies."""
    tree = source.chain.tree_at(NEWEST)
    assert tree is not None
    parts = snapshot.plan(tree)
    small_chunks(monkeypatch, 24_000)
    assert len(parts) > len(snapshot.plan(tree))
    large = tuple(replace(p, size=23_999 if p.size else 0) for p in parts)
    liar = serve_chain(source, "a liar", others)
    honest = serve_chain(source, "honest", others)
    liar.spoil = manifest(lambda m: replace(m, parts=large))
    new = SyncNode(tmp_path / "node", source, SyncPort("node", others))
    assert asyncio.run(new.entry.enter())
    assert honest.asked[ManifestRequest] >= 1
    assert set(new.port.reported) <= {"a liar"}
    new.close()


def test_a_chunk_larger_than_any_is_not_taken(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    """The port takes no more than a chunk may have."""
    server = serve_chain(source, "large", others)
    server.spoil = lie(ChunkRequest, lambda answer: bytes(8 << 20))
    new = SyncNode(tmp_path / "node", source, SyncPort("node", others))
    assert not asyncio.run(new.entry.enter())
    new.close()


def test_heights_that_are_no_snapshots_are_not_asked_for(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    server = serve_chain(source, "boaster", others)
    offered = Offers((2**63, NEWEST + 1, INTERVAL - 1, 0))  # type: ignore[arg-type]
    server.spoil = lie(OffersRequest, lambda answer: encode(offered))
    new = SyncNode(tmp_path / "node", source, SyncPort("node", others))
    assert not asyncio.run(new.entry.enter())
    assert server.asked[ManifestRequest] == 0
    new.close()


def test_who_boasts_of_blocks_costs_one_question_for_a_snapshot_a_minute(
    tmp_path: Path, source: LocalChain, others: dict[str, SyncPort]
) -> None:
    server = serve_chain(source, "boaster", others)

    async def boast(protocol: str, request: bytes, answer: bytes) -> bytes:
        if protocol == PROTOCOL:
            return encode(Offers(()))
        return encode(SyncReply(10**12, ()))  # type: ignore[arg-type]

    server.spoil = boast
    new = SyncNode(tmp_path / "node", source, SyncPort("node", others))
    for _ in range(5):
        asyncio.run(new.sync._catch_up())
    assert server.asked[OffersRequest] == 1
    assert new.sync.info()["synced"]
    new.close()


def test_a_request_that_is_none_costs_its_sender(
    source: LocalChain, others: dict[str, SyncPort]
) -> None:
    server = serve_chain(source, "server", others)
    with pytest.raises(DecodeError):
        asyncio.run(server.handlers[PROTOCOL]("fool", b"\xc1"))  # type: ignore[arg-type]
    assert server.reported == ["fool"]
    absent = (
        LightRequest(Height(2**64 - 1)),
        ManifestRequest(Height(7)),
        ChunkRequest(Height(NEWEST), ZERO_HASH),
    )
    for request in absent:
        with pytest.raises(UnreachableError):
            asyncio.run(server.handlers[PROTOCOL]("asker", encode(request)))  # type: ignore[arg-type]
    assert server.reported == ["fool"]
