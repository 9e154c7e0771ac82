"""What validators say to each other, by gossip while some of them cannot reach each other directly.

Votes, certificates and proposals travel on direct connections. Two validators that are both behind
a NAT have none, and then each publishes what it says on one topic as well: whoever stands between
them passes it on, and takes part in agreeing on it as if it had come directly. In a full mesh
nothing is published (docs/spec/consensus.md, "Flooding"; ADR 17).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from chain.certificates import verify_certificate, verify_seal, verify_vote
from chain.codec import decode, encode
from chain.errors import BlyanError, DecodeError, VerifyError
from chain.types import (
    Block,
    Certificate,
    ChainId,
    ConflictingCertificates,
    Epoch,
    EvidenceItem,
    Proposal,
    Validator,
    View,
    Vote,
    VoteKind,
)
from consensus.simplex.core import WINDOW_VIEWS
from consensus.simplex.messages import Envelope, EpochContext, Message
from consensus.simplex.witness import PROOFS
from node.net import limits as net_limits
from node.net.kademlia import Rate
from node.net.port import GossipHandler

log = logging.getLogger("blyan.consensus")
FLOOD_TOPIC = "blyan/consensus/1"
UNREACHED_S = 3.0  # a member without a connection for so long: those that break are redialled first
STALLED_S = 5.0  # without finality for so long, members that were never heard are flooded to, too
FLOODS_PER_S, FLOOD_BURST = 32.0, 64.0  # own publishes; one costs 2 ms on every node
AGAIN_S = 1.0  # one vote, certificate or proposal is passed on once within this
MAX_SEEN = 16_384  # of these remembered: 100 validators, 3 votes, 16 views ahead, three times
OLD_VIEWS = 2 * WINDOW_VIEWS  # behind this node's view: of no use to anybody any more

Said = Vote | Certificate | Proposal | EvidenceItem
Seen = tuple[int | str | bytes, ...]


class FloodNet(Protocol):
    """What flooding needs of the network port."""

    def subscribe(self, topic: str, handler: GossipHandler) -> None: ...

    async def publish(self, topic: str, data: bytes) -> None: ...


class Place(Protocol):
    """Where this node's consensus stands; `consensus.simplex.core.Simplex` is one."""

    @property
    def epoch(self) -> Epoch: ...

    @property
    def view(self) -> View: ...


