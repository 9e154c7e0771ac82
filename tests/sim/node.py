"""A driver of the real core with the real log, on a disk that fails, by a clock that is wrong."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chain.certificates import verify_certificate
from chain.codec import encode
from chain.errors import StorageError
from chain.types import (
    Block,
    Certificate,
    ConflictingCertificates,
    Header,
    Proposal,
    ProposalSeal,
    Vote,
)
from consensus.simplex import messages as m
from consensus.simplex.core import Simplex
from consensus.simplex.rules import Rule
from node.clock import Clock
from node.wal import LOG_NAME, WriteAheadLog
from tests.sim.disk import Crash, FaultyDisk
from tests.sim.ledger import CHAIN_ID, Law, body_matches, name
from tests.sim.oracle import Oracle
from tests.sim.world import World

LAST_VIEW = m.View(2**64 - 1)
MEASURE_MS = 1000  # how often the floor of Δ follows the links, where it does
DRIFT_MS = 2000  # a header's time is at most this far ahead of its voter's clock


@dataclass(frozen=True)
class Habits:
    """How a node's machine behaves. Times in ms."""

    execute_ms: int = 5
    empty_interval_ms: int = 60
    delta_floor_ms: int = 100
    delta_cap_ms: int = 2000
    transactions: float = 0.5  # how often a block carries some
    rotate: float = 0.3  # how often a delivery rotates the log
    drift: float = 0.0  # how much faster or slower a node's clock may run, as a part of one
    skew_ms: int = 0  # how wrong a node's wall clock may be
    measures_delta: bool = False  # whether the floor of Δ follows the links, as a driver may do


