"""A validator whose chain begins anew with a snapshot never contradicts what it has signed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chain.codec import decode, encode
from chain.hashes import ZERO_HASH
from chain.types import CertifiedBlock, Epoch, Height, View, Vote, VoteKind
from consensus.simplex.messages import Envelope, Record
from node.mempool import Mempool
from node.services.consensus import ConsensusService
from node.wal import WriteAheadLog
from tests.kit.local_chain import LocalChain
from tests.kit.sync_nodes import SyncNode, SyncPort, serve_chain
from tests.kit.waiting import reached
from wallet.signing import sign_vote

BLOCKS, EPOCH_BLOCKS, NEWEST = 30, 4, 24
OLD_EPOCH = Epoch(1)  # of blocks 5 to 8
NEW_EPOCH = Epoch(NEWEST // EPOCH_BLOCKS)
SIGNS_S = 120.0


class Ears(SyncPort):
    """A port that keeps what consensus says; nobody else is there."""

    peer_id = "validator"

    def __init__(self) -> None:
        super().__init__("validator", {})
        self.sent: list[bytes] = []

    def on_message(self, handler: Any) -> None: ...

    def link_info(self) -> list[Any]:
        return []

    def send(self, peer: str, data: bytes) -> bool:
        self.sent.append(data)
        return True

    async def publish(self, topic: str, data: bytes) -> None: ...

    @property
    def votes(self) -> list[Vote]:
        said = [m for data in self.sent for m in decode(Envelope, data).messages]
        return [m for m in said if isinstance(m, Vote)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    path = tmp_path_factory.mktemp("source")
    with LocalChain(path, epoch_blocks=EPOCH_BLOCKS, snapshot_epochs=2) as made:
        made.blocks(BLOCKS)
        yield made


def entered(directory: Path, source: LocalChain) -> SyncNode:
    """A home that had come to block 6, whose chain now begins at the newest snapshot."""
    others: dict[str, SyncPort] = {}
    server = serve_chain(source, "server", others)
    node = SyncNode(directory, source, SyncPort("node", others), mode="blocks")
    some: tuple[CertifiedBlock, ...] = source.store.blocks(Height(1), Height(6), 6)
    asyncio.run(node.sync._take(some))
    assert asyncio.run(node.entry.enter())
    assert server.handlers
    node.close()
    node.open()
    assert node.chain.tip.height == NEWEST
    return node


def old_votes(source: LocalChain) -> list[Vote]:
    """What the last validator has signed where its old chain ended, far ahead in views."""
    own = source.validators[3].consensus
    return [
        sign_vote(
            own,
            chain_id=source.genesis.chain_id,
            kind=kind,
            epoch=OLD_EPOCH,
            view=View(view),
            block_hash=ZERO_HASH if kind is VoteKind.NULLIFY else source.chain.tip_hash,
        )
        for view in range(1, 40)
        for kind in (VoteKind.NOTARIZE, VoteKind.NULLIFY)
    ]


def consensus(node: SyncNode, source: LocalChain, ears: Ears) -> ConsensusService:
    net: Any = ears
    pool = Mempool(source.genesis, source.rules, node.chain.state, lambda raw: None)
    own = source.validators[3]
    return ConsensusService(
        node.chain, pool, net, own, node.directory / "wal", lambda *_: None, lambda _: None
    )


def test_what_it_signs_next_is_of_a_later_epoch(tmp_path: Path, source: LocalChain) -> None:
    node = entered(tmp_path / "node", source)
    (node.directory / "wal").mkdir()
    log = WriteAheadLog(node.directory / "wal")
    log.append([encode(vote) for vote in old_votes(source)])
    log.close()

    async def play() -> None:
        ears = Ears()
        made = consensus(node, source, ears)
        made.start()
        try:
            info = made.info()
            assert (info["epoch"], info["abstains"]) == (NEW_EPOCH, None)
            await reached(lambda: bool(ears.votes), SIGNS_S, "it votes")
        finally:
            made.stop()
        assert {vote.epoch for vote in ears.votes} == {NEW_EPOCH}

    asyncio.run(play())
    log = WriteAheadLog(node.directory / "wal")
    records: list[Any] = [decode(Record, raw) for raw in log.records()]
    log.close()
    signed = [r for r in records if isinstance(r, Vote)]
    assert signed[: len(old_votes(source))] == old_votes(source)  # nothing is forgotten
    once = {(v.epoch, v.view, v.kind): v.block_hash for v in signed}
    assert len(once) == len(signed)
    node.close()


def test_a_home_without_a_log_signs_nothing_until_the_next_epoch(
    tmp_path: Path, source: LocalChain
) -> None:
    node = entered(tmp_path / "node", source)
    (node.directory / "wal").mkdir()

    async def play() -> None:
        ears = Ears()
        made = consensus(node, source, ears)
        made.start()
        try:
            info = made.info()
            assert info["abstains"]["epoch"] == NEW_EPOCH
            assert info["abstains"]["until_height"] == NEWEST + EPOCH_BLOCKS + 1
            view = made.info()["view"]
            for timer in list(made._core._timers):
                made._fire(timer)
            assert made.info()["view"] == view
            assert not ears.votes
        finally:
            made.stop()

    asyncio.run(play())
    node.close()