class Flood:
    """`context(epoch)`: its validators, None if they are not known here. `take(peer, message)`: a
    verified message goes into the core, evidence is verified and kept; False if that refuses it or
    knows it, VerifyError if evidence does not hold. `body_matches`: as the core's."""

    def __init__(
        self,
        net: FloodNet,
        chain_id: ChainId,
        place: Place,
        context: Callable[[Epoch], EpochContext | None],
        take: Callable[[str, Message | EvidenceItem], bool],
        body_matches: Callable[[Block], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._net, self._chain_id, self._place = net, chain_id, place
        self._context_of, self._take, self._clock = context, take, clock
        self._body_matches = body_matches
        self._contexts: dict[Epoch, EpochContext] = {}
        self._unreached: dict[str, float] = {}  # members that could not be sent to, since when
        self._final_at = clock()
        self._rate = Rate(FLOODS_PER_S, FLOOD_BURST)
        self._seen: OrderedDict[Seen, float] = OrderedDict()
        self._publishing: set[asyncio.Task[None]] = set()
        self.published = self.passed_on = 0
        net.subscribe(FLOOD_TOPIC, self.judge)

    # --- own messages --------------------------------------------------------------------

    def finalized(self) -> None:
        """A block is final: consensus moves."""
        self._final_at = self._clock()

    def said(
        self,
        messages: Sequence[Message | EvidenceItem],
        unsent: Sequence[Validator],
        is_heard: Callable[[Validator], bool],
    ) -> None:
        """This node has said `messages` to all members but `unsent`, who are not connected.

        Published for members who take part all the same (others hear them), and for all of them
        while nothing becomes final: it may be for want of just their votes.
        """
        now = self._clock()
        self._unreached = {v.node_id: self._unreached.get(v.node_id, now) for v in unsent}
        lost = [v for v in unsent if now - self._unreached[v.node_id] >= UNREACHED_S]
        is_stalled = now - self._final_at >= STALLED_S
        if not lost or not (is_stalled or any(is_heard(v) for v in lost)):
            return
        if not self._rate.take("", now):
            return
        messages = [m for m in messages if isinstance(m, Said)]
        if not messages:
            return
        data = encode(Envelope(tuple(messages)))
        if len(data) > net_limits.MAX_GOSSIP_BYTES:  # who lacks the block asks for it by its hash
            small = tuple(m for m in messages if not isinstance(m, Proposal))
            if not small:
                return
            data = encode(Envelope(small))
        self._spawn(data)

    def _spawn(self, data: bytes) -> None:
        async def publish() -> None:
            try:
                await self._net.publish(FLOOD_TOPIC, data)
                self.published += 1
            except BlyanError as error:
                log.debug("not flooded, it will be said again: %s", error)

        task = asyncio.get_running_loop().create_task(publish())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    # --- others' messages ------------------------------------------------------------------

    async def judge(self, peer: str, data: bytes) -> bool | None:
        """As `Network.subscribe` wants. Passed on is only what this node has verified, what is of
        use now, and what was not passed on within a second, however it is packed; refused is only
        what every node refuses."""
        try:
            envelope: Envelope = decode(Envelope, data)
        except DecodeError:
            return False
        messages = [m for m in envelope.messages if isinstance(m, Said)]
        if len(messages) < len(envelope.messages):
            return False  # questions and their answers are between two
        now = self._clock()
        names = [_name(message) for message in messages]
        fresh = [n for n in names if now - self._seen.get(n, now - AGAIN_S) >= AGAIN_S]
        if not fresh:
            return None
        known = [m for m in messages if self._is_of_use(m)]
        try:
            for message in known:
                self._verify(message)
            taken = [self._take(peer, message) for message in messages]
        except VerifyError:
            return False
        if len(known) < len(messages) or not all(taken) or 2 * len(fresh) < len(names):
            return None
        for name in fresh:
            self._seen[name] = now
            self._seen.move_to_end(name)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        self.passed_on += 1
        return True

    def _is_of_use(self, message: Said) -> bool:
        """Of this epoch and about now; or a certificate of the epoch before, which others need to
        end that. Only what is can be verified, and bounded. Of evidence the taker knows."""
        if isinstance(message, EvidenceItem):
            return True
        about = message.seal if isinstance(message, Proposal) else message
        if self._context(about.epoch) is None:
            return False
        if about.epoch == self._place.epoch:
            view = self._place.view
            return view - OLD_VIEWS <= about.view <= view + WINDOW_VIEWS
        return isinstance(message, Certificate)

    def _context(self, epoch: Epoch) -> EpochContext | None:
        """Of the current epoch and the one before; None for any other."""
        current = self._place.epoch
        if not current - 1 <= epoch <= current:
            return None
        if epoch not in self._contexts:
            found = self._context_of(epoch)
            if found is None:
                return None
            kept = {e: c for e, c in self._contexts.items() if e >= current - 1}
            self._contexts = {**kept, epoch: found}
        return self._contexts[epoch]

    def _verify(self, message: Said) -> None:
        """Raises VerifyError if anything in a message is wrong, also what no seal covers. Evidence
        is verified by its taker, against a set that may be of long ago."""
        if isinstance(message, EvidenceItem):
            return
        if isinstance(message, Proposal):
            self._verify_proposal(message)
            return
        context = self._context(message.epoch)
        if context is None:
            raise VerifyError(f"a message of epoch {message.epoch}")
        if isinstance(message, Vote):
            verify_vote(self._chain_id, context.validators, message)
        else:
            verify_certificate(self._chain_id, context.validators, message)

    def _verify_proposal(self, proposal: Proposal) -> None:
        """Its seal, and what that does not cover: the block's body and what it shows."""
        seal = proposal.seal
        context = self._context(seal.epoch)
        if context is None:
            raise VerifyError(f"a proposal of epoch {seal.epoch}")
        verify_seal(self._chain_id, context.validators, seal)
        leader = context.validators.members[context.leader_of(seal.view)]
        if seal.signer != leader.consensus_key:
            raise VerifyError(f"a proposal for view {seal.view} by another than its leader")
        if proposal.block.hash() != seal.block_hash:
            raise VerifyError("a block that is not the one its proposer signed")
        if not self._body_matches(proposal.block):
            raise VerifyError("a block whose transactions or evidence are not its header's")
        proof = proposal.parent_notarization
        if proof is not None and proof.kind not in PROOFS:
            raise VerifyError(f"a proposal shows kind {proof.kind} as its parent's notarization")
        if any(c.kind != VoteKind.NULLIFY for c in proposal.nullifications):
            raise VerifyError("a proposal shows something else as a nullification")
        for shown in (
            proposal.nullifications if proof is None else (proof, *proposal.nullifications)
        ):
            if shown.epoch != seal.epoch:
                raise VerifyError(f"a proposal shows a certificate of epoch {shown.epoch}")
            verify_certificate(self._chain_id, context.validators, shown)


def _name(message: Said) -> Seen:
    """What counts as said already. Not by hash or signature: who signs two things at once, or
    assembles a certificate in many ways, gets no more passed on than others."""
    if isinstance(message, Vote):
        return "vote", message.kind, message.epoch, message.view, message.signer
    if isinstance(message, Certificate):
        return "certificate", message.kind, message.epoch, message.view
    if isinstance(message, ConflictingCertificates):
        return "attack", message.first.epoch, message.first.view
    if isinstance(message, EvidenceItem):
        return "evidence", message.first.epoch, message.first.signer
    return "proposal", message.seal.epoch, message.seal.view
