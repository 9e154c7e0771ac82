"""Which parent a leader may extend (R2) and what makes a proposal valid (R3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chain import limits
from chain.codec import encode
from chain.errors import BlockError
from chain.hashes import Hash32
from chain.types import HEADER_VERSION, Block, Certificate, Header, Proposal, View, VoteKind
from consensus.simplex.ballots import Ballots
from consensus.simplex.messages import Config, EpochContext
from consensus.simplex.tree import BlockTree

# Certificates shown with one proposal or in one answer; the block takes the rest of a message.
CERTIFICATE_BYTES = limits.MAX_MESSAGE_BYTES - limits.MAX_BLOCK_BYTES - 64 * 1024


@dataclass(frozen=True, slots=True)
class Ground:
    """What a proposal stands on: an executed parent, the proof of its notarization (None for the
    epoch's view 0), the views between shown as nullified."""

    parent: Header
    parent_hash: Hash32
    proof: Certificate | None
    nullifications: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class Lack:
    """Not decidable yet: certificates of the views up to `view` are missing, or a parent (None)."""

    view: View | None


class Chamber:
    """Everything R2 and R3 look at, for one epoch. `floor` is the last final view."""

    def __init__(
        self, config: Config, context: EpochContext, tree: BlockTree, ballots: Ballots
    ) -> None:
        self._config, self._context, self._tree, self._ballots = config, context, tree, ballots
        self._validators_hash = context.validators.hash()
        self.floor = View(0)
        self.floor_proof: Certificate | None = None

    def ground(self, view: View, block_hash: Hash32 | None = None) -> Ground | Lack:
        """R2: the highest notarized and executed block below `view`, with nullifications of every
        view between; or, for `block_hash`, that very parent."""
        between: list[Certificate] = []
        for below in range(view - 1, self.floor, -1):
            proof = self._ballots.proof_of(View(below))
            if proof is not None and block_hash in (None, proof.block_hash):
                parent = self._tree.executed(proof.block_hash)
                if parent is not None:
                    return Ground(parent, proof.block_hash, proof, within(between))
            nullification = self._ballots.certificate(VoteKind.NULLIFY, View(below))
            if nullification is None:
                return Lack(None if proof is not None else View(below))
            between.append(nullification)
        if block_hash not in (None, self._tree.tip_hash):
            return Lack(None)
        if self.floor > 0 and self.floor_proof is None:
            return Lack(View(self.floor + 1))  # the tip's own proof is still to be found
        return Ground(self._tree.tip, self._tree.tip_hash, self.floor_proof, within(between))

    def is_last(self, header: Header) -> bool:
        """Whether `header` is this epoch's last block, so that it is re-proposed, not extended."""
        same = header.epoch == self._context.epoch and header.height > 0
        return same and self._config.is_last(header.height)

    def judge(self, proposal: Proposal, *, of_leader: bool) -> Header | Lack:
        """R3 without the execution: the parent's header if the proposal is valid so far, Lack while
        that cannot be told. Raises BlockError if it never can be.

        What a proposal shows proves nothing by itself: its parent is the final tip, or certified
        by what this node has verified and holds. A proof at or below the final view is not looked
        at: there, only the tip can be a parent.

        `of_leader`: the leader's own node sent it, and answers for the proof as well. Its seal does
        not cover that, so a copy that others brought is judged by what is sealed alone: a proof
        that somebody took away or put there is no reason to reject the leader's block.
        """
        view, header = proposal.seal.view, proposal.block.header
        again = header.view < view
        named = proposal.seal.block_hash if again else header.parent
        if of_leader:
            below = self._shown_in(proposal, named, again)
        else:
            found = self._certified_in(named, view)
            if found is None:
                return Lack(View(view - 1))
            below = found
        if again and not (self.is_last(header) and header.view <= below):
            raise BlockError("only the epoch's last block is proposed again")
        proof = proposal.parent_notarization
        if of_leader and proof is not None and below > self.floor and not self._holds(proof):
            return Lack(below)
        for between in range(view - 1, max(below, self.floor), -1):
            if self._ballots.certificate(VoteKind.NULLIFY, View(between)) is None:
                return Lack(View(between))
        parent = self._tree.executed(header.parent)
        if parent is None:
            return Lack(None)
        if not again:
            self._check_header(header, view, parent)
        return parent

    def _shown_in(self, proposal: Proposal, named: Hash32, again: bool) -> View:
        """The view of the proof that a proposal shows for its parent, 0 without one. BlockError if
        there is none, or not such a one."""
        proof, view = proposal.parent_notarization, proposal.seal.view
        below = View(0) if proof is None else proof.view
        if proof is not None and (proof.block_hash != named or below >= view):
            raise BlockError("the notarization it shows is not of its parent")
        if proof is None and (again or self.floor > 0 or named != self._tree.tip_hash):
            raise BlockError("it shows no notarization of its parent")
        if below <= self.floor and named != self._tree.tip_hash:
            raise BlockError(f"its parent, of view {below}, is not above final view {self.floor}")
        return below

    def _certified_in(self, block_hash: Hash32, view: View) -> View | None:
        """The highest view below `view` in which a block is known to be certified."""
        if block_hash == self._tree.tip_hash:
            return self.floor
        for below in range(view - 1, self.floor, -1):
            proof = self._ballots.proof_of(View(below))
            if proof is not None and proof.block_hash == block_hash:
                return View(below)
        return None

    def _holds(self, proof: Certificate) -> bool:
        """Whether a verified certificate says what `proof` says."""
        held = self._ballots.certificate(VoteKind(proof.kind), proof.view)
        return held is not None and held.block_hash == proof.block_hash

    def _check_header(self, header: Header, view: View, parent: Header) -> None:
        members = self._context.validators.members
        wrong = [
            name
            for name, ok in (
                ("version", header.version == HEADER_VERSION),
                ("chain id", header.chain_id == self._config.chain_id),
                ("epoch", header.epoch == self._context.epoch),
                ("view", header.view == view),
                ("height", header.height == parent.height + 1),
                ("time", header.time_ms > parent.time_ms),
                ("validator set", header.validators_hash == self._validators_hash),
                (
                    "proposer",
                    header.proposer == members[self._context.leader_of(view)].consensus_key,
                ),
            )
            if not ok
        ]
        if wrong:
            raise BlockError("wrong in its header: " + ", ".join(wrong))
        if self.is_last(parent):
            raise BlockError("it extends the epoch's last block")


def within(certificates: list[Certificate]) -> tuple[Certificate, ...]:
    """As many of the first `certificates` as one message may carry; who lacks others asks."""
    return tuple(_fitting(certificates))


def _fitting(certificates: list[Certificate]) -> Iterator[Certificate]:
    size = 0
    for certificate in certificates[: limits.MAX_NULLIFICATIONS]:
        size += len(encode(certificate))
        if size > CERTIFICATE_BYTES:
            return
        yield certificate


def transactions_above(tree: BlockTree, parent_hash: Hash32) -> int:
    """Unfinalized blocks up to `parent_hash` that carry transactions."""
    path = tree.path(parent_hash)
    return sum(1 for n in path if n.block.txs) if isinstance(path, list) else 0


def carries_too_much(block: Block) -> bool:
    return len(encode(block)) > limits.MAX_BLOCK_BYTES
