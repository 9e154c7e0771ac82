"""Votes and certificates: what counts as more than two thirds of an epoch's stake.

Quorum is `3·w > 2·W` in integers, W the stake of the whole set, constant within an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chain.crypto import verify
from chain.errors import VerifyError, invariant
from chain.hashes import ZERO_HASH
from chain.types import (
    Certificate,
    ChainId,
    ProposalSeal,
    Stake,
    ValidatorSet,
    Vote,
    VoteKind,
    proposal_digest,
    vote_digest,
)

_KINDS = frozenset(VoteKind)


def is_quorum(weight: Stake, total: Stake) -> bool:
    """More than two thirds: two such sets share more than a third, hence an honest member."""
    return 3 * weight > 2 * total


def verify_vote(chain_id: ChainId, validators: ValidatorSet, vote: Vote) -> None:
    """Raise VerifyError unless a member of `validators` signed a well-formed `vote`."""
    _check_form(vote.kind, vote.view, vote.block_hash, "vote")
    if validators.index_of(vote.signer) is None:
        raise VerifyError(f"vote by {vote.signer.hex()}, who is no validator of epoch {vote.epoch}")
    digest = vote_digest(chain_id, vote.kind, vote.epoch, vote.view, vote.block_hash)
    if not verify(vote.signer, digest, vote.signature):
        raise VerifyError(f"vote of view {vote.view}: signature of {vote.signer.hex()} is wrong")


def verify_seal(chain_id: ChainId, validators: ValidatorSet, seal: ProposalSeal) -> None:
    """Raise VerifyError unless a member of `validators` signed `seal`. Whether it leads the view is
    the caller's question."""
    _check_form(VoteKind.NOTARIZE, seal.view, seal.block_hash, "proposal")
    if validators.index_of(seal.signer) is None:
        raise VerifyError(f"proposal by {seal.signer.hex()}, who is no validator of {seal.epoch}")
    digest = proposal_digest(chain_id, seal.epoch, seal.view, seal.block_hash)
    if not verify(seal.signer, digest, seal.signature):
        raise VerifyError(f"proposal of view {seal.view}: its leader's signature is wrong")


def verify_certificate(
    chain_id: ChainId, validators: ValidatorSet, certificate: Certificate
) -> None:
    """Raise VerifyError unless members with a quorum of the stake signed what `certificate` says.

    The caller has chosen the set of `certificate.epoch`. The bitmap has exactly the bytes the set
    needs and no bit beyond it, so a certificate of given votes has one encoding.
    """
    _check_form(certificate.kind, certificate.view, certificate.block_hash, "certificate")
    size = len(validators.members)
    if len(certificate.signers) != (size + 7) // 8:
        raise VerifyError(
            f"certificate: bitmap of {len(certificate.signers)} bytes for {size} validators"
        )
    indices = certificate.indices()
    if indices and indices[-1] >= size:
        raise VerifyError(f"certificate: signer {indices[-1]} of a set of {size}")
    if len(indices) != len(certificate.signatures):
        raise VerifyError(
            f"certificate: {len(certificate.signatures)} signatures by {len(indices)} signers"
        )
    weight = Stake(sum(validators.members[i].stake for i in indices))
    if not is_quorum(weight, validators.total):
        raise VerifyError(f"certificate: stake {weight} of {validators.total} is no quorum")
    digest = vote_digest(
        chain_id, certificate.kind, certificate.epoch, certificate.view, certificate.block_hash
    )
    for index, signature in zip(indices, certificate.signatures, strict=True):
        if not verify(validators.members[index].consensus_key, digest, signature):
            raise VerifyError(f"certificate of view {certificate.view}: signature {index} is wrong")


def assemble(validators: ValidatorSet, votes: Iterable[Vote]) -> Certificate:
    """The certificate of verified `votes`, all for one thing, by different members. The caller has
    counted a quorum."""
    by_index: dict[int, Vote] = {}
    for vote in votes:
        index = validators.index_of(vote.signer)
        invariant(index is not None and index not in by_index, "one vote a member")
        by_index[index or 0] = vote
    indices = sorted(by_index)
    invariant(bool(indices), "a certificate needs votes")
    first = by_index[indices[0]]
    bitmap = bytearray((len(validators.members) + 7) // 8)
    for index in indices:
        vote = by_index[index]
        invariant(
            (vote.kind, vote.epoch, vote.view, vote.block_hash)
            == (first.kind, first.epoch, first.view, first.block_hash),
            "votes of one certificate agree",
        )
        bitmap[index // 8] |= 1 << index % 8
    return Certificate(
        kind=first.kind,
        epoch=first.epoch,
        view=first.view,
        block_hash=first.block_hash,
        signers=bytes(bitmap),
        signatures=tuple(by_index[i].signature for i in indices),
    )


def votes_of(validators: ValidatorSet, certificate: Certificate) -> Iterator[Vote]:
    """The votes that a verified certificate was assembled from, in index order."""
    for index, signature in zip(certificate.indices(), certificate.signatures, strict=True):
        yield Vote(
            kind=certificate.kind,
            epoch=certificate.epoch,
            view=certificate.view,
            block_hash=certificate.block_hash,
            signer=validators.members[index].consensus_key,
            signature=signature,
        )


def _check_form(kind: int, view: int, block_hash: bytes, what: str) -> None:
    if kind not in _KINDS:
        raise VerifyError(f"{what} of unknown kind {kind}")
    if view < 1:
        raise VerifyError(f"{what}: views start at 1")
    if (kind == VoteKind.NULLIFY) != (block_hash == ZERO_HASH):
        raise VerifyError(f"{what}: a nullify, and only a nullify, names the zero hash")
