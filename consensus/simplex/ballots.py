"""The votes and certificates of one epoch, and when votes become a certificate."""

from __future__ import annotations

from collections.abc import Iterator

from chain.certificates import assemble, is_quorum
from chain.hashes import Hash32
from chain.types import (
    Certificate,
    DoubleVote,
    PubKey,
    Stake,
    ValidatorSet,
    View,
    Vote,
    VoteKind,
)
from consensus.evidence import double_vote, votes_conflict

# Votes this many views below the last final one are kept: late ones still convict.
EVIDENCE_VIEWS = 8


def contradict(one: Certificate, other: Certificate) -> bool:
    """Whether two certificates of one view need more than W/3 of liars: honest nodes notarize one
    block a view, finalize only that which is notarized, and never finalize and nullify (R3-R5)."""
    kinds = {one.kind, other.kind}
    if VoteKind.NULLIFY in kinds:
        return VoteKind.FINALIZE in kinds
    return one.block_hash != other.block_hash


class Ballots:
    """Holds verified votes and certificates only. The first vote of each kind counts, once."""

    def __init__(self, validators: ValidatorSet) -> None:
        self._validators = validators
        self._total = validators.total
        self._stake = {v.consensus_key: v.stake for v in validators.members}
        self._votes: dict[View, dict[tuple[int, PubKey], Vote]] = {}
        self._weight: dict[View, dict[tuple[int, Hash32], int]] = {}
        self._convicted: dict[View, set[PubKey]] = {}
        self._certificates: dict[VoteKind, dict[View, Certificate]] = {k: {} for k in VoteKind}

    def knows(self, vote: Vote) -> bool:
        return self._votes.get(vote.view, {}).get((vote.kind, vote.signer)) == vote

    def add(self, vote: Vote) -> DoubleVote | None:
        """Count a verified vote; a proof, once, if its signer contradicts an earlier vote."""
        votes = self._votes.setdefault(vote.view, {})
        earlier = (votes.get((kind, vote.signer)) for kind in VoteKind)
        conflict = next((e for e in earlier if e is not None and votes_conflict(e, vote)), None)
        if (vote.kind, vote.signer) not in votes:
            votes[vote.kind, vote.signer] = vote
            weights = self._weight.setdefault(vote.view, {})
            thing = (vote.kind, vote.block_hash)
            weights[thing] = weights.get(thing, 0) + self._stake[vote.signer]
        if conflict is None or vote.signer in self._convicted.setdefault(vote.view, set()):
            return None
        self._convicted[vote.view].add(vote.signer)
        return double_vote(conflict, vote)

    def voted(self, kind: VoteKind, view: View, signer: PubKey) -> bool:
        return (kind, signer) in self._votes.get(view, {})

    def quorum(self, vote: Vote) -> Certificate | None:
        """The certificate for what `vote` says, if its votes make a quorum and none is held yet."""
        if self.certificate(VoteKind(vote.kind), vote.view) is not None:
            return None
        weight = self._weight.get(vote.view, {}).get((vote.kind, vote.block_hash), 0)
        if not is_quorum(Stake(weight), self._total):
            return None
        votes = self._votes[vote.view].values()
        agreeing = [v for v in votes if (v.kind, v.block_hash) == (vote.kind, vote.block_hash)]
        return assemble(self._validators, agreeing)

    def put(self, certificate: Certificate) -> None:
        self._certificates[VoteKind(certificate.kind)][certificate.view] = certificate

    def certificate(self, kind: VoteKind, view: View) -> Certificate | None:
        return self._certificates[kind].get(view)

    def against(self, certificate: Certificate) -> Certificate | None:
        """A held certificate that cannot stand beside this one."""
        held = (self._certificates[kind].get(certificate.view) for kind in VoteKind)
        return next((c for c in held if c is not None and contradict(c, certificate)), None)

    def proof_of(self, view: View) -> Certificate | None:
        """What shows that a block was notarized in `view`. A finalization shows it as well: honest
        nodes sign finalize only after a notarization (R4)."""
        found = self.certificate(VoteKind.NOTARIZE, view)
        return found or self.certificate(VoteKind.FINALIZE, view)

    def certificates(self) -> Iterator[Certificate]:
        for kind in VoteKind:
            yield from self._certificates[kind].values()

    def certified(self) -> Iterator[Certificate]:
        """Certificates that name a block, the lowest view first."""
        both = [VoteKind.NOTARIZE, VoteKind.FINALIZE]
        found = [c for kind in both for c in self._certificates[kind].values()]
        yield from sorted(found, key=lambda c: (c.view, c.kind))

    def prune(self, view: View) -> None:
        """Everything up to `view` is final."""
        for kind in VoteKind:
            held = self._certificates[kind]
            self._certificates[kind] = {v: c for v, c in held.items() if v > view}
        oldest = view - EVIDENCE_VIEWS
        self._votes = {v: votes for v, votes in self._votes.items() if v > oldest}
        self._weight = {v: w for v, w in self._weight.items() if v > oldest}
        self._convicted = {v: c for v, c in self._convicted.items() if v > oldest}
