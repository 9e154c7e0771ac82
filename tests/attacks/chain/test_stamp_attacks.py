"""Stamps that are used again, moved, weak or bought in bulk, and blocks of nothing but refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from chain import quotas, stamps
from chain.codec import decode, encode
from chain.costs import NO_ROOM, STAMP_SHARE, StampClass, spend
from chain.errors import BlockError, DecodeError
from chain.execute import Execution, check_and_execute, check_header, seal_header
from chain.hashes import ZERO_HASH, Hash32
from chain.limits import MAX_BLOCK_BYTES, MAX_BLOCK_TXS
from chain.transactions import (
    LossSlice,
    Payload,
    Phase,
    PolVote,
    Transaction,
    Transfer,
    stamp_digest,
)
from chain.types import Block, Grains, Height, Signature, TxId
from node import mempool
from node.mempool import Mempool
from tests.kit.machine import Machine, key
from tests.kit.stamps import context, next_block, stamped
from wallet.keys import KeyPair

ANN, BOB, EVE = key("ann"), key("bob"), key("eve")


def machine_of(**params: Any) -> Machine:
    machine = Machine(funded=("ann", "eve"), **params)
    machine.ok(encode(machine.tx(EVE, Transfer(ANN.public, Grains(1)))))  # no newcomer any more
    return machine


def works(
    machine: Machine, signer: KeyPair, payload: Payload, low: int, high: int
) -> Iterator[int]:
    """Works whose stamps are worth more than `low` tries and at most `high`, for the next nonce."""
    nonce = machine.state.account(signer.public).nonce
    for work in range(1 << 20):
        digest = stamp_digest(
            machine.genesis.chain_id, signer.public, nonce, machine.parent, payload, work
        )
        if low < (1 << 256) // (int.from_bytes(digest, "big") + 1) <= high:
            yield work


def code(machine: Machine, tx: Transaction) -> str:
    """What a block says to it; of another moment of the same chain."""
    execution = next_block(machine)
    return execution.judge(encode(tx)).code


# --- one stamp ------------------------------------------------------------------------------


def test_a_stamp_pays_once_and_for_one_thing_only() -> None:
    machine = machine_of(stamp_bits=10)
    payload = Transfer(BOB.public, Grains(5))
    tx = machine.tx(EVE, payload, stamp=True)
    assert tx.stamp is not None
    work = tx.stamp.work
    assert code(machine, tx) == "ok"
    for moved in (
        stamped(machine, EVE, payload, work=work, nonce=tx.nonce + 1),  # another nonce
        stamped(machine, EVE, Transfer(BOB.public, Grains(6)), work=work),  # another payload
        stamped(machine, ANN, payload, work=work, nonce=0),  # another sender
        stamped(machine, EVE, payload, work=work, age=2),  # another block
    ):
        assert code(machine, moved) in ("weak_stamp", "bad_nonce")
    machine.ok(encode(tx))
    assert machine.block(encode(tx))[0].code == "bad_nonce"
    again = stamped(machine, EVE, payload, work=work, age=2)  # the same block, the next nonce
    assert code(machine, again) == "weak_stamp"


def test_a_stamp_of_the_future_or_the_past_is_stale() -> None:
    machine = machine_of(stamp_bits=0, stamp_window_blocks=3)
    payload = Transfer(BOB.public, Grains(5))
    for age, wanted in ((0, "stale_stamp"), (1, "ok"), (2, "ok"), (-1, "stale_stamp")):
        assert code(machine, stamped(machine, EVE, payload, work=0, age=age)) == wanted
    for _ in range(5):
        machine.block()
    for age, wanted in ((3, "ok"), (4, "stale_stamp")):
        assert code(machine, stamped(machine, EVE, payload, work=0, age=age)) == wanted


def test_half_of_the_work_is_not_enough() -> None:
    machine = machine_of(stamp_bits=8)
    payload = Transfer(BOB.public, Grains(5))
    weak = next(works(machine, EVE, payload, 100, 254))
    good = next(works(machine, EVE, payload, 258, 1 << 40))
    assert code(machine, stamped(machine, EVE, payload, work=weak)) == "weak_stamp"
    assert code(machine, stamped(machine, EVE, payload, work=good)) == "ok"


def test_a_new_name_costs_more_than_an_old_one() -> None:
    machine = machine_of(stamp_bits=6, stamp_new_account_bits=5)
    payload = Transfer(BOB.public, Grains(5))
    usual = next(works(machine, ANN, payload, 70, 2000))
    dear = next(works(machine, ANN, payload, 2100, 1 << 40))
    assert code(machine, stamped(machine, ANN, payload, work=usual)) == "weak_stamp"
    assert code(machine, stamped(machine, ANN, payload, work=dear)) == "ok"


def test_a_stamp_is_no_way_round_what_only_validators_do() -> None:
    machine = machine_of(stamp_bits=0)
    assert code(machine, machine.tx(EVE, losses(1), stamp=True)) == "not_a_validator"


def losses(count: int) -> PolVote:
    slices = tuple(LossSlice(i, 10**9, 10**9) for i in range(count))
    return PolVote(0, TxId(ZERO_HASH), Phase.REVEAL, ZERO_HASH, Hash32(b"s" * 32), 1, slices)


# --- refused ones: free room for a hostile proposer? ----------------------------------------


def test_what_a_hostile_proposer_repeats_fills_no_more_than_the_quarter() -> None:
    """A refused transaction leaves its nonce, so its stamp is good again: for nothing but a place
    in the share that stamps have, whatever becomes of them; nor does it make stamps dearer."""
    machine = machine_of(stamp_bits=4, block_cost_us=500_000, stamp_retarget_blocks=1)
    refused = encode(machine.tx(EVE, Transfer(BOB.public, Grains(10**18)), stamp=True))
    taken = spend(decode(Transaction, refused).payload, len(refused), stamped=True)
    room = machine.genesis.params.block_cost_us // STAMP_SHARE // taken.us
    for _ in range(3):
        receipts = machine.block(*[refused] * room)
        assert {r.code for r in receipts} == {"insufficient_funds"}
        assert {k for k, _ in machine.tree.items(b"stmp/")} == set()
        assert {k for k, _ in machine.tree.items(b"quot/")} == set()
    with pytest.raises(BlockError, match="stamped"):
        machine.block(*[refused] * (room + 1))


def test_a_validator_refuses_a_block_over_the_share_before_it_is_executed() -> None:
    machine = machine_of(stamp_bits=0, block_cost_us=500_000)
    raws = tuple(
        encode(stamped(machine, EVE, Transfer(BOB.public, Grains(1)), work=0, nonce=1 + i))
        for i in range(700)
    )
    ctx, parent = context(machine), replace(machine.genesis_header, height=Height(machine.height))
    ctx = replace(ctx, parent=parent.hash())
    execution = Execution(machine.tree, machine.genesis, machine.rules, ctx)
    kept = []
    for raw in raws:
        receipt = execution.try_apply(raw)
        if receipt.code in NO_ROOM:
            break
        execution.keep(receipt)
        kept.append(raw)
    done = execution.finish()
    assert 0 < len(kept) < len(raws)
    for txs, fits in ((tuple(kept), True), ((*kept, raws[len(kept)]), False)):
        block = Block(seal_header(ctx, machine.genesis, txs, (), done, b""), txs, ())
        check_header(machine.genesis, parent, block)
        if fits:
            check_and_execute(machine.tree, machine.genesis, machine.rules, parent, block)
        else:
            with pytest.raises(BlockError, match="budget"):
                check_and_execute(machine.tree, machine.genesis, machine.rules, parent, block)


def test_ten_thousand_invalid_transactions_cost_no_more_than_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = machine_of()
    good = machine.tx(EVE, Transfer(BOB.public, Grains(1)))
    spoilt = encode(replace(good, signature=Signature(bytes(64))))
    block = Block(machine.genesis_header, (spoilt,) * 10_000, ())
    with pytest.raises(DecodeError, match=str(MAX_BLOCK_TXS)):
        decode(Block, encode(block), most=len(encode(block)))
    looked = 0

    def counted(*_: object) -> bool:
        nonlocal looked
        looked += 1
        return False

    monkeypatch.setattr("chain.admission.verify", counted)
    receipts = machine.block(*[spoilt] * MAX_BLOCK_TXS)
    assert {r.code for r in receipts} == {"bad_signature"}
    assert looked == MAX_BLOCK_TXS
    looked = 0
    dear = machine.duty(machine.validators[0], losses(128))
    dear = dear[:-64] + bytes(64)
    asked = spend(losses(128), len(dear)).us
    execution = next_block(machine)
    room = machine.genesis.params.block_cost_us // asked
    for _ in range(room):
        execution.apply(dear)
    with pytest.raises(BlockError, match="budget"):
        execution.apply(dear)
    assert looked == room < 10_000


# --- bought in bulk -------------------------------------------------------------------------


class Flood:
    """Someone with many names and a GPU: it makes `power` tries while a block is made."""

    def __init__(self, power: int, **params: Any) -> None:
        rules: dict[str, Any] = {
            "stamp_bits": 1,
            "stamp_new_account_bits": 0,
            "stamp_retarget_blocks": 2,
            "stamp_target_units": 8,
            "block_cost_us": 500_000,
            "quota_newcomer": 10**6,
        }
        self.machine = Machine(funded=("ann", "eve"), **(rules | params))
        self.machine.block()
        self.power, self.names = power, 0

    def difficulty(self) -> int:
        state, params = self.machine.state, self.machine.genesis.params
        return stamps.difficulty(state, params, StampClass.MONEY, self.machine.height)

    def made(self, most: int) -> list[bytes]:
        """What it can stamp in time."""
        left, raws = self.power, []
        nonce = self.machine.state.account(EVE.public).nonce
        while left > 0 and len(raws) < most:
            tx = self.machine.tx(
                EVE, Transfer(BOB.public, Grains(1)), nonce=nonce + len(raws), stamp=True
            )
            assert tx.stamp is not None
            left -= tx.stamp.work + 1
            raws.append(encode(tx))
        return raws


def test_difficulty_follows_a_flood_and_comes_back() -> None:
    flood = Flood(power=4000)
    seen, loads = [flood.difficulty()], []
    for _ in range(24):
        raws = flood.made(most=200)
        flood.machine.ok(*raws)
        loads.append(len(raws))
        seen.append(flood.difficulty())
    assert loads[0] == 200  # at the floor it has whatever a block takes
    assert max(loads[-6:]) <= 32  # a few times what is wanted, at the same power
    assert seen[-1] >= 32 * seen[0]
    assert all(after <= 2 * before for before, after in pairwise(seen))
    for _ in range(40):
        flood.machine.block()
    assert flood.difficulty() == seen[0]
    assert not list(flood.machine.tree.items(b"stmp/"))


def test_a_flood_of_one_class_does_not_make_the_others_dear() -> None:
    flood = Flood(power=10**6)
    for _ in range(6):
        flood.machine.ok(*flood.made(most=60))
    state, params = flood.machine.state, flood.machine.genesis.params
    assert flood.difficulty() > 8
    for kind in set(StampClass) - {StampClass.MONEY}:
        assert stamps.difficulty(state, params, kind, flood.machine.height) == 2


def test_who_pays_has_three_quarters_of_a_block_whatever_is_stamped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mempool, "BUILD_BUDGET_S", 600.0)  # the machine may be slow
    flood = Flood(power=10**9, stamp_bits=0)
    machine = flood.machine
    names, each = [key(f"sybil {i}") for i in range(40)], 33  # nonces that a pool takes ahead
    payers = [key(f"payer {i}") for i in range(60)]
    state = machine.state
    for owner, grains in (*((n, 100) for n in names), *((p, 10**9) for p in payers)):
        state.put_account(owner.public, balance=grains)
    machine.tree = state.commit()
    pool = Mempool(machine.genesis, machine.rules, lambda: machine.state, lambda raw: None)
    payload = Transfer(BOB.public, Grains(1))
    for nonce in range(each):
        for name in names:
            tx = stamped(machine, name, payload, work=0, nonce=nonce, age=2)
            pool.submit(encode(tx), local=False)
        for payer in payers:
            pool.submit(encode(machine.tx(payer, payload, nonce=nonce)), local=False)
    txs = pool.fill(next_block(machine), MAX_BLOCK_BYTES)
    sent = [decode(Transaction, raw) for raw in txs]
    us = {True: 0, False: 0}
    for tx, raw in zip(sent, txs, strict=True):
        us[tx.stamp is not None] += spend(tx.payload, len(raw)).us
    whole = machine.genesis.params.block_cost_us
    assert us[True] <= whole // STAMP_SHARE
    assert us[False] >= whole - whole // STAMP_SHARE - 1000
    assert pool.size == each * 100  # who found no room waits for the next block


# --- quotas ---------------------------------------------------------------------------------


def test_a_day_is_over_when_its_blocks_and_its_time_are() -> None:
    machine = machine_of(
        stamp_bits=0, quota_newcomer=3, quota_day={"blocks": 10, "ms": 20_000}, step_ms=1000
    )
    eve = EVE.public

    def send() -> str:
        tx = machine.tx(EVE, Transfer(BOB.public, Grains(1)), stamp=True)
        return machine.block(encode(tx))[0].code

    began = machine.height + 1
    assert [send() for _ in range(4)] == ["ok", "ok", "ok", "quota_exceeded"]
    assert quotas.standing(machine.state, machine.genesis.params, eve).used == 3
    machine.ok(encode(machine.tx(EVE, Transfer(BOB.public, Grains(1)))))  # a fee is no stamp
    while machine.height < began + 18:
        assert send() == "quota_exceeded"  # its blocks have passed, its time has not
    assert send() == "quota_exceeded"
    assert send() == "ok"
    assert quotas.standing(machine.state, machine.genesis.params, eve).used == 1
    for _ in range(40):
        machine.block()
    assert not [*machine.tree.items(b"quot/"), *machine.tree.items(b"qdue/")]


def test_merit_earns_a_larger_quota() -> None:
    machine = machine_of(stamp_bits=0, quota_newcomer=1, quota_trusted=3, trusted_merit=2)
    state = machine.state
    state.put_account(EVE.public, merit=2)
    machine.tree = state.commit()
    codes = [
        machine.block(encode(machine.tx(EVE, Transfer(BOB.public, Grains(1)), stamp=True)))[0].code
        for _ in range(4)
    ]
    assert codes == ["ok", "ok", "ok", "quota_exceeded"]


def test_many_who_come_once_leave_nothing_behind() -> None:
    machine = machine_of(
        stamp_bits=0, stamp_new_account_bits=0, quota_day={"blocks": 5, "ms": 9000}
    )
    names = [key(f"one of many {i}") for i in range(60)]
    state = machine.state
    for name in names:
        state.put_account(name.public, balance=10)
    machine.tree = state.commit()
    for at in range(0, 60, 10):
        machine.ok(
            *(
                encode(machine.tx(name, Transfer(BOB.public, Grains(1)), stamp=True))
                for name in names[at : at + 10]
            )
        )
    assert len(list(machine.tree.items(b"quot/"))) > 30
    for _ in range(12):
        machine.block()
    assert not [*machine.tree.items(b"quot/"), *machine.tree.items(b"qdue/")]
