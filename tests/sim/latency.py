"""How long agreement takes in simulated networks: real cores, codec and logs, by simulated time.

Links take 50 to 150 whole milliseconds, drawn anew for each packet, all values alike likely: their
mean and their median are one, and that is the one-way delay. Everyone has the same stake. Δ is the
core's own, its floor measured from the links as the daemon's driver does.

**Finality**: from the moment a leader sends its proposal (its block is built and executed, and its
log synced) until a node delivers that block, for every block and every node. Everyone is honest,
every block carries transactions. And, for what a user sees, from a moment at which every node gets
a transaction until a node delivers the next block that some leader is asked to build.

**Crash**: a leader dies for good somewhere in its view: before its n-th effect (a sync, a timer, a
block to build, ...), or before its n-th packet leaves, so that any part of the others has heard it.
What that costs is how much longer the survivors stayed in the view than in the median one of those
before; and how many views stayed without a final block: the leader's, and those of living leaders
round it. Its later turns are its absence, not its crash. `busy`: transactions always wait, and the
timer for a proposal is that of the driver (`node/services/timers.py`), which then gives a leader
no time to be idle; otherwise none come, and an uneventful view takes the whole empty interval.
Links do not break when a process dies, as they do in the daemon: here it is the whole machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import median

from chain.types import Block, Certificate, Epoch, Proposal, View
from consensus.simplex import messages as m
from consensus.simplex.core import Simplex
from tests.sim.disk import Crash
from tests.sim.ledger import Law
from tests.sim.memory import remembered_verdicts
from tests.sim.node import Habits, SimNode
from tests.sim.oracle import Oracle, Violation
from tests.sim.world import Weather, World

LEAST_MS, MOST_MS = 50, 150
ONE_WAY_MS = (LEAST_MS + MOST_MS) // 2
WARM_UP_VIEWS = 12  # until the floor of Δ is measured and the pace is even
AFTERWARDS_VIEWS = 4  # round a crash that are looked at
EFFECTS = 12  # of a leader's view, or fewer
LIMIT_MS = 600_000
HABITS = Habits(
    execute_ms=5, empty_interval_ms=1000, delta_floor_ms=250, delta_cap_ms=10_000,
    transactions=1.0, rotate=0.0, measures_delta=True,
)  # fmt: skip


class Watch(Oracle):
    """An oracle that also notes when proposals leave and when blocks are delivered."""

    def __init__(self, law: Law, world: World) -> None:
        super().__init__(law, frozenset(range(law.size)))
        self._world = world
        self.asked: dict[int, int] = {}  # when the leader of a view was asked for a block
        self.proposed: dict[int, int] = {}  # when a view's block left
        self.final: dict[int, list[int]] = {}  # when a view's block was delivered

    def left(self, node: int, message: object, on_disk: bool) -> None:
        super().left(node, message, on_disk)
        if isinstance(message, Proposal):
            self.proposed.setdefault(message.seal.view, self._world.now)

    def delivered(self, node: int, height: int, blocks: tuple[Block, ...], by: Certificate) -> None:
        super().delivered(node, height, blocks, by)
        for block in blocks:
            self.final.setdefault(block.header.view, []).append(self._world.now)


@dataclass(frozen=True)
class Point:
    """Where in its view a leader dies."""

    before: str  # "effect" or "packet"
    number: int


class TimedNode(SimNode):
    """An honest node that notes when it enters views, with Δ then, and may die at a point."""

    def __init__(self, index: int, law: Law, world: World, watch: Watch, habits: Habits) -> None:
        super().__init__(index, law, world, watch, habits)
        self._times = watch
        self.entered: dict[int, tuple[int, int]] = {}  # view: (when, Δ)
        self.doom: tuple[int, Point] | None = None  # a view, and where in it
        self.told = 0  # how many the proposal of that view was sent to
        self._done = {"effect": 0, "packet": 0}

    def perform(self, effects: list[m.Effect]) -> None:
        if self.core is not None:
            self.entered.setdefault(self.core.view, (self.world.now, self.core.delta_ms))
        super().perform(effects)

    def _one(self, effect: m.Effect, core: Simplex) -> None:
        self._pass("effect")
        super()._one(effect, core)

    def transmit(self, target: int, messages: tuple[m.Message, ...]) -> None:
        self._pass("packet")
        if self._is_doomed():
            self.told += any(isinstance(x, Proposal) for x in messages)
        super().transmit(target, messages)

    def _build(self, build: m.Build) -> None:
        self._times.asked.setdefault(build.view, self.world.now)
        super()._build(build)

    def _pass(self, what: str) -> None:
        if not self._is_doomed() or self.doom is None:
            return
        if self.doom[1] == Point(what, self._done[what]):
            self.is_down = True
            raise Crash
        self._done[what] += 1

    def _is_doomed(self) -> bool:
        return self.doom is not None and self.core is not None and self.core.view == self.doom[0]

    def _start_timer(self, effect: m.StartTimer) -> None:
        """The driver leaves the empty interval out while transactions wait."""
        if self.habits.transactions and effect.timer.kind is m.TimerKind.PROPOSAL:
            delay_ms = effect.delay_ms - self.habits.empty_interval_ms
            effect = replace(effect, delay_ms=delay_ms)
        super()._start_timer(effect)


@dataclass
class Net:
    """A network of sound nodes with equal stakes on links of 50 to 150 ms."""

    seed: int
    size: int
    habits: Habits = HABITS
    nodes: list[TimedNode] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.law = Law(self.seed, self.size, 1_000_000, equal=True)
        self.world = World(self.seed, Weather(LEAST_MS, MOST_MS))
        self.watch = Watch(self.law, self.world)
        dice = random.Random(f"latency {self.seed}")
        for index in range(self.size):
            node = TimedNode(index, self.law, self.world, self.watch, self.habits)
            self.nodes.append(node)
            self.world.after(dice.randint(0, 50), node.start)

    def reach(self, view: int, nodes: list[TimedNode]) -> None:
        """Run until these nodes have a final block of this view or a later one."""

        def there() -> bool:
            return all(n.disk.blocks[-1].header.view >= view for n in nodes)

        if not self.world.run(there, self.world.now + LIMIT_MS):
            raise Violation(f"seed {self.seed}: no final block from view {view} on")


@dataclass(frozen=True)
class Finality:
    """One figure for each block, or transaction, and node, in ms."""

    of_blocks: list[int]
    of_transactions: list[int]


def finality(seed: int, size: int, views: int) -> Finality:
    """So many views after the warm-up."""
    with remembered_verdicts():
        net = Net(seed, size)
        net.reach(WARM_UP_VIEWS, net.nodes)
        first = max(max(n.entered) for n in net.nodes) + 1
        net.reach(first + views, net.nodes)
    watch, measured = net.watch, range(first, first + views)
    final = {v: watch.final[v] for v in measured if len(watch.final.get(v, ())) == size}
    if len(final) < views:
        raise Violation(f"seed {seed}: {views - len(final)} of {views} views without a final block")
    dice = random.Random(f"transactions {seed}")
    of_transactions = []
    for _ in range(4 * views):
        at = dice.randrange(watch.asked[first], watch.asked[first + views - 1])
        view = min(v for v in measured if watch.asked[v] > at)
        of_transactions += [done - at for done in final[view]]
    return Finality([at - watch.proposed[v] for v in final for at in final[v]], of_transactions)


@dataclass(frozen=True)
class Cost:
    """What a crash cost."""

    point: Point
    lost_views: int
    extra_ms: int  # the worst of the survivors
    delta_ms: int  # the largest of theirs as the view began: a quorum gives it up, not one node
    least_ms: int  # the proposal timer at its shortest, and one message: nobody can give up before
    told: int  # how many its proposal had been sent to

    @property
    def limit_ms(self) -> int:
        """3Δ and one round trip."""
        return 3 * self.delta_ms + 2 * ONE_WAY_MS


def crash(seed: int, size: int, point: Point, *, busy: bool) -> Cost | None:
    """One crash; None if the view was over before its leader came to that point."""
    habits = HABITS if busy else replace(HABITS, transactions=0.0)
    with remembered_verdicts():
        net = Net(seed, size, habits)
        net.reach(WARM_UP_VIEWS, net.nodes)
        view = max(max(n.entered) for n in net.nodes) + 2
        leader_of = net.law.context(Epoch(0)).leader_of
        victim = net.nodes[leader_of(View(view))]
        victim.doom = (view, point)
        living = [n for n in net.nodes if n is not victim]
        net.reach(view + AFTERWARDS_VIEWS, living)
    if victim.core is not None:
        return None
    final = {b.header.view for b in living[0].disk.blocks}
    round_it = range(view - AFTERWARDS_VIEWS, view + AFTERWARDS_VIEWS + 1)
    turns = [v for v in round_it if v == view or net.nodes[leader_of(View(v))] is not victim]
    extras = [_stay(n, view) - _even(n, view) for n in living]
    deltas_ms = [n.entered[view][1] for n in living]
    wait_ms = 2 * min(deltas_ms) + (0 if busy else habits.empty_interval_ms)
    least_ms = wait_ms + ONE_WAY_MS - max(_even(n, view) for n in living)
    lost = sum(v not in final for v in turns)
    return Cost(point, lost, max(extras), max(deltas_ms), max(0, least_ms), victim.told)


def _stay(node: TimedNode, view: int) -> int:
    """How long a node was in a view; it may have come late, by a later certificate, or never."""
    here = min(at for v, (at, _) in node.entered.items() if v >= view)
    return min(at for v, (at, _) in node.entered.items() if v > view) - here


def _even(node: TimedNode, view: int) -> int:
    return int(median(_stay(node, v) for v in range(view - WARM_UP_VIEWS // 2, view)))


def points(size: int, packets: int) -> Iterator[Point]:
    """All effects of a view, and about so many of its packets; some are more than a view has."""
    yield from (Point("effect", n) for n in range(EFFECTS))
    yield from (Point("packet", n) for n in range(1, 2 * size, max(1, 2 * size // packets)))
