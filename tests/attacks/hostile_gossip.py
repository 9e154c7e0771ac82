"""Attacks by gossip: transactions and blocks that are wrong in ways that look right."""

from __future__ import annotations

import random
from dataclasses import replace

import msgpack

from chain.codec import encode
from chain.transactions import Transfer
from chain.types import (
    CertifiedBlock,
    ChainId,
    Epoch,
    Grains,
    Height,
    Signature,
    TimeMs,
)
from node.net.limits import MAX_GOSSIP_BYTES
from node.services.followers import BLOCK_TOPIC, CERTIFICATE_TOPIC
from node.services.tx_gossip import TX_TOPIC
from tests.kit.attacker import connected, stranger, thrown_out
from tests.kit.victims import Victims
from tests.kit.waiting import paused
from wallet.keys import KeyPair
from wallet.signing import sign_transaction

FEE = Grains(100_000)


def transfer(victims: Victims, key: KeyPair, nonce: int, grains: int = 1) -> bytes:
    tx = sign_transaction(
        key,
        chain_id=victims.genesis.chain_id,
        nonce=nonce,
        payload=Transfer(victims.nodes[0].founded.keys.account.public, Grains(grains)),
        fee=FEE,
    )
    return encode(tx)


async def flood_of_stale_transactions(victims: Victims, chance: random.Random) -> None:
    """Few large batches of one transaction that is refused for its nonce only: each costs a
    decoding, and none is anybody's fault."""
    key = victims.validators[0].founded.keys.account
    account = victims.nodes[0].get(f"accounts/{key.public.hex()}")
    raw = transfer(victims, key, account["nonce"] + 1000)
    async with stranger(victims, chance) as net:
        for i in range(60):
            count = (MAX_GOSSIP_BYTES - 64) // (len(raw) + 2) - i
            await net.publish(TX_TOPIC, msgpack.packb([raw] * count))
        await paused(1)


async def junk_blocks_at_the_tip(victims: Victims, chance: random.Random) -> None:
    """What one node cannot judge and another refuses must not make them blame each other."""
    node = victims.nodes[0]
    async with stranger(victims, chance) as net:
        for i in range(60):
            tip = node.height
            real = node.block(tip)
            header = replace(
                real.block.header,
                height=Height(tip + i % 3 - 1),
                time_ms=TimeMs(real.block.header.time_ms + i),
            )
            if real.finalization is None:
                continue
            forged = CertifiedBlock(replace(real.block, header=header), real.finalization)
            await net.publish(BLOCK_TOPIC, encode(forged))
            epoch = Epoch(real.finalization.epoch + chance.choice([-1, 0, 1, 7, 2**40]) % 2**63)
            signatures = tuple(Signature(chance.randbytes(64)) for _ in range(3))
            junk = replace(real.finalization, epoch=epoch, signatures=signatures)
            await net.publish(CERTIFICATE_TOPIC, encode(junk))
            await paused(0.05)


async def distinct_useless_transactions(victims: Victims, chance: random.Random) -> None:
    """Thousands of well-signed transactions of accounts that hold nothing."""
    async with stranger(victims, chance) as net:
        for _ in range(8):
            batch = []
            for _ in range(1000):
                key = KeyPair.from_seed(chance.randbytes(32))
                batch.append(transfer(victims, key, 0))
            await net.publish(TX_TOPIC, msgpack.packb(batch))
        await paused(1)


async def wrong_transactions(victims: Victims, chance: random.Random) -> None:
    """Broken signatures, another chain, bytes that are not canonical, and no list at all."""
    key = KeyPair.from_seed(chance.randbytes(32))
    good = transfer(victims, key, 0)
    tx = sign_transaction(
        key,
        chain_id=ChainId(chance.randbytes(32)),
        nonce=0,
        payload=Transfer(key.public, Grains(1)),
        fee=FEE,
    )
    signed = victims.nodes[0].founded.keys.account
    forged = replace(tx, chain_id=victims.genesis.chain_id, sender=signed.public)
    batches: list[object] = [
        [encode(tx)],
        [encode(forged)],
        [good[:-64] + chance.randbytes(64)],
        [good + b"\x00"],
        [b"", b"\xc1"],
        [chance.randbytes(60_000)],
        [good, good],
        {"a": good},
        7,
        [[[[good]]]],
        [good] * 4500,
    ]
    async with stranger(victims, chance) as net:
        for batch in batches:
            await net.publish(TX_TOPIC, msgpack.packb(batch))
        await net.publish(TX_TOPIC, b"\x91" * 500_000)
        await net.publish(TX_TOPIC, chance.randbytes(MAX_GOSSIP_BYTES))
        await net.publish(BLOCK_TOPIC, chance.randbytes(MAX_GOSSIP_BYTES))
        await thrown_out(net, *victims.nodes)


async def flood_of_valid_transactions(victims: Victims, chance: random.Random) -> None:
    """Thousands of valid transfers of one account, out of order: the pool stays bounded and the
    sender of the messages is not charged."""
    key = victims.validators[1].founded.keys.account
    first = victims.nodes[0].get(f"accounts/{key.public.hex()}")["next_nonce"]
    async with stranger(victims, chance) as net:
        for start in range(0, 1000, 50):
            batch = [transfer(victims, key, first + start + i, start + 1) for i in range(50)]
            chance.shuffle(batch)
            await net.publish(TX_TOPIC, msgpack.packb(batch))
            await paused(0.05)
        await paused(2)
        for node in victims.nodes:
            assert node.metrics()["mempool_txs"] <= 64
            assert node.peer_id in connected(net)
