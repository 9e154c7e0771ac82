"""A driver of the real core: in-memory log and store, crashes between any two effects."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from chain.codec import encode
from chain.types import (
    Block,
    Certificate,
    ConflictingCertificates,
    Header,
    Proposal,
    ProposalSeal,
    Vote,
)
from consensus.certificates import verify_certificate
from consensus.simplex import messages as m
from consensus.simplex.core import Simplex
from tests.sim.ledger import CHAIN_ID, Law, body_matches, name
from tests.sim.oracle import Oracle
from tests.sim.world import World


@dataclass
class Disk:
    """What survives a crash: synced log records, and committed blocks with the certificates that
    came with them."""

    log: list[bytes] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    certificates: dict[int, Certificate] = field(default_factory=dict)


@dataclass(frozen=True)
class Habits:
    """How a node's machine behaves. Times in ms."""

    execute_ms: int = 5
    empty_interval_ms: int = 60
    delta_floor_ms: int = 100
    delta_cap_ms: int = 2000
    transactions: float = 0.5  # how often a block carries some
    rotate: float = 0.3  # how often a delivery rotates the log
    clock_rate: float = 1.0  # of its timers


class SimNode:
    """An honest node. `index` is its place in the network; validators come first."""

    honest = True

    def __init__(self, index: int, law: Law, world: World, oracle: Oracle, habits: Habits) -> None:
        self.index, self.law, self.world, self.oracle = index, law, world, oracle
        self.habits = habits
        self.disk = Disk(blocks=[law.genesis()])
        self.dice = random.Random(f"node {law.seed} {index}")
        self.core: Simplex | None = None
        self.life = 0  # counts starts: what an earlier life began is void
        self.fuse: int | None = None  # effects left until the next crash
        self._timers: dict[m.Timer, int] = {}
        self._effects: deque[m.Effect] = deque()
        self._busy = self._may_rotate = False
        self._syncing = False
        world.nodes.append(self)
        world.listen(index, self._receive)

    @property
    def height(self) -> int:
        return len(self.disk.blocks) - 1

    @property
    def signer(self) -> m.Signer | None:
        signers = self.law.signers
        return signers[self.index] if self.index < len(signers) else None

    # --- life -------------------------------------------------------------------

    def start(self) -> None:
        """Replay ends before the first network input."""
        self.life += 1
        tip = self.disk.blocks[-1].header
        config = m.Config(
            CHAIN_ID,
            self.law.is_last,
            body_matches,
            self.habits.delta_floor_ms,
            self.habits.delta_cap_ms,
            self.habits.empty_interval_ms,
        )
        self.core = Simplex(
            config,
            self.law.context(self.law.epoch_of(tip.height + 1)),
            tip,
            self.disk.certificates.get(tip.height),
            self.signer,
            list(self.disk.log),
        )
        self.perform(self.core.start())

    def crash(self) -> None:
        """kill -9: memory is gone, and what was not performed never happens."""
        self.core, self.fuse = None, None
        self.life += 1
        self._timers.clear()
        self._effects.clear()
        self._syncing = False
        self.world.counts["crashes"] += 1

    def lose_log(self) -> None:
        """A crash that leaves the store alone; the driver then forbids to sign in this epoch."""
        self.crash()
        floor = m.SignFloor(self.law.epoch_of(self.height + 1), m.View(2**64 - 1))
        self.disk.log = [encode(floor)]
        self.world.counts["lost logs"] += 1
        self.start()

    def _receive(self, source: int, envelope: m.Envelope) -> None:
        for message in envelope.messages:
            if self.core is not None:
                self.perform(self.core.receive(name(source), message))

    # --- effects ----------------------------------------------------------------

    def perform(self, effects: list[m.Effect]) -> None:
        self._effects.extend(effects)
        if self._busy:
            return
        self._busy = True
        while self._effects and self.core is not None:
            if self.fuse is not None:
                if self.fuse == 0:
                    self.crash()
                    break
                self.fuse -= 1
            self._one(self._effects.popleft(), self.core)
        if self.core is not None and self._may_rotate:
            self.disk.log = list(self.core.snapshot())  # nothing waits: see the daemon's driver
            self.world.counts["rotations"] += 1
        self._busy = self._may_rotate = False

    def _one(self, effect: m.Effect, core: Simplex) -> None:
        self.world.counts[type(effect).__name__] += 1
        match effect:
            case m.Persist():
                self.disk.log += effect.records
            case m.Broadcast():
                self._broadcast(effect.messages)
            case m.Send():
                self._watch(effect.messages)
                self.transmit(_index(effect.peer), effect.messages)
            case m.Serve():
                self._serve(effect)
            case m.StartTimer():
                self._start_timer(effect)
            case m.CancelTimer():
                self._timers.pop(effect.timer, None)
            case m.Build():
                self._build(effect)
            case m.Validate():
                self._validate(effect)
            case m.Deliver():
                self._deliver(effect, core)
            case m.Sync():
                self._sync(effect)
            case m.Evidence():
                if not isinstance(effect.item, ConflictingCertificates):  # its pairs are told, too
                    self.accuse(effect.item.first.signer)
            case m.Refuse():
                self.oracle.refused(self.index, _index(effect.peer), effect.reason)
            case m.Rejected():
                leader = core.leader(effect.view)
                index = [s.public for s in self.law.signers].index(leader)
                self.oracle.rejected(self.index, index, effect.reason)
            case m.Halt():
                self.oracle.halted(self.index, effect.report)

    def _later(self, delay_ms: int, action: Callable[[Simplex], None]) -> None:
        life = self.life

        def run() -> None:
            if self.core is not None and self.life == life:
                action(self.core)

        self.world.after(delay_ms, run)

    def _broadcast(self, messages: tuple[m.Message, ...]) -> None:
        self._watch(messages)
        followers = range(self.law.size, len(self.world.nodes))
        public = tuple(x for x in messages if isinstance(x, Proposal | Certificate))
        for target in range(self.law.size):
            if target != self.index:
                self.transmit(target, messages)
        for target in followers:
            if public and target != self.index:
                self.transmit(target, public)

    def _watch(self, messages: tuple[m.Message, ...]) -> None:
        if not self.honest:
            return
        for message in messages:
            signed = message.seal if isinstance(message, Proposal) else message
            own = isinstance(signed, Vote | ProposalSeal)
            self.oracle.left(self.index, message, not own or encode(signed) in self.disk.log)

    def transmit(self, target: int, messages: tuple[m.Message, ...]) -> None:
        self.world.send(self.index, target, messages)

    def accuse(self, signer: bytes) -> None:
        self.oracle.accused(self.index, signer)

    def _start_timer(self, effect: m.StartTimer) -> None:
        self.world.counts["timers"] += 1
        token = self._timers[effect.timer] = self.world.counts["timers"]

        def fire(core: Simplex) -> None:
            if self._timers.get(effect.timer) == token:
                del self._timers[effect.timer]
                self.world.counts[f"timer {effect.timer.kind.name.lower()}"] += 1
                self.perform(core.timer(effect.timer))

        self._later(round(effect.delay_ms * self.habits.clock_rate), fire)

    # --- execution and storage --------------------------------------------------

    def _build(self, build: m.Build) -> None:
        works = self.dice.random() < self.habits.transactions
        wait_ms = self.dice.randint(0, 5) if works else self.habits.empty_interval_ms
        txs: tuple[bytes, ...] = ()
        if works and not build.empty:
            txs = tuple(self.dice.randbytes(4) for _ in range(self.dice.randint(1, 3)))
        signer = self.signer
        if signer is None:
            raise AssertionError("a follower was asked to build")

        def built(core: Simplex) -> None:
            block = self.law.block(
                build.parent, build.parent_hash, build.view, signer.public, txs, self.world.now
            )
            self.perform(core.built(build.view, build.parent_hash, block))

        self._later(wait_ms, built)

    def _validate(self, effect: m.Validate) -> None:
        header = effect.block.header
        root = self.law.execute(effect.parent.state_root, effect.block.txs)
        ok = root == header.state_root

        def validated(core: Simplex) -> None:
            timely = header.time_ms <= self.world.now + 2000
            self.perform(core.validated(effect.block_hash, ok, "state root", timely=timely))

        self._later(self.dice.randint(0, self.habits.execute_ms), validated)

    def _deliver(self, effect: m.Deliver, core: Simplex) -> None:
        self.oracle.delivered(self.index, self.height, effect.blocks, effect.certificate)
        for block in effect.blocks:
            if self.fuse is not None and self.dice.random() < 0.1:
                self.crash()  # each block is a commit of its own
                return
            self.disk.blocks.append(block)
        self.disk.certificates[self.height] = effect.certificate
        self._settled(core)

    def _settled(self, core: Simplex) -> None:
        epoch = self.law.epoch_of(self.height + 1)
        if epoch > core.epoch:
            self.world.counts["epochs begun"] += 1
            self.perform(core.begin_epoch(self.law.context(epoch)))
        self._may_rotate |= self.dice.random() < self.habits.rotate

    def _serve(self, effect: m.Serve) -> None:
        for block in self.disk.blocks:
            if block.hash() == effect.block_hash:
                self.transmit(_index(effect.peer), (m.BlockReply(block),))

    # --- sync, as the daemon's: blocks and certificates of a peer's store ----------

    def _sync(self, effect: m.Sync) -> None:
        peers = [n for n in self.world.nodes if n is not self and n.core is not None]
        named = [n for n in peers if name(n.index) == effect.peer]
        if self._syncing or not peers:
            return
        peer = named[0] if named else self.dice.choice(peers)
        if not peer.honest or self.world.weather.parts(self.index, peer.index):
            return
        self._syncing = True
        certified = max(peer.disk.certificates, default=0)
        blocks = peer.disk.blocks[self.height + 1 : certified + 1]
        certificates = dict(peer.disk.certificates)
        delay_ms = 2 * self.dice.randint(self.world.weather.least_ms, self.world.weather.most_ms)
        self._later(delay_ms, lambda core: self._synced(core, blocks, certificates))

    def _synced(
        self, core: Simplex, blocks: list[Block], certificates: dict[int, Certificate]
    ) -> None:
        self._syncing = False
        blocks = [b for b in blocks if b.header.height > self.height]
        if not blocks:
            return
        last: Header = blocks[-1].header
        certificate = certificates[last.height]
        validators = self.law.context(certificate.epoch).validators
        verify_certificate(CHAIN_ID, validators, certificate)
        self.oracle.delivered(self.index, self.height, tuple(blocks), certificate)
        self.disk.blocks += blocks
        self.disk.certificates[self.height] = certificate
        self.world.counts["synced"] += 1
        epoch = self.law.epoch_of(self.height + 1)
        context = self.law.context(epoch) if epoch > core.epoch else None
        self.perform(core.advance_to(last, certificate, context))


def _index(peer: str) -> int:
    return int(peer.removeprefix("node-")) if peer else -1
