"""Evidence is accepted until both its ages have passed, and always before stake has left."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chain import records as r
from chain.codec import decode, encode
from chain.errors import GenesisError
from chain.hashes import Hash32
from chain.params import parse_genesis
from chain.state import REWARD_POOL
from chain.transactions import SubmitEvidence, Unbond
from chain.types import Epoch, Grains, View, VoteKind
from consensus.evidence import double_vote
from tests.kit.machine import STAKE, TEMPLATE, Machine, key
from wallet.signing import sign_vote

ANN = key("ann")
EPOCH, AGE, UNBONDING = 4, 6, 19  # blocks; 6 + 3·4 < 19


def machine_of(**params: Any) -> Machine:
    ages = {"evidence_blocks": AGE, "unbonding_blocks": UNBONDING, "evidence_ms": 1}
    return Machine(funded=("ann",), epoch_blocks=EPOCH, **ages | params)


def accuse(machine: Machine, epoch: int, name: int = 1) -> str:
    """Submit a double vote of a validator in an epoch; the receipt's code."""
    pair = (
        sign_vote(
            machine.validators[name].consensus,
            chain_id=machine.genesis.chain_id,
            kind=VoteKind.NOTARIZE,
            epoch=Epoch(epoch),
            view=View(3),
            block_hash=Hash32(letter * 32),
        )
        for letter in (b"a", b"b")
    )
    (receipt,) = machine.block(encode(machine.tx(ANN, SubmitEvidence(double_vote(*pair)))))
    return receipt.code


def skip(machine: Machine, blocks: int, step_ms: int) -> None:
    machine.step_ms = step_ms
    for _ in range(blocks):
        machine.block()


@pytest.mark.parametrize(("blocks", "code"), [(AGE - 1, "ok"), (AGE, "expired_evidence")])
def test_it_expires_at_the_first_block_beyond_its_age(blocks: int, code: str) -> None:
    machine = machine_of()
    skip(machine, EPOCH + blocks, 1000)
    assert accuse(machine, 0) == code


def test_a_flooded_chain_lets_nobody_off() -> None:
    machine = machine_of(evidence_ms=60_000, unbonding_ms=60_001)
    skip(machine, 4 * (AGE + EPOCH), 1)
    assert accuse(machine, 0) == "ok"


def test_an_idle_chain_lets_nobody_off() -> None:
    machine = machine_of(evidence_ms=60_000, unbonding_ms=60_001)
    skip(machine, EPOCH + AGE - 1, 60_000)
    assert accuse(machine, 0) == "ok"
    assert accuse(machine, 0, 2) == "expired_evidence"


def test_the_age_counts_from_the_end_of_the_epoch() -> None:
    """Not from the vote, whose time nobody can show."""
    machine = machine_of(evidence_ms=60_000, unbonding_ms=60_001)
    skip(machine, EPOCH - 1, 10**6)
    skip(machine, 1 + AGE, 10_000)  # the epoch's last block, and as many as its age allows
    assert machine.time_ms == 1_000_000 + 3 * 10**6 + 70_000
    machine.step_ms = 1
    assert accuse(machine, 0, 1) == "expired_evidence"
    late = machine_of(evidence_ms=60_001, unbonding_ms=60_002)
    skip(late, EPOCH - 1, 10**6)
    skip(late, 1 + AGE, 10_000)
    late.step_ms = 1
    assert accuse(late, 0, 1) == "ok"


def test_epochs_to_come_convict_as_well() -> None:
    """Their sets are frozen, so their keys can sign already."""
    machine = machine_of()
    assert accuse(machine, 1) == "ok"
    assert accuse(machine, 9) == "expired_evidence"


@pytest.mark.parametrize(("height", "step_ms"), [(1, 1), (2, 20), (3, 1000), (4, 1), (5, 7)])
def test_stake_leaves_only_when_nothing_can_be_shown_of_it(height: int, step_ms: int) -> None:
    """Whatever the pace of the chain: at the payout every epoch that counts the stake is beyond
    evidence, and both the height and the time of unbonding have passed."""
    machine = machine_of(evidence_ms=60, unbonding_ms=61)
    guilty, total = machine.validators[1].account, machine.grains()
    state = machine.state
    state.put_account(guilty.public, balance=10**6)
    machine.tree = state.commit()
    skip(machine, height - 1, step_ms)
    machine.ok(encode(machine.tx(guilty, Unbond(Grains(STAKE)))))
    since, since_ms = machine.height, machine.time_ms
    counted = [0, 1]
    while machine.state.account(guilty.public).balance < STAKE:
        machine.block()
        for number in range(machine.state.head.epoch + 3):
            record = machine.state.get(r.EpochRecord, r.epoch_key(number))
            if record is not None and guilty.public in {
                v.account for v in record.validators.members
            }:
                counted.append(number)
        assert machine.height < 300
    assert machine.height >= since + UNBONDING
    assert machine.time_ms >= since_ms + 61
    last = max(counted)
    assert last <= (since - 1) // EPOCH + 2
    balance = machine.state.account(guilty.public).balance
    assert accuse(machine, last) == "expired_evidence"
    assert machine.state.account(guilty.public).balance == balance
    assert machine.grains() == total + 10**6


def test_what_is_waiting_for_time_is_slashed_until_it_goes() -> None:
    machine = machine_of(evidence_ms=10**6, unbonding_ms=10**6 + 1, slash_permille=500)
    guilty = machine.validators[1].account
    state = machine.state
    state.put_account(guilty.public, balance=10**4)
    machine.tree = state.commit()
    machine.block()
    machine.ok(encode(machine.tx(guilty, Unbond(Grains(STAKE)))))
    skip(machine, 3 * UNBONDING, 1)  # the height has passed, the time has not
    pool = machine.state.account(REWARD_POOL).balance
    assert accuse(machine, 2) == "ok"
    assert machine.state.account(REWARD_POOL).balance == pool + STAKE // 2
    (waiting,) = [decode(r.Unbonding, raw) for _, raw in machine.tree.items(b"unbd/")]
    assert waiting.amount == STAKE // 2


def test_records_of_expired_epochs_and_their_evidence_are_dropped() -> None:
    machine = machine_of()
    assert accuse(machine, 0) == "ok"
    assert list(machine.tree.items(b"evid/"))
    skip(machine, 40, 1000)
    kept = [r.epoch_key(e) for e in range(machine.state.head.epoch + 3)]
    found = [k for k, _ in machine.tree.items(b"epch/")]
    assert found == kept[-len(found) :]
    assert len(found) <= 3 + AGE // EPOCH + 2
    assert not list(machine.tree.items(b"evid/"))


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"evidence_blocks": 640}, "unbonding_blocks"),  # 640 + 3·128 = 1024
        ({"evidence_blocks": 127}, "evidence_blocks"),
        ({"evidence_ms": 900_000}, "unbonding_ms"),
        ({"evidence_ms": 0}, "evidence_ms"),
    ],
)
def test_a_genesis_that_pays_out_before_evidence_expires_is_refused(
    params: dict[str, int], match: str
) -> None:
    document = json.loads(TEMPLATE.read_text())
    document["params"].update(params)
    with pytest.raises(GenesisError, match=match):
        parse_genesis(json.dumps(document))
    document["params"].update({"evidence_blocks": 639, "evidence_ms": 899_999})
    parse_genesis(json.dumps(document))
