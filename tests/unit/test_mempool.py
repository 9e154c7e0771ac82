"""The mempool: what it takes, in which order, and what it tells of what it refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.codec import encode
from chain.errors import DecodeError, TxError
from chain.execute import Context, Execution
from chain.transactions import JoinRound, Transfer
from chain.types import Epoch, Grains, Height, PubKey, Signature, TimeMs, TxId, View
from node import mempool
from node.mempool import Mempool
from tests.kit.machine import Machine, key

ALICE, BOB, CAROL = key("alice"), key("bob"), key("carol")


class Pool:
    def __init__(self) -> None:
        self.machine = Machine(funded=("alice", "bob"))
        self.announced: list[bytes] = []
        self.pool = Mempool(
            self.machine.genesis,
            self.machine.rules,
            lambda: self.machine.state,
            self.announced.append,
        )

    def raw(self, nonce: int = 0, amount: int = 5) -> bytes:
        return encode(self.machine.tx(ALICE, Transfer(CAROL.public, Grains(amount)), nonce=nonce))

    def fill(self, most: int = 10**6) -> tuple[bytes, ...]:
        head = self.machine.state.head
        ctx = Context(
            Height(head.height + 1),
            TimeMs(10**6),
            Epoch(0),
            View(1),
            self.machine.parent,
            PubKey(bytes(32)),
            b"",
        )
        execution = Execution(self.machine.tree, self.machine.genesis, self.machine.rules, ctx)
        return self.pool.fill(execution, most)


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_nonces_come_in_order_whatever_the_order_of_arrival(pool: Pool) -> None:
    raws = [pool.raw(nonce) for nonce in (2, 0, 1)]
    for raw in raws:
        pool.pool.submit(raw)
    assert pool.announced == raws
    assert pool.pool.next_nonce(ALICE.public) == 3
    assert pool.fill() == (raws[1], raws[2], raws[0])


def test_a_gap_waits_and_is_not_thrown_away(pool: Pool) -> None:
    late = pool.raw(1)
    pool.pool.submit(late)
    assert pool.fill() == ()
    assert pool.pool.size == 1
    first = pool.raw(0)
    pool.pool.submit(first)
    assert pool.fill() == (first, late)


def test_what_is_wrong_is_told_at_once(pool: Pool) -> None:
    with pytest.raises(DecodeError):
        pool.pool.submit(b"\x00garbage")
    tx = pool.machine.tx(ALICE, Transfer(CAROL.public, Grains(5)))
    with pytest.raises(TxError) as caught:
        pool.pool.submit(encode(replace(tx, signature=Signature(bytes(64)))))
    assert caught.value.code == "bad_signature"
    with pytest.raises(TxError) as caught:
        pool.pool.submit(encode(pool.machine.tx(ALICE, JoinRound(0, ()))))
    assert caught.value.code == "no_dataset"
    with pytest.raises(TxError) as caught:
        pool.pool.submit(pool.raw(mempool.MAX_GAP + 1))
    assert caught.value.code == "bad_nonce"
    assert pool.pool.size == 0
    assert pool.announced == []


def test_what_a_rule_refuses_later_leaves_with_its_reason(pool: Pool) -> None:
    tx = pool.machine.tx(ALICE, JoinRound(0, ()))
    tx_id = pool.pool.submit(encode(tx), local=False)  # a peer's is not tried on entry
    assert pool.pool.status(tx_id) == "pending"
    assert pool.fill() == ()
    status = pool.pool.status(tx_id)
    assert status is not None
    assert status.startswith("dropped:no_dataset: ")
    assert pool.pool.get(tx_id) is None
    assert pool.pool.status(TxId(bytes(32))) is None


def test_the_same_again_is_one_and_the_latest_of_a_nonce_counts(pool: Pool) -> None:
    raw = pool.raw(0)
    assert pool.pool.submit(raw) == pool.pool.submit(raw)
    assert pool.pool.size == 1
    for amount in range(6, 6 + mempool.MAX_REPLACED):
        latest = pool.raw(0, amount=amount)
        pool.pool.submit(latest, local=False)
    with pytest.raises(TxError) as caught:
        pool.pool.submit(pool.raw(0, amount=99), local=False)
    assert caught.value.code == "nonce_taken"
    assert pool.pool.size == 1
    assert pool.fill() == (latest,)


def test_what_no_block_takes_leaves(pool: Pool) -> None:
    tx_id = pool.pool.submit(pool.raw(1))
    for _ in range(mempool.MAX_AGE_BLOCKS + 1):
        pool.machine.block()
    pool.pool.committed(())
    assert pool.pool.size == 0
    status = pool.pool.status(tx_id)
    assert status is not None
    assert status.startswith("dropped:expired")


def test_a_sender_and_the_whole_are_bounded(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool, "MAX_PER_SENDER", 2)
    pool.pool.submit(pool.raw(0))
    pool.pool.submit(pool.raw(1))
    with pytest.raises(TxError) as caught:
        pool.pool.submit(pool.raw(2))
    assert caught.value.code == "mempool_full"
    monkeypatch.setattr(mempool, "MAX_TXS", 2)
    with pytest.raises(TxError) as caught:
        pool.pool.submit(encode(pool.machine.tx(BOB, Transfer(CAROL.public, Grains(5)))))
    assert caught.value.code == "mempool_full"


def test_a_block_has_room_for_so_many_bytes(pool: Pool) -> None:
    raws = [pool.raw(nonce) for nonce in range(3)]
    for raw in raws:
        pool.pool.submit(raw)
    assert pool.fill(len(raws[0]) * 2 + 10) == tuple(raws[:2])


def test_committed_transactions_leave(pool: Pool) -> None:
    raws = [pool.raw(nonce) for nonce in range(2)]
    for raw in raws:
        pool.pool.submit(raw)
    receipts = pool.machine.block(raws[0])
    pool.pool.committed(receipts)
    assert [raw for _, raw in pool.pool.pending()] == [raws[1]]
    assert pool.pool.bytes == len(raws[1])
