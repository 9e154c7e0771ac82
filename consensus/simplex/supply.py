"""What a node asks of its peers and owes to them: blocks, certificates, retransmission."""

from __future__ import annotations

from chain import limits
from chain.errors import VerifyError
from chain.hashes import Hash32
from chain.types import Block, Certificate, Height, View, Vote, VoteKind
from consensus.simplex.fetch import MAX_VIEWS
from consensus.simplex.messages import (
    BlockReply,
    CertificateRequest,
    Send,
    Serve,
    StartTimer,
    Sync,
    Timer,
    TimerKind,
    Validate,
)
from consensus.simplex.proposals import Lack, carries_too_much, within
from consensus.simplex.replica import Replica
from consensus.simplex.rules import Rule
from consensus.simplex.tree import Fork, Missing, Status

MAX_FETCH_HEIGHTS = 64  # a larger gap is synced, not fetched block by block
VOTE_VIEWS = 16  # own finalize votes sent again, the latest


class Supply(Replica):
    # --- asking -----------------------------------------------------------------

    def _pull(self, block_hash: Hash32, source: str | None) -> None:
        """R8: bring a certified block and all its ancestors above the tip into the tree."""
        while not self._halted:
            try:
                path = self._tree.path(block_hash)
            except Fork as fork:
                self._halt(f"a certified block contradicts a final one: {fork}")
                return
            if isinstance(path, list):
                if any(node.status is Status.INVALID for node in path):
                    self._halt(f"block {block_hash.hex()} is certified but invalid here (R3)")
                return
            block = self._offered(path.block_hash)
            if block is None:
                self._request(path, source)
                return
            self._add_block(block, path.block_hash)

    def _request(self, missing: Missing, source: str | None) -> None:
        tip = self._tree.tip
        if missing.height is None or missing.height - tip.height <= MAX_FETCH_HEIGHTS:
            asked = self._fetch.block(missing.block_hash, source or None)
            if asked:
                self._did(Rule.R8_FETCH)
            self._out.effects(asked)
        elif not self._sync_asked:
            self._did(Rule.R8_SYNC)
            self._sync_asked = True  # until the next beat
            peer = source or self._fetch.latest()
            self._out.effect(Sync(peer, self.epoch, Height(missing.height)))

    def _ask_views(self, lack: Lack, source: str | None) -> None:
        self._did(Rule.R2_LACK if source is None else Rule.R3_LACK)
        if lack.view is not None:
            lowest = View(self._chamber.floor + 1)
            asked = self._fetch.views(self.epoch, lack.view, lowest, source or None)
            self._out.effects(asked)

    def _offered(self, block_hash: Hash32) -> Block | None:
        for _, proposal in self._proposals.values():
            if proposal.seal.block_hash == block_hash:
                return proposal.block
        return None

    def _add_block(self, block: Block, block_hash: Hash32) -> None:
        self._fetch.got(block_hash)
        if self._tree.get(block_hash) is None and block_hash != self._tree.tip_hash:
            self._tree.add(block, block_hash)
            self._out.record(block)

    def _execute(self) -> None:
        for node, parent in self._tree.ready():
            node.status = Status.EXECUTING
            self._out.effect(Validate(node.block, node.block_hash, parent))

    def _check_body(self, block: Block, block_hash: Hash32) -> None:
        """A body that is not the header's is the sender's fault, not the block's."""
        if block.hash() != block_hash:
            raise VerifyError("a block that is not the one its proposer signed")
        if carries_too_much(block):
            raise VerifyError(f"a block of more than {limits.MAX_BLOCK_BYTES} bytes")
        if not self._config.body_matches(block):
            raise VerifyError("a block whose transactions or evidence are not its header's")

    # --- answering --------------------------------------------------------------

    def _serve_block(self, sender: str, block_hash: Hash32) -> None:
        if not self._fetch.may_serve(sender):
            return
        node = self._tree.get(block_hash)
        block = self._offered(block_hash) if node is None else node.block
        if block is None:
            self._out.effect(Serve(sender, block_hash))
        else:
            self._did(Rule.RT_BLOCK)
            self._out.effect(Send(sender, (BlockReply(block),)))

    def _serve_certificates(self, sender: str, request: CertificateRequest) -> None:
        if not self._fetch.may_serve(sender):
            return
        found: list[Certificate] = []
        if request.first <= self._chamber.floor and self._finalization is not None:
            found.append(self._finalization)
        last = min(request.last, self._view)
        first = max(request.first, self._chamber.floor + 1, last - MAX_VIEWS + 1)
        for view in range(last, first - 1, -1):
            proof = self._ballots.proof_of(View(view))
            nullification = self._ballots.certificate(VoteKind.NULLIFY, View(view))
            found += [c for c in (proof, nullification) if c is not None]
        if found:
            self._did(Rule.RT_CERTIFICATES)
            self._out.effect(Send(sender, within(found)))

    def _forward(self, certificate: Certificate) -> None:
        if self._votes:
            self._out.say(certificate)

    # --- retransmission (RT) ----------------------------------------------------

    def _start_beat(self) -> None:
        timer = Timer(TimerKind.RETRANSMIT, self.epoch, View(0))
        self._out.effect(StartTimer(timer, self._pace.delta_ms))

    def _beat(self) -> None:
        """Every Δ. A view is silent for its first Δ, and while an idle leader may wait."""
        self._beats += 1
        self._sync_asked = False
        self._out.effects(self._fetch.retry())
        if self._ahead is not None:
            peer, epoch = self._ahead
            self._ahead = None
            self._out.effect(Sync(peer, epoch, Height(0)))
        idle_ms = (self._beats - 1) * self._pace.delta_ms  # the view is at least this old
        if self._beats > 1 and (self._open_votes() or idle_ms >= self._config.empty_interval_ms):
            self._say_again()
        self._start_beat()

    def _say_again(self) -> None:
        if not self._votes:
            return
        self._did(Rule.RT_AGAIN)
        for vote in self._open_votes():
            self._out.say(vote)
        for certificate in (self._entered_by, self._finalization):
            if certificate is not None:
                self._out.say(certificate)
        found = self._proposals.get(self._view)
        if found is not None and self.leader(self._view) == self._signs.public:
            self._out.say(found[1])

    def _open_votes(self) -> list[Vote]:
        """Own votes of this view and the one before, and the latest finalize votes."""
        if self._ended:
            return []
        own = self._signs.votes(self.epoch)
        finalize = [v for v in own if v.kind == VoteKind.FINALIZE][-VOTE_VIEWS:]
        recent = [v for v in own if v.view + 1 >= self._view and v.kind != VoteKind.FINALIZE]
        return finalize + recent
