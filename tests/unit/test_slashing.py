"""Evidence slashes its signer once an epoch, whoever brings it and however many pairs show it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.certificates import assemble
from chain.codec import encode
from chain.errors import BlockError
from chain.execute import Context, Execution
from chain.hashes import Hash32
from chain.state import REWARD_POOL
from chain.transactions import SubmitEvidence
from chain.types import (
    ConflictingCertificates,
    Epoch,
    Height,
    TimeMs,
    View,
    Vote,
    VoteKind,
)
from consensus.evidence import conflicting_certificates, double_vote
from node.rules import ProtocolRules
from tests.kit.machine import STAKE, Machine, key
from wallet.signing import sign_vote

ANN = key("ann")


def vote(machine: Machine, name: int, view: int, block: bytes) -> Vote:
    return sign_vote(
        machine.validators[name].consensus,
        chain_id=machine.genesis.chain_id,
        kind=VoteKind.NOTARIZE,
        epoch=Epoch(0),
        view=View(view),
        block_hash=Hash32(block * 32),
    )


def submit(machine: Machine, first: Vote, second: Vote) -> str:
    pair = SubmitEvidence(double_vote(first, second))
    (receipt,) = machine.block(encode(machine.tx(ANN, pair)))
    return receipt.code


def test_a_double_vote_is_slashed_once_and_jails() -> None:
    machine = Machine(funded=("ann",))
    state = machine.state
    state.put_account(machine.validators[1].account.public, merit=99)
    machine.tree = state.commit()
    total, pool = machine.grains(), machine.state.account(REWARD_POOL).balance
    assert submit(machine, vote(machine, 1, 7, b"a"), vote(machine, 1, 7, b"b")) == "ok"
    guilty = machine.state.account(machine.validators[1].account.public)
    lost = STAKE * machine.genesis.params.slash_permille // 1000
    assert (guilty.bonded, guilty.jailed, guilty.merit) == (STAKE - lost, 1, 0)
    assert machine.state.account(REWARD_POOL).balance == pool + lost
    assert machine.grains() == total
    again = submit(machine, vote(machine, 1, 8, b"a"), vote(machine, 1, 8, b"c"))
    assert again == "known_evidence"
    other = submit(machine, vote(machine, 2, 8, b"a"), vote(machine, 2, 8, b"c"))
    assert other == "ok"


def test_honest_votes_are_no_evidence() -> None:
    machine = Machine(funded=("ann",))
    of_two_views = submit(machine, vote(machine, 1, 7, b"a"), vote(machine, 1, 8, b"b"))
    assert of_two_views == "verification_failed"
    of_two_signers = submit(machine, vote(machine, 1, 7, b"a"), vote(machine, 2, 7, b"b"))
    assert of_two_signers == "verification_failed"
    unchanged = machine.state.account(machine.validators[1].account.public)
    assert (unchanged.bonded, unchanged.jailed) == (STAKE, 0)


def attack(machine: Machine) -> ConflictingCertificates:
    """Two notarizations of one view for different blocks; validators 1 and 2 signed both."""
    members = machine.genesis.validator_set
    both = (
        assemble(members, [vote(machine, name, 7, block) for name in signers])
        for signers, block in (((0, 1, 2), b"a"), ((1, 2, 3), b"b"))
    )
    return conflicting_certificates(*both)


def test_a_light_client_attack_is_punished_once_in_all_who_signed_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(funded=("ann",), slash_permille=100)
    total, pool = machine.grains(), machine.state.account(REWARD_POOL).balance
    item = attack(machine)
    cheap = machine.tx(ANN, SubmitEvidence(item), fee=1000)
    (receipt,) = machine.block(encode(cheap))
    assert receipt.code == "fee_too_low"  # many signatures are to be verified
    assert submit(machine, vote(machine, 2, 9, b"a"), vote(machine, 2, 9, b"b")) == "ok"
    machine.ok(encode(machine.tx(ANN, SubmitEvidence(item), fee=8000)))
    bonded = [machine.state.account(k.account.public).bonded for k in machine.validators]
    assert bonded == [STAKE, STAKE * 9 // 10, STAKE * 9 // 10, STAKE]
    assert machine.state.account(REWARD_POOL).balance == pool + STAKE // 5
    assert machine.grains() == total
    looked: list[object] = []
    monkeypatch.setattr(ProtocolRules, "check_evidence", lambda *asked: looked.append(asked))
    (again,) = machine.block(encode(machine.tx(ANN, SubmitEvidence(item), fee=8000)))
    assert again.code == "known_evidence"
    assert not looked  # a refused transaction pays nothing, so it must cost little


def test_an_attack_that_does_not_hold_makes_a_block_invalid_and_changes_nothing() -> None:
    machine = Machine()
    item = attack(machine)
    wrong = replace(item.second, signatures=item.second.signatures[::-1])
    for held, bad in ((item, False), (replace(item, second=wrong), True)):
        execution = Execution(machine.tree, machine.genesis, machine.rules, context(machine))
        if bad:
            with pytest.raises(BlockError, match="does not hold"):
                execution.evidence((held,))
        else:
            execution.evidence((held,))
        lost = [e for e in execution.finish().events if e.kind == "slash"]
        assert len(lost) == (0 if bad else 2)


def context(machine: Machine) -> Context:
    proposer = machine.validators[0].consensus.public
    now = TimeMs(machine.time_ms + 1)
    return Context(Height(1), now, Epoch(0), View(1), machine.parent, proposer, bytes(64))
