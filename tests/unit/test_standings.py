"""What custodians count for beside their stake: capacities (docs/spec/election.md)."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import pytest

from chain import custody
from chain import custody_records as c
from chain.address import peer_id_of
from chain.codec import encode
from chain.limits import DEFAULT_CAPACITY_TILES
from chain.rounds import tile_ranks
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
