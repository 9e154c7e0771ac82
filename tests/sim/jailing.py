"""Jailing down to four: validators fall silent one after another, and the chain's own rules take
them out of its sets. Judged from outside, by arithmetic that is not the chain's."""

from __future__ import annotations

from collections.abc import Callable

from chain.types import Header, View
from tests.sim.chain_law import ChainLaw
from tests.sim.node import Habits, SimNode
from tests.sim.oracle import Violation
from tests.sim.scenario import Plan, Scenario

GREAT, SMALL = 10**12, 3 * 10**11
STAKES = (*[GREAT] * 3, *[SMALL] * 7)  # two small ones are more than a tenth, and one never is
LEAST = 4  # that stay
EPOCH_BLOCKS = 24
DOWNTIME_VIEWS = 4
TERM = {"blocks": 24, "ms": 1000}
MOST_MISSED = 16  # turns between two blocks that count
STEP_MS = 600_000  # within which each step must be done; it takes seconds of it


class JailWatch:
    """What must hold of jail at each final block, whatever the scenario does. It counts missed
    turns itself, from views and leaders."""

    def __init__(self, law: ChainLaw) -> None:
        self._law = law
        self._before: frozenset[int] = frozenset()
        self._parent = law.final
        self.rows = [0] * len(STAKES)  # turns missed since the last that was used
        self.boundaries: list[int] = []  # how many were jailed at each that jailed any
        self.left_for_next = 0  # boundaries at which a tenth of the stake was the limit
        self.kept = 0  # those at which four were

    def __call__(self, header: Header) -> None:
        self._count(header)
        jailed = self._law.jailed()
        for seat in self._before - jailed:
            self.rows[seat] = 0  # has sent `unjail`, which comes before anything is judged
        begins = header.height % EPOCH_BLOCKS == 1
        if begins:
            self._judge(header, jailed)
        elif jailed - self._before:
            raise Violation(f"height {header.height}: jailed within an epoch")
        self._before = jailed

    def _count(self, header: Header) -> None:
        parent, self._parent = self._parent, header
        first = parent.view + 1 if parent.epoch == header.epoch else 1
        if header.view - first <= MOST_MISSED:
            for view in range(first, header.view):
                self.rows[self._law.leading(header.epoch, View(view))] += 1
        self.rows[self._law.leading(header.epoch, header.view)] = 0

    def _judge(self, header: Header, jailed: frozenset[int]) -> None:
        standing = frozenset(range(len(STAKES))) - (self._before & jailed)
        new, free = jailed - self._before, standing - jailed
        stake, share = (sum(STAKES[s] for s in seats) for seats in (standing, new))
        long = {s for s in standing if self.rows[s] >= DOWNTIME_VIEWS}
        _require(new <= long, header, f"jailed {sorted(new)}, of whom some were there")
        _require(10 * share <= stake, header, f"jailed {share} of {stake} in one epoch")
        _require(len(free) >= LEAST, header, f"only {len(free)} stay")
        frozen = self._law.members(ahead=2)
        _require(frozen == free, header, f"the set that froze is {sorted(frozen)}")
        for seat in long - new:
            is_too_much = 10 * (share + STAKES[seat]) > stake
            _require(is_too_much or len(free) == LEAST, header, f"{seat} is not jailed")
            self.left_for_next += is_too_much
            self.kept += not is_too_much
        if new:
            self.boundaries.append(len(new))


def _require(holds: bool, header: Header, what: str) -> None:
    if not holds:
        raise Violation(f"height {header.height}: {what}")


class Jailing(Scenario):
    def __init__(self, seed: int) -> None:
        self.chain = ChainLaw(
            seed, STAKES, EPOCH_BLOCKS,
            downtime_views=DOWNTIME_VIEWS, downtime_jail=TERM,
            evidence_jail={"blocks": 192, "ms": 8000}, unbonding_blocks=120,
        )  # fmt: skip
        habits = Habits(empty_interval_ms=20, rotate=1.0)
        plan = Plan(
            seed, len(STAKES), (), EPOCH_BLOCKS, 0, followers=0, frail=0, down=0,
            thirds=False, exile=False, habits=habits, law=self.chain,
        )  # fmt: skip
        super().__init__(plan)
        self.silent: set[int] = set()
        self.watch = JailWatch(self.chain)
        self.chain.watches.append(self.watch)

    def fall_silent(self, seat: int) -> None:
        node: SimNode = self.world.nodes[seat]
        self.silent.add(seat)
        node.crash()
        node.is_down = True

    def come_back(self, seat: int) -> None:
        node: SimNode = self.world.nodes[seat]
        node.is_down = False
        node.start()
        self.silent.discard(seat)
        self.chain.returning.add(seat)

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Run until `condition()` holds after some block; the network lives on meanwhile."""
        seen: dict[int, bool] = {}

        def holds() -> bool:
            height = self.chain.final.height
            if height not in seen:
                seen[height] = condition()
            return seen[height]

        if not self.world.run(holds, self.world.now + STEP_MS):
            raise Violation(f"in {STEP_MS} ms not reached: {what}; {self.chain.final.height=}")


def down_to_four(seed: int = 7) -> str:
    scenario = Jailing(seed)
    chain, silent, watch = scenario.chain, scenario.silent, scenario.watch
    scenario.start()
    scenario.until("the first epoch", lambda: chain.final.height >= EPOCH_BLOCKS)
    *falling, last = range(3, len(STAKES))
    for seats in (falling[:4], falling[4:]):  # the others are a quorum, at every time
        for seat in seats:
            scenario.fall_silent(seat)
            height = chain.final.height
            scenario.until("a block", lambda height=height: chain.final.height > height)  # type: ignore[misc]
        scenario.until("all who are silent in jail", lambda: silent == chain.jailed())
    scenario.until("a set of four", lambda: len(chain.members()) == LEAST)
    scenario.live()
    scenario.fall_silent(last)
    scenario.until("three boundaries that keep it", lambda: watch.kept >= 3)
    if last in chain.jailed() or len(chain.members()) != LEAST:
        raise Violation(f"a set of {sorted(chain.members())} after one of four fell silent")
    scenario.live()
    if watch.left_for_next == 0:
        raise Violation("a tenth of the stake was never the limit")
    down_in = chain.final.epoch
    for seat in (*falling, last):
        scenario.come_back(seat)
    scenario.until("everyone in the set again", lambda: len(chain.members()) == len(STAKES))
    scenario.live()
    return (
        f"{len(falling)} of {len(STAKES)} jailed at {len(watch.boundaries)} boundaries, "
        f"{watch.left_for_next} times one was left for the next, {watch.kept} times to keep four; "
        f"four in epoch {down_in}, all again in epoch {chain.final.epoch}"
    )
