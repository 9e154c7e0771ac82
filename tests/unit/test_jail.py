"""Who is shut out of the sets that freeze, and comes back: downtime and evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from chain import attendance
from chain import records as r
from chain.address import peer_id_of
from chain.codec import encode
from chain.errors import GenesisError
from chain.hashes import Hash32
from chain.jail import JailReason
from chain.params import parse_genesis
from chain.transactions import SubmitEvidence, Unjail
from chain.types import Epoch, PubKey, View, VoteKind
from chain.validator_sets import MIN_SET
from consensus.evidence import double_vote
from tests.kit.machine import STAKE, TEMPLATE, ElectedMachine, Machine, key, keys
from wallet.keys import Keys
from wallet.signing import sign_announce, sign_vote

ANN = key("ann")
EPOCH = 16
TERM = {"blocks": 20, "ms": 30_000}  # of sleepers; steps are of 1 s
LONG = {"blocks": 160, "ms": 240_000}


def machine_of(validators: int, **params: Any) -> ElectedMachine:
    terms = {"downtime_views": 4, "downtime_jail": TERM, "evidence_jail": LONG}
    ages = {"epoch_blocks": EPOCH, "unbonding_blocks": 80}
    machine = ElectedMachine(validators, ("ann",), **terms | ages | params)
    state = machine.state
    for validator in machine.validators:
        state.put_account(validator.account.public, balance=10**6)
    machine.tree = state.commit()
    return machine


def members(machine: Machine, ahead: int = 0) -> set[PubKey]:
    record = machine.state.epoch(machine.state.head.epoch + ahead)
    return {v.account for v in record.validators.members}


def accuse(machine: Machine, index: int) -> None:
    pair = (
        sign_vote(
            machine.validators[index].consensus,
            chain_id=machine.genesis.chain_id,
            kind=VoteKind.NOTARIZE,
            epoch=machine.state.head.epoch,
            view=View(3),
            block_hash=Hash32(letter * 32),
        )
        for letter in (b"a", b"b")
    )
    machine.ok(encode(machine.tx(ANN, SubmitEvidence(double_vote(*pair)))))


def advance(machine: Machine, blocks: int) -> None:
    for _ in range(blocks):
        machine.block()


def to_boundary(machine: Machine) -> None:
    """Up to and with the next epoch's first block, which freezes a set."""
    machine.block()
    while (machine.height - 1) % EPOCH:
        machine.block()


def unjail(machine: Machine, who: Keys) -> str:
    (receipt,) = machine.block(encode(machine.tx(who.account, Unjail())))
    return receipt.code


# --- downtime ------------------------------------------------------------------------------


def test_a_sleeper_is_jailed_at_a_boundary_and_leaves_the_set_that_freezes_then() -> None:
    machine = machine_of(12)
    sleeper = machine.validators[3].account.public
    machine.asleep = {sleeper}
    while machine.state.account(sleeper).jailed == 0:
        before = machine.state.get(r.Attendance, r.attendance_key(sleeper))
        machine.block()
        assert machine.height < 400
    assert (machine.height - 1) % EPOCH == 0
    assert before is not None
    assert before.row >= 4
    assert sleeper in members(machine)
    assert sleeper in members(machine, 1)  # both were frozen before
    assert sleeper not in members(machine, 2)
    assert machine.state.account(sleeper).bonded == STAKE  # sleep costs no stake
    record = machine.state.need(r.JailRecord, r.jail_key(sleeper))
    assert record.reason == JailReason.DOWNTIME
    assert record.until == machine.height + TERM["blocks"]


def test_a_missed_turn_costs_merit_and_the_fees_of_its_block() -> None:
    machine = machine_of(4)
    sleeper = machine.validators[0].account.public
    state = machine.state
    state.put_account(sleeper, merit=3)
    machine.tree = state.commit()
    machine.asleep = {sleeper}
    advance(machine, 40)
    assert machine.state.account(sleeper).merit == 0
    assert machine.state.account(sleeper).balance == 10**6
    noted = machine.state.need(r.Attendance, r.attendance_key(sleeper))
    assert noted.missed == noted.row > 3


def test_whoever_restarts_is_not_jailed() -> None:
    machine = machine_of(12, downtime_views=8)  # out of a row of 3's reach, whoever leads twice
    member = machine.validators[3].account.public
    for _ in range(6):
        machine.asleep = {member}
        noted = None
        while noted is None or noted.row < 3:
            machine.block()
            noted = machine.state.get(r.Attendance, r.attendance_key(member))
        machine.asleep = set()
        while machine.state.need(r.Attendance, r.attendance_key(member)).row:
            machine.block()
    assert machine.state.account(member).jailed == 0
    assert machine.state.need(r.Attendance, r.attendance_key(member)).missed >= 18


