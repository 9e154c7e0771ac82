"""Simplex (Chan and Pass, eprint 2023/463), stake-weighted, as a sans-I/O state machine."""

from __future__ import annotations

from chain.errors import BlockError, VerifyError, invariant
from chain.hashes import ZERO_HASH, Hash32
from chain.types import (
    Block,
    Certificate,
    Epoch,
    Header,
    Proposal,
    ProposalSeal,
    View,
    Vote,
    VoteKind,
)
from consensus.simplex.ballots import EVIDENCE_VIEWS
from consensus.simplex.messages import (
    BlockReply,
    BlockRequest,
    Build,
    CertificateRequest,
    Deliver,
    Effect,
    EpochContext,
    Message,
    Refuse,
    Rejected,
    Send,
    Timer,
    TimerKind,
)
from consensus.simplex.proposals import Ground, Lack, carries_too_much, transactions_above
from consensus.simplex.rules import CERTIFIED, REFUSED, SIGNED, Rule
from consensus.simplex.tree import Status
from consensus.simplex.witness import Witness

WINDOW_VIEWS = 16  # votes and proposals this far ahead of the current view are kept
MAX_PROPOSALS = 32  # proposals kept, the highest views first
MAX_UNFINALIZED = 16  # unfinalized blocks that carry transactions


