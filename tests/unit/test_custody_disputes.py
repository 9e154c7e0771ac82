"""Disputes over custody commitments: who may, what it costs, and who loses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain import custody
from chain import custody_records as c
from chain.codec import encode
from chain.custody_records import CustodyPhase, CustodyStatus
from chain.hashes import Hash32
from chain.limits import MAX_CUSTODY_DISPUTES
from chain.state import CUSTODY_BONDS, REWARD_POOL
from chain.transactions import (
    CustodyDispute,
    Transfer,
)
from chain.types import Grains, PubKey
from tests.kit.custody_run import BOND, OPEN, CustodyRun
from tests.kit.machine import STAKE, key


@pytest.fixture(scope="module")
def ready() -> CustodyRun:
    return CustodyRun.with_a_lie()


@pytest.fixture
def run(ready: CustodyRun) -> CustodyRun:
    return ready.copy()


# --- disputes -----------------------------------------------------------------------------


def test_a_false_dispute_loses_its_bond_to_custodian_and_pool(run: CustodyRun) -> None:
    honest, total = run.custodian(0, 1), run.m.grains()
    owner = run.account(honest)
    assert run.dispute("ann", 0, honest) == "ok"
    state = run.m.state
    assert state.account(CUSTODY_BONDS).balance == BOND
    (claim,) = custody.claims(state)
    assert (claim.custodian, claim.position, claim.disputer) == (owner, 0, key("ann").public)
    before, pool = state.account(owner).balance, state.account(REWARD_POOL).balance
    assert run.send_duty(run.keys_of(honest), run.opening(0, owner)) == "ok"
    state = run.m.state
    assert state.account(owner).balance == before + BOND // 2
    assert state.account(REWARD_POOL).balance == pool + BOND // 2
    assert state.account(owner).bonded == STAKE
    assert state.account(CUSTODY_BONDS).balance == 0
    assert custody.claims(state) == []
    assert run.status(honest) == CustodyStatus.COMMITTED
    assert run.m.grains() == total


def test_a_true_dispute_is_the_finders_whoever_opens(run: CustodyRun) -> None:
    """Who fears that its opening is copied disputes first."""
    liar, before = run.custodian(0), run.m.state.account(key("ann").public).balance
    assert run.dispute("ann", 0, liar) == "ok"
    opener = run.keys_of(run.custodian(0, 1))
    assert run.send_duty(opener, run.opening(0, run.account(liar))) == "ok"
    state = run.m.state
    assert state.account(key("ann").public).balance == before - 1000 + STAKE // 200
    assert state.account(CUSTODY_BONDS).balance == 0


def test_whoever_cannot_show_it_loses(run: CustodyRun) -> None:
    honest, before = run.custodian(0, 1), run.m.state.account(key("ann").public).balance
    total = run.m.grains()
    assert run.dispute("ann", 0, honest) == "ok"
    for _ in range(OPEN):
        assert run.status(honest) == CustodyStatus.COMMITTED
        run.m.block()
    assert run.phase() is None
    state = run.m.state
    owner = next(a for _, raw in state.items(b"ckpr/") if (a := _convicted(raw)) is not None)
    assert state.account(owner).bonded == STAKE - STAKE // 100
    assert state.account(key("ann").public).balance == before - 1000 + STAKE // 200
    assert state.account(CUSTODY_BONDS).balance == 0
    assert run.m.grains() == total


def _convicted(raw: bytes) -> PubKey | None:
    from chain.codec import decode

    record = decode(c.CustodianRecord, raw)
    return record.account if record.convicted else None


def test_an_open_dispute_keeps_the_event_open_and_an_answer_in_time_counts(
    run: CustodyRun,
) -> None:
    honest = run.custodian(0, 1)
    for _ in range(OPEN - 2):
        run.m.block()
    assert run.dispute("ann", 0, honest) == "ok"  # the last block in which it may be
    run.m.block()
    assert run.phase() == CustodyPhase.DISPUTE
    assert run.dispute("ben", 0, run.custodian(0, 2)) == "wrong_phase"  # too late
    opened = run.opening(0, run.account(honest))
    assert run.send_duty(run.keys_of(honest), opened) == "ok"
    assert run.phase() is None


def test_a_conviction_gives_the_other_disputes_their_bonds_back() -> None:
    run = CustodyRun()
    run.until(CustodyPhase.COMMIT)
    liar = next(
        i for i in range(len(run.event.members)) if len(custody.positions(run.event, i)) > 1
    )
    first, second = custody.positions(run.event, liar)[:2]
    run.to_disputes(lies={liar: (first,)})
    state = run.m.state
    state.put_account(key("ben").public, bonded=10**6, balance=10**9)
    run.m.tree = state.commit()
    total = run.m.grains()
    ben = run.m.state.account(key("ben").public).balance
    assert run.dispute("ann", first, liar) == "ok"
    assert run.dispute("ben", second, liar) == "ok"
    opener = next(i for i in run.event.places[first].custodians if i != liar)
    assert run.send_duty(run.keys_of(opener), run.opening(first, run.account(liar))) == "ok"
    state = run.m.state
    assert state.account(key("ben").public).balance == ben - 1000
    assert state.account(CUSTODY_BONDS).balance == 0
    assert run.m.grains() == total


def test_what_is_refused_of_disputes(run: CustodyRun) -> None:
    honest = run.custodian(0, 1)
    owner = run.keys_of(honest)
    seed, custodian = run.event.seed, run.account(honest)
    good = CustodyDispute(seed, custodian, 0, Grains(BOND))

    def code(name: str, wrong: CustodyDispute) -> str:
        return run.copy().send(name, wrong)

    assert code("ann", replace(good, event=Hash32(b"x" * 32))) == "unknown_event"
    assert code("ann", replace(good, position=7)) == "unknown_place"
    assert code("ann", replace(good, custodian=key("ben").public)) == "not_drawn"
    assert code("ann", replace(good, bond=Grains(BOND - 1))) == "bond_too_small"
    assert code("ann", replace(good, bond=Grains(2**63))) == "insufficient_funds"
    assert code("ben", good) == "not_bonded"
    again = run.copy()
    assert again.send("ann", good) == "ok"
    assert again.send("ann", good) == "duplicate"
    other = replace(good, custodian=run.account(run.custodian(0, 2)))
    assert again.send("ann", other) == "no_slot"
    state = run.m.state
    state.put_account(custodian, balance=10**9)
    run.m.tree = state.commit()
    own = run.m.tx(owner.account, good)
    assert run.copy().m.block(encode(own))[0].code == "own_work"
    signed = run.m.tx(owner.node, good, account=custodian)
    assert run.m.block(encode(signed))[0].code == "bad_signer"  # no hot key pays a bond


def test_a_co_custodian_disputes_without_a_bonded_account() -> None:
    run = CustodyRun(custody_commit={"blocks": 1, "ms": 0})
    run.to_disputes()
    rival = run.keys_of(run.custodian(0, 0))
    state = run.m.state
    state.put_account(rival.account.public, bonded=0, balance=10**9)
    run.m.tree = state.commit()
    good = CustodyDispute(run.event.seed, run.account(run.custodian(0, 1)), 0, Grains(BOND))
    assert run.m.block(encode(run.m.tx(rival.account, good)))[0].code == "ok"


def test_a_flood_of_disputes_finds_its_limit() -> None:
    """Each by another bonded account; what is open at once can be answered in time."""
    run = CustodyRun(custody_open={"blocks": 30, "ms": 0})
    run.to_disputes()
    names = [f"sybil-{i}" for i in range(MAX_CUSTODY_DISPUTES + 1)]
    state = run.m.state
    for name in names:
        state.put_account(key(name).public, bonded=10**6, balance=10**9)
    run.m.tree = state.commit()
    total = run.m.grains()
    pairs = [(at, i) for at, p in enumerate(run.event.places) for i in p.custodians]
    codes = [
        run.dispute(name, at, member) for name, (at, member) in zip(names, pairs, strict=False)
    ]
    assert codes == ["ok"] * MAX_CUSTODY_DISPUTES + ["no_slot"]
    at, member = pairs[0]
    answer = run.opening(at, run.account(member))
    assert run.send_duty(run.keys_of(member), answer) == "ok"
    assert run.dispute(names[-1], *pairs[-1]) == "ok"
    for at, member in (*pairs[1:MAX_CUSTODY_DISPUTES], pairs[-1]):
        answer = run.opening(at, run.account(member))
        assert run.send_duty(run.keys_of(member), answer) == "ok"
    assert run.m.state.account(CUSTODY_BONDS).balance == 0
    assert run.m.grains() == total
    assert all(m.status == CustodyStatus.COMMITTED for m in run.event.members)


def test_nobody_pays_into_the_bonds(run: CustodyRun) -> None:
    assert run.send("ann", Transfer(CUSTODY_BONDS, Grains(1))) == "bad_recipient"
