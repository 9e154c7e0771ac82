"""Votes, certificates and evidence against the reference's vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from chain.certificates import (
    assemble,
    is_quorum,
    verify_certificate,
    verify_vote,
    votes_of,
)
from chain.errors import VerifyError
from chain.hashes import ZERO_HASH, Hash32
from chain.types import (
    Certificate,
    ChainId,
    ConflictingCertificates,
    DoubleVote,
    Epoch,
    PubKey,
    Signature,
    Stake,
    Validator,
    ValidatorSet,
    View,
    Vote,
    VoteKind,
    proposal_digest,
    vote_digest,
)
from consensus.evidence import (
    check_evidence,
    conflicting_certificates,
    double_proposal,
    double_vote,
)
from tests.reference import consensus as reference
from tests.sim.ledger import CHAIN_ID, KeySigner, Law

VECTORS: dict[str, Any] = json.loads((reference.VECTORS / "votes.json").read_text())
CHAIN = ChainId(bytes.fromhex(VECTORS["chain_id"]))
MEMBERS = ValidatorSet(
    tuple(
        Validator(*[PubKey(bytes.fromhex(m["key"]))] * 3, "node", Stake(m["stake"]))
        for m in VECTORS["members"]
    )
)
LAW = Law(seed=1, size=4, epoch_blocks=10)
SET = LAW.context(Epoch(1)).validators
A, B = Hash32(b"a" * 32), Hash32(b"b" * 32)


def vote(kind: VoteKind, block: bytes, view: int = 3, signer: KeySigner = LAW.signers[0]) -> Vote:
    return signer.sign_vote(kind, Epoch(1), View(view), Hash32(block))


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert reference.vectors() == VECTORS


def test_digests() -> None:
    for case in VECTORS["digests"]:
        at = (Epoch(case["epoch"]), View(case["view"]), Hash32(bytes.fromhex(case["block"])))
        assert vote_digest(CHAIN, case["kind"], *at).hex() == case["vote"]
        assert proposal_digest(CHAIN, *at).hex() == case["proposal"]


def certificate_of(c: dict[str, Any]) -> Certificate:
    return Certificate(
        c["kind"],
        Epoch(c["epoch"]),
        View(c["view"]),
        Hash32(bytes.fromhex(c["block"])),
        bytes.fromhex(c["signers"]),
        tuple(Signature(bytes.fromhex(s)) for s in c["signatures"]),
    )


@pytest.mark.parametrize("case", VECTORS["certificates"], ids=lambda c: c["case"])
def test_certificates(case: dict[str, Any]) -> None:
    certificate = certificate_of(case["certificate"])
    if case["valid"]:
        verify_certificate(CHAIN, MEMBERS, certificate)
    else:
        with pytest.raises(VerifyError):
            verify_certificate(CHAIN, MEMBERS, certificate)


def test_a_quorum_is_strictly_more_than_two_thirds() -> None:
    assert not is_quorum(Stake(2), Stake(3))
    assert is_quorum(Stake(3), Stake(4))
    assert not is_quorum(Stake(2 * 10**17), Stake(3 * 10**17))
    assert is_quorum(Stake(2 * 10**17 + 1), Stake(3 * 10**17))
    assert not is_quorum(Stake(0), Stake(0))


def test_assembled_votes_verify_in_any_order() -> None:
    votes = [vote(VoteKind.FINALIZE, A, signer=s) for s in reversed(LAW.signers)]
    certificate = assemble(SET, votes)
    assert certificate.signers == b"\x0f"
    verify_certificate(CHAIN_ID, SET, certificate)
    assert assemble(SET, votes[::-1]) == certificate


@pytest.mark.parametrize(
    "wrong",
    [
        replace(vote(VoteKind.NOTARIZE, A), view=View(4)),
        replace(vote(VoteKind.NOTARIZE, A), signature=Signature(bytes(64))),
        replace(vote(VoteKind.NOTARIZE, A), kind=9),
        vote(VoteKind.NULLIFY, A),
        vote(VoteKind.NOTARIZE, ZERO_HASH),
        vote(VoteKind.NOTARIZE, A, view=0),
        vote(VoteKind.NOTARIZE, A, signer=KeySigner(b"stranger".ljust(32))),
    ],
)
def test_a_wrong_vote_is_refused(wrong: Vote) -> None:
    with pytest.raises(VerifyError):
        verify_vote(CHAIN_ID, SET, wrong)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (vote(VoteKind.NOTARIZE, A), vote(VoteKind.NOTARIZE, B)),
        (vote(VoteKind.FINALIZE, A), vote(VoteKind.FINALIZE, B)),
        (vote(VoteKind.FINALIZE, A), vote(VoteKind.NULLIFY, ZERO_HASH)),
    ],
)
def test_a_double_vote_convicts_in_one_order_only(first: Vote, second: Vote) -> None:
    item = double_vote(first, second)
    assert item == double_vote(second, first)
    assert check_evidence(CHAIN_ID, SET, item) == (LAW.signers[0].public,)
    with pytest.raises(VerifyError, match="canonical order"):
        check_evidence(CHAIN_ID, SET, DoubleVote(item.second, item.first))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (vote(VoteKind.NOTARIZE, A), vote(VoteKind.NULLIFY, ZERO_HASH)),
        (vote(VoteKind.NOTARIZE, A), vote(VoteKind.FINALIZE, A)),
        (vote(VoteKind.NOTARIZE, A), vote(VoteKind.NOTARIZE, B, view=4)),
        (vote(VoteKind.NOTARIZE, A), vote(VoteKind.NOTARIZE, B, signer=LAW.signers[1])),
        (vote(VoteKind.NOTARIZE, A), vote(VoteKind.NOTARIZE, A)),
    ],
)
def test_what_an_honest_validator_may_sign_convicts_nobody(first: Vote, second: Vote) -> None:
    with pytest.raises(VerifyError):
        check_evidence(CHAIN_ID, SET, double_vote(first, second))


def test_two_proposals_of_one_view_convict() -> None:
    signer = LAW.signers[2]
    one, two = (signer.sign_proposal(Epoch(1), View(5), h) for h in (A, B))
    assert check_evidence(CHAIN_ID, SET, double_proposal(one, two)) == (signer.public,)
    other_view = signer.sign_proposal(Epoch(1), View(6), B)
    for wrong in (other_view, one, replace(two, signature=one.signature)):
        with pytest.raises(VerifyError):
            check_evidence(CHAIN_ID, SET, double_proposal(one, wrong))


@pytest.mark.parametrize("case", VECTORS["attacks"], ids=lambda c: c["case"])
def test_light_client_attacks(case: dict[str, Any]) -> None:
    """Two certificates convict whoever signed both, if honest validators sign no two such votes."""
    item = conflicting_certificates(*(certificate_of(c) for c in case["certificates"]))
    if case["guilty"]:
        assert [key.hex() for key in check_evidence(CHAIN, MEMBERS, item)] == case["guilty"]
        with pytest.raises(VerifyError, match="canonical order"):
            check_evidence(CHAIN, MEMBERS, ConflictingCertificates(item.second, item.first))
    else:
        with pytest.raises(VerifyError):
            check_evidence(CHAIN, MEMBERS, item)


def test_an_attack_convicts_whom_its_pairs_convict() -> None:
    for case in VECTORS["attacks"]:
        one, two = (
            {v.signer: v for v in votes_of(MEMBERS, certificate_of(c))}
            for c in case["certificates"]
        )
        for key in case["guilty"]:
            signer = PubKey(bytes.fromhex(key))
            pair = double_vote(one[signer], two[signer])
            assert check_evidence(CHAIN, MEMBERS, pair) == (signer,)


def test_finalizing_rivals_in_two_views_is_not_slashable_by_itself() -> None:
    """Both views may have been notarized by others: who to punish for a fork shows elsewhere."""
    early, late = vote(VoteKind.FINALIZE, A, view=3), vote(VoteKind.FINALIZE, B, view=4)
    with pytest.raises(VerifyError, match="an honest validator may sign"):
        check_evidence(CHAIN_ID, SET, double_vote(early, late))