class Simplex(Witness):
    """One node's part in agreeing on blocks; without a signer, or outside the set, it follows.

    Quorum means `3·w > 2·W` of the epoch's stake. Messages name (epoch, view). Views start at 1 in
    each epoch; view 0 is its root, the last block of the epoch before. The rules:

    R1  On entering view v start two timers: 2Δ for the leader's proposal, 3Δ to advance. Both are
        longer by the interval for which a leader without work may wait; once its proposal is
        here, 2Δ from then are enough to advance.
    R2  The leader extends the highest notarized parent p that it has executed and shows
        nullifications of every view between p and v. What it lacks it fetches; it nullifies its
        own view only at 2Δ.
    R3  First valid proposal of the view: sign notarize, once per view ever. Valid: the leader's
        signature, a notarization of the parent, nullifications of every view between, and own
        execution that gives the header's root. A notarized block that is invalid here halts.
    R4  Quorum of notarize: persist and forward the certificate once; unless this node has
        nullified v, or has seen v's leader equivocate, sign finalize; enter v+1.
    R5  At a timeout, when v's own leader nullifies, or when its proposal is found invalid: sign
        nullify(v), and never finalize v afterwards; after finalize(v) never nullify(v), also after
        a replay of the log. Notarize after nullify is allowed.
    R6  Quorum of nullify: persist, forward, enter v+1.
    R7  Quorum of finalize, at any time: persist, forward (v's leader at once, the others when they
        retransmit); the block and its ancestors are final.
    R8  Any higher certificate moves a node forward; missing ancestors are fetched.
    RT  Retransmission: every Δ without a new view, own votes that are not final, the certificate
        that entered the view, the highest finalization and, if it leads, its proposal.
    EP  Epochs: once the epoch's last block is notarized, leaders propose that same block again
        (same hash, new view) until it is final. Its finalization starts the next epoch
        (`begin_epoch`), and nobody signs there before.
    DL  Δ doubles after a view that was nullified, or that this node gave up although it was
        notarized, and halves on finality, between floor and cap.
    SK  A view is nullified on entry if its leader was silent for 16 views while a quorum was
        heard, at most n times since the last finality, silent stake below W/3.
    MX  Beyond 16 unfinalized blocks with transactions, proposals are empty.

    Inputs return the effects to perform, in order. One input at a time: it is not reentrant.
    `records` are those of the write-ahead log, in order; a recovering node is one that was slow.
    `tip` is the last final block, executed and stored by the driver; `tip_certificate` finalizes it
    (None for genesis). `context` is the epoch in which the block after `tip` is agreed on.
    """

    # --- inputs -----------------------------------------------------------------

    def start(self) -> list[Effect]:
        """Once, after construction: timers, execution of what the log held, own votes again."""
        for certificate in list(self._ballots.certificates()):
            self._unpack(certificate)
        for vote in self._signs.votes(self.epoch) if self._votes else ():
            made = self._ballots.quorum(vote)  # the log may end between the two
            if made is not None and made.view > self._chamber.floor:
                self._certified(made, None)
        self._enter(self._view, self._entered_by)
        self._advance()
        self._say_again()
        self._start_beat()
        return self._out.flush()

    def receive(self, sender: str, message: Message) -> list[Effect]:
        """A decoded message from the peer `sender`, which may be wrong in any way."""
        if not self._halted:
            self._fetch.heard(sender)
            try:
                self._dispatch(sender, message)
            except VerifyError as error:
                self._out.effect(Refuse(sender, str(error)))
        return self._out.flush()

    def timer(self, timer: Timer) -> list[Effect]:
        """A timer has fired."""
        if self._halted or timer.epoch != self.epoch:
            return []
        if timer.kind is TimerKind.RETRANSMIT:
            self._beat()
            self._advance()
        elif timer.view == self._view and (
            timer.kind is TimerKind.ADVANCE or self._view not in self._proposals
        ):
            # At 3Δ; at 2Δ unless a proposal is here and perhaps still being executed.
            late = timer.kind is TimerKind.ADVANCE
            self._nullify(Rule.R5_OVERDUE if late else Rule.R5_NO_PROPOSAL)
        return self._out.flush()

    def built(self, view: View, parent_hash: Hash32, block: Block) -> list[Effect]:
        """The answer to `Build`: a block that this node has built and executed."""
        if self._halted or self._building is None or view != self._view:
            return []
        ground = self._building[1]
        if self._building[0] != view or ground.parent_hash != parent_hash:
            return []
        self._building = None
        if self._signs.signed(VoteKind.NULLIFY, self.epoch, view) is not None:
            return []  # too late: this node has given its own view up
        invariant(block.header.parent == parent_hash, "the block was built on the parent asked for")
        invariant(not carries_too_much(block), "the block was built within the limit")
        if self._seal(view, block, block.hash(), ground):
            self._consider()
        return self._out.flush()

    def validated(
        self, block_hash: Hash32, ok: bool, reason: str = "", *, timely: bool = True
    ) -> list[Effect]:
        """The answer to `Validate`. `ok`: execution gives the header's roots, by rules that are the
        same on every node. `timely`: its time is at most 2 s ahead of this node's clock; a block
        that is not is still followed if others notarize it, but gets no vote from here."""
        node = self._tree.get(block_hash)
        if self._halted or node is None or node.status is not Status.EXECUTING:
            return []
        node.status = Status.VALID if ok else Status.INVALID
        node.timely = timely
        if not timely:
            self._did(Rule.R3_UNTIMELY)
        if not ok:
            self._did(Rule.R3_INVALID)
            self._out.effect(Rejected(node.header.view, block_hash, reason))
        self._advance()
        return self._out.flush()

    def begin_epoch(self, context: EpochContext) -> list[Effect]:
        """The final tip was its epoch's last block: go on in the next (EP)."""
        invariant(self._ended and context.epoch > self.epoch, "an epoch begins when one has ended")
        return self._begin(context, self._finalization)

    def advance_to(
        self, tip: Header, certificate: Certificate, context: EpochContext | None = None
    ) -> list[Effect]:
        """After a sync: `tip` is final, executed and stored; the caller has verified `certificate`.
        `context` is given when the next block belongs to a later epoch than the current one."""
        if self._halted or tip.height <= self._tree.tip.height:
            return []
        self._tree.reroot(tip)
        if context is not None and context.epoch > self.epoch:
            return self._begin(context, certificate)
        self._finalization = self._higher(certificate)
        self._settle(certificate)
        if certificate.view >= self._view:
            self._enter(View(certificate.view + 1), certificate)
        self._advance()
        return self._out.flush()

    # --- messages ---------------------------------------------------------------

    def _dispatch(self, sender: str, message: Message) -> None:
        match message:
            case BlockRequest():
                self._serve_block(sender, message.block_hash)
                return
            case BlockReply():
                self._on_block(sender, message.block)
                return
        epoch = message.seal.epoch if isinstance(message, Proposal) else message.epoch
        if epoch > self.epoch:
            self._keep_early(sender, message, epoch)
            return
        if epoch < self.epoch:
            # EP: a voter left behind needs the finalization that ended its epoch.
            root = self._root_certificate
            if isinstance(message, Vote) and root is not None and self._fetch.may_serve(sender):
                self._did(Rule.EP_ANSWER)
                self._out.effect(Send(sender, (root,)))
            return
        match message:
            case Vote():
                self._on_vote(message, sender)
            case Certificate():
                self._on_certificate(message, sender)
            case Proposal():
                self._on_proposal(message, sender)
            case CertificateRequest():
                self._serve_certificates(sender, message)

    def _on_vote(self, vote: Vote, sender: str) -> None:
        floor = self._chamber.floor
        if not floor - EVIDENCE_VIEWS < vote.view <= self._view + WINDOW_VIEWS:
            return  # too old to matter, or so far ahead that a certificate will tell (R8)
        if self._ballots.knows(vote):
            return
        self._check_vote(vote)
        self._count(vote, sender)

    def _count(self, vote: Vote, source: str | None) -> None:
        self._heed(vote)
        if vote.view <= self._chamber.floor:
            return
        of_leader = vote.view == self._view and vote.signer == self.leader(vote.view)
        if vote.kind == VoteKind.NULLIFY and of_leader:
            self._nullify(Rule.R5_LEADER)
        certificate = self._ballots.quorum(vote)
        if certificate is not None:
            self._certified(certificate, source)

    def _on_certificate(self, certificate: Certificate, sender: str) -> None:
        if self._is_news(certificate):
            self._certified(certificate, sender)

    def _on_proposal(self, proposal: Proposal, sender: str) -> None:
        seal, view = proposal.seal, proposal.seal.view
        if view <= self._chamber.floor:
            return
        held = self._proposals.get(view)
        if held is not None and self._seals[view] == seal:
            came_from, known = held
            if known == proposal:
                return
            if came_from in ("", sender) or sender != self.leader_node(view):
                # The seal does not cover the proof: another copy may show what is lacking here.
                self._learn_from(proposal, sender)
                self._advance()
                return
        self._check_seal(seal)
        self._check_body(proposal.block, seal.block_hash)
        self._learn_from(proposal, sender)
        if self._halted or not self._chamber.floor < view <= self._view + WINDOW_VIEWS:
            return
        is_first = self._heed_seal(seal)
        if is_first and view not in self._rejected:
            self._proposals[view] = (sender, proposal)
            while len(self._proposals) > MAX_PROPOSALS:
                del self._proposals[min(self._proposals)]
            self._hurry()
        if self._fetch.wants(seal.block_hash):
            self._add_block(proposal.block, seal.block_hash)
        self._advance()

    def _learn_from(self, proposal: Proposal, sender: str) -> None:
        """R8: what a proposal shows moves us, too. R3 counts only what is held after this."""
        self._check_shown(proposal)
        for shown in (proposal.parent_notarization, *proposal.nullifications):
            if shown is not None:
                self._on_certificate(shown, sender)

    def _on_block(self, sender: str, block: Block) -> None:
        block_hash = block.hash()
        if not self._fetch.wants(block_hash):
            return
        self._check_body(block, block_hash)
        self._add_block(block, block_hash)
        self._advance(sender)

    # --- votes and certificates -------------------------------------------------

    def _sign(self, kind: VoteKind, view: View, block_hash: Hash32) -> None:
        """Sign, persist, send and count a vote, unless an earlier one forbids it (R3, R5)."""
        if not self._votes or self._ended:
            return
        signed = self._signs.vote(kind, self.epoch, view, block_hash)
        if signed is None:
            self._did(Rule.SG_FLOOR if self._signs.abstains(self.epoch, view) else REFUSED[kind])
        if signed is None or self._ballots.knows(signed[0]):
            return
        vote, is_new = signed
        if is_new:
            self._did(SIGNED[kind])
            self._out.record(vote)
        self._out.say(vote)
        self._count(vote, None)

    def _nullify(self, why: Rule) -> None:
        """R5; `SignState` refuses it after finalize."""
        thing = (VoteKind.NULLIFY, self.epoch, self._view)
        had = self._signs.signed(*thing)
        self._sign(VoteKind.NULLIFY, self._view, Hash32(ZERO_HASH))
        if had is not self._signs.signed(*thing):
            self._did(why)

    def _certified(self, certificate: Certificate, source: str | None) -> None:
        """A new verified certificate."""
        if self._ended or not self._stands(certificate):
            return
        self._ballots.put(certificate)
        self._out.record(certificate)
        self._did(CERTIFIED[VoteKind(certificate.kind)])
        if certificate.view > self._view:
            self._did(Rule.R8_JUMP)
        match certificate.kind:
            case VoteKind.NOTARIZE:
                self._on_notarization(certificate, source)
            case VoteKind.NULLIFY:
                self._on_nullification(certificate)
            case VoteKind.FINALIZE:
                self._on_finalization(certificate, source)

    def _on_notarization(self, certificate: Certificate, source: str | None) -> None:
        view = certificate.view
        self._forward(certificate)
        self._pull(certificate.block_hash, source)
        if view in self._equivocated:
            self._did(Rule.R4_EQUIVOCATED)
        else:
            self._sign(VoteKind.FINALIZE, view, certificate.block_hash)  # refused after nullify
        if view >= self._view:
            self._slow_down(certificate)
            self._enter(View(view + 1), certificate)  # R4, R8
        self._advance(source)

    def _on_nullification(self, certificate: Certificate) -> None:
        view = certificate.view
        self._forward(certificate)
        if view >= self._view:
            self._slow_down(certificate)
            self._enter(View(view + 1), certificate)  # R6, R8
        self._advance()

    def _on_finalization(self, certificate: Certificate, source: str | None) -> None:
        if self.leader(certificate.view) == self._signs.public:
            self._did(Rule.R7_FORWARD)
            self._forward(certificate)  # the others' forwarding is their retransmission
        self._finalization = self._higher(certificate)
        self._advance(source)
        if certificate.view >= self._view:
            self._enter(View(certificate.view + 1), certificate)  # R8

    # --- views ------------------------------------------------------------------

    def _enter(self, view: View, certificate: Certificate | None) -> None:
        """R1. `certificate` is what allows this view; none for an epoch's first."""
        if self._ended or self._halted:
            return
        self._view, self._entered_by = view, certificate
        self._building, self._beats = None, 0
        self._attendance.entered()
        self._restart_timers()
        leader = self.leader(view)
        if self._votes and leader != self._signs.public:
            if self._attendance.skip(self._context.validators, leader):
                self._skipped.add(view)
                self._nullify(Rule.SK_SKIP)
            elif self._ballots.voted(VoteKind.NULLIFY, view, leader):
                self._nullify(Rule.R5_LEADER)  # before we came
        self._propose()
        self._consider()

    def _propose(self) -> None:
        """R2, for the leader of the current view."""
        view = self._view
        if not self._may_act() or self.leader(view) != self._signs.public:
            return
        if view in self._proposals or self._building is not None:
            return
        sealed = self._signs.sealed(self.epoch, view)
        if sealed is not None:
            self._propose_again(sealed)
            return
        if self._signs.abstains(self.epoch, view) or self._signs.signed(
            VoteKind.NULLIFY, self.epoch, view
        ):
            return
        ground = self._chamber.ground(view)
        if isinstance(ground, Lack):
            self._ask_views(ground, None)
        elif self._chamber.is_last(ground.parent):  # EP: the same block, in a new view
            node = self._tree.get(ground.parent_hash)
            self._did(Rule.EP_AGAIN)
            invariant(node is not None, "an epoch's last block is in the tree until it is final")
            if node is not None and self._seal(view, node.block, node.block_hash, ground):
                self._consider()
        else:
            self._building = (view, ground)
            empty = transactions_above(self._tree, ground.parent_hash) >= MAX_UNFINALIZED
            self._did(Rule.MX_EMPTY if empty else Rule.R2_PROPOSE)
            self._out.effect(Build(self.epoch, view, ground.parent, ground.parent_hash, empty))

    def _propose_again(self, sealed: ProposalSeal) -> None:
        """After a restart within a view that this node leads: the proposal it has signed before."""
        node = self._tree.get(sealed.block_hash)
        if node is None:
            return
        again = node.header.view < sealed.view
        ground = self._chamber.ground(
            sealed.view, sealed.block_hash if again else node.header.parent
        )
        if isinstance(ground, Ground) and self._seal(
            sealed.view, node.block, node.block_hash, ground
        ):
            self._consider()

    def _consider(self) -> None:
        """R3: vote for the current view's proposal as soon as everything it rests on is here."""
        found = self._proposals.get(self._view)
        if found is None or not self._may_act():
            return
        sender, proposal = found
        block_hash = proposal.seal.block_hash
        voted = self._signs.signed(VoteKind.NOTARIZE, self.epoch, self._view)
        if voted is not None:
            if voted.block_hash != block_hash:
                self._did(Rule.R3_ONCE)  # after a restart, or by a second copy of our key
            return
        try:
            of_leader = sender in ("", self.leader_node(self._view))
            ground = self._chamber.judge(proposal, of_leader=of_leader)
        except BlockError as error:
            self._did(Rule.R3_UNFOUNDED)
            self._out.effect(Rejected(self._view, block_hash, str(error)))
            del self._proposals[self._view]
            self._rejected.add(self._view)  # the leader gets no second try
            self._nullify(Rule.R5_REJECTED)  # the timer may have passed while there was one
            return
        if isinstance(ground, Lack):
            self._ask_views(ground, sender)
            return
        node = self._tree.get(block_hash)
        if node is None:
            self._add_block(proposal.block, block_hash)
            self._execute()
        elif node.status is Status.INVALID:
            self._nullify(Rule.R5_REJECTED)
        elif node.status is Status.VALID and (node.timely or node.header.view < self._view):
            self._sign(VoteKind.NOTARIZE, self._view, block_hash)

    # --- blocks -----------------------------------------------------------------

    def _advance(self, source: str | None = None) -> None:
        """Something arrived: fetch, execute, deliver, propose and vote as far as it now goes."""
        if self._halted:
            return
        for certificate in self._ballots.certified():
            self._pull(certificate.block_hash, source)
        if self.is_halted:
            return
        self._execute()
        self._deliver()
        self._propose()
        self._consider()

    def _deliver(self) -> None:
        """R7: hand over what is final as soon as it is here and executed."""
        certificate = self._finalization
        if certificate is None or certificate.epoch != self.epoch or self._ended:
            return
        if certificate.view <= self._chamber.floor:
            return
        path = self._tree.path(certificate.block_hash)
        if not isinstance(path, list) or any(n.status is not Status.VALID for n in path):
            return
        if path:  # empty for a tip that was stored without its own finalization
            self._out.effect(Deliver(tuple(n.block for n in path), certificate))
            self._tree.reroot(path[-1].header)
        self._did(Rule.R7_FINAL)
        self._pace.finalized()
        self._settle(certificate)
        if self.is_ended:
            self._cancel_timers()

    def _begin(self, context: EpochContext, certificate: Certificate | None) -> list[Effect]:
        self._did(Rule.EP_BEGIN)
        self._signs.prune(Epoch(context.epoch - 1), View((1 << 64) - 1))
        early, self._early, self._ahead = self._early, [], None
        self._tree.clear()
        self._fetch.forget()
        self._open_epoch(context, certificate)
        self._restore_votes()  # a log may reach further than the store beside it
        self._enter(self._view, self._entered_by)
        self._start_beat()
        out = self._out.flush()
        for sender, message in early:
            out += self.receive(sender, message)
        return out
