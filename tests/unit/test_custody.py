"""Proof of custody in the state machine: every phase, every refusal, and where the grains go."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from chain import custody
from chain import custody_records as c
from chain import records as r
from chain.codec import encode
from chain.costs import spend
from chain.custody_records import CustodyPhase, CustodyStatus
from chain.hashes import ZERO_HASH, Hash32
from chain.ledger import put_unbonding
from chain.limits import MAX_OPENING_TX_BYTES, MAX_TX_BYTES, SUBTILE_BYTES
from chain.rounds import tile_ranks
from chain.state import REWARD_POOL
from chain.transactions import (
    Custody,
    DeltaReveal,
    FraudProof,
    decode_transaction,
)
from chain.types import Height, PubKey, ShardIndex, TileIndex, TxId
from node.stamping import spend_of
from tests.kit.custody_run import SHARDS, CustodyRun
from tests.kit.machine import STAKE, key, leaving
from wallet.signing import make_stamp


@pytest.fixture(scope="module")
def ready() -> CustodyRun:
    return CustodyRun.with_a_lie()


@pytest.fixture
def run(ready: CustodyRun) -> CustodyRun:
    return ready.copy()


# --- events -------------------------------------------------------------------------------


def test_an_event_names_subtiles_of_the_anchor_and_their_first_ranks() -> None:
    run = CustodyRun()
    for _ in range(7):
        run.m.block()
        assert run.phase() is None
    run.m.block()
    assert (run.phase(), run.event.anchor) == (CustodyPhase.SEED, 8)
    assert run.event.seed == ZERO_HASH
    run.m.block()
    assert run.phase() == CustodyPhase.SEED
    run.m.block()  # the second of two blocks after the anchor
    event, state = run.event, run.m.state
    assert (event.phase, event.seed != ZERO_HASH) == (CustodyPhase.COMMIT, True)
    named = [(p.shard, p.tile, p.subtile) for p in event.places]
    assert sorted(named) == [(0, 0, 0), (0, 0, 1), *((1, 0, i) for i in range(5))]
    for place in event.places:
        ranks = tile_ranks(state, run.m.rules, place.shard, place.tile)
        assert tuple(event.members[i].account for i in place.custodians) == ranks[:3]
        record = state.need(r.ShardRecord, r.shard_key(place.shard))
        assert place.shard_root == record.root
        assert place.tile_root == state.need(r.TileRoots, r.tiles_key(place.shard)).roots[0]
        assert place.tile_bytes == record.data_bytes
    assert custody.custody_roots(state) == {(p.shard, p.shard_root) for p in event.places}


def test_places_are_drawn_evenly_from_all_shards_and_tiles() -> None:
    """320 subtiles in three shards, one of two tiles; far more events than would leave one out."""
    sizes = (33 * SUBTILE_BYTES, 1, 286 * SUBTILE_BYTES)
    state = CustodyRun().m.state
    first = 0
    for i, size in enumerate(sizes):
        record = state.need(r.ShardRecord, r.shard_key(0))
        state.put(
            r.shard_key(i),
            replace(record, index=ShardIndex(i), data_bytes=size, first_subtile=first),
        )
        first += custody.subtile_count(size)
    state.put(r.MODEL, replace(state.model, shards=3))
    drawn = Counter[tuple[int, int]]()
    for i in range(400):
        named = custody._named(state, Hash32(i.to_bytes(32, "big")))
        places = {(shard.index, number) for shard, number in named}
        assert len(places) == 16
        drawn.update(places)
    assert len(drawn) == 320
    assert max(drawn.values()) < 50  # 20 on average
    assert {n for s, n in drawn if s == 0} == set(range(33))
    assert (1, 0) in drawn


def test_a_model_that_changes_before_the_seed_is_anchored_anew() -> None:
    run = CustodyRun()
    run.until(CustodyPhase.SEED)
    state = run.m.state
    state.put(r.MODEL, replace(state.model, root=Hash32(b"n" * 32)))
    run.m.tree = state.commit()
    run.m.block()
    assert (run.event.anchor, run.event.model_root) == (9, b"n" * 32)
    run.m.block()
    assert run.phase() == CustodyPhase.SEED
    run.m.block()
    assert run.phase() == CustodyPhase.COMMIT


def test_an_event_that_lasts_puts_off_the_next() -> None:
    run = CustodyRun(custody_commit={"blocks": 20, "ms": 0})
    run.until(CustodyPhase.COMMIT)
    first = run.event.seed
    while run.phase() is not None:
        run.m.block()
        assert run.phase() is None or run.event.seed == first
    assert run.m.height > 24
    run.until(CustodyPhase.SEED)
    assert run.event.anchor % 8 == 0


def test_asked_are_the_custodians_of_the_epoch_in_which_the_seed_is_drawn() -> None:
    run = CustodyRun(epoch_blocks=8, unbonding_blocks=33, custody_interval_blocks=6)
    run.until(CustodyPhase.SEED)
    assert (run.event.anchor, run.event.epoch, run.m.state.head.epoch) == (6, 0, 0)
    run.until(CustodyPhase.COMMIT)
    run.until(None)
    run = CustodyRun(epoch_blocks=8, unbonding_blocks=33)
    run.until(CustodyPhase.SEED)
    assert (run.event.anchor, run.event.epoch, run.m.state.head.epoch) == (8, 1, 0)
    run.until(CustodyPhase.COMMIT)
    place, state = run.event.places[0], run.m.state
    ranks = tile_ranks(state, run.m.rules, place.shard, place.tile)
    assert state.head.epoch == 1
    assert tuple(run.account(i) for i in place.custodians) == ranks[:3]
    mine = custody.custody_tiles(state, run.account(0))
    assert mine == {(p.shard, p.shard_root, p.tile) for p in run.event.places if 0 in p.custodians}
    assert custody.custody_tiles(state, key("ann").public) == set()


def test_a_deadline_needs_height_and_time() -> None:
    run = CustodyRun(custody_commit={"blocks": 2, "ms": 6000})
    run.until(CustodyPhase.COMMIT)
    for _ in range(5):
        run.m.block()
        assert run.phase() == CustodyPhase.COMMIT
    run.m.block()
    assert run.phase() == CustodyPhase.DISPUTE


def test_after_its_end_nothing_of_an_event_is_left_but_what_is_known_of_custodians() -> None:
    run = CustodyRun()
    run.to_disputes()
    total, asked = run.m.grains(), [m.account for m in run.event.members]
    run.until(None)
    state = run.m.state
    assert (
        not list(state.items(b"cust")) + list(state.items(b"cans/")) + list(state.items(b"cclm/"))
    )
    for name in asked:
        assert state.need(c.CustodianRecord, c.custodian_key(name)) == c.CustodianRecord(
            name, 1, 0, 0, Height(0)
        )
    assert custody.custody_roots(state) == set()
    assert run.m.grains() == total
    assert run.m.done is not None
    (told,) = [e for e in run.m.done.events if e.kind == "custody"]
    assert len(bytes.fromhex(told.data["record"])) < 1200


# --- committing -----------------------------------------------------------------------------


def test_all_commitments_end_the_phase_early_and_silence_is_noted() -> None:
    run = CustodyRun()
    run.until(CustodyPhase.COMMIT)
    silent = run.account(0)
    state = run.m.state
    state.put_account(silent, merit=5)
    run.m.tree = state.commit()
    others = range(1, len(run.event.members))
    assert run.commit(*others) == ["ok"] * len(others)
    assert run.phase() == CustodyPhase.COMMIT
    run.m.block()
    assert run.phase() == CustodyPhase.DISPUTE
    assert run.status(0) == CustodyStatus.MISSED
    state = run.m.state
    known = state.need(c.CustodianRecord, c.custodian_key(silent))
    assert (known.asked, known.missed, known.last_missed) == (1, 1, run.m.height)
    assert (state.account(silent).merit, state.account(silent).bonded) == (4, STAKE)
    late = Custody(run.event.seed, run.commitments(0))
    assert run.send_duty(run.keys_of(0), late) == "wrong_phase"
    assert run.dispute("ann", run_place(run, 0), 0) == "not_committed"


def run_place(run: CustodyRun, member: int) -> int:
    return custody.positions(run.event, member)[0]


def test_what_is_refused_of_commitments() -> None:
    run = CustodyRun()
    run.until(CustodyPhase.SEED)
    early = Custody(run.event.seed, ())  # its seed is zero: no name to be known by
    assert run.send_duty(run.m.validators[0], early) == "unknown_event"
    run.until(CustodyPhase.COMMIT)
    right, seed = run.commitments(0), run.event.seed
    for wrong, code in (
        (Custody(Hash32(b"x" * 32), right), "unknown_event"),
        (Custody(seed, right[:-1]), "wrong_count"),
        (Custody(seed, (*right, ZERO_HASH)), "wrong_count"),
        (Custody(seed, ()), "wrong_count"),
    ):
        again = CustodyRun()
        again.until(CustodyPhase.COMMIT)
        assert again.send_duty(again.keys_of(0), wrong) == code
    assert run.send("ann", Custody(seed, right)) == "not_a_validator"
    assert run.commit(0) == ["ok"]
    late = Custody(seed, right)
    assert run.send_duty(run.keys_of(0), late) in ("duplicate", "wrong_phase")


def test_a_validator_that_was_not_drawn_has_nothing_to_commit_to() -> None:
    run = CustodyRun(custody_replicas=1, shards=SHARDS[:1])
    run.until(CustodyPhase.COMMIT)
    drawn = {m.account for m in run.event.members}
    other = next(v for v in run.m.validators if v.account.public not in drawn)
    assert run.send_duty(other, Custody(run.event.seed, ())) == "not_drawn"


def test_a_second_commitment_is_refused() -> None:
    run = CustodyRun()
    run.until(CustodyPhase.COMMIT)
    first, again = (
        run.m.duty(run.keys_of(0), Custody(run.event.seed, run.commitments(0)), ahead=i)
        for i in (0, 1)
    )
    assert [x.code for x in run.m.block(first, again)] == ["ok", "duplicate"]


def test_a_custodian_answers_for_free_after_its_epoch_has_ended() -> None:
    """Its stake is still in reach, and so is what it has to show."""
    run = CustodyRun(epoch_blocks=5, unbonding_blocks=21, custody_commit={"blocks": 8, "ms": 0})
    run.until(CustodyPhase.COMMIT)
    state, gone = run.m.state, run.account(0)
    for epoch in (run.event.epoch + 1, run.event.epoch + 2):
        record = state.get(r.EpochRecord, r.epoch_key(epoch))
        if record is not None:
            members = tuple(v for v in record.validators.members if v.account != gone)
            left = replace(record, validators=replace(record.validators, members=members))
            state.put(r.epoch_key(epoch), left)
    run.m.tree = state.commit()
    while run.m.state.head.epoch == run.event.epoch:
        run.m.block()
    assert run.m.state.validator(gone) is None
    assert run.commit(0) == ["ok"]


# --- openings -----------------------------------------------------------------------------


def test_a_wrong_commitment_is_opened_and_costs_stake(run: CustodyRun) -> None:
    liar, total = run.account(run.custodian(0)), run.m.grains()
    finder = run.keys_of(run.custodian(0, 1))
    before, pool = run.m.state.account(finder.account.public), run.m.state.account(REWARD_POOL)
    assert run.send_duty(finder, run.opening(0, liar)) == "ok"
    state, lost = run.m.state, STAKE // 100
    assert state.account(liar).bonded == STAKE - lost
    assert state.account(liar).jailed == 0
    assert state.account(finder.account.public).balance == before.balance + lost // 2
    assert state.account(REWARD_POOL).balance == pool.balance + lost // 2
    assert run.m.grains() == total
    assert run.status(run.custodian(0)) == CustodyStatus.CONVICTED
    assert state.need(c.CustodianRecord, c.custodian_key(liar)).convicted == 1
    other = run.keys_of(run.custodian(0, 2))
    assert run.send_duty(other, run.opening(0, liar)) == "decided"
    assert run.dispute("ann", 0, run.custodian(0)) == "decided"


def test_what_is_being_unbonded_is_in_reach(run: CustodyRun) -> None:
    liar = run.account(run.custodian(0))
    state = run.m.state
    release = run.m.height + 500
    put_unbonding(state, leaving(liar, release, STAKE // 2))
    state.put_account(liar, bonded=STAKE // 2)
    run.m.tree = state.commit()
    assert run.send_duty(run.keys_of(run.custodian(0, 1)), run.opening(0, liar)) == "ok"
    waiting = run.m.state.need(r.Unbonding, r.unbonding_key(release, liar))
    assert waiting.amount == run.m.state.account(liar).bonded == STAKE // 2 - STAKE // 200


def test_a_liar_that_shows_itself_gets_nothing_back(run: CustodyRun) -> None:
    liar = run.keys_of(run.custodian(0))
    pool = run.m.state.account(REWARD_POOL).balance
    assert run.send_duty(liar, run.opening(0, liar.account.public)) == "ok"
    assert run.m.state.account(REWARD_POOL).balance == pool + STAKE // 100


def test_a_stranger_may_open_and_pays_for_the_room(run: CustodyRun) -> None:
    liar = run.account(run.custodian(0))
    opening = run.opening(0, liar)
    raw = encode(run.m.tx(key("eve"), opening, fee=10**6))
    least = 1000 * spend(opening, len(raw)).units
    assert least >= 8000
    assert run.send("eve", opening, fee=least - 1) == "fee_too_low"
    before = run.m.state.account(key("eve").public).balance
    assert run.send("eve", opening, fee=least) == "ok"
    assert run.m.state.account(key("eve").public).balance == before - least + STAKE // 200


def test_a_stamp_for_an_opening_grows_with_its_bytes(run: CustodyRun) -> None:
    opening = run.opening(0, run.account(run.custodian(0)))
    usual = 1 << run.m.genesis.params.stamp_bits + run.m.genesis.params.stamp_new_account_bits
    dear = usual * spend_of(opening).units
    assert dear >= 8 * usual
    codes = set()
    for tries in (usual, dear):
        for height in range(1, 12):  # of the usual work few fit by chance
            m = run.copy().m
            stamp = make_stamp(
                chain_id=m.genesis.chain_id,
                sender=key("eve").public,
                nonce=0,
                height=Height(m.height + 1 - height),
                block_hash=(*m.state.head.recent_parents, m.parent)[-height],
                payload=opening,
                difficulty=tries,
            )
            tx = m.tx(key("eve"), opening, fee=0)
            tx = replace(tx, stamp=stamp)
            tx = replace(tx, signature=key("eve").sign(tx.digest()))
            codes.add((tries, m.block(encode(tx))[0].code))
    assert (usual, "weak_stamp") in codes
    assert {code for tries, code in codes if tries == dear} == {"ok"}


def test_a_right_commitment_needs_no_opening(run: CustodyRun) -> None:
    honest = run.account(run.custodian(0, 1))
    finder = run.keys_of(run.custodian(0, 2))
    assert run.send_duty(finder, run.opening(0, honest)) == "no_dispute"


def test_what_is_refused_of_openings(run: CustodyRun) -> None:
    liar = run.account(run.custodian(0))
    finder = run.keys_of(run.custodian(0, 1))
    good = run.opening(0, liar)
    elsewhere = [i for i, p in enumerate(run.event.places) if run.custodian(0) not in p.custodians]
    for wrong, code in (
        (replace(good, event=Hash32(b"x" * 32)), "unknown_event"),
        (replace(good, event=ZERO_HASH), "unknown_event"),
        (replace(good, position=200), "unknown_place"),
        (replace(good, custodian=key("ann").public), "not_drawn"),
        (replace(good, custodian=PubKey(bytes(32))), "not_drawn"),
        (replace(good, subtile=good.subtile[:-1]), "bad_path"),
        (replace(good, subtile=b""), "bad_path"),
        (replace(good, subtile=good.subtile[:-1] + b"!"), "bad_path"),
        (replace(good, siblings=good.siblings[:-1]), "bad_path"),
        (replace(good, siblings=(*good.siblings, ZERO_HASH)), "bad_path"),
        (replace(good, siblings=good.siblings[::-1]), "bad_path"),
    ):
        assert run.copy().send_duty(finder, wrong) == code
    for position in elsewhere:
        assert run.copy().send_duty(finder, run.opening(position, liar)) == "not_drawn"


def test_only_an_opening_may_be_large(run: CustodyRun) -> None:
    liar = run.account(run.custodian(0))
    whole = replace(run.opening(0, liar), subtile=bytes(SUBTILE_BYTES))
    raw = encode(run.m.tx(key("eve"), whole))
    assert MAX_TX_BYTES < SUBTILE_BYTES < len(raw) < MAX_OPENING_TX_BYTES
    assert decode_transaction(raw).payload == whole
    reveal = encode(run.m.tx(key("eve"), DeltaReveal(TxId(ZERO_HASH), ZERO_HASH)))
    assert len(reveal) < 400
    proof = FraudProof(
        TxId(ZERO_HASH), 1, ShardIndex(0), TileIndex(0), 0, bytes(MAX_TX_BYTES - 1024)
    )
    assert decode_transaction(encode(run.m.tx(key("eve"), proof))).payload == proof
    state = run.m.tree
    large = encode(run.m.tx(key("eve"), Custody(ZERO_HASH, ()))) + bytes(MAX_TX_BYTES)
    assert run.m.block(large)[0].code == "bad_encoding"
    assert run.m.tree.get(b"acct/" + key("eve").public) == state.get(b"acct/" + key("eve").public)


# --- the commitment -------------------------------------------------------------------------


def test_a_commitment_is_bound_to_account_event_place_and_every_byte() -> None:
    data = bytes(SUBTILE_BYTES)
    one, two = key("ann").public, key("ben").public
    seed = Hash32(b"s" * 32)
    found = {
        custody.commitment(one, seed, 0, data),
        custody.commitment(two, seed, 0, data),
        custody.commitment(one, Hash32(b"t" * 32), 0, data),
        custody.commitment(one, seed, 1, data),
        custody.commitment(one, seed, 0, data[:-1]),
        custody.commitment(one, seed, 0, data[:-1] + b"\x01"),
    }
    assert len(found) == 6
