"""Slashable evidence: always a pair of messages, signed by one validator, that no honest one signs
together. It carries its own proof.

The pairs: two notarizes or two finalizes of one view for different blocks, a finalize with a
nullify of one view, two proposals of one view. A notarize with a nullify is honest (R5), and so is
a notarize of one block with a finalize of another: the first is a vote, the second follows a
quorum's. Two finalizes of different views prove nothing against their signer alone, whatever their
blocks: it may have entered both views by certificates that others made.

A light-client attack is shown by two certificates of one view. They are many such pairs at once:
whoever signed both is guilty, and two quorums share more than a third of the stake.
"""

from __future__ import annotations

from chain.certificates import verify_certificate, verify_seal, verify_vote
from chain.codec import encode
from chain.errors import VerifyError
from chain.types import (
    Certificate,
    ChainId,
    ConflictingCertificates,
    DoubleProposal,
    DoubleVote,
    EvidenceItem,
    ProposalSeal,
    PubKey,
    ValidatorSet,
    Vote,
    VoteKind,
    accused,
)


def votes_conflict(a: Vote, b: Vote) -> bool:
    """Whether an honest validator never signs both. Both are of one signer."""
    return a.signer == b.signer and _conflict(a, b)


def certificates_conflict(a: Certificate, b: Certificate) -> bool:
    """Whether whoever signed both has signed a pair that no honest validator signs."""
    return _conflict(a, b)


def _conflict(a: Vote | Certificate, b: Vote | Certificate) -> bool:
    if (a.epoch, a.view) != (b.epoch, b.view):
        return False
    if a.kind == b.kind:
        return a.block_hash != b.block_hash
    return {a.kind, b.kind} == {VoteKind.FINALIZE, VoteKind.NULLIFY}


def double_vote(a: Vote, b: Vote) -> DoubleVote:
    """The pair in canonical order, so that it has one id however it was found."""
    return DoubleVote(*sorted((a, b), key=encode))


def double_proposal(a: ProposalSeal, b: ProposalSeal) -> DoubleProposal:
    return DoubleProposal(*sorted((a, b), key=encode))


def conflicting_certificates(a: Certificate, b: Certificate) -> ConflictingCertificates:
    return ConflictingCertificates(*sorted((a, b), key=encode))


def check_evidence(
    chain_id: ChainId, validators: ValidatorSet, item: EvidenceItem
) -> tuple[PubKey, ...]:
    """The guilty consensus keys, at least one, in the set's order; or VerifyError. `validators` is
    the set of the item's epoch."""
    if encode(item.first) >= encode(item.second):
        raise VerifyError("evidence: its two messages are equal or not in canonical order")
    if isinstance(item, ConflictingCertificates):
        if not certificates_conflict(item.first, item.second):
            raise VerifyError("evidence: honest validators may sign both of these certificates")
        verify_certificate(chain_id, validators, item.first)
        verify_certificate(chain_id, validators, item.second)
        return accused(validators, item)
    return (_check_pair(chain_id, validators, item),)


def _check_pair(
    chain_id: ChainId, validators: ValidatorSet, item: DoubleVote | DoubleProposal
) -> PubKey:
    if isinstance(item, DoubleVote):
        if not votes_conflict(item.first, item.second):
            raise VerifyError("evidence: an honest validator may sign both of these votes")
        verify_vote(chain_id, validators, item.first)
        verify_vote(chain_id, validators, item.second)
        return item.first.signer
    one, two = item.first, item.second
    if (one.signer, one.epoch, one.view) != (two.signer, two.epoch, two.view):
        raise VerifyError("evidence: two proposals of different leaders or views")
    if one.block_hash == two.block_hash:
        raise VerifyError("evidence: both proposals are of the same block")
    verify_seal(chain_id, validators, one)
    verify_seal(chain_id, validators, two)
    return one.signer
