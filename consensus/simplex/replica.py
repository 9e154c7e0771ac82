"""The state of one node's part in consensus: what it holds, what may be read, how it recovers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

from chain.codec import decode, encode
from chain.hashes import Hash32
from chain.types import (
    Block,
    Certificate,
    Epoch,
    Header,
    Proposal,
    ProposalSeal,
    PubKey,
    View,
    Vote,
    VoteKind,
)
from consensus.simplex.ballots import Ballots
from consensus.simplex.fetch import Fetcher
from consensus.simplex.messages import (
    CancelTimer,
    Config,
    EpochContext,
    Halt,
    Message,
    Record,
    Signer,
    SignFloor,
    StartTimer,
    Timer,
    TimerKind,
)
from consensus.simplex.outbox import Outbox
from consensus.simplex.pace import Attendance, Pace
from consensus.simplex.proposals import Chamber, Ground
from consensus.simplex.rules import Rule
from consensus.simplex.sign_state import LAST_VIEW, SignState
from consensus.simplex.tree import BlockTree

MAX_EARLY = 64  # messages of the next epoch kept until it begins
MAX_EARLY_EACH = 8  # of these from one peer; of proposals, one


class Replica:
    """Everything `core.Simplex` decides on. Its constructor's arguments are explained there."""

    def __init__(
        self,
        config: Config,
        context: EpochContext,
        tip: Header,
        tip_certificate: Certificate | None,
        signer: Signer | None,
        records: Iterable[bytes] = (),
    ) -> None:
        self._config = config
        self._did = config.on_rule
        self._out = Outbox()
        self._signs = SignState(signer)
        self._tree = BlockTree(tip)
        self._fetch = Fetcher()
        timing = context.timing or config
        self._pace = Pace(timing.delta_floor_ms, timing.delta_cap_ms, config.on_rule)
        self._attendance = Attendance()
        self._halted = False
        self._early: list[tuple[str, Message]] = []
        self._ahead: tuple[str, Epoch] | None = None  # a peer seen in a later epoch
        self._sync_asked = False
        self._timers: list[Timer] = []
        self._open_epoch(context, tip_certificate)
        self._restore(records)

    def _open_epoch(self, context: EpochContext, tip_certificate: Certificate | None) -> None:
        self._context = context
        if context.timing is not None:
            self._config = replace(self._config, **asdict(context.timing))
            self._pace.set_bounds(self._config.delta_floor_ms, self._config.delta_cap_ms)
        self._ballots = Ballots(context.validators)
        self._chamber = Chamber(self._config, context, self._tree, self._ballots)
        self._attendance.open_epoch(context.validators)
        own = self._signs.public
        members = context.validators.members
        self._votes = own is not None and context.validators.index_of(own) is not None
        self._fetch.suggest(v.node_id for v in members if v.consensus_key != own)
        self._view = View(1)
        self._entered_by = self._finalization = tip_certificate
        self._root_certificate = tip_certificate
        self._proposals: dict[View, tuple[str, Proposal]] = {}  # with the peer it came from
        self._seals: dict[View, ProposalSeal] = {}
        self._equivocated: set[View] = set()  # asked for membership only, as all sets here
        self._skipped: set[View] = set()
        self._rejected: set[View] = set()
        self._building: tuple[View, Ground] | None = None
        self._beats = 0  # retransmission timers that fired since this view was entered
        if tip_certificate is not None and tip_certificate.epoch == context.epoch:
            self._chamber.floor, self._chamber.floor_proof = tip_certificate.view, tip_certificate
            self._view = View(tip_certificate.view + 1)
            self._root_certificate = None
        elif tip_certificate is None and self._tree.tip.epoch == context.epoch:
            # A final block whose own finalization the store lacks: only what follows it is open.
            # Its view stays above the floor, so that its notarization can be shown as a proof.
            self._chamber.floor = View(max(0, self._tree.tip.view - 1))
            self._view = View(self._chamber.floor + 1)
        self._ended = self._chamber.is_last(self._tree.tip)

    # --- what the outside may read ----------------------------------------------

    @property
    def epoch(self) -> Epoch:
        return self._context.epoch

    @property
    def view(self) -> View:
        return self._view

    @property
    def tip(self) -> Header:
        """The last final block that was delivered."""
        return self._tree.tip

    @property
    def finalization(self) -> Certificate | None:
        """The highest finalization; its block may still be on its way here."""
        return self._finalization

    @property
    def delta_ms(self) -> int:
        return self._pace.delta_ms

    def is_heard(self, key: PubKey) -> bool:
        """Whether a vote of this member was seen, from wherever, in the last 16 views."""
        return not self._attendance.is_silent(key)

    @property
    def is_voter(self) -> bool:
        return self._votes

    @property
    def is_silenced(self) -> bool:
        """Whether this node's key is in the set and yet signs nothing more in this epoch: its log
        was lost, and nobody knows what it has signed."""
        return self._votes and self._signs.abstains(self.epoch, LAST_VIEW)

    @property
    def is_ended(self) -> bool:
        """Whether the tip is its epoch's last block, so that `begin_epoch` is awaited."""
        return self._ended

    @property
    def is_halted(self) -> bool:
        return self._halted

    def leader(self, view: View) -> PubKey:
        """The consensus key that may propose in a view of the current epoch."""
        return self._context.validators.members[self._context.leader_of(view)].consensus_key

    def leader_node(self, view: View) -> str:
        """The node id of that leader."""
        return self._context.validators.members[self._context.leader_of(view)].node_id

    def snapshot(self) -> tuple[bytes, ...]:
        """The records that a rotated log must hold; every `Persist` so far must be performed."""
        kept: list[Record] = [*self._signs.records()]
        kept += [n.block for n in self._tree]
        kept += [*self._ballots.certificates()]
        return tuple(encode(record) for record in kept)

    # --- what the outside measures ----------------------------------------------

    def set_delta_floor(self, floor_ms: int) -> None:
        """Twice the round trip within which 2/3 of stake answered, plus the execution budget."""
        self._pace.set_floor(floor_ms)

    # --- changes of state that several rules share ------------------------------

    def _settle(self, certificate: Certificate) -> None:
        """The tree's tip is final by `certificate`: forget what lies at or below its view."""
        floor = certificate.view
        self._chamber.floor, self._chamber.floor_proof = floor, certificate
        self._attendance.finalized()
        self._ballots.prune(floor)
        self._signs.prune(self.epoch, floor)
        self._fetch.forget()
        self._proposals = {v: p for v, p in self._proposals.items() if v > floor}
        self._seals = {v: s for v, s in self._seals.items() if v > floor}
        self._equivocated = {v for v in self._equivocated if v > floor}
        self._skipped = {v for v in self._skipped if v > floor}
        self._rejected = {v for v in self._rejected if v > floor}
        self._ended = self._chamber.is_last(self._tree.tip)

    def _may_act(self) -> bool:
        """Whether this node votes in the current view, which finality may have overtaken."""
        return self._votes and not self._ended and self._view > self._chamber.floor

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            self._out.effect(CancelTimer(timer))
        self._timers = []

    def _restart_timers(self) -> None:
        """R1."""
        self._did(Rule.R1_TIMERS)
        self._cancel_timers()
        if self._votes:
            wait_ms = self._config.empty_interval_ms
            for kind, deltas in ((TimerKind.PROPOSAL, 2), (TimerKind.ADVANCE, 3)):
                timer = Timer(kind, self.epoch, self._view)
                self._timers.append(timer)
                self._out.effect(StartTimer(timer, deltas * self._pace.delta_ms + wait_ms))
            self._hurry()

    def _hurry(self) -> None:
        """R1: who proposes is not idle any more. A leader that dies while it sends its proposal
        should not cost the others the time for which it might have had no work."""
        if self._votes and self._view in self._proposals:
            self._did(Rule.R1_HURRY)
            timer = Timer(TimerKind.ADVANCE, self.epoch, self._view)
            self._out.effect(StartTimer(timer, 2 * self._pace.delta_ms, at_most=True))

    def _seal(self, view: View, block: Block, block_hash: Hash32, ground: Ground) -> bool:
        """R2: propose a block, unless another one of the view was. Whether it was."""
        sealed = self._signs.seal(self.epoch, view, block_hash)
        if sealed is None:
            return False
        if self._tree.get(block_hash) is None:
            self._tree.add(block, block_hash, executed=True)
            self._out.record(block)
        if sealed[1]:
            self._out.record(sealed[0])
        proposal = Proposal(sealed[0], block, ground.proof, ground.nullifications)
        self._seals[view] = sealed[0]
        self._proposals[view] = ("", proposal)
        self._hurry()
        self._out.say(proposal)
        return True

    def _slow_down(self, left: Certificate) -> None:
        """DL, on leaving a view by a certificate. A view may be notarized and yet be given up by so
        many that it is never finalized: Δ was too short then, too. A skip says nothing about it."""
        given_up = self._signs.signed(VoteKind.NULLIFY, self.epoch, left.view) is not None
        if left.view not in self._skipped and (left.kind == VoteKind.NULLIFY or given_up):
            self._pace.nullified()

    def _keep_early(self, sender: str, message: Message, epoch: Epoch) -> None:
        """Others may begin the next epoch a moment sooner: what they say is kept, unverified."""
        self._ahead = (sender, epoch)
        kind = Proposal if isinstance(message, Proposal) else object
        held = [m for s, m in self._early if s == sender and isinstance(m, kind)]
        most = 1 if kind is Proposal else MAX_EARLY_EACH
        if epoch == self.epoch + 1 and len(held) < most and len(self._early) < MAX_EARLY:
            self._did(Rule.EP_EARLY)
            self._early.append((sender, message))

    def _higher(self, certificate: Certificate) -> Certificate:
        held = self._finalization
        if held is None or (held.epoch, held.view) < (certificate.epoch, certificate.view):
            return certificate
        return held

    def _halt(self, report: str) -> None:
        self._halted = True
        self._out.effect(Halt(f"epoch {self.epoch}, view {self._view}: {report}"))

    # --- recovery ---------------------------------------------------------------

    def _restore(self, records: Iterable[bytes]) -> None:
        """Rebuild from our own log: it is trusted, so nothing is verified again."""
        for data in records:
            record: Record = decode(Record, data)
            match record:
                case Block():
                    block_hash = record.hash()
                    above = record.header.height > self._tree.tip.height
                    if above and self._tree.get(block_hash) is None:
                        self._tree.add(record, block_hash)
                case Certificate():
                    self._restore_certificate(record)
                case Vote() | ProposalSeal() | SignFloor():
                    self._signs.restore(record)
        self._restore_votes()

    def _restore_certificate(self, certificate: Certificate) -> None:
        if certificate.epoch != self.epoch or certificate.view <= self._chamber.floor:
            return
        self._ballots.put(certificate)
        if certificate.kind == VoteKind.FINALIZE:
            self._finalization = self._higher(certificate)
        if certificate.view >= self._view:
            self._view, self._entered_by = View(certificate.view + 1), certificate

    def _restore_votes(self) -> None:
        """Own votes of the current epoch count again."""
        if not self._votes:
            return
        for vote in self._signs.votes(self.epoch):
            if vote.view > self._chamber.floor:
                self._did(Rule.SG_REPLAY)
                self._ballots.add(vote)
