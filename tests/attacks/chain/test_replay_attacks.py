"""Signatures where they were not given: for another thing, on another chain, or once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from chain import hashes
from chain.certificates import assemble, verify_certificate, verify_seal, verify_vote
from chain.codec import encode
from chain.crypto import verify
from chain.errors import VerifyError
from chain.hashes import LINK_AUTHORITY, ZERO_HASH, Hash32
from chain.state import State
from chain.transactions import Announce, Transfer, announce_digest
from chain.types import (
    ChainId,
    Epoch,
    Grains,
    ProposalSeal,
    Signature,
    View,
    Vote,
    VoteKind,
    proposal_digest,
    vote_digest,
)
from node.net.links.certificate import SIGNED
from tests.kit.local_chain import LocalChain
from tests.kit.machine import Machine, key, keys
from wallet.signing import sign_announce, sign_proposal, sign_vote

OWNER = keys("owner")
HERE, THERE = ChainId(b"h" * 32), ChainId(b"t" * 32)
EPOCH, VIEW, BLOCK = Epoch(3), View(7), Hash32(b"b" * 32)
TRANSFER = Transfer(key("ben").public, Grains(5))


def transaction(chain_id: ChainId) -> Hash32:
    return replace(Machine().tx(key("ann"), TRANSFER), chain_id=chain_id).digest()


def announced(chain_id: ChainId) -> Hash32:
    made: Announce = sign_announce(
        OWNER, chain_id=chain_id, roles=2, capacity_tiles=0, node_id="x", addresses=()
    )
    return announce_digest(chain_id, OWNER.account.public, made)


DIGESTS: dict[str, Callable[[ChainId], bytes]] = {
    "transaction": transaction,
    "notarize": lambda chain: vote_digest(chain, VoteKind.NOTARIZE, EPOCH, VIEW, BLOCK),
    "nullify": lambda chain: vote_digest(chain, VoteKind.NULLIFY, EPOCH, VIEW, ZERO_HASH),
    "finalize": lambda chain: vote_digest(chain, VoteKind.FINALIZE, EPOCH, VIEW, BLOCK),
    "finalize in another epoch": lambda c: vote_digest(c, VoteKind.FINALIZE, Epoch(4), VIEW, BLOCK),
    "finalize in another view": lambda c: vote_digest(c, VoteKind.FINALIZE, EPOCH, View(8), BLOCK),
    "proposal": lambda chain: proposal_digest(chain, EPOCH, VIEW, BLOCK),
    "announce": announced,
    "link": lambda chain: SIGNED + LINK_AUTHORITY.hash(chain),
}


@pytest.mark.parametrize(("given", "asked"), list(permutations(DIGESTS, 2)))
def test_what_was_signed_as_one_thing_is_not_another(given: str, asked: str) -> None:
    """Under one key, as if somebody used one for everything."""
    signature = Signature(SigningKey(OWNER.node.seed).sign(DIGESTS[given](HERE)).signature)
    assert verify(OWNER.node.public, DIGESTS[given](HERE), signature)
    assert not verify(OWNER.node.public, DIGESTS[asked](HERE), signature)
    assert not verify(OWNER.node.public, DIGESTS[asked](THERE), signature)
    assert not verify(OWNER.node.public, DIGESTS[given](THERE), signature)


def test_every_kind_of_thing_has_a_context_of_its_own() -> None:
    contexts = [v.name for v in vars(hashes).values() if isinstance(v, hashes.Context)]
    assert len(contexts) > 30
    assert len(set(contexts)) == len(contexts)
    assert len({hashes.Context(name.removeprefix("blyan/1/")).hash() for name in contexts}) == len(
        contexts
    )


def test_transactions_of_another_chain_are_refused_also_under_this_chains_name() -> None:
    here, there = Machine(funded=("ann",)), Machine(funded=("ann", "ben"))
    assert here.genesis.chain_id != there.genesis.chain_id
    tx = there.tx(key("ann"), TRANSFER)
    assert [r.code for r in here.block(encode(tx))] == ["wrong_chain"]
    renamed = replace(tx, chain_id=here.genesis.chain_id)
    assert [r.code for r in here.block(encode(renamed))] == ["bad_signature"]


def test_votes_seals_and_certificates_of_another_chain_do_not_hold() -> None:
    machine = Machine()
    validators, signers = machine.genesis.validator_set, machine.validators
    for chain_id, holds in ((machine.genesis.chain_id, True), (THERE, False)):
        votes = [
            sign_vote(
                k.consensus,
                chain_id=chain_id,
                kind=VoteKind.FINALIZE,
                epoch=EPOCH,
                view=VIEW,
                block_hash=BLOCK,
            )
            for k in signers
        ]
        seal = sign_proposal(
            signers[0].consensus, chain_id=chain_id, epoch=EPOCH, view=VIEW, block_hash=BLOCK
        )
        certificate = assemble(validators, votes)
        checks: list[Callable[[], None]] = [
            lambda votes=votes: verify_vote(machine.genesis.chain_id, validators, votes[0]),
            lambda seal=seal: verify_seal(machine.genesis.chain_id, validators, seal),
            lambda c=certificate: verify_certificate(machine.genesis.chain_id, validators, c),
        ]
        for check in checks:
            if holds:
                check()
            else:
                with pytest.raises(VerifyError):
                    check()


def test_a_vote_is_no_seal_and_a_seal_no_vote() -> None:
    machine = Machine()
    chain_id, validators = machine.genesis.chain_id, machine.genesis.validator_set
    signer = machine.validators[0].consensus
    vote = sign_vote(
        signer, chain_id=chain_id, kind=VoteKind.NOTARIZE, epoch=EPOCH, view=VIEW, block_hash=BLOCK
    )
    seal = sign_proposal(signer, chain_id=chain_id, epoch=EPOCH, view=VIEW, block_hash=BLOCK)
    with pytest.raises(VerifyError, match="signature"):
        verify_seal(
            chain_id, validators, ProposalSeal(EPOCH, VIEW, BLOCK, signer.public, vote.signature)
        )
    for kind in (VoteKind.NOTARIZE, VoteKind.FINALIZE):
        lie = Vote(kind, EPOCH, VIEW, BLOCK, signer.public, seal.signature)
        with pytest.raises(VerifyError, match="signature"):
            verify_vote(chain_id, validators, lie)


# --- the same once more, and out of turn ---------------------------------------------------


def test_a_transaction_counts_once_in_a_block_and_in_all_of_them(tmp_path: Path) -> None:
    """On a real chain with its store, which keeps every copy with its own receipt."""
    with LocalChain(tmp_path) as local:
        raw = local.sign(TRANSFER, local.learners[0])
        held = local.state.account(key("ben").public).balance
        codes = [r.code for r in local.block(raw, raw, raw)]
        assert codes == ["ok", "bad_nonce", "bad_nonce"]
        for _ in range(2):
            assert [r.code for r in local.block(raw)] == ["bad_nonce"]
        assert local.state.account(key("ben").public).balance == held + 5


@pytest.mark.parametrize("ahead", [1, 2, 1000, 2**63, 2**64 - 1])
def test_a_nonce_that_is_not_the_next_does_nothing(ahead: int) -> None:
    machine = Machine(funded=("ann",))
    before = machine.state.account(key("ann").public)
    raw = encode(machine.tx(key("ann"), TRANSFER, nonce=ahead))
    assert [r.code for r in machine.block(raw, raw)] == ["bad_nonce", "bad_nonce"]
    assert machine.state.account(key("ann").public) == before


def test_a_gap_in_a_block_stops_what_comes_after_it_and_nothing_else() -> None:
    machine = Machine(funded=("ann", "ben"))
    raws = [encode(machine.tx(key("ann"), TRANSFER, nonce=n)) for n in (0, 2, 1, 2, 1)]
    codes = [r.code for r in machine.block(*raws)]
    assert codes == ["ok", "bad_nonce", "ok", "ok", "bad_nonce"]


def test_the_last_nonce_there_is_is_refused_and_changes_nothing() -> None:
    """Counting on from it would leave 64 bits."""
    machine = Machine(funded=("ann",))
    state = machine.state
    state.put_account(key("ann").public, nonce=2**64 - 1)
    machine.tree = state.commit()
    before = machine.state.account(key("ann").public)
    raw = encode(machine.tx(key("ann"), TRANSFER))
    assert [r.code for r in machine.block(raw, raw)] == ["bad_encoding", "bad_encoding"]
    assert machine.state.account(key("ann").public) == before
    assert State(machine.tree).account(key("ben").public).balance == 0
