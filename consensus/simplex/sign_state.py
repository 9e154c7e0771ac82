"""What this node's key has signed: the guard against signing twice (R3, R5), also after a crash."""

from __future__ import annotations

from collections.abc import Iterator

from chain.errors import invariant
from chain.hashes import Hash32
from chain.types import Epoch, ProposalSeal, PubKey, View, Vote, VoteKind
from consensus.simplex.messages import Signer, SignFloor

LAST_VIEW = View(2**64 - 1)
_EXCLUDES = {VoteKind.FINALIZE: VoteKind.NULLIFY, VoteKind.NULLIFY: VoteKind.FINALIZE}


class SignState:
    """Own votes and proposals above a floor. Without a signer it refuses everything.

    The same sign-bytes return the stored signature. What contradicts an earlier signature, or lies
    at or below the floor, is refused: the caller gets None and stays silent. Votes of later epochs
    (a log that outlived its store) are kept and respected when their epoch comes.
    """

    def __init__(self, signer: Signer | None) -> None:
        self._signer = signer
        self._votes: dict[tuple[Epoch, View, int], Vote] = {}
        self._seals: dict[tuple[Epoch, View], ProposalSeal] = {}
        self._floor: tuple[Epoch, View] = (Epoch(0), View(0))

    @property
    def public(self) -> PubKey | None:
        return None if self._signer is None else self._signer.public

    @property
    def floor(self) -> SignFloor:
        return SignFloor(*self._floor)

    def abstains(self, epoch: Epoch, view: View) -> bool:
        """Whether nothing new may be signed in a view: below the floor, or without a key."""
        return self._signer is None or (epoch, view) <= self._floor

    def signed(self, kind: VoteKind, epoch: Epoch, view: View) -> Vote | None:
        return self._votes.get((epoch, view, kind))

    def sealed(self, epoch: Epoch, view: View) -> ProposalSeal | None:
        return self._seals.get((epoch, view))

    def vote(
        self, kind: VoteKind, epoch: Epoch, view: View, block_hash: Hash32
    ) -> tuple[Vote, bool] | None:
        """(the vote, whether it is new and must be persisted), or None when it must not be signed:
        R3 notarize once per view ever, R5 never both finalize and nullify."""
        stored = self._votes.get((epoch, view, kind))
        if stored is not None:
            return (stored, False) if stored.block_hash == block_hash else None
        if self._signer is None or self.abstains(epoch, view):
            return None
        if kind in _EXCLUDES and (epoch, view, _EXCLUDES[kind]) in self._votes:
            return None
        vote = self._signer.sign_vote(kind, epoch, view, block_hash)
        invariant(
            (vote.kind, vote.epoch, vote.view, vote.block_hash, vote.signer)
            == (kind, epoch, view, block_hash, self._signer.public),
            "the signer signed what it was asked to",
        )
        self._votes[epoch, view, kind] = vote
        return vote, True

    def seal(
        self, epoch: Epoch, view: View, block_hash: Hash32
    ) -> tuple[ProposalSeal, bool] | None:
        """(the seal, whether it is new), or None when another block was proposed in this view."""
        stored = self._seals.get((epoch, view))
        if stored is not None:
            return (stored, False) if stored.block_hash == block_hash else None
        if self._signer is None or self.abstains(epoch, view):
            return None
        seal = self._signer.sign_proposal(epoch, view, block_hash)
        invariant(
            (seal.epoch, seal.view, seal.block_hash) == (epoch, view, block_hash),
            "the signer sealed what it was asked to",
        )
        self._seals[epoch, view] = seal
        return seal, True

    def adopt(self, record: Vote | ProposalSeal) -> bool:
        """Take a verified vote or seal of our own key that this log does not know (a lost log, a
        second process with the same key) as signed, so as not to contradict it. True if new."""
        at = (record.epoch, record.view)
        if record.signer != self.public or at <= self._floor:
            return False
        if isinstance(record, Vote):
            return self._votes.setdefault((*at, record.kind), record) is record
        return self._seals.setdefault(at, record) is record

    def restore(self, record: Vote | ProposalSeal | SignFloor) -> None:
        """Take one record of our own log."""
        if isinstance(record, SignFloor):
            self._floor = max(self._floor, (record.epoch, record.view))
        elif record.signer != self.public:
            return  # the operator has changed keys
        elif isinstance(record, Vote):
            self._votes[record.epoch, record.view, record.kind] = record
        else:
            self._seals[record.epoch, record.view] = record

    def votes(self, epoch: Epoch) -> list[Vote]:
        """Own votes of an epoch, in the order of views."""
        return [v for (e, _, _), v in sorted(self._votes.items(), key=_position) if e == epoch]

    def prune(self, epoch: Epoch, view: View) -> None:
        """Everything up to (epoch, view) is final: forget it and never sign there again."""
        self._floor = max(self._floor, (epoch, view))
        self._votes = {k: v for k, v in self._votes.items() if k[:2] > self._floor}
        self._seals = {k: v for k, v in self._seals.items() if k > self._floor}

    def records(self) -> Iterator[Vote | ProposalSeal | SignFloor]:
        """What a rotated log must still hold."""
        yield self.floor
        yield from self._seals.values()
        yield from self._votes.values()


def _position(item: tuple[tuple[Epoch, View, int], Vote]) -> tuple[Epoch, View, int]:
    return item[0]
