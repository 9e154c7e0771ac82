"""What a custodian, a disputer or a stranger may try in a custody event, and does not get."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest

from chain import custody, limits
from chain import custody_records as c
from chain import records as r
from chain.codec import encode
from chain.custody_records import CustodyPhase, CustodyStatus
from chain.errors import DecodeError, TxError
from chain.execute import Context, Execution
from chain.hashes import ZERO_HASH, Hash32
from chain.limits import MAX_OPENING_TX_BYTES, MAX_TX_BYTES, SUBTILE_BYTES, TILE_BYTES
from chain.transactions import Custody, CustodyOpening, PodlManifest, decode_transaction
from chain.types import Epoch, Height, PubKey, ShardIndex, TimeMs, View
from node.mempool import Mempool
from node.pool_fill import LARGE_BYTES
from node.services.tx_gossip import LARGE_COST, USELESS_BURST, Budget
from node.tx_batch import parse_batch
from tests.kit.custody_run import BOND, CustodyRun
from tests.kit.machine import STAKE, key
from tiles import merkle

# Two tiles in one shard; whole subtiles, each of other bytes.
MODEL = (b"".join(bytes([i]) * SUBTILE_BYTES for i in range(18)),)


def code_of(run: CustodyRun, opening: CustodyOpening, rank: int = 1, at: int = 0) -> str:
    """What becomes of an opening by another custodian; the machine is as before."""
    once = run.copy()
    return once.send_duty(once.keys_of(once.custodian(at, rank)), opening)


@pytest.fixture(scope="module")
def lied() -> CustodyRun:
    """Everybody has committed; rank 0 of place 0 to something else there."""
    return CustodyRun.with_a_lie(shards=MODEL)


# --- openings -----------------------------------------------------------------------------


def test_a_path_of_another_tile_or_subtile_shows_nothing(lied: CustodyRun) -> None:
    """Right bytes under a right root of the same shard, only not those that were named."""
    liar = lied.event.members[lied.custodian(0)].account
    place = lied.event.places[0]
    for tile in range(2):
        data = MODEL[0][tile * TILE_BYTES : (tile + 1) * TILE_BYTES]
        for subtile in range(-(-len(data) // SUBTILE_BYTES)):
            proof = merkle.prove_subtile(data, subtile)
            part = data[subtile * SUBTILE_BYTES : (subtile + 1) * SUBTILE_BYTES]
            opening = CustodyOpening(lied.event.seed, liar, 0, proof.siblings, part)
            right = (tile, subtile) == (place.tile, place.subtile)
            assert code_of(lied, opening) == ("ok" if right else "bad_path")


def test_a_path_of_an_old_or_newer_version_shows_nothing() -> None:
    """The model may change while the event goes on; what was named is the version of the anchor."""
    run = CustodyRun()
    run.until(CustodyPhase.COMMIT)
    run.to_disputes(lies={run.custodian(0): (0,)})
    place, state = run.event.places[0], run.m.state
    other = bytes(reversed(run.shards[place.shard]))
    proof = merkle.prove_subtile(other, place.subtile)
    start = place.subtile * SUBTILE_BYTES
    liar = run.event.members[run.custodian(0)].account
    wrong = CustodyOpening(
        run.event.seed, liar, 0, proof.siblings, other[start : start + SUBTILE_BYTES]
    )
    assert code_of(run, wrong) == "bad_path"
    record = state.need(r.ShardRecord, r.shard_key(place.shard))
    roots = merkle.tile_roots(other)
    changed = replace(record, root=merkle.shard_root(roots, len(other)), version=1)
    state.put(r.shard_key(place.shard), changed)
    state.put(r.tiles_key(place.shard), r.TileRoots(roots))
    state.put(r.MODEL, replace(state.model, root=Hash32(b"n" * 32), version=1))
    run.m.tree = state.commit()
    assert (place.shard, place.shard_root) in custody.custody_roots(run.m.state)
    assert code_of(run, wrong) == "bad_path"
    assert code_of(run, run.opening(0, liar)) == "ok"


def test_truncated_and_padded_openings(lied: CustodyRun) -> None:
    liar = lied.event.members[lied.custodian(0)].account
    good = lied.opening(0, liar)
    for wrong in (
        replace(good, subtile=good.subtile[:1]),
        replace(good, subtile=good.subtile[: SUBTILE_BYTES // 2]),
        replace(good, siblings=()),
        replace(good, siblings=good.siblings[1:]),
        replace(good, siblings=good.siblings * 2),
        replace(good, siblings=(ZERO_HASH,) * len(good.siblings)),
    ):
        if len(wrong.siblings) <= limits.MAX_SUBTILE_SIBLINGS:
            assert code_of(lied, wrong) == "bad_path"
        else:
            with pytest.raises(DecodeError):
                encode(wrong)
    with pytest.raises(DecodeError):
        encode(replace(good, subtile=good.subtile + b"\0"))


def test_an_opening_for_an_event_that_is_over(lied: CustodyRun) -> None:
    liar = lied.event.members[lied.custodian(0)].account
    opening, finder = lied.opening(0, liar), lied.keys_of(lied.custodian(0, 1))
    run = lied.copy()
    run.until(None)
    assert run.send_duty(finder, opening) == "unknown_event"
    run.until(CustodyPhase.COMMIT)
    assert run.send_duty(finder, opening) == "unknown_event"
    assert run.m.state.account(liar).bonded == STAKE


def test_nobody_is_convicted_twice_for_one_event(lied: CustodyRun) -> None:
    """However many of its commitments were wrong, and though two openings are in one block."""
    run = CustodyRun(shards=MODEL)
    run.until(CustodyPhase.COMMIT)
    liar = run.custodian(0)
    places = custody.positions(run.event, liar)
    run.to_disputes(lies={liar: tuple(places)})
    account = run.event.members[liar].account
    finder = run.keys_of(run.custodian(0, 1))
    mine = [at for at in places if run.custodian(0, 1) in run.event.places[at].custodians][:3]
    raws = [
        run.m.duty(finder, run.opening(at, account), ahead=min(i, 1)) for i, at in enumerate(mine)
    ]
    codes = [receipt.code for receipt in run.m.block(*raws)]
    assert codes == ["ok"] + ["decided"] * (len(mine) - 1)
    assert run.m.state.account(account).bonded == STAKE - STAKE // 100


# --- commitments ----------------------------------------------------------------------------


def test_another_s_commitments_replayed_are_a_lie() -> None:
    """A custodian that keeps nothing copies what a co-custodian has just sent."""
    run = CustodyRun()
    run.until(CustodyPhase.COMMIT)
    honest, thief = run.custodian(0), run.custodian(0, 1)
    theirs = custody.positions(run.event, thief)
    copied = dict(zip(custody.positions(run.event, honest), run.commitments(honest), strict=True))
    stolen = tuple(copied.get(at, ZERO_HASH) for at in theirs)
    others = [i for i in range(len(run.event.members)) if i != thief]
    assert set(run.commit(*others)) == {"ok"}
    assert run.send_duty(run.keys_of(thief), Custody(run.event.seed, stolen)) == "ok"
    account = run.event.members[thief].account
    assert run.send_duty(run.keys_of(honest), run.opening(0, account)) == "ok"
    assert run.event.members[thief].status == CustodyStatus.CONVICTED


def test_commitments_of_an_earlier_event_are_of_no_use() -> None:
    run = CustodyRun()
    run.until(CustodyPhase.COMMIT)
    old = {at: run.commitments(0) for at in (0,)}[0]
    old_event = run.event
    run.until(None)
    run.until(CustodyPhase.COMMIT)
    again = run.event
    assert again.seed != old_event.seed
    account = old_event.members[0].account
    member = custody.member_of(again, account)
    assert member is not None
    assert set(run.commitments(member)).isdisjoint(old)


# --- what floods could do -------------------------------------------------------------------


def pool_of(run: CustodyRun) -> Mempool:
    return Mempool(run.m.genesis, run.m.rules, lambda: run.m.state, lambda raw: None)


def test_a_pool_takes_only_openings_that_decide_something(lied: CustodyRun) -> None:
    pool = pool_of(lied)
    liar, honest = (lied.event.members[i].account for i in lied.event.places[0].custodians[:2])
    finder = lied.keys_of(lied.custodian(0, 1))
    good = lied.opening(0, liar)
    for wrong, code in (
        (lied.opening(0, honest), "no_dispute"),
        (replace(good, subtile=bytes(SUBTILE_BYTES)), "bad_path"),
        (replace(good, event=Hash32(b"x" * 32)), "unknown_event"),
    ):
        for local in (True, False):
            with pytest.raises(TxError) as caught:
                pool.submit(lied.m.duty(finder, wrong), local=local)
            assert caught.value.code == code
    assert pool.bytes == 0
    ahead = encode(lied.m.tx(key("eve"), good, nonce=1))
    with pytest.raises(TxError) as caught:
        pool.submit(ahead, local=False)
    assert caught.value.code == "bad_nonce"  # a copy that could wait for ever
    cheap = encode(lied.m.tx(key("eve"), good, fee=255_999))
    with pytest.raises(TxError, match="pay 25"):
        pool.submit(cheap, local=False)
    pool.submit(lied.m.duty(finder, good), local=False)
    assert pool.size == 1


def test_openings_leave_room_in_a_block() -> None:
    """Five answers wait: a leader takes three, beside what others sent."""
    run = CustodyRun(shards=MODEL, custody_open={"blocks": 50, "ms": 0})
    run.until(CustodyPhase.COMMIT)
    run.to_disputes()
    state, pairs = run.m.state, []
    for at, place in enumerate(run.event.places[:5]):
        pairs.append((at, place.custodians[0]))
        account = key(f"sybil-{at}").public
        state.put_account(account, bonded=10**6, balance=10**9)
    run.m.tree = state.commit()
    for at, member in pairs:
        assert run.dispute(f"sybil-{at}", at, member) == "ok"
    pool, sent = pool_of(run), dict.fromkeys(range(len(run.event.members)), 0)
    for at, member in pairs:
        raw = run.m.duty(
            run.keys_of(member),
            run.opening(at, run.event.members[member].account),
            ahead=sent[member],
        )
        sent[member] += 1
        pool.submit(raw, local=False)
    execution = Execution(run.m.tree, run.m.genesis, run.m.rules, next_block(run))
    txs = pool.fill(execution, limits.MAX_BLOCK_BYTES - 65_536)
    assert len(txs) == 3
    assert sum(map(len, txs)) <= LARGE_BYTES


def next_block(run: CustodyRun) -> Context:
    head = run.m.state.head
    return Context(
        Height(head.height + 1),
        TimeMs(head.time_ms + 1),
        Epoch(head.epoch),
        View(head.view + 1),
        run.m.parent,
        PubKey(bytes(32)),
        b"",
    )


def test_gossip_bears_an_opening_and_charges_for_useless_ones(lied: CustodyRun) -> None:
    liar = lied.event.members[lied.custodian(0)].account
    raw = encode(lied.m.tx(key("eve"), lied.opening(0, liar)))
    assert parse_batch(msgpack.packb([raw])) == [raw]
    with pytest.raises(DecodeError):
        parse_batch(msgpack.packb([bytes(MAX_OPENING_TX_BYTES + 1)]))
    budget = Budget()
    for _ in range(int(USELESS_BURST / LARGE_COST)):
        assert budget.has("peer", 0.0)
        budget.take("peer", 0.0, LARGE_COST)
    assert not budget.has("peer", 0.0)


def test_no_other_transaction_grows_by_the_limit_of_openings(lied: CustodyRun) -> None:
    manifest = PodlManifest(
        0,
        key("eve").public,
        ZERO_HASH,
        0,
        (),
        ZERO_HASH,
        "p",
        0,
        0,
        ZERO_HASH,
        (),
        *(ZERO_HASH,) * 5,
        64,
        tuple(ShardIndex(i) for i in range(40_000)),
    )
    raw = encode(lied.m.tx(key("eve"), manifest))
    assert MAX_TX_BYTES < len(raw) < MAX_OPENING_TX_BYTES
    with pytest.raises(DecodeError, match="65536"):
        decode_transaction(raw)
    assert code_raw(lied, raw) == "bad_encoding"


def code_raw(run: CustodyRun, raw: bytes) -> str:
    (receipt,) = run.copy().m.block(raw)
    return receipt.code


def test_a_liar_cannot_shield_itself_by_disputes_of_its_own(lied: CustodyRun) -> None:
    """Its second account disputes the lie first and stays silent: the bond comes back, but the
    lie costs the same, and half of it is gone for good."""
    run = lied.copy()
    liar = run.custodian(0)
    account = run.event.members[liar].account
    own = run.m.state.account(account).bonded + run.m.state.account(key("ann").public).balance
    assert run.dispute("ann", 0, liar) == "ok"
    assert run.send_duty(run.keys_of(run.custodian(0, 1)), run.opening(0, account)) == "ok"
    left = run.m.state.account(account).bonded + run.m.state.account(key("ann").public).balance
    assert own - left == STAKE // 200 + 1000
    assert run.event.members[liar].status == c.CustodyStatus.CONVICTED
    assert BOND < STAKE