def test_a_row_that_is_too_long_is_the_network_s() -> None:
    machine = machine_of(5)
    machine.skip = attendance.MAX_ROW + 1
    machine.block()
    assert not list(machine.tree.items(r.ATTENDANCE))
    machine.skip = attendance.MAX_ROW
    machine.block()
    noted = [machine.state.get(r.Attendance, k) for k, _ in machine.tree.items(r.ATTENDANCE)]
    assert sum(n.missed for n in noted if n is not None) == attendance.MAX_ROW


@pytest.mark.parametrize("size", [4, 7, 12, 31])
def test_downtime_never_takes_more_than_a_tenth_nor_below_four(size: int) -> None:
    """Everyone has been absent: at each boundary at most a tenth of the stake goes, and four stay.
    With up to nine equal stakes each is more than a tenth, so nobody can be jailed."""
    machine = machine_of(size)
    absent = {k.account.public for k in machine.validators}
    for _ in range(16):
        state = machine.state
        standing = {a for a in absent if not state.account(a).jailed}
        for account in standing:
            state.put(r.attendance_key(account), r.Attendance(account, 50, 50))
        machine.tree = state.commit()
        while machine.height % EPOCH:
            machine.block()
        state = machine.state  # blocks of the awake have forgiven some
        for account in standing:
            state.put(r.attendance_key(account), r.Attendance(account, 50, 50))
        machine.tree = state.commit()
        machine.block()
        left = {a for a in absent if not machine.state.account(a).jailed}
        assert left == members(machine, 2)
        assert len(left) >= MIN_SET
        assert 10 * (len(standing) - len(left)) <= len(standing)
        assert len(left) < len(standing) or len(standing) < 10
    assert len(left) == (size if size < 10 else 9)


def test_downtime_leaves_four_however_small_the_others_are() -> None:
    machine = machine_of(6)
    state = machine.state
    small = [k.account.public for k in machine.validators[1:]]
    for account in small:
        state.put_account(account, bonded=10**11)
        state.put(r.attendance_key(account), r.Attendance(account, 50, 50))
    state.put_account(machine.validators[0].account.public, bonded=10**13)
    machine.tree = state.commit()
    machine.asleep = set(small)
    machine.block()
    jailed = {a for a in small if machine.state.account(a).jailed}
    rows = {a: machine.state.need(r.Attendance, r.attendance_key(a)).row for a in small}
    assert jailed == set(sorted(small, key=lambda a: (-rows[a], a))[:2])
    assert len(members(machine, 2)) == MIN_SET


# --- evidence ------------------------------------------------------------------------------


def test_an_equivocator_is_slashed_at_once_and_leaves_at_the_next_freeze() -> None:
    machine = machine_of(7)
    liar = machine.validators[2].account.public
    machine.block()
    accuse(machine, 2)
    lost = STAKE * machine.genesis.params.slash_permille // 1000
    assert machine.state.account(liar).bonded == STAKE - lost
    frozen = [members(machine, ahead) for ahead in (0, 1, 2)]
    assert all(liar in some for some in frozen)
    to_boundary(machine)
    assert [members(machine, ahead) for ahead in (0, 1)] == frozen[1:]
    assert liar not in members(machine, 2)
    stakes = {v.account: v.stake for v in machine.state.epoch(1).validators.members}
    assert stakes[liar] == STAKE  # what is frozen counts in full until the epoch ends


def test_evidence_takes_no_set_below_four() -> None:
    """Three without a liar bear no fault at all, four with one bear it."""
    machine = machine_of(5)
    machine.block()
    for index in (0, 1):
        accuse(machine, index)
    to_boundary(machine)
    staying = members(machine, 2)
    assert len(staying) == MIN_SET
    assert {k.account.public for k in machine.validators[2:]} <= staying
    newcomer = keys("newcomer").account.public  # as soon as there is another, nobody is needed
    state = machine.state
    record = state.need(r.NodeRecord, r.node_key(machine.validators[4].account.public))
    state.put_account(newcomer, bonded=STAKE)
    key_ = keys("newcomer").consensus.public
    state.put(r.node_key(newcomer), replace(record, account=newcomer, consensus_key=key_))
    machine.tree = state.commit()
    to_boundary(machine)
    assert members(machine, 2) == {k.account.public for k in machine.validators[2:]} | {newcomer}