class SimNode:
    """An honest node. `index` is its place in the network; validators come first. `seat` is whose
    key it has, which differs for the second copy of a validator only."""

    honest = is_honest_program = True

    def __init__(
        self,
        index: int,
        law: Law,
        world: World,
        oracle: Oracle,
        habits: Habits,
        seat: int | None = None,
    ) -> None:
        self.index, self.law, self.world, self.oracle = index, law, world, oracle
        self.seat = index if seat is None else seat
        self.habits = habits
        self.dice = random.Random(f"node {law.seed} {index}")
        self.disk = FaultyDisk(law.genesis(), self.dice, world.counts)
        self.core: Simplex | None = None
        self.stopped = ""  # why it does not start again
        self.is_rotten = False  # its disk may do worse than to forget what was not synced
        self.is_down = False  # and stays so
        self.loses_power = False  # in its next crash
        self.back_after_ms: int | None = None  # its next crash, if somebody waits for it
        self.life = 0  # counts starts: what an earlier life began is void
        self.fuse: int | None = None  # effects left until the next crash
        self.frozen_until = 0
        self.rate = 1.0 + self.dice.uniform(-habits.drift, habits.drift)
        self.skew_ms = self.dice.randint(-habits.skew_ms, habits.skew_ms)
        self.wall_offset_ms = self.skew_ms
        self.ambush_at = 3  # points of the disk from there: after the write, before its sync
        self.ambush: Callable[[tuple[bytes, ...]], bool] | None = None
        self._log: WriteAheadLog | None = None
        self._clock = self._new_clock()
        self._on_disk: set[Vote | ProposalSeal] = set()
        self._round_trips: dict[int, int] = {}
        self._timers: dict[m.Timer, tuple[int, int]] = {}  # which start, and when it rings
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
        return signers[self.seat] if self.seat < len(signers) else None

    @property
    def name(self) -> str:
        return name(self.seat)

    @property
    def now_ms(self) -> int:
        """By its own clock, which is the product's."""
        return self._clock.now_ms()

    def _new_clock(self) -> Clock:
        world = self.world
        return Clock(
            wall=lambda: (world.now + self.wall_offset_ms + 10**9) * 10**6,
            steady=lambda: round(world.now * self.rate * 10**6),
        )

    # --- life -------------------------------------------------------------------

    def start(self) -> None:
        """Replay ends before the first network input."""
        if self.stopped or self.is_down or self.core is not None:
            return
        if not self.is_rotten:  # an operator sees to the clock, but for a frail node's
            self.wall_offset_ms = self.skew_ms
        try:
            self._start()
        except Crash:
            self.crash()
        except StorageError as error:
            self._give_up(error)

    def _start(self) -> None:
        self.life += 1
        self._on_disk.clear()
        self._clock = self._new_clock()
        tip = self.disk.blocks[-1].header
        epoch = self.law.epoch_of(tip.height + 1)
        self._log = WriteAheadLog(
            Path(self.name),
            abstain=[encode(m.SignFloor(epoch, LAST_VIEW))],
            expected=tip.height > 0,
            files=self.disk,
        )
        if self._log.loss:
            self.world.counts["logs opened with a loss"] += 1
        records = self._log.records()
        if self.honest:
            self.oracle.recovered(self.index, self.height, records)
        self.world.counts["recoveries"] += bool(records)
        config = m.Config(
            CHAIN_ID,
            self.law.is_last,
            body_matches,
            self.habits.delta_floor_ms,
            self.habits.delta_cap_ms,
            self.habits.empty_interval_ms,
            self._count_rule,
        )
        self.core = Simplex(
            config,
            self.law.context(epoch),
            tip,
            self.disk.certificates.get(tip.height),
            self.signer,
            records,
        )
        if self.habits.measures_delta:
            self._later(MEASURE_MS, self._measure)
        self.perform(self.core.start())

    def _count_rule(self, rule: Rule) -> None:
        """What liars do proves nothing of the rules, but for honest programs that run twice."""
        if self.is_honest_program:
            self.world.counts[rule.value] += 1

    def crash(self, *, power: bool | None = None) -> None:
        """kill -9, or a power failure: memory is gone, and what was not performed never happens."""
        self._forget()
        self.world.counts["crashes"] += 1
        power = self.loses_power or self.dice.random() < 0.5 if power is None else power
        self.loses_power = False
        self.disk.die(power=power, torn_anywhere=self.is_rotten)
        if self.back_after_ms is not None:
            self.world.after(self.back_after_ms, self.start)
            self.back_after_ms = None

    def _forget(self) -> None:
        self.core, self._log, self.fuse, self.ambush = None, None, None, None
        self.life += 1
        self._timers.clear()
        self._effects.clear()
        self._syncing = self._may_rotate = False

    def _give_up(self, error: StorageError) -> None:
        """The node stops with an error. If the disk was full, there will be room; if the log is
        damaged, an operator does what the error says, or never looks."""
        self._forget()
        self.disk.die(power=False)
        if "damaged" not in str(error):
            self.world.after(self.dice.randint(200, 2000), self.start)
            return
        self.oracle.refused_to_start(self.index, str(error), rotten=self.is_rotten)
        if self.dice.random() < 0.5:
            self.disk.remove(LOG_NAME)
            self.world.counts["damaged logs moved away"] += 1
            self.world.after(1000, self.start)
        else:
            self.stopped = str(error)

    def lose_log(self) -> None:
        """A crash that leaves the store alone: the key then signs nothing more in this epoch."""
        self.crash()
        self.disk.remove(LOG_NAME)
        self.world.counts["lost logs"] += 1
        self.start()

    def freeze(self, for_ms: int) -> None:
        """SIGSTOP: nothing happens, and everything that should have comes afterwards at once."""
        self.frozen_until = max(self.frozen_until, self.world.now + for_ms)
        self.world.counts["pauses"] += 1

    def _receive(self, source: int, envelope: m.Envelope) -> None:
        if self.world.now < self.frozen_until:
            self._thaw(lambda: self._receive(source, envelope))
            return
        peer = name(seat := self.world.nodes[source].seat)
        if self.habits.measures_delta:
            self._round_trips[seat] = 2 * self.world.travelled_ms
        for message in envelope.messages:
            if self.core is not None:
                self.perform(self.core.receive(peer, message))

    def _thaw(self, action: Callable[[], None]) -> None:
        self.world.after(self.frozen_until - self.world.now, action)

    # --- effects ----------------------------------------------------------------

    def perform(self, effects: list[m.Effect]) -> None:
        self._effects.extend(effects)
        if self._busy:
            return
        self._busy = True
        try:
            while self._effects and self.core is not None:
                if self.fuse is not None:
                    if self.fuse == 0:
                        self.world.counts["crash between effects"] += 1
                        raise Crash
                    self.fuse -= 1
                self._one(self._effects.popleft(), self.core)
            if self.core is not None and self._may_rotate and self._log is not None:
                self._log.rotate(self.core.snapshot())  # nothing waits: see the daemon's driver
                self.world.counts["rotations"] += 1
        except Crash:
            self.crash()
        except StorageError as error:  # as the daemon: stop before anything unrecorded leaves
            self._give_up(error)
        self._busy = self._may_rotate = False

    def _one(self, effect: m.Effect, core: Simplex) -> None:
        self.world.counts[type(effect).__name__] += 1
        match effect:
            case m.Persist():
                self._persist(effect.records)
            case m.Broadcast():
                self._broadcast(effect.messages)
            case m.Send():
                self._watch(effect.messages)
                self._send(effect.peer, effect.messages)
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

    def _persist(self, records: tuple[bytes, ...]) -> None:
        if self.ambush is not None and self.ambush(records):
            self.ambush = None
            self.disk.fuse = self.ambush_at
        if self._log is not None:
            self._log.append(records)

    def _send(self, peer: str, messages: tuple[m.Message, ...]) -> None:
        for node in self.world.nodes:
            if node.name == peer and node is not self:
                self.transmit(node.index, messages)

    def _later(self, delay_ms: int, action: Callable[[Simplex], None]) -> None:
        life = self.life

        def run() -> None:
            if self.core is None or self.life != life:
                return
            if self.world.now < self.frozen_until:
                self._thaw(run)
            else:
                action(self.core)

        self.world.after(delay_ms, run)

    def _broadcast(self, messages: tuple[m.Message, ...]) -> None:
        self._watch(messages)
        public = tuple(x for x in messages if isinstance(x, Proposal | Certificate))
        for node in self.world.nodes:
            heard = messages if node.seat < self.law.size else public
            if heard and node.seat != self.seat:
                self.transmit(node.index, heard)

    def _watch(self, messages: tuple[m.Message, ...]) -> None:
        if not self.honest:
            return
        for message in messages:
            signed = message.seal if isinstance(message, Proposal) else message
            own = isinstance(signed, Vote | ProposalSeal) and not self.disk.is_rotten
            self.oracle.left(self.index, message, not own or self._is_durable(signed))

    def _is_durable(self, signed: Vote | ProposalSeal) -> bool:
        """Whether a power failure would leave it, now or, in this life, when it left before."""
        if signed not in self._on_disk and self.disk.holds(LOG_NAME, encode(signed)):
            self._on_disk.add(signed)
        return signed in self._on_disk

    def transmit(self, target: int, messages: tuple[m.Message, ...]) -> None:
        self.world.send(self.index, target, messages)

    def accuse(self, signer: bytes) -> None:
        self.oracle.accused(self.index, signer)

    def _start_timer(self, effect: m.StartTimer) -> None:
        delay_ms = round(effect.delay_ms / self.rate)
        due = self.world.now + delay_ms
        if effect.at_most and due >= self._timers.get(effect.timer, (0, 0))[1]:
            return
        self.world.counts["timers"] += 1
        running = self._timers[effect.timer] = (self.world.counts["timers"], due)

        def fire(core: Simplex) -> None:
            if self._timers.get(effect.timer) == running:
                del self._timers[effect.timer]
                self.world.counts[f"timer {effect.timer.kind.name.lower()}"] += 1
                self.perform(core.timer(effect.timer))

        self._later(delay_ms, fire)

    # --- execution and storage --------------------------------------------------

    def _build(self, build: m.Build) -> None:
        works = self.dice.random() < self.habits.transactions
        wait_ms = self.dice.randint(0, 5) if works else self.habits.empty_interval_ms
        txs: tuple[bytes, ...] = ()
        if works and not build.empty:
            txs = self.law.transactions(self.dice)
        signer = self.signer
        if signer is None:
            raise AssertionError("a follower was asked to build")

        def built(core: Simplex) -> None:
            block = self.law.block(
                build.parent, build.parent_hash, build.view, signer.public, txs, self.now_ms
            )
            self.perform(core.built(build.view, build.parent_hash, block))

        self._later(wait_ms, built)

    def _validate(self, effect: m.Validate) -> None:
        header = effect.block.header
        root = self.law.root_after(effect.parent.state_root, effect.block)
        ok = root == header.state_root

        def validated(core: Simplex) -> None:
            timely = header.time_ms <= self.now_ms + DRIFT_MS
            self.world.counts["blocks from the future"] += not timely
            self.perform(core.validated(effect.block_hash, ok, "state root", timely=timely))

        self._later(self.dice.randint(0, self.habits.execute_ms), validated)

    def _deliver(self, effect: m.Deliver, core: Simplex) -> None:
        self.oracle.delivered(self.index, self.height, effect.blocks, effect.certificate)
        self.disk.commit(effect.blocks, effect.certificate)
        self._settled(core)

    def _measure(self, core: Simplex) -> None:
        measured_ms = 2 * self._quorum_round_trip(core) + self.habits.execute_ms
        core.set_delta_floor(max(self.habits.delta_floor_ms, measured_ms))
        self._later(MEASURE_MS, self._measure)

    def _quorum_round_trip(self, core: Simplex) -> int:
        """Within which more than two thirds of stake answer, oneself included at once."""
        stakes = self.law.stakes(core.epoch)
        weight = stakes[self.seat] if self.seat < len(stakes) else 0
        for round_trip_ms, seat in sorted((t, s) for s, t in self._round_trips.items()):
            weight += stakes[seat] if seat < len(stakes) else 0
            if 3 * weight > 2 * sum(stakes):
                return round_trip_ms
        return 0

    def _settled(self, core: Simplex) -> None:
        epoch = self.law.epoch_of(self.height + 1)
        if epoch > core.epoch:
            self.world.counts["epochs begun"] += 1
            self.perform(core.begin_epoch(self.law.context(epoch)))
        self._may_rotate |= self.dice.random() < self.habits.rotate

    def _serve(self, effect: m.Serve) -> None:
        for block in self.disk.blocks:
            if block.hash() == effect.block_hash:
                self._send(effect.peer, (m.BlockReply(block),))

    # --- sync, as the daemon's: blocks and certificates of a peer's store ----------

    def _sync(self, effect: m.Sync) -> None:
        peers = [n for n in self.world.nodes if n is not self and n.core is not None]
        named = [n for n in peers if n.name == effect.peer]
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
        try:
            self.disk.commit(tuple(blocks), certificate)
        except Crash:
            self.crash()
            return
        self.world.counts["synced"] += 1
        epoch = self.law.epoch_of(self.height + 1)
        context = self.law.context(epoch) if epoch > core.epoch else None
        self.perform(core.advance_to(last, certificate, context))


def _index(peer: str) -> int:
    return int(peer.removeprefix("node-")) if peer else -1
