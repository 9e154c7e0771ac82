"""Strangers who would keep others out of the mempool, or have every node work for nothing."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from chain import costs
from chain.codec import encode
from chain.errors import TxError
from chain.hashes import TX
from chain.transactions import JoinRound, Transfer
from chain.types import Grains, TxId
from node import mempool
from node.pool_index import Index
from node.pool_value import Kind, least_to_replace
from tests.kit.pools import Pooled, check

ROOM = 40  # thirty that pay, ten stamps


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool, "MAX_TXS", ROOM)


def code_of(run: Pooled, raw: bytes) -> str:
    """What a peer's transaction is refused as, or "ok"."""
    try:
        run.pool.submit(raw, local=False)
    except TxError as error:
        return error.code
    return "ok"


def taken(run: Pooled, raws: list[bytes]) -> int:
    codes = Counter(code_of(run, raw) for raw in raws)
    assert codes.keys() <= {"ok", "mempool_full"}
    return codes["ok"]


def test_nonces_that_wait_for_ever_keep_nobody_out() -> None:
    """They never pay, so a high fee costs nothing: they have half of the room, and give way."""
    run = Pooled(3)
    attacker, other, honest = run.keys
    gaps = [run.raw(a, nonce, fee=10**8) for a in (attacker, other) for nonce in range(1, 33)]
    assert taken(run, gaps) == 15
    for nonce in range(30):
        run.pool.submit(run.raw(honest, nonce), local=False)
    check(run.pool)
    assert {run.pool._index.ids[t].sender for t, _ in run.pool.pending()} == {honest.public}
    assert len(run.fill()) == 30


def test_many_accounts_with_the_least_fee_are_outbid() -> None:
    run = Pooled(31)
    *many, honest = run.keys
    cheap = [run.raw(a, 0) for a in many]
    assert taken(run, cheap) == 30
    with pytest.raises(TxError) as caught:
        run.pool.submit(run.raw(honest, 0), local=False)
    assert caught.value.code == "mempool_full"
    found = re.search(r"a fee of (\d+) grains would get in", str(caught.value))
    assert found is not None
    told = int(found[1])
    assert told == 1101
    with pytest.raises(TxError, match="would get in"):
        run.pool.submit(run.raw(honest, 0, fee=1099), local=False)
    raw = run.raw(honest, 0, fee=told)
    run.pool.submit(raw, local=False)
    assert (run.pool.size, run.fill()[0]) == (30, raw)  # it got in, and comes first
    gone = [TxId(TX.hash(c)) for c in cheap if run.pool.get(TxId(TX.hash(c))) is None]
    assert [run.pool.status(t) for t in gone] == [
        "dropped:outbid: the mempool is full, and others bid more"
    ]


def test_a_dear_one_does_not_hold_the_places_of_cheap_ones_before_it() -> None:
    run = Pooled(2)
    attacker, honest = run.keys
    for nonce in range(29):
        run.pool.submit(run.raw(attacker, nonce), local=False)
    run.pool.submit(run.raw(attacker, 29, fee=10**8), local=False)
    for nonce in range(10):
        run.pool.submit(run.raw(honest, nonce, fee=1200), local=False)
    check(run.pool)
    left = [run.pool._index.ids[t] for t, _ in run.pool.pending()]
    assert [w.nonce for w in left if w.sender == attacker.public] == list(range(20))


def test_stamps_and_fees_do_not_keep_each_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "STAMP_SHARE", 500)  # of a block's second: eight transfers
    run = Pooled(45)
    stamps = [run.raw(a, 0, stamp=True) for a in run.keys[:40]]
    run.block()  # a stamp names a block before the newest
    assert taken(run, stamps) >= 10  # better ones push out worse ones
    assert run.pool._index.count[Kind.STAMPED] == 10
    payers = [run.raw(a, nonce, fee=10**7) for a in run.keys[40:] for nonce in range(10)]
    assert taken(run, payers) == 30
    check(run.pool)
    assert run.pool._index.count[Kind.STAMPED] == 10
    block = [run.pool._index.ids[TxId(TX.hash(raw))].kind for raw in run.fill()]
    assert block == [Kind.STAMPED] * 8 + [Kind.PAID] * 30  # first, and no more than their part
    assert run.pool.size == 40  # those that found no room wait on


