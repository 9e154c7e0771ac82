"""What custodians count for beside their stake: capacities, reputation (docs/spec/election.md)."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain import custody
from chain import custody_records as c
from chain import records as r
from chain.address import peer_id_of
from chain.codec import encode
from chain.latency import FARTHEST
from chain.limits import DEFAULT_CAPACITY_TILES
from chain.rounds import tile_ranks
from chain.standings import REPUTATION_ONE, reputation
from chain.types import Height
from consensus.election import weight
from node.rules import custodians as custodians_of
from tests.kit.machine import STAKE, Machine
from wallet.keys import Keys
from wallet.signing import sign_announce

EPOCH = 8
TILES = 12
SHARDS = tuple(hashlib.sha256(b"%d" % i).digest() for i in range(TILES))
EVENT = 3 * EPOCH + 4  # height of the anchor
BOND = 10**9  # grains behind a tile: STAKE backs a thousand


@pytest.fixture
def machine() -> Machine:
    made = Machine(
        5,
        shards=SHARDS,
        epoch_blocks=EPOCH,
        custody_tile_bond_grains=BOND,
        custody_interval_blocks=EVENT,
        seed_blocks=2,
    )
    state = made.state
    for who in made.validators:
        state.put_account(who.account.public, balance=10**9)
    made.tree = state.commit()
    return made


def announce(machine: Machine, who: Keys, capacity_tiles: int) -> None:
    payload = sign_announce(
        who,
        chain_id=machine.genesis.chain_id,
        roles=2,
        capacity_tiles=capacity_tiles,
        node_id=peer_id_of(who.node.public),
        addresses=(),
    )
    machine.ok(encode(machine.tx(who.account, payload)))


def until(machine: Machine, height: int) -> None:
    while machine.height < height:
        machine.block()


def capacity(machine: Machine, epoch: int, who: Keys) -> int:
    record = machine.state.epoch(epoch)
    number = [v.account for v in record.validators.members].index(who.account.public)
    return record.standings[number].capacity_tiles


def custodians(machine: Machine) -> list[tuple[bytes, ...]]:
    """Of each tile in the epoch in progress."""
    state, most = machine.state, machine.genesis.params.custody_replicas
    return [tile_ranks(state, machine.rules, shard, 0, most) for shard in range(TILES)]


def test_a_capacity_is_what_is_announced_as_far_as_stake_backs_it(machine: Machine) -> None:
    five = machine.validators
    assert [capacity(machine, 0, who) for who in five] == [STAKE // BOND] * 5
    machine.block()
    for who, announced in zip(five, (1, 999, 10**6, 0), strict=False):
        announce(machine, who, announced)
    state = machine.state
    state.put_account(five[4].account.public, bonded=machine.genesis.params.min_bond_grains)
    machine.tree = state.commit()
    until(machine, EPOCH + 1)  # the first block of epoch 1 freezes epoch 3
    assert [capacity(machine, 2, who) for who in five] == [STAKE // BOND] * 5
    least = machine.genesis.params.min_bond_grains // BOND
    assert [capacity(machine, 3, who) for who in five] == [1, 999, 1000, 1000, least]


def test_what_announces_nothing_offers_the_default_and_nobody_offers_nothing() -> None:
    offered = [
        Machine(4, shards=SHARDS, custody_tile_bond_grains=bond).state.epoch(1).standings
        for bond in (1, STAKE + 1)
    ]
    assert [{s.capacity_tiles for s in found} for found in offered] == [
        {DEFAULT_CAPACITY_TILES},
        {1},
    ]


def test_the_full_keep_no_more_and_others_with_room_keep_it_instead(machine: Machine) -> None:
    """Also the custody event asks those that have room, and the primary is one of them."""
    small, smaller = machine.validators[:2]
    announce(machine, small, 3)
    announce(machine, smaller, 1)
    until(machine, 3 * EPOCH - 1)
    assert machine.state.epoch(3).cutoffs == ()  # said at the end of the epoch before
    until(machine, 3 * EPOCH)
    record = machine.state.epoch(3)
    full = {record.validators.members[cutoff.member].account for cutoff in record.cutoffs}
    assert full == {small.account.public, smaller.account.public}
    until(machine, 3 * EPOCH + 1)
    kept = custodians(machine)
    loads = Counter(account for ranks in kept for account in ranks)
    assert (loads[small.account.public], loads[smaller.account.public]) == (3, 1)
    assert all(len(set(ranks)) == 3 for ranks in kept)
    until(machine, EVENT + 2)
    event = custody.current(machine.state)
    assert event is not None
    assert (event.epoch, event.phase) == (3, c.CustodyPhase.COMMIT)
    for place in event.places:
        asked = tuple(event.members[i].account for i in place.custodians)
        assert asked == kept[place.shard]


def test_where_too_few_have_room_the_ranks_decide(machine: Machine) -> None:
    """Nobody gets rid of what all must keep together by announcing less."""
    for who in machine.validators:
        announce(machine, who, 2)
    until(machine, 3 * EPOCH + 1)
    kept = custodians(machine)
    assert all(len(set(ranks)) == 3 for ranks in kept)
    record = machine.state.epoch(3)
    assert len(record.cutoffs) == 5
    plain = replace(record, cutoffs=())
    chosen = [machine.rules.ranks(plain, shard, 0) for shard in range(TILES)]
    assert any(ranks == order[:3] for ranks, order in zip(kept, chosen, strict=True))
    assert all(
        sorted(tile_ranks(machine.state, machine.rules, shard, 0)) == sorted(order)
        for shard, order in enumerate(chosen)
    )


def test_room_for_everything_elects_nothing_beforehand(machine: Machine) -> None:
    until(machine, EPOCH + 1)
    assert machine.state.epoch(1).cutoffs == ()
    order = machine.rules.ranks(machine.state.epoch(1), 3, 0)
    assert tile_ranks(machine.state, machine.rules, 3, 0, 2) == order[:2]


# --- reputation ------------------------------------------------------------------------------


def with_history(
    machine: Machine,
    who: Keys,
    *,
    merit: int = 0,
    asked: int = 0,
    missed: int = 0,
    convicted: int = 0,
    turns: int = 0,
) -> int:
    """The reputation of an account of which the state knows this."""
    account, state = who.account.public, machine.state
    state.put_account(account, merit=merit)
    record = c.CustodianRecord(account, asked, missed, convicted, Height(0))
    state.put(c.custodian_key(account), record)
    state.put(r.attendance_key(account), r.Attendance(account, 0, turns))
    machine.tree = state.commit()
    return reputation(machine.state, account)


HISTORIES = st.fixed_dictionaries(
    {
        "merit": st.one_of(st.integers(0, 200), st.integers(0, 2**64 - 1)),
        "asked": st.one_of(st.integers(100, 300), st.integers(100, 2**64 - 1)),
        "missed": st.integers(0, 50),
        "convicted": st.integers(0, 50),
        "turns": st.one_of(st.integers(0, 50), st.integers(0, 2**64 - 1)),
    }
)


@settings(max_examples=100, deadline=None)
@given(history=HISTORIES)
def test_a_reputation_lies_between_a_half_and_one_and_follows_what_was_done(
    history: dict[str, int],
) -> None:
    machine = Machine(1)
    (who,) = machine.validators

    def of(**changes: int) -> int:
        return with_history(machine, who, **(history | changes))

    found = of()
    assert REPUTATION_ONE // 2 <= found <= REPUTATION_ONE
    faults = 8 * history["missed"] + 64 * history["convicted"] + history["turns"]
    done = history["merit"] + history["asked"] - history["missed"] - history["convicted"]
    exact = Fraction(1, 2) + Fraction(1, 2) * Fraction(done, done + faults + 64)
    assert found == int(exact * REPUTATION_ONE)  # both halves are whole units
    if history["merit"]:
        assert of(merit=history["merit"] - 1) <= found
    for fault in ("missed", "convicted", "turns"):
        if history[fault]:
            assert of(**{fault: history[fault] - 1}) >= found


def test_whoever_is_new_stands_below_everyone_who_has_worked(machine: Machine) -> None:
    who = machine.validators[0]
    half = REPUTATION_ONE // 2
    assert with_history(machine, who) == half
    assert with_history(machine, who, merit=64) == half * 3 // 2
    assert with_history(machine, who, asked=64) == half * 3 // 2
    assert with_history(machine, who, merit=10, asked=20, missed=5, turns=1000) > half
    liar = with_history(machine, who, merit=1000, asked=50, convicted=50)
    assert half < liar < with_history(machine, who, merit=1000, asked=50)


@settings(max_examples=100, deadline=None)
@given(
    stakes=st.lists(st.integers(1, 10**15), min_size=1, max_size=8),
    works=st.lists(st.integers(0, 500), min_size=8, max_size=8),
)
def test_several_names_weigh_no_more_than_one(stakes: list[int], works: list[int]) -> None:
    """However stake and work are divided; and a new name for a part of the stake takes away."""
    machine = Machine(1)
    (who,) = machine.validators
    parts = list(zip(stakes, works, strict=False))
    whole = with_history(machine, who, merit=sum(w for _, w in parts))
    apart = sum(weight(s, with_history(machine, who, merit=w)) for s, w in parts)
    assert apart <= weight(sum(stakes), whole)
    anew = weight(stakes[0], with_history(machine, who)) + weight(sum(stakes[1:]), whole)
    assert anew <= weight(sum(stakes), whole)


def test_reputation_freezes_with_the_set_and_moves_weights(machine: Machine) -> None:
    worker, silent = machine.validators[:2]
    machine.block()
    with_history(machine, worker, merit=10**6)
    known = reputation(machine.state, worker.account.public)
    until(machine, EPOCH)
    last = reputation(machine.state, worker.account.public)
    machine.block()  # freezes epoch 3
    with_history(machine, worker)
    assert known == last == REPUTATION_ONE - 3
    record = machine.state.epoch(3)
    by_account = dict(
        zip((v.account for v in record.validators.members), record.standings, strict=True)
    )
    assert by_account[worker.account.public].reputation == known
    assert by_account[silent.account.public].reputation < REPUTATION_ONE
    weights = dict(custodians_of(record))
    assert weights[worker.account.public] == (16 - FARTHEST) * STAKE * known
    assert weights[silent.account.public] < weights[worker.account.public]
