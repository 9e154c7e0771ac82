"""Twins (arXiv 2004.10617): `python -m tests.sim.twins --views 6 --scenarios N`.

Four validators of equal stake; the last one's key runs twice, each copy the real core with a log of
its own. A scenario says for each of the first views who leads it and how the five instances are
parted in it; what comes after is a good network, in which blocks must become final, all the same.
Judged by the simulator's oracle.

With one or two views a scenario's number counts all there are: four leaders times the 52 partitions
of five instances in each view, but of those that differ only by the names of the three honest nodes
or of the two copies the first; and each with both meanings of a view's partition. With more views
a scenario is drawn from the seed and its number.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chain.types import Certificate, Proposal, View, Vote
from consensus.simplex.messages import Message
from tests.sim.__main__ import MOST_FAILURES, outcomes
from tests.sim.byzantine import Twin
from tests.sim.ledger import Law
from tests.sim.memory import remembered_verdicts
from tests.sim.node import Habits, SimNode
from tests.sim.oracle import Oracle, Violation
from tests.sim.world import Weather, World

SEATS = 4
DOUBLE = SEATS - 1  # the seat whose key runs twice
SEAT_OF = (0, 1, 2, DOUBLE, DOUBLE)  # of each instance
HONEST = range(DOUBLE)
MOST_COUNTED_VIEWS = 2  # more are drawn
HOLD_MS = 1500  # a view without a quorum would never end: its partition does, after this
BLOCKS = 3  # final in the end, more than before
HABITS = Habits(
    execute_ms=2,
    empty_interval_ms=10,
    delta_floor_ms=50,
    delta_cap_ms=200,
    transactions=1.0,  # so that two copies build two blocks
    rotate=0.0,
)
LIVENESS_MS = 20 * BLOCKS * HABITS.delta_cap_ms

SHOWN = (
    "liar twin",
    "messages cut",
    "scenarios whose views all ended",
    "blocks final before the end",
    "EV two proposals convict",
    "R4 no finalize: the leader has equivocated",
    "R5 no finalize after nullify",
    "SG a signature of one's own key is adopted",
)

Partition = tuple[int, ...]  # of each instance its group; groups are numbered as they first appear


def partitions(of: int = len(SEAT_OF)) -> Iterator[Partition]:
    """All set partitions, as restricted growth strings."""
    if of == 0:
        yield ()
        return
    for shorter in partitions(of - 1):
        for group in range(max(shorter, default=-1) + 2):
            yield (*shorter, group)


PARTITIONS = tuple(partitions())
ROUNDS = tuple(itertools.product(range(SEATS), PARTITIONS))  # a leader and a partition
# Where three seats hear each other, as a view needs in order to end by itself.
MOVING = tuple(
    p for p in PARTITIONS if any(len({s for s, g in zip(SEAT_OF, p, strict=True) if g == x}) > 2
                                 for x in p)
)  # fmt: skip


RENAMINGS = tuple(
    (*honest, *copies)
    for honest in itertools.permutations(HONEST)
    for copies in ((DOUBLE, DOUBLE + 1), (DOUBLE + 1, DOUBLE))
)


def renamed(names: Sequence[int], leader: int, partition: Partition) -> tuple[int, Partition]:
    """A round after instance i has become names[i]."""
    groups = [0] * len(names)
    for instance, name in enumerate(names):
        groups[name] = partition[instance]
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return SEAT_OF[names[leader]], tuple(order[g] for g in groups)


@functools.cache
def counted(views: int) -> tuple[tuple[int, ...], ...]:
    """All scenarios of so many views, each as indices in ROUNDS, one of each kind."""
    tables = [[ROUNDS.index(renamed(names, *r)) for r in ROUNDS] for names in RENAMINGS]
    return tuple(
        scenario
        for scenario in itertools.product(range(len(ROUNDS)), repeat=views)
        if all(scenario <= tuple(table[x] for x in scenario) for table in tables)
    )


@dataclass(frozen=True)
class Schedule:
    number: int
    leaders: tuple[int, ...]
    partitions: tuple[Partition, ...]
    by_content: bool = False  # a view's partition is that of what is said of it, else in it

    @classmethod
    def of(cls, views: int, seed: int, number: int) -> Schedule:
        if views <= MOST_COUNTED_VIEWS:
            by_content, index = divmod(number, len(counted(views)))
            rounds = [ROUNDS[i] for i in counted(views)[index]]
            leaders, parts = zip(*rounds, strict=True)
            return cls(number, leaders, parts, by_content == 1)
        dice = random.Random(f"twins {seed} {views} {number}")
        # A leader that runs twice is what it is about, and a view that ends by itself.
        leaders = dice.choices(range(SEATS), (1, 1, 1, 3), k=views)
        parts = [dice.choice(MOVING if dice.random() < 0.75 else PARTITIONS) for _ in leaders]
        return cls(number, tuple(leaders), tuple(parts), dice.random() < 0.5)


@dataclass(frozen=True)
class Outcome:
    counts: Counter[str]
    trace: str


class Twins:
    """One scenario."""

    def __init__(self, schedule: Schedule, seed: int = 0) -> None:
        self.schedule = schedule
        self.law = Law(seed, SEATS, epoch_blocks=1000, equal=True, leaders=schedule.leaders)
        self.world = World(schedule.number, Weather(most_ms=8))
        self.oracle = Oracle(self.law, frozenset(HONEST))
        self._since: dict[int, int] = {}  # of each view: when somebody first spoke in it
        for index, seat in enumerate(SEAT_OF):
            kind = Twin if seat == DOUBLE else SimNode
            kind(index, self.law, self.world, self.oracle, HABITS, seat)
        self.nodes: list[SimNode] = self.world.nodes
        self.honest = [self.nodes[i] for i in HONEST]

    def run(self) -> Outcome:
        with remembered_verdicts():
            self.world.censor = self._part
            for node in self.nodes:
                node.start()
            views = len(self.schedule.leaders)
            self.world.run(lambda: self._lowest_view() > views, views * 2 * HOLD_MS)
            self.world.counts["scenarios whose views all ended"] += self._lowest_view() > views
            self.world.counts["blocks final before the end"] += self.oracle.height
            self.world.censor = None
            self._live()
        return Outcome(self.world.counts + self.oracle.seen, self.world.trace)

    def _lowest_view(self) -> int:
        return min(node.core.view for node in self.honest if node.core is not None)

    def _part(self, source: int, target: int, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        core = self.nodes[source].core
        if core is None:
            return messages
        self._since.setdefault(core.view, self.world.now)
        if not self.schedule.by_content:
            return messages if self._is_heard(core.view, source, target) else ()
        view = core.view
        return tuple(x for x in messages if self._is_heard(_view_of(x, view), source, target))

    def _is_heard(self, view: View, source: int, target: int) -> bool:
        parts = self.schedule.partitions
        if view > len(parts) or self.world.now > self._since.get(view, 0) + HOLD_MS:
            return True
        groups = parts[view - 1]
        self.world.counts["messages cut"] += groups[source] != groups[target]
        return groups[source] == groups[target]

    def _live(self) -> None:
        goal = max(n.height for n in self.honest) + BLOCKS
        limit_ms = self.world.now + LIVENESS_MS
        if not self.world.run(lambda: min(n.height for n in self.honest) >= goal, limit_ms):
            at = [(n.height, n.core and n.core.view) for n in self.honest]
            raise Violation(f"not live: height {goal} not reached in {LIVENESS_MS} ms: {at}")


def _view_of(message: Message, now: View) -> View:
    """The view that a message is about; where its sender is, if it asks for something or gives."""
    match message:
        case Proposal():
            return message.seal.view
        case Vote() | Certificate():
            return message.view
    return now


def how_many(views: int) -> int:
    """How many scenarios there are, where they are counted."""
    return 2 * len(counted(views))


def play(views: int, seed: int, number: int) -> Outcome | str:
    """What a scenario came to, or what went wrong: both can leave a process."""
    try:
        return Twins(Schedule.of(views, seed, number), seed).run()
    except (Exception, Violation) as error:
        return f"{type(error).__name__}: {error}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.twins", description=__doc__)
    parser.add_argument("--views", type=int, default=6, help="in which instances are parted")
    parser.add_argument("--scenarios", type=int, help="how many; one or two views: all there are")
    parser.add_argument("--seed", type=int, default=0, help="of the keys, and of what is drawn")
    parser.add_argument("--first", type=int, default=0, help="the first scenario's number")
    parser.add_argument("--scenario", type=int, help="play this one, and print what happened")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args(arguments)
    numbers = range(args.first, args.first + (args.scenarios or 1000))
    if args.views <= MOST_COUNTED_VIEWS:
        there_are = how_many(args.views)
        print(f"{there_are} scenarios of {args.views} views", file=sys.stderr)
        numbers = range(args.first, min(there_are, numbers.stop if args.scenarios else there_are))
    if args.scenario is not None:
        print(Schedule.of(args.views, args.seed, args.scenario))
        numbers = range(args.scenario, args.scenario + 1)
    begun, failed = time.monotonic(), 0
    total: Counter[str] = Counter()
    run = functools.partial(play, args.views, args.seed)
    for number, found in outcomes(numbers, args.jobs, run):
        if isinstance(found, str):
            failed += 1
            where = f"--views {args.views} --seed {args.seed} --scenario {number}"
            print(f"FAILED python -m tests.sim.twins {where}  # {found}", flush=True)
            if failed == MOST_FAILURES:
                break
        else:
            total += found.counts
    for what in SHOWN if args.scenario is None else sorted(total):
        print(f"{total[what]:11,d}  {what}")
    took = time.monotonic() - begun
    print(f"{len(numbers)} scenarios, {failed} failed, {took:.1f} s", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