def test_churn_has_an_end() -> None:
    """Each time a tenth more: a hundredfold fee is reached after fifty, with others in between."""
    run = Pooled(31)
    for account in run.keys[:30]:
        run.pool.submit(run.raw(account, 0), local=False)
    passed, fee = len(run.announced), 1000
    while fee < 100_000:
        fee = least_to_replace(fee)
        for account in run.keys[:30]:
            assert code_of(run, run.raw(account, 0, fee=fee)) in ("ok", "nonce_taken")
    assert len(run.announced) - passed == 30 * mempool.MAX_REPLACED


def test_one_account_cannot_promise_more_than_it_has() -> None:
    run = Pooled(1)
    sender = run.keys[0]
    half = 5 * 10**9
    run.pool.submit(run.raw(sender, 0, amount=half), local=False)
    with pytest.raises(TxError) as caught:
        run.pool.submit(run.raw(sender, 1, amount=half), local=False)
    assert caught.value.code == "insufficient_funds"
    assert str(half + 1000) in str(caught.value)
    own = encode(run.machine.tx(sender, Transfer(sender.public, Grains(half)), nonce=1))
    run.pool.submit(own, local=False)  # to itself: nothing leaves
    check(run.pool)


def test_who_has_spent_it_elsewhere_loses_the_tail() -> None:
    run = Pooled(2)
    sender, other = run.keys
    raws = [run.raw(sender, nonce, amount=10**9) for nonce in range(5)]
    ids = [run.pool.submit(raw, local=False) for raw in raws]
    instead = run.raw(sender, 0, amount=7 * 10**9)
    run.pool.submit(run.raw(other, 0), local=False)
    run.block(instead)
    check(run.pool)
    statuses = [str(run.pool.status(t)).split(":")[1:2] for t in ids]
    assert statuses == [["bad_nonce"], [], [], ["insufficient_funds"], ["insufficient_funds"]]
    assert run.pool.next_nonce(sender.public) == 3
    assert run.pool.next_nonce(other.public) == 1


def test_a_leader_that_puts_one_in_too_early_takes_nothing_from_anybody() -> None:
    run = Pooled(1)
    sender = run.keys[0]
    raws = [run.raw(sender, nonce) for nonce in range(3)]
    for raw in raws:
        run.pool.submit(raw, local=False)
    run.block(raws[2], raws[1])
    assert run.machine.done is not None
    assert [r.code for r in run.machine.done.receipts] == ["bad_nonce", "bad_nonce"]
    assert [raw for _, raw in run.pool.pending()] == raws
    assert run.fill() == tuple(raws)


def test_a_large_one_pushes_out_no_more_than_it_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it needs gives way, or nothing does."""
    run = Pooled(31)
    for account in run.keys[:30]:
        run.pool.submit(run.raw(account, 0, fee=1000 + 100 * run.keys.index(account)), local=False)
    monkeypatch.setattr(mempool, "MAX_BYTES", run.pool.bytes * 4 // 3)
    before = list(run.pool.pending())
    large = JoinRound(0, tuple(range(500)))
    low = run.raw(run.keys[30], 0, fee=3000, payload=large)
    with pytest.raises(TxError, match="would get in"):
        run.pool.submit(low, local=False)
    assert list(run.pool.pending()) == before
    high = run.raw(run.keys[30], 0, fee=10**6, payload=large)
    run.pool.submit(high, local=False)
    check(run.pool)
    assert run.pool.get(TxId(TX.hash(high))) == high
    assert 1 < run.pool.displaced_total < 30


def test_each_costs_one_look_at_a_heap_that_stays_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted in looks at the heap, not in seconds."""
    looks: list[int] = []
    touch = Index._touch

    def counted(self: Index, sender: object) -> None:
        looks.append(1)
        touch(self, sender)  # type: ignore[arg-type]

    monkeypatch.setattr(Index, "_touch", counted)
    run = Pooled(60)
    for account in run.keys:
        for nonce in range(3):
            taken(run, [run.raw(account, nonce, fee=1000 + 20 * run.keys.index(account))])
    assert len(looks) <= 2 * 180  # one for what comes, one for what goes
    for kind in Kind:
        assert len(run.pool._index._heaps[kind]) <= 2 * 60 + 256 + 1
