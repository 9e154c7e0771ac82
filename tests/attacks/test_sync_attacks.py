"""Catching up from honest, lagging and lying peers: what does not hold never enters the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from chain.codec import decode, encode
from chain.errors import UnreachableError
from chain.hashes import Hash32
from chain.store import ChainStore
from chain.transactions import Transfer
from chain.types import Block, CertifiedBlock, Grains, Height, View
from node.genesis import build_genesis
from node.net.info import PeerInfo
from node.services.chain import ChainService
from node.services.sync import SyncService
from node.services.sync_wire import SyncReply, SyncRequest
from tests.kit.local_chain import LocalChain

Spoil = Callable[[SyncReply], SyncReply]


@dataclass
class Peer:
    """A serving node; `spoil` is its lie."""

    service: SyncService
    spoil: Spoil = lambda reply: reply
    asked: int = 0


class Wire:
    """The part of the network port that sync uses, between services of one process."""

    def __init__(self) -> None:
        self.handler: Any = None
        self.topics: dict[str, Callable[[str, bytes], Awaitable[bool]]] = {}
        self.servers: dict[str, Peer] = {}
        self.reported: list[str] = []

    def serve(self, protocol: str, handler: Any, **_: Any) -> None:
        self.handler = handler

    def subscribe(self, topic: str, handler: Any) -> None:
        self.topics[topic] = handler

    def on_peer(self, handler: Any) -> None: ...

    def peers(self) -> list[PeerInfo]:
        return [PeerInfo(name, (), True, None, 0.0, "out") for name in self.servers]

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reported.append(peer)

    async def request(self, peer: str, protocol: str, data: bytes, **_: Any) -> bytes:
        server = self.servers[peer]
        server.asked += 1
        if server.asked > 20:
            raise UnreachableError("asked too often: a loop")
        raw = await server.service._serve("asker", data)
        return encode(server.spoil(decode(SyncReply, raw)))


@dataclass
class Case:
    source: LocalChain
    wire: Wire
    chain: ChainService
    sync: SyncService

    def server(self, name: str, spoil: Spoil = lambda reply: reply) -> None:
        service = SyncService(self.source.chain, Wire())  # type: ignore[arg-type]
        self.wire.servers[name] = Peer(service, spoil)

    def run(self) -> None:
        asyncio.run(self.sync._catch_up())


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    for name in ("source", "victim"):
        (tmp_path / name).mkdir()
    with LocalChain(tmp_path / "source") as source:
        for i in range(12):
            to = source.learners[1].public
            source.send(Transfer(to, Grains(i + 1)), source.learners[0])
            source.block(certify=i % 3 == 2 or i == 11)
        with ChainStore(tmp_path / "victim" / "chain.db") as store:
            chain = ChainService(build_genesis(source.genesis), store, source.rules)
            wire = Wire()
            yield Case(source, wire, chain, SyncService(chain, wire))  # type: ignore[arg-type]


def test_an_honest_peer_brings_us_to_its_tip(case: Case) -> None:
    case.server("honest")
    case.run()
    assert case.chain.tip_hash == case.source.chain.tip_hash
    assert case.chain.state().tree.root == case.source.state.tree.root
    assert case.wire.reported == []


def changed(item: CertifiedBlock, **header: Any) -> CertifiedBlock:
    block = item.block
    return replace(item, block=Block(replace(block.header, **header), block.txs, ()))


def at(position: int, change: Callable[[CertifiedBlock], CertifiedBlock]) -> Spoil:
    def spoil(reply: SyncReply) -> SyncReply:
        blocks = list(reply.blocks)
        if len(blocks) > position:
            blocks[position] = change(blocks[position])
        return replace(reply, blocks=tuple(blocks))

    return spoil


LIES: dict[str, Spoil] = {
    "wrong state root": at(2, lambda b: changed(b, state_root=Hash32(bytes(32)))),
    "wrong parent": at(1, lambda b: changed(b, parent=Hash32(bytes(32)))),
    "dropped transaction": at(
        0, lambda b: replace(b, block=Block(b.block.header, (), b.block.evidence))
    ),
    "certificate of another block": at(
        2,
        lambda b: replace(
            b, finalization=b.finalization and replace(b.finalization, block_hash=Hash32(b"x" * 32))
        ),
    ),
    "too few signers": at(
        2,
        lambda b: replace(
            b,
            finalization=b.finalization
            and replace(b.finalization, signers=b"\x01", signatures=b.finalization.signatures[:1]),
        ),
    ),
    "a signature moved": at(
        2,
        lambda b: replace(
            b,
            finalization=b.finalization
            and replace(b.finalization, signatures=b.finalization.signatures[::-1]),
        ),
    ),
    "blocks out of order": lambda r: replace(r, blocks=r.blocks[1:2] + r.blocks[:1] + r.blocks[2:]),
    "a block left out": lambda r: replace(r, blocks=r.blocks[:1] + r.blocks[2:]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_peer_is_charged_and_another_is_asked(case: Case, lie: str) -> None:
    case.server("liar", LIES[lie])
    case.run()
    assert case.wire.reported == ["liar"]
    assert case.chain.tip.height == 0
    case.server("honest")
    case.run()
    assert case.chain.tip_hash == case.source.chain.tip_hash


def test_a_peer_that_boasts_of_a_height_does_not_hold_us(case: Case) -> None:
    case.server("boaster", lambda reply: SyncReply(Height(10**9), ()))
    case.run()
    case.server("honest")
    case.run()
    assert case.chain.tip_hash == case.source.chain.tip_hash
    assert case.sync.info()["synced"]


def test_a_request_that_is_none_costs_its_sender(case: Case) -> None:
    async def ask() -> None:
        with pytest.raises(Exception, match="not MessagePack"):
            await case.sync._serve("fool", b"\xc1")
        tip = decode(SyncReply, await case.sync._serve("friend", encode(SyncRequest(Height(1), 0))))
        assert tip == SyncReply(Height(0), ())

    asyncio.run(ask())
    assert case.wire.reported == ["fool"]


def test_gossip_moves_a_follower_and_refuses_what_does_not_hold(case: Case) -> None:
    first = case.source.store.blocks(Height(1), Height(3), 3)
    third = first[2]

    async def play() -> None:
        block = case.sync._block
        assert not await block("p", b"junk")
        assert not await block("p", encode(replace(third, finalization=None)))
        assert await block("p", encode(third))  # two heights ahead: we ask, nobody is blamed

    asyncio.run(play())
    assert case.chain.tip.height == 0


def test_a_body_of_another_block_is_refused_after_the_block_was_executed(case: Case) -> None:
    """The hash is the header's alone: what was executed under it says nothing of this body."""
    first = case.source.store.block(Height(1))
    assert first is not None
    case.chain.execute(case.chain.tip, first)
    case.server("liar", LIES["dropped transaction"])
    case.run()
    assert case.wire.reported == ["liar"]
    assert case.chain.tip.height == 0
    case.server("honest")
    case.run()
    assert case.chain.tip_hash == case.source.chain.tip_hash


