"""The mempool: what it takes, in which order, and what it tells of what it refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.codec import encode
from chain.errors import DecodeError, TxError
from chain.execute import Context, Execution
from chain.hashes import BLOB, DATASET, Hash32
from chain.receipts import Receipt
from chain.transactions import (
    AuditReport,
    DatasetSubmit,
    JoinRound,
    Transaction,
    Transfer,
    Verdict,
)
from chain.types import BlobId, Epoch, Grains, Height, PubKey, Signature, TimeMs, TxId, View
from node import mempool
from node.mempool import Mempool
from node.pool_value import Kind, bid_of, least_to_replace
from tests.kit.machine import Machine, key
from wallet.keys import KeyPair

ALICE, BOB, CAROL = key("alice"), key("bob"), key("carol")
DATASET_ID = DATASET.hash(b"a dataset")


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
        self.pool.build_budget_s = 60.0  # no leader waits here, and a busy machine is slow

    def raw(self, nonce: int = 0, amount: int = 5, fee: int = 1000) -> bytes:
        payload = Transfer(CAROL.public, Grains(amount))
        return encode(self.machine.tx(ALICE, payload, nonce=nonce, fee=fee))

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


def test_the_same_again_is_one_and_a_higher_bid_replaces(pool: Pool) -> None:
    raw = pool.raw(0)
    first = pool.pool.submit(raw)
    assert pool.pool.submit(raw) == first
    assert pool.pool.size == 1
    for amount, fee in ((5, 999), (6, 1000), (6, 1099)):
        with pytest.raises(TxError) as caught:
            pool.pool.submit(pool.raw(0, amount, fee))
        if fee >= 1000:
            assert caught.value.code == "underpriced"
            assert "a fee of 1100 grains replaces it" in str(caught.value)
    assert pool.fill() == (raw,)
    better = pool.raw(0, fee=1100)
    second = pool.pool.submit(better)
    assert pool.fill() == (better,)
    assert pool.pool.status(first) == f"dropped:replaced: by {second.hex()}"
    assert (pool.pool.size, pool.pool.bytes) == (1, len(better))


def test_replacing_has_an_end(pool: Pool) -> None:
    fee = 1000
    pool.pool.submit(pool.raw(0, fee=fee))
    for _ in range(mempool.MAX_REPLACED):
        fee = least_to_replace(fee)
        latest = pool.raw(0, fee=fee)
        pool.pool.submit(latest, local=False)
    for local in (False, True):
        with pytest.raises(TxError) as caught:
            pool.pool.submit(pool.raw(0, fee=2 * fee), local=local)
        assert caught.value.code == "nonce_taken"
    assert pool.fill() == (latest,)


def test_of_two_stamps_the_one_of_twice_the_work_stays(pool: Pool) -> None:
    """Each stamp is another draw: their works differ without our doing."""
    txs = [stamp(pool, ALICE, amount) for amount in range(5, 40)]
    pool.machine.block()  # a stamp names a block before the newest
    state, genesis = pool.machine.state, pool.machine.genesis
    stamped = [(bid_of(state, genesis, tx, Kind.STAMPED), encode(tx)) for tx in txs]
    by_bid = sorted(stamped)
    low, high = by_bid[0], by_bid[-1]
    assert high[0] >= 2 * low[0]
    pool.pool.submit(low[1], local=False)
    for bid, raw in stamped:
        if bid == low[0] and raw != low[1]:
            with pytest.raises(TxError, match="twice the work"):
                pool.pool.submit(raw, local=False)
    pool.pool.submit(high[1], local=False)
    with pytest.raises(TxError, match=f"a fee of {least_to_replace(high[0])} grains"):
        pool.pool.submit(pool.raw(fee=high[0]), local=False)
    paid = pool.raw(fee=least_to_replace(high[0]))  # a fee and a stamp have a common measure
    pool.pool.submit(paid, local=False)
    assert [raw for _, raw in pool.pool.pending()] == [paid]


def stamp(pool: Pool, sender: KeyPair, amount: int = 5) -> Transaction:
    return pool.machine.tx(sender, Transfer(CAROL.public, Grains(amount)), nonce=0, stamp=True)


def test_what_no_block_takes_leaves(pool: Pool) -> None:
    tx_id = pool.pool.submit(pool.raw(1))
    for _ in range(mempool.MAX_AGE_BLOCKS + 1):
        pool.machine.block()
    pool.pool.committed((), ())
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
    assert pool.machine.done is not None
    pool.pool.committed(receipts, pool.machine.done.changes)
    assert [raw for _, raw in pool.pool.pending()] == [raws[1]]
    assert pool.pool.bytes == len(raws[1])


# --- strangers who would keep others out --------------------------------------------------------


def junk(pool: Pool, sender: KeyPair, nonce: int) -> bytes:
    return encode(pool.machine.tx(sender, Transfer(CAROL.public, Grains(5)), nonce=nonce))


def duty(pool: Pool, validator: int = 0) -> bytes:
    """A duty that is in order: the report on a dataset that waits."""
    report = AuditReport(DATASET_ID, Verdict.YES, 90, (), Hash32(b"r" * 32))
    return pool.machine.duty(pool.machine.validators[validator], report)


def with_dataset(pool: Pool) -> Pool:
    blob = BlobId(BLOB.hash(b"m"))
    submit = DatasetSubmit(DATASET_ID, blob, 10, 1000, 3, "CC0-1.0", "a dataset")
    pool.machine.ok(encode(pool.machine.tx(BOB, submit)))
    return pool


def test_what_waits_for_an_earlier_nonce_takes_no_time_of_a_block(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nonce in range(1, 20):
        pool.pool.submit(junk(pool, ALICE, nonce), local=False)
    own = junk(pool, BOB, 0)
    pool.pool.submit(own)
    tried: list[bytes] = []
    execute = Execution.try_apply

    def counted(self: Execution, raw: bytes) -> Receipt:
        tried.append(raw)
        return execute(self, raw)

    monkeypatch.setattr(Execution, "try_apply", counted)
    assert pool.fill() == (own,)
    assert tried == [own]


def test_a_full_pool_takes_duties_and_no_gaps(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with_dataset(pool)
    monkeypatch.setattr(mempool, "MAX_TXS", 8)  # six that pay, two stamps; as many duties
    for nonce in range(1, 4):
        pool.pool.submit(junk(pool, ALICE, nonce), local=False)
    with pytest.raises(TxError, match="nonce 9 is early"):
        pool.pool.submit(junk(pool, ALICE, 9), local=False)
    ready = [junk(pool, BOB, nonce) for nonce in range(1, 7)]
    for raw in ready:  # what waits for nothing pushes out what does
        pool.pool.submit(raw, local=False)
    with pytest.raises(TxError, match="full"):
        pool.pool.submit(junk(pool, BOB, 7), local=False)
    assert [raw for _, raw in pool.pool.pending()] == ready
    pool.pool.submit(duty(pool), local=False)
    assert pool.pool.size == 7


def test_duties_come_first_and_others_take_turns(pool: Pool) -> None:
    with_dataset(pool)
    alice = [junk(pool, ALICE, nonce) for nonce in range(3)]
    for raw in alice:
        pool.pool.submit(raw)
    bob = junk(pool, BOB, 1)
    pool.pool.submit(bob)
    said = [duty(pool, i) for i in range(2)]
    for raw in said:
        pool.pool.submit(raw)
    assert pool.fill() == (*said, alice[0], bob, *alice[1:])
    room = len(said[0]) + len(said[1]) + len(alice[0])
    assert pool.fill(room) == (*said, bob)  # longest ago
    assert pool.fill(room) == (*said, alice[0])


def test_blocks_that_came_without_us_are_made_up_for(pool: Pool) -> None:
    """As after a snapshot: nobody has told what they changed."""
    ids = [pool.pool.submit(pool.raw(nonce), local=False) for nonce in range(3)]
    pool.machine.ok(pool.raw(0), pool.raw(1, amount=9))
    pool.machine.block()
    pool.pool.committed((), ())
    statuses = [str(pool.pool.status(tx_id)) for tx_id in ids]
    assert [s.partition(":")[2].partition(":")[0] for s in statuses] == ["bad_nonce"] * 2 + [""]
    assert pool.pool.next_nonce(ALICE.public) == 3
