"""Evidence slashes its signer once an epoch, whoever brings it and however many pairs show it."""

from __future__ import annotations

from chain.codec import encode
from chain.hashes import Hash32
from chain.state import REWARD_POOL
from chain.transactions import SubmitEvidence
from chain.types import Epoch, View, Vote, VoteKind
from consensus.evidence import double_vote
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
    total, pool = machine.grains(), machine.state.account(REWARD_POOL).balance
    assert submit(machine, vote(machine, 1, 7, b"a"), vote(machine, 1, 7, b"b")) == "ok"
    guilty = machine.state.account(machine.validators[1].account.public)
    lost = STAKE * machine.genesis.params.slash_permille // 1000
    assert (guilty.bonded, guilty.jailed) == (STAKE - lost, 1)
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