def test_more_blocks_under_one_certificate_than_results_are_kept(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.services.chain.MAX_OVERLAYS", 4)

    def bare(reply: SyncReply) -> SyncReply:
        inner = tuple(replace(b, finalization=None) for b in reply.blocks[:-1])
        return replace(reply, blocks=inner + reply.blocks[-1:])

    case.server("terse", bare)
    case.run()
    assert case.wire.reported == []
    assert case.chain.tip_hash == case.source.chain.tip_hash
    assert case.chain.state().tree.root == case.source.state.tree.root


def test_the_state_that_others_build_on_is_kept(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long partition makes many rivals of one parent, which must be there when it ends."""
    monkeypatch.setattr("node.services.chain.MAX_OVERLAYS", 4)
    first = case.source.store.block(Height(1))
    assert first is not None
    done = case.chain.execute(case.chain.tip, first)
    for i in range(20):
        assert case.chain.tree_after(first.hash()) is done.tree
        rival = replace(first, header=replace(first.header, view=View(100 + i)))
        case.chain.keep(rival, done)


def test_bytes_that_are_no_transaction_do_not_stop_those_who_store_them(case: Case) -> None:
    case.source.block(b"\xff" * 40, b"\xff" * 40)
    case.server("honest")
    case.run()
    assert case.chain.tip_hash == case.source.chain.tip_hash
    (row, _) = case.chain.store.txs_in(case.chain.tip.height)
    assert (row.code, row.kind) == ("bad_encoding", 0)


def test_one_old_block_again_and_again_is_no_progress(case: Case) -> None:
    """It is certified, but was not asked for: its sender is charged and others are asked."""
    first = case.source.store.blocks(1, 12, 255, 1 << 22)[:3]
    case.server("again", lambda reply: SyncReply(Height(2**60), tuple(first)))
    case.server("honest")
    case.run()
    case.run()
    assert case.chain.tip_hash == case.source.chain.tip_hash
    assert case.sync.info()["synced"]
    assert set(case.wire.reported) <= {"again"}


def test_a_peer_that_serves_little_takes_turns_with_the_others(case: Case) -> None:
    """One group at a time from the miser; the honest one brings us to the tip meanwhile."""
    case.server("miser", lambda reply: SyncReply(reply.tip, reply.blocks[:3]))
    case.server("honest")
    case.run()
    assert case.chain.tip_hash == case.source.chain.tip_hash
    assert case.wire.servers["miser"].asked <= 2
    assert not case.wire.reported
