"""One run: a network, a storm, and then, in a good network, the proof that it lives."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from chain.types import VoteKind
from tests.sim.byzantine import KINDS, Byzantine, Twin
from tests.sim.ledger import Law
from tests.sim.memory import remembered_verdicts
from tests.sim.node import Habits, SimNode
from tests.sim.oracle import Oracle, Violation
from tests.sim.storm import Fury, Storm, hold_back
from tests.sim.world import Weather, World

BLOCKS_AFTER_GST = 10
LIVENESS_DELTAS = 20 * BLOCKS_AFTER_GST  # ten blocks within 20Δ·10, Δ at its cap
EXILE_MS = 15_000  # of a good network: more blocks than are fetched one by one
NEAR_VIEWS = 3  # apart, at most, that honest nodes are in a good network
EPOCHS = 120  # more than a run has
SIZES = ((4, 4, 50), (5, 7, 36), (8, 13, 11), (14, 31, 3))  # from, to, weight: small ones are quick


@dataclass(frozen=True)
class Plan:
    """One run. `None` for a drawn value; tests fix what they are about."""

    seed: int
    size: int | None = None
    liars: tuple[type[Byzantine], ...] | None = None
    epoch_blocks: int | None = None
    storm_ms: int | None = None  # how long faults last, until the network is good (GST)
    followers: int | None = None
    fury: Fury | None = None
    frail: int | None = None  # honest nodes whose disks may forget what was synced
    down: int | None = None  # honest nodes that stay down for good, as many as a quorum allows
    thirds: bool | None = None  # liars with exactly a third: agreement is promised, progress is not
    habits: Habits | None = None
    exile: bool | None = None  # one node is away for so long that it must sync
    law: Law | None = None  # of as many validators as `size`; a toy of them is made otherwise


@dataclass(frozen=True)
class Verdict:
    heights: tuple[int, ...]
    trace: str
    counts: Counter[str]
    seconds: float  # of simulated time


class Scenario:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        dice = self.dice = random.Random(f"plan {plan.seed}")
        self.thirds = dice.random() < 0.04 if plan.thirds is None else plan.thirds
        self.thirds &= plan.size is None and plan.liars is None
        low, high, _ = dice.choices(SIZES, [weight for *_, weight in SIZES])[0]
        size = plan.size or (dice.choice((6, 9)) if self.thirds else dice.randint(low, high))
        exile = dice.random() < 0.04 if plan.exile is None else plan.exile
        self.exile = exile and not self.thirds and size < 8 and plan.storm_ms is None
        epoch_blocks = (
            1000 if self.exile else plan.epoch_blocks or dice.choice((3, 5, 10, 1000, 1000))
        )
        self.law = plan.law or Law(plan.seed, size, epoch_blocks, equal=self.thirds)
        self.world = World(plan.seed)
        self._faulty: set[int] = set()
        idle = dice.choice((0, 0, 1, 9)) if plan.down is None else plan.down
        down = [] if self.thirds or plan.liars else self._draw_faulty(idle)
        liars = self._draw_liars()
        frail = self._draw_faulty(dice.randint(0, 2) if plan.frail is None else plan.frail)
        followers = dice.randint(0, 1) if plan.followers is None else plan.followers
        self.oracle = Oracle(self.law, frozenset(range(size + followers)) - liars.keys())
        self.habits = plan.habits or Habits(
            execute_ms=dice.choice((0, 5, 20)),
            empty_interval_ms=dice.choice((20, 60, 200)),
            transactions=dice.choice((0.0, 0.5, 1.0)),
            rotate=dice.choice((0.0, 0.3, 1.0)),
            drift=dice.choice((0.0, 0.02)),
            skew_ms=dice.choice((0, 400)),
        )
        for index in range(size + followers):
            self._settle(liars.get(index, SimNode), index)
        for index in (i for i, kind in sorted(liars.items()) if kind is Twin):
            self._settle(Twin, len(self.world.nodes), seat=index)
        nodes: list[SimNode] = self.world.nodes
        self.honest = [n for n in nodes if n.honest]
        self.frail = [nodes[i] for i in frail]
        self.down = [nodes[i] for i in down]
        for node in self.frail:
            node.is_rotten = True
            if dice.random() < 0.4:  # whose clock nobody sees to, either
                node.wall_offset_ms += dice.choice((-1, 1)) * dice.randint(3000, 60_000)
        self.world.counts["clocks askew"] += sum(n.skew_ms != 0 for n in nodes)

    def _settle(self, kind: type[SimNode], index: int, seat: int | None = None) -> None:
        kind(index, self.law, self.world, self.oracle, self.habits, seat)

    def _draw_liars(self) -> dict[int, type[Byzantine]]:
        """Liars by index, below a third of the stake of every epoch that can come."""
        plan, dice = self.plan, self.dice
        if self.thirds:
            self._faulty |= set(dice.sample(range(self.law.size), self.law.size // 3))
            return dict.fromkeys(sorted(self._faulty), Twin)
        wanted = plan.liars
        if wanted is None:
            most = dice.choice((1, 2, 2, self.law.size // 3 + 1))
            wanted = tuple(dice.choice(KINDS) for _ in range(dice.randint(0, most)))
        chosen: dict[int, type[Byzantine]] = {}
        for kind in wanted:
            for index in self._draw_faulty(1):
                chosen[index] = kind
        if plan.liars is not None and len(chosen) < len(plan.liars):
            raise ValueError("no validator has so little stake that it may lie")
        return chosen

    def _draw_faulty(self, most: int) -> list[int]:
        """Up to `most` validators more that may fail while the others still are a quorum."""
        candidates = [i for i in range(self.law.size) if i not in self._faulty]
        self.dice.shuffle(candidates)
        chosen: list[int] = []
        for index in candidates:
            if len(chosen) < most and self._below_a_third({*self._faulty, index}):
                self._faulty.add(index)
                chosen.append(index)
        return chosen

    def _below_a_third(self, indices: set[int]) -> bool:
        epochs = (self.law.stakes(epoch) for epoch in range(EPOCHS))
        return all(3 * sum(stakes[i] for i in indices) < sum(stakes) for stakes in epochs)

    # --- running ----------------------------------------------------------------

    def run(self) -> Verdict:
        with remembered_verdicts():
            self.start()
            if self.thirds:
                self._divide()
            else:
                self._storm()
                self.calm()
                self.live()
        return self.verdict()

    def start(self) -> None:
        for node in self.world.nodes:
            self.world.after(self.dice.randint(0, 50), node.start)

    def verdict(self) -> Verdict:
        heights = tuple(n.height for n in self.honest)
        counts = self.world.counts + self.oracle.seen
        return Verdict(heights, self.world.trace, counts, self.world.now / 1000)

    def _storm(self) -> None:
        plan, dice = self.plan, self.dice
        storm_ms = dice.choice((0, 2000, 6000, 9000)) if plan.storm_ms is None else plan.storm_ms
        if self.exile:
            storm_ms = EXILE_MS
            self._send_away()
        elif storm_ms:
            fury = Fury.drawn(dice) if plan.fury is None else plan.fury
            if self.law.size > 13:  # as many crashes a node, roughly
                fury = replace(fury, crashes=2 * fury.crashes)
            Storm(self.world, dice, self.frail, storm_ms, fury)
        self.world.run(lambda: False, storm_ms)

    def _send_away(self) -> None:
        node = self.dice.choice(self.honest)
        node.is_down = True
        self.world.counts["exiles"] += 1

        def come_back() -> None:
            node.is_down = node in self.down
            node.start()

        self.world.after(EXILE_MS, come_back)
        # Meanwhile the others' blocks pile up unfinalized, beyond those that may carry work (MX).
        self.world.after(2000, lambda: hold_back(self.world, VoteKind.FINALIZE, 5000))

    def _divide(self) -> None:
        """A network in two halves, with a copy of each liar in both; then healed. A quorum of two
        thirds and no more would be enough to decide in each."""
        seats = [n.seat for n in self.honest if n.seat < self.law.size]
        here = set(seats[: len(seats) // 2])
        groups = []
        for side in (True, False):
            twins = (n.index for n in self.world.nodes if not n.honest and _is_copy(n) == side)
            alone = (n.index for n in self.honest if (n.seat in here) == side)
            groups.append(frozenset((*twins, *alone)))
        self.world.weather = Weather(groups=tuple(groups))
        self.world.counts["liars with exactly a third"] += 1
        self.world.run(lambda: False, 6000)
        self.world.weather = Weather()
        self.world.run(lambda: False, 9000)

    def calm(self) -> None:
        """GST: from here on every message arrives within 30 ms, clocks are right, and everyone is
        up, but for those who are kept down: the others are a quorum."""
        self.world.weather, self.world.censor = Weather(), None
        for node in self.down:
            if node.core is not None:
                node.crash()
            node.is_down = True
            self.world.counts["kept down"] += 1
        for node in self.world.nodes:
            node.fuse = node.disk.fuse = None
            node.disk.refusals = node.disk.strays = node.disk.failing_syncs = 0
            node.wall_offset_ms = node.skew_ms
            if node.core is None:
                node.start()

    def live(self, limit_ms: int | None = None) -> int:
        """Run until ten more blocks are final everywhere; how long that took, in ms."""
        begun = self.world.now
        goal = max(n.height for n in self.honest) + BLOCKS_AFTER_GST
        limit_ms = limit_ms or LIVENESS_DELTAS * self.habits.delta_cap_ms
        if not self.world.run(lambda: self._is_live(goal), begun + limit_ms):
            where = [
                (n.index, n.height, n.core and (n.core.epoch, n.core.view)) for n in self.honest
            ]
            raise Violation(f"not live: height {goal} not reached in {limit_ms} ms: {where}")
        return self.world.now - begun

    def _is_live(self, goal: int) -> bool:
        """Every honest node that runs has the blocks, and none was left behind in an old view (R8).
        A node whose log is damaged does not run, nor does one that is kept down."""
        running = [n for n in self.honest if not n.stopped and not n.is_down]
        if not all(n.height >= goal and n.core is not None for n in running):
            return False
        at = [(n.core.epoch, n.core.view) for n in running if n.core is not None]
        epoch, view = max(at)
        return all(e == epoch and v + NEAR_VIEWS >= view for e, v in at)


def _is_copy(node: SimNode) -> bool:
    return node.index != node.seat


def simulate(plan: Plan) -> Verdict:
    return Scenario(plan).run()
