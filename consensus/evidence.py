"""Slashable evidence: always a pair of messages, signed by one validator, that no honest one signs
together (DESIGN 6). It carries its own proof.

The pairs: two notarizes or two finalizes of one view for different blocks, a finalize with a
nullify of one view, two proposals of one view. A notarize with a nullify is honest (R5).
"""

from __future__ import annotations

from chain.codec import encode
from chain.errors import VerifyError
from chain.types import (
    ChainId,
    DoubleProposal,
    DoubleVote,
    EvidenceItem,
    ProposalSeal,
    PubKey,
    ValidatorSet,
    Vote,
    VoteKind,
)
from consensus.certificates import verify_seal, verify_vote


def votes_conflict(a: Vote, b: Vote) -> bool:
    """Whether an honest validator never signs both. Both are of one signer."""
    if (a.signer, a.epoch, a.view) != (b.signer, b.epoch, b.view):
        return False
    if a.kind == b.kind:
        return a.block_hash != b.block_hash
    return {a.kind, b.kind} == {VoteKind.FINALIZE, VoteKind.NULLIFY}


def double_vote(a: Vote, b: Vote) -> DoubleVote:
    """The pair in canonical order, so that it has one id however it was found."""
    return DoubleVote(*sorted((a, b), key=encode))


def double_proposal(a: ProposalSeal, b: ProposalSeal) -> DoubleProposal:
    return DoubleProposal(*sorted((a, b), key=encode))


def check_evidence(chain_id: ChainId, validators: ValidatorSet, item: EvidenceItem) -> PubKey:
    """The guilty consensus key, or VerifyError. `validators` is the set of the item's epoch."""
    if encode(item.first) >= encode(item.second):
        raise VerifyError("evidence: its two messages are equal or not in canonical order")
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