def test_a_set_short_of_members_takes_sleepers_before_liars() -> None:
    machine = machine_of(5)
    state = machine.state
    for index, reason in ((0, JailReason.EVIDENCE), (1, JailReason.DOWNTIME)):
        account = machine.validators[index].account.public
        term = machine.genesis.params.downtime_jail
        attendance.jail(state, account, reason, term)
    machine.tree = state.commit()
    machine.block()
    assert members(machine, 2) == {k.account.public for k in machine.validators[1:]}


def test_lying_is_out_for_longer_than_sleeping() -> None:
    machine = machine_of(7)
    machine.block()
    accuse(machine, 2)
    liar = machine.validators[2]
    since, since_ms = machine.height, machine.time_ms
    record = machine.state.need(r.JailRecord, r.jail_key(liar.account.public))
    assert (record.until, record.until_ms) == (since + LONG["blocks"], since_ms + LONG["ms"])
    advance(machine, LONG["blocks"])
    assert unjail(machine, liar) == "still_jailed"  # the height has passed, the time has not
    while machine.time_ms < since_ms + LONG["ms"] - machine.step_ms:
        machine.block()
    assert unjail(machine, liar) == "ok"
    assert unjail(machine, liar) == "not_jailed"
    assert machine.state.raw(r.jail_key(liar.account.public)) is None
    to_boundary(machine)
    assert liar.account.public in members(machine, 2)


def test_a_second_offence_keeps_the_longer_term_and_the_worse_reason() -> None:
    machine = machine_of(7)
    liar = machine.validators[2].account.public
    machine.block()
    accuse(machine, 2)
    first = machine.state.need(r.JailRecord, r.jail_key(liar))
    state = machine.state
    attendance.jail(state, liar, JailReason.DOWNTIME, machine.genesis.params.downtime_jail)
    assert state.need(r.JailRecord, r.jail_key(liar)) == first


# --- who may stand ---------------------------------------------------------------------------


def announce(machine: Machine, who: Keys, **changes: Any) -> str:
    fields = {"roles": 2, "node_id": peer_id_of(who.node.public)} | changes
    payload = sign_announce(
        who, chain_id=machine.genesis.chain_id, capacity_tiles=1, addresses=(), **fields
    )
    (receipt,) = machine.block(encode(machine.tx(who.account, payload)))
    return receipt.code


def test_only_who_has_announced_to_validate_is_in_a_set() -> None:
    machine = machine_of(5)
    leaver = machine.validators[1]
    machine.block()
    assert announce(machine, leaver, roles=1 | 4 | 8) == "ok"
    to_boundary(machine)
    assert members(machine, 2) == {k.account.public for k in machine.validators} - {
        leaver.account.public
    }


def test_announced_keys_must_be_usable() -> None:
    machine = machine_of(5)
    who = machine.validators[1]
    assert announce(machine, who, node_id="peer-1") == "bad_node_id"
    assert announce(machine, who, node_id=peer_id_of(bytes(32))) == "bad_node_id"

    class Unusable:
        public = PubKey(b"\x01" + bytes(31))  # the identity

    bad = replace(who, vrf=Unusable())
    assert announce(machine, bad) == "bad_key"
    assert announce(machine, who) == "ok"


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"downtime_jail": {"blocks": 127, "ms": 0}}, "downtime_jail"),
        ({"evidence_jail": {"blocks": 1023, "ms": 3_600_000}}, "evidence_jail"),
        ({"evidence_jail": {"blocks": 1024, "ms": 479_999}}, "evidence_jail"),
        ({"downtime_views": 3}, "downtime_views"),
    ],
)
def test_a_genesis_whose_terms_do_not_fit_is_refused(params: dict[str, Any], match: str) -> None:
    document = json.loads(TEMPLATE.read_text())
    document["params"].update(params)
    with pytest.raises(GenesisError, match=match):
        parse_genesis(json.dumps(document))


def test_the_devnet_jails_nobody_for_downtime() -> None:
    """Four equal validators: each is a quarter of the stake, and a fifth never stood."""
    machine = machine_of(4)
    sleeper = machine.validators[0].account.public
    machine.asleep = {sleeper}
    advance(machine, 6 * EPOCH)
    assert machine.state.need(r.Attendance, r.attendance_key(sleeper)).row > 4
    assert machine.state.account(sleeper).jailed == 0
    assert len(members(machine, 2)) == 4
    assert Epoch(5) == machine.state.head.epoch
