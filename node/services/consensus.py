"""Drives the Simplex core: links, timers, the log, execution, commits (docs/spec/consensus.md).

The core decides; this performs its effects in order on the main loop. Nothing signed leaves
before the log record that precedes it is synced.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chain import limits, phases
from chain import records as r
from chain.codec import decode, encode
from chain.errors import (
    BlockError,
    DecodeError,
    InvariantError,
    OrphanError,
    StorageError,
    VerifyError,
    invariant,
)
from chain.execute import Context, Execution, epoch_of, seal_header
from chain.params import Params
from chain.state import State
from chain.types import (
    Block,
    Certificate,
    Epoch,
    EvidenceItem,
    Header,
    Height,
    TimeMs,
    View,
)
from consensus import election, vrf
from consensus.simplex import core
from consensus.simplex.messages import (
    BlockReply,
    Broadcast,
    Build,
    CancelTimer,
    Deliver,
    Effect,
    Envelope,
    EpochContext,
    Evidence,
    Halt,
    Message,
    Persist,
    Refuse,
    Rejected,
    Send,
    Serve,
    StartTimer,
    Sync,
    Timer,
    TimerKind,
    Timing,
    Validate,
)
from node.clock import Clock
from node.mempool import Mempool
from node.net.port import Network
from node.services.chain import ChainService, body_matches, vrf_input
from node.services.core_config import core_config
from node.services.delta_floor import DeltaFloor
from node.services.evidence_pool import EvidencePool
from node.services.flood import Flood
from node.services.followers import Followers
from node.services.signing import ConsensusSigner, abstention, open_log, silenced
from node.services.timers import Timers
from wallet.keys import Keys

log = logging.getLogger("blyan.consensus")
ROTATE_BYTES = 1024 * 1024  # the log is rewritten when it has grown past this: replay stays short
_BLOCK_ROOM = limits.MAX_BLOCK_BYTES - limits.MAX_EVIDENCE_BYTES - 32 * 1024  # header, framing


class ConsensusService:
    """One node's consensus. `on_sync(peer, height)` is called when the core fell far behind."""

    def __init__(
        self,
        chain: ChainService,
        pool: Mempool,
        net: Network,
        keys: Keys,
        wal_path: Path,
        on_sync: Callable[[str, int], None],
        on_halt: Callable[[str], None],
    ) -> None:
        self._chain, self._pool, self._net, self._keys = chain, pool, net, keys
        self._on_sync, self._on_halt = on_sync, on_halt
        params = self._params
        self._clock = Clock()
        self._wal, self._doubt = open_log(wal_path, chain, keys.consensus.public)
        self._effects: deque[Effect] = deque()
        self._performing = self._may_rotate = False
        self._timers = Timers(
            self._fire,
            lambda: bool(pool.size),
            self._waits_for_gone,
            lambda: self._params.empty_interval_ms,
        )
        self._delta_floor = DeltaFloor(net, lambda: self._params.delta_floor_ms)
        self._build: Build | None = None
        self._build_timer: asyncio.TimerHandle | None = None
        self._build_began = 0.0
        self._evidence = EvidencePool(chain.genesis.chain_id, params)
        self._followers = Followers(net)
        self._gone: set[str] = set()  # peers that were connected and are not now
        self._is_running = False
        self.halted = ""
        self.counts = {"refused": 0, "rejected_proposals": 0, "built": 0, "validated": 0}
        tip = chain.tip
        self._core = core.Simplex(
            core_config(chain.genesis, body_matches),
            self._context(epoch_of(chain.genesis, tip.height + 1)),
            tip,
            chain.store.certificate(tip.height),
            ConsensusSigner(keys.consensus, chain.genesis.chain_id),
            self._wal.records(),
        )
        silenced(self._core, self._doubt, chain, self._core.epoch)  # not in the log: --trust-log
        self._flood = Flood(
            net,
            chain.genesis.chain_id,
            self._core,
            self._context_of,
            self._from_flood,
            body_matches,
        )
        net.on_message(self._received)
        net.on_peer(self._peer_changed)

    @property
    def _params(self) -> Params:
        """Those in force: they change between two epochs."""
        return self._chain.state().params(self._chain.genesis.params)

    def _context_of(self, epoch: Epoch) -> EpochContext | None:
        known = self._chain.state().get(r.EpochRecord, r.epoch_key(epoch)) is not None
        return self._context(epoch) if known else None

    def _context(self, epoch: Epoch) -> EpochContext:
        record = self._chain.state().epoch(epoch)

        def leader_of(view: View) -> int:
            return election.leader(record.seed, view, record.validators)

        p = self._params
        timing = Timing(p.delta_floor_ms, p.delta_cap_ms, p.empty_interval_ms)
        return EpochContext(epoch, record.validators, leader_of, timing)

    def _entering(self, epoch: Epoch) -> EpochContext:
        self._perform(silenced(self._core, self._doubt, self._chain, epoch))
        return self._context(epoch)

    # --- life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Replay the log. It ends before anything from the network is taken: until here that is
        dropped, and said again by those who said it."""
        self._is_running = True
        self._perform(self._core.start())

    def stop(self) -> None:
        self._is_running = False
        self._timers.stop()
        self._try_build_in(0)
        self._wal.close()
        self._doubt.settle()

    def info(self) -> dict[str, Any]:
        """Where consensus stands, in plain values."""
        members = self._chain.validators(self._core.epoch).members
        own = self._keys.consensus.public
        index = next((i for i, v in enumerate(members) if v.consensus_key == own), None)
        return {
            "epoch": self._core.epoch,
            "view": self._core.view,
            "delta_ms": self._core.delta_ms,
            "index": index,
            "leader": self._core.leader(self._core.view).hex(),
            "abstains": abstention(self._core, self._doubt, self._params.epoch_blocks),
            "halted": self.halted,
            "flooded": self._flood.published,
            "flooded_for_others": self._flood.passed_on,
            **self.counts,
        }

    # --- inputs -------------------------------------------------------------------------

    def _received(self, peer: str, data: bytes) -> None:
        if not self._is_running:
            return
        try:
            envelope: Envelope = decode(Envelope, data)
        except DecodeError as error:
            self._refuse(peer, f"consensus message: {error}")
            return
        for message in envelope.messages:
            if isinstance(message, EvidenceItem):
                if not self._judge(peer, message):
                    return
                continue
            effects = self._core.receive(peer, message)
            refused = any(isinstance(effect, Refuse) for effect in effects)
            self._perform(effects)
            if refused:
                return  # an honest peer sends nothing wrong: the rest is not worth its signatures

    def _judge(self, peer: str, item: EvidenceItem) -> bool:
        """What is new goes on to all validators, once, so that any leader can include it. False if
        it does not hold, or if its sender says too much that is not new."""
        try:
            if self._evidence.hear(peer, self._chain.state(), item):
                self._tell(item)
        except VerifyError as error:
            self._refuse(peer, str(error))
            return False
        return True

    def _tell(self, item: EvidenceItem) -> None:
        """To all validators; and a leader that waits for work has some."""
        self._broadcast((item,))
        if self._build is not None and self._is_running:
            self._try_build()

    def _from_flood(self, peer: str, message: Message | EvidenceItem) -> bool:
        """A message that came by gossip. It was verified there, or evidence is here (VerifyError if
        it does not hold); here nobody is charged."""
        if not self._is_running:
            return False
        if isinstance(message, EvidenceItem):
            if is_new := self._evidence.judge(self._chain.state(), message):
                self._tell(message)
            return is_new
        effects = self._core.receive(peer, message)
        kept = [effect for effect in effects if not isinstance(effect, Refuse)]
        self._perform(kept)
        return len(kept) == len(effects)

    def wake(self) -> None:
        """Transactions have come: a leader that waits for work proposes now, and the others expect
        that."""
        if self._is_running:
            self._timers.work_came()
        if self._build is not None and self._is_running:
            self._try_build()

    def advance_to(self, tip: Header, certificate: Certificate) -> None:
        """Blocks were synced and committed up to `tip`; its finalization has been verified."""
        if not self._is_running:
            return
        epoch = epoch_of(self._chain.genesis, tip.height + 1)
        context = self._entering(epoch) if epoch > self._core.epoch else None
        self._perform(self._core.advance_to(tip, certificate, context))

    def _fire(self, timer: Timer) -> None:
        if self._is_running:
            self._perform(self._core.timer(timer))

    # --- effects ------------------------------------------------------------------------

    def _perform(self, effects: Sequence[Effect]) -> None:
        """Effects of one input in order; what they cause comes after them."""
        self._effects.extend(effects)
        if self._performing:
            return
        self._performing = True
        try:
            while self._effects and self._is_running and not self.halted:
                self._one(self._effects.popleft())
            self._rotate()
        except (StorageError, BlockError, OrphanError, InvariantError) as error:
            # Going on could sign what the log does not hold, or contradict ourselves.
            self._halt(str(error))
        finally:
            self._performing = False

    def _rotate(self) -> None:
        """Only when nothing waits: the core's snapshot no longer has what a `Deliver` that is yet
        to be performed makes final, and until it is committed the log alone holds it."""
        if (
            self._may_rotate
            and self._is_running
            and not self._effects
            and self._wal.size > ROTATE_BYTES
        ):
            self._wal.rotate(self._core.snapshot())
        self._may_rotate = False

    def _one(self, effect: Effect) -> None:
        match effect:
            case Persist():
                self._wal.append(effect.records)
            case Broadcast():
                self._broadcast(effect.messages)
            case Send():
                self._net.send(effect.peer, encode(Envelope(effect.messages)))
            case Serve():
                self._serve(effect)
            case StartTimer():
                self._timers.start(effect)
            case CancelTimer():
                self._timers.cancel(effect.timer)
            case Build():
                self._prepare(effect)
            case Validate():
                self._validate(effect)
            case Deliver():
                self._deliver(effect)
            case Sync():
                self._on_sync(effect.peer, effect.height)
            case Evidence():
                if self._evidence.keep(effect.item):
                    self._tell(effect.item)
            case Refuse():
                self._refuse(effect.peer, effect.reason)
            case Rejected():
                self.counts["rejected_proposals"] += 1
                log.warning("view %d: the block is not valid: %s", effect.view, effect.reason)
            case Halt():
                self._halt(effect.report)

    def _broadcast(self, messages: tuple[Message | EvidenceItem, ...]) -> None:
        own, data = self._keys.consensus.public, encode(Envelope(messages))
        members = self._chain.validators(self._core.epoch).members
        others = [v for v in members if v.consensus_key != own]
        unsent = [v for v in others if not self._net.send(v.node_id, data)]
        self._flood.said(messages, unsent, lambda v: self._core.is_heard(v.consensus_key))

    def _serve(self, effect: Serve) -> None:
        block = self._chain.store.block_by_hash(effect.block_hash)
        if block is not None:
            self._net.send(effect.peer, encode(Envelope((BlockReply(block),))))

    def _peer_changed(self, peer: str, connected: bool) -> None:
        """A leader whose link breaks is not waited for: its proposal is overdue now."""
        if connected:
            self._gone.discard(peer)
            return
        self._gone.add(peer)
        self._timers.peer_left()

    def _waits_for_gone(self, timer: Timer) -> bool:
        """Whether a timer waits for the proposal of a leader whose link is broken."""
        if timer.kind is not TimerKind.PROPOSAL or timer.epoch != self._core.epoch:
            return False
        leader = self._core.leader(timer.view)
        members = self._chain.validators(timer.epoch).members
        return any(v.consensus_key == leader and v.node_id in self._gone for v in members)

    def _refuse(self, peer: str, reason: str) -> None:
        self.counts["refused"] += 1
        log.info("refused a message of %s: %s", peer, reason)
        self._net.report(peer, reason, 20)

    def _halt(self, report: str) -> None:
        self.halted = report
        log.critical("consensus has stopped: %s", report)
        self._on_halt(report)

    # --- proposing ----------------------------------------------------------------------

    def _prepare(self, build: Build) -> None:
        """Propose at once when work waits, else when the empty interval is over."""
        self._build = build
        self._build_began = time.monotonic()
        self._try_build()

    def _build_due(self) -> float:
        """Until when work is waited for. Not the whole interval if what waits cannot be executed
        yet: the others see that something waits, and expect a proposal within 2Δ."""
        params = self._params
        wait_ms = params.empty_interval_ms
        if self._pool.size:
            wait_ms = min(wait_ms, params.delta_floor_ms)
        return self._build_began + wait_ms / 1000

    def _try_build(self) -> None:
        build = self._build
        if build is None or not self._is_running:
            return
        tree = self._chain.tree_after(build.parent_hash)
        if tree is None:
            self._build = None  # the parent was dropped: another view decides
            return
        left_s = self._build_due() - time.monotonic()
        if (ends_at := phases.ends_at(State(tree))) is not None:
            left_s = min(left_s, (ends_at - self._clock.now_ms()) / 1000)
        due = left_s <= 0.001
        self._try_build_in(left_s)
        pressing = phases.waits_for_blocks(State(tree)) or bool(self._evidence)
        if not (due or pressing or (self._pool.size and not build.empty)):
            return
        try:
            block = self._built(build, needs_work=not (due or pressing))
        except BlockError as error:
            log.error("view %d: no block of our own: %s", build.view, error)
            self._build = None  # others nullify the view
            return
        if block is None:
            return  # nothing that waits can be executed yet
        self._build = None
        self.counts["built"] += 1
        self._perform(self._core.built(build.view, build.parent_hash, block))

    def _try_build_in(self, seconds: float) -> None:
        if self._build_timer is not None:
            self._build_timer.cancel()
            self._build_timer = None
        if seconds > 0.001:
            loop = asyncio.get_running_loop()
            self._build_timer = loop.call_later(seconds, self._try_build)

    def _built(self, build: Build, needs_work: bool) -> Block | None:
        """Execute a block of our own on the parent's state; None if it holds no work."""
        genesis, chain = self._chain.genesis, self._chain
        parent = build.parent
        tree = chain.tree_after(build.parent_hash)
        invariant(tree is not None, "the parent of a block to build was executed")
        if tree is None:
            return None
        proof = vrf.prove(self._keys.vrf.seed, vrf_input(parent, build.epoch, build.view))
        ctx = Context(
            Height(parent.height + 1),
            TimeMs(max(parent.time_ms + 1, self._clock.now_ms())),
            build.epoch,
            build.view,
            build.parent_hash,
            self._keys.consensus.public,
            vrf.output(proof),
        )
        execution = Execution(tree, genesis, chain.rules, ctx)
        evidence = () if build.empty else self._evidence.fill(execution, State(tree))
        txs = () if build.empty else self._pool.fill(execution, _BLOCK_ROOM)
        if needs_work and not txs:
            return None
        done = execution.finish()
        header = seal_header(ctx, genesis, txs, evidence, done, proof)
        block = Block(header, txs, evidence)
        chain.keep(block, done)
        return block

    # --- validating and committing ----------------------------------------------------------

    def _validate(self, effect: Validate) -> None:
        self.counts["validated"] += 1
        header = effect.block.header
        timely = header.time_ms <= self._clock.now_ms() + self._params.clock_drift_ms
        try:
            self._check_leader(header)
            began = time.monotonic()
            self._chain.execute(effect.parent, effect.block)
            self._delta_floor.executed(time.monotonic() - began)
        except BlockError as error:
            self._perform(self._core.validated(effect.block_hash, False, str(error)))
            return
        except OrphanError as error:
            # No verdict: a rival has become final meanwhile, or a sync will bring what is lacking.
            log.warning("view %d: not executed: %s", header.view, error)
            return
        self._perform(self._core.validated(effect.block_hash, True, timely=timely))

    def _check_leader(self, header: Header) -> None:
        if header.epoch != self._core.epoch or header.proposer != self._core.leader(header.view):
            raise BlockError("the proposer is not the leader of the block's view")

    def _deliver(self, effect: Deliver) -> None:
        last = effect.blocks[-1]
        self._chain.commit(effect.blocks, effect.certificate)
        for item in self._evidence.committed(self._chain.state()):
            self._broadcast((item,))
        self._flood.finalized()
        self._timers.work_done()
        members = self._chain.validators(self._core.epoch).members
        self._core.set_delta_floor(self._delta_floor.measured(members))
        self._tell_followers(last, effect.certificate)
        epoch = epoch_of(self._chain.genesis, last.header.height + 1)
        if epoch > self._core.epoch:
            self._perform(self._core.begin_epoch(self._entering(epoch)))
        self._may_rotate = True

    def _tell_followers(self, block: Block, certificate: Certificate) -> None:
        own, header = self._keys.consensus.public, block.header
        if header.proposer == own:
            self._followers.tell_block(block, certificate)
        elif self._core.leader(View(header.view + 1)) == own:
            self._followers.tell_certificate(certificate)
