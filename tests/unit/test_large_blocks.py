"""A block of 2 MiB on its whole way: built, proposed, agreed on by four validators over real links,
announced, and fetched by a node that was not there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chain.address import peer_id_of
from chain.codec import encode
from chain.limits import MAX_BLOCK_BYTES, MAX_MESSAGE_BYTES
from chain.types import Block
from node import mempool
from node.net.port import Network
from node.services.sync import SyncService
from tests.kit.local_chain import LocalChain, key
from tests.kit.validators import Member, until_met, validators
from tests.kit.waiting import reached
from wallet.keys import KeyPair, Keys
from wallet.signing import sign_announce

SENDERS = 790
WITHIN_S = 240.0  # generous: 800 announcements are verified eight times on two busy cores
PARAMS: dict[str, Any] = {
    "learners": SENDERS,
    "empty_interval_ms": 600_000,
    "delta_floor_ms": 6_000,  # what a view may take on a slow machine
    "delta_cap_ms": 60_000,
}


def announcements(chain: LocalChain) -> Iterator[bytes]:
    """The largest transactions that anyone may send at any time: 2.6 KB each."""
    addresses = tuple(f"/dns/{i}{'x' * 249}" for i in range(8))
    for own in chain.learners:
        payload = sign_announce(
            Keys(own, own, own, own),
            chain_id=chain.genesis.chain_id,
            roles=0,
            capacity_tiles=1,
            node_id=peer_id_of(own.public),
            addresses=addresses,
        )
        yield chain.sign(payload, own)


def largest(chain: LocalChain) -> Block:
    store, tip = chain.store, chain.chain.tip.height
    blocks = (store.block(height) for height in range(1, tip + 1))
    return max((b for b in blocks if b is not None), key=lambda b: len(encode(b)))


def test_a_block_of_two_mebibytes_becomes_final_and_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mempool, "BUILD_BUDGET_S", WITHIN_S)  # the machine may be slow

    async def main() -> None:
        async with validators(tmp_path, start=False, **PARAMS) as members:
            await until_met(members)
            for raw in announcements(members[0].local):
                for member in members:
                    member.local.pool.submit(raw, local=False)
                await asyncio.sleep(0)
            served = [SyncService(m.local.chain, m.net) for m in members]
            for member in members:
                member.consensus.start()
                member.consensus.wake()
            await reached(
                lambda: all(m.local.pool.size < SENDERS // 8 for m in members),
                WITHIN_S,
                "the block is final",
            )
            found = [largest(m.local) for m in members]
            assert len({b.hash() for b in found}) == 1
            assert MAX_BLOCK_BYTES * 9 // 10 < len(encode(found[0])) <= MAX_BLOCK_BYTES
            assert len(served) == 4
            await follow(tmp_path, members, found[0])

    asyncio.run(main())


async def follow(directory: Path, members: list[Member], block: Block) -> None:
    """Another node fetches all of it from whom it knows."""
    (directory / "late").mkdir()
    with LocalChain(directory / "late", validators=len(members), **PARAMS) as local:
        late: KeyPair = key("late")
        net = Network(late.seed, chain_id=local.genesis.chain_id, link_port=0)
        sync = SyncService(local.chain, net)
        await net.start()
        task = asyncio.create_task(sync.run())
        try:
            await net.dial(members[0].address)
            sync.want(members[0].id, members[0].height)
            await reached(
                lambda: local.chain.tip.height >= block.header.height, WITHIN_S, "it is synced"
            )
            assert local.store.block(block.header.height) == block
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await net.stop()


def test_a_proposal_has_room_for_a_full_block_and_its_certificates() -> None:
    assert MAX_MESSAGE_BYTES - MAX_BLOCK_BYTES >= 256 * 1024
