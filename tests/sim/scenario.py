"""From a seed to a network, its faults and its verdict."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from tests.sim.byzantine import KINDS, Byzantine
from tests.sim.ledger import Law
from tests.sim.node import Habits, SimNode
from tests.sim.oracle import Oracle, Violation
from tests.sim.world import Weather, World, remembered_verdicts

BLOCKS_AFTER_GST = 10
LIVENESS_DELTAS = 20 * BLOCKS_AFTER_GST  # DESIGN 6: ten blocks within 20Δ·10, Δ at its cap
NEAR_VIEWS = 3  # apart, at most, that honest nodes are in a good network


@dataclass(frozen=True)
class Plan:
    """One run. `None` for a drawn value; tests fix what they are about."""

    seed: int
    size: int | None = None
    liars: tuple[type[Byzantine], ...] | None = None
    epoch_blocks: int | None = None
    storm_ms: int | None = None  # how long faults last, until the network is good (GST)
    followers: int | None = None
    crashes: int | None = None
    lost_logs: int = 0  # how often one node, always the same, loses its log


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
        size = plan.size or dice.randint(4, 7)
        epoch_blocks = plan.epoch_blocks or dice.choice((3, 5, 10, 1000))
        self.law = Law(plan.seed, size, epoch_blocks)
        self.world = World(plan.seed)
        kinds = self._draw_liars()
        self.oracle = Oracle(self.law, frozenset(i for i in range(size + 2) if i not in kinds))
        followers = dice.randint(0, 1) if plan.followers is None else plan.followers
        self.habits = Habits(
            execute_ms=dice.choice((0, 5, 20)),
            empty_interval_ms=dice.choice((20, 60, 200)),
            transactions=dice.choice((0.0, 0.5, 1.0)),
            rotate=dice.choice((0.0, 0.3, 1.0)),
        )
        for index in range(size + followers):
            kind = kinds.get(index, SimNode)
            kind(index, self.law, self.world, self.oracle, self.habits)
        self.honest: list[SimNode] = [n for n in self.world.nodes if n.honest]

    def _draw_liars(self) -> dict[int, type[Byzantine]]:
        """Liars by index, below a third of the stake of every epoch that can come."""
        plan, dice = self.plan, self.dice
        wanted = plan.liars
        if wanted is None:
            wanted = tuple(dice.choice(KINDS) for _ in range(dice.randint(0, 2)))
        chosen: dict[int, type[Byzantine]] = {}
        for kind in wanted:
            candidates = [i for i in range(self.law.size) if i not in chosen]
            dice.shuffle(candidates)
            for index in candidates:
                if self._below_a_third({*chosen, index}):
                    chosen[index] = kind
                    break
        if plan.liars is not None and len(chosen) < len(plan.liars):
            raise ValueError("no validator has so little stake that it may lie")
        return chosen

    def _below_a_third(self, indices: set[int]) -> bool:
        epochs = (self.law.stakes(epoch) for epoch in range(120))
        return all(3 * sum(stakes[i] for i in indices) < sum(stakes) for stakes in epochs)

    # --- running ----------------------------------------------------------------

    def run(self) -> Verdict:
        with remembered_verdicts():
            return self._run()

    def _run(self) -> Verdict:
        plan, world = self.plan, self.world
        for node in world.nodes:
            world.after(self.dice.randint(0, 50), node.start)
        storm_ms = self.dice.choice((0, 2000, 6000)) if plan.storm_ms is None else plan.storm_ms
        if storm_ms:
            self._brew(storm_ms)
        world.run(lambda: False, storm_ms)
        self._calm()
        start = max(n.height for n in self.honest)
        goal, limit_ms = start + BLOCKS_AFTER_GST, LIVENESS_DELTAS * self.habits.delta_cap_ms
        reached = world.run(lambda: self._is_live(goal), world.now + limit_ms)
        if not reached:
            where = [
                (n.index, n.height, n.core and (n.core.epoch, n.core.view)) for n in self.honest
            ]
            raise Violation(f"not live: height {goal} not reached in {limit_ms} ms: {where}")
        heights = tuple(n.height for n in self.honest)
        counts = world.counts + self.oracle.seen
        return Verdict(heights, world.trace, counts, world.now / 1000)

    def _is_live(self, goal: int) -> bool:
        """Every honest node has the blocks, and none was left behind in an old view (R8)."""
        if not all(n.height >= goal for n in self.honest):
            return False
        at = [(n.core.epoch, n.core.view) for n in self.honest if n.core is not None]
        epoch, view = max(at)
        return all(e == epoch and v + NEAR_VIEWS >= view for e, v in at)

    def _brew(self, storm_ms: int) -> None:
        dice, world = self.dice, self.world
        world.weather = Weather(
            least_ms=1,
            most_ms=dice.choice((30, 200, 600)),
            loss=dice.choice((0.0, 0.05, 0.3)),
            duplicates=dice.choice((0.0, 0.1)),
        )
        for _ in range(dice.randint(0, 3)):
            world.after(dice.randint(0, storm_ms), self._partition)
        crashes = dice.randint(0, 6) if self.plan.crashes is None else self.plan.crashes
        for _ in range(crashes):
            world.after(dice.randint(0, storm_ms), self._light_a_fuse)
        for _ in range(self.plan.lost_logs):
            world.after(dice.randint(0, storm_ms), self._lose_a_log)

    def _partition(self) -> None:
        nodes = list(range(len(self.world.nodes)))
        self.dice.shuffle(nodes)
        cut = self.dice.randint(1, len(nodes) - 1)
        self.world.weather.groups = (frozenset(nodes[:cut]), frozenset(nodes[cut:]))
        self.world.counts["partitions"] += 1
        self.world.after(self.dice.randint(100, 4000), self._heal)

    def _heal(self) -> None:
        self.world.weather.groups = ()

    def _light_a_fuse(self) -> None:
        """A crash between two of the next effects of one node, and its return."""
        node = self.dice.choice(self.world.nodes)
        if node.core is not None:
            node.fuse = self.dice.randint(0, 12)
            self.world.after(self.dice.randint(500, 3000), lambda: self._restart(node))

    def _lose_a_log(self) -> None:
        """Not before its first final block: a home without any has no past to forget."""
        node = self.honest[0]
        if node.core is not None and node.height > 0:
            node.lose_log()

    def _restart(self, node: SimNode) -> None:
        node.fuse = None
        if node.core is None:
            node.start()

    def _calm(self) -> None:
        """GST: from here on every message arrives within 30 ms, and everyone is up."""
        self.world.weather = Weather()
        for node in self.world.nodes:
            self._restart(node)


def simulate(plan: Plan) -> Verdict:
    return Scenario(plan).run()
