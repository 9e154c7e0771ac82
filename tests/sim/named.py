"""Scenarios with a name: what random seeds would reach too seldom. Each returns what it showed, or
raises `Violation`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from chain.codec import decode
from chain.hashes import Hash32
from chain.types import Certificate, Proposal, Vote, VoteKind
from consensus.simplex.messages import Message, Record
from tests.sim import jailing
from tests.sim.byzantine import Byzantine, Equivocator
from tests.sim.memory import remembered_verdicts
from tests.sim.node import Habits
from tests.sim.oracle import Violation
from tests.sim.scenario import Plan, Scenario
from tests.sim.world import Weather

DARK_MS = 90_000  # how long the network is cut off or its leaders are


def network(
    seed: int,
    size: int,
    liars: tuple[type[Byzantine], ...] = (),
    epoch_blocks: int = 1000,
    habits: Habits | None = None,
) -> Scenario:
    """Everyone sound and up, but for `liars`; nothing happens by itself."""
    plan = Plan(seed, size, liars, epoch_blocks, 0, followers=0, frail=0, down=0, thirds=False)
    scenario = Scenario(plan if habits is None else Plan(**{**vars(plan), "habits": habits}))
    scenario.start()
    return scenario


def wait(scenario: Scenario, for_ms: int, until: Callable[[], bool] = lambda: False) -> bool:
    return scenario.world.run(until, scenario.world.now + for_ms)


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


def partition() -> str:
    """90 s in which nobody hears anybody, so that to each every leader is silent; then it heals."""
    scenario = network(1, size=7)
    wait(scenario, 4000)
    scenario.world.weather = Weather(groups=tuple(frozenset({i}) for i in range(7)))
    wait(scenario, 500)
    height = scenario.oracle.height
    wait(scenario, DARK_MS)
    require(scenario.oracle.height == height, "a block became final without a quorum")
    scenario.calm()
    took_ms = scenario.live(20 * scenario.habits.delta_cap_ms)
    return f"ten blocks {took_ms} ms after the partition healed"


def silent_leaders() -> str:
    """90 s in which an adversary lets nothing through that a view's leader says: every view is
    nullified, and no leader may be passed over for it once the network is good."""
    scenario = network(2, size=7)
    nodes = scenario.world.nodes

    def censor(source: int, target: int, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        core = nodes[source].core
        leads = core is not None and core.leader(core.view) == nodes[source].signer.public
        return () if leads else messages

    wait(scenario, 2000)
    scenario.world.censor = censor
    wait(scenario, 2000)
    height, views = scenario.oracle.height, _views(scenario)
    wait(scenario, DARK_MS)
    passed = _views(scenario) - views
    require(scenario.oracle.height - height <= 1, "a silenced leader's block became final")
    require(passed >= 16, f"only {passed} views passed in {DARK_MS} ms: the adversary stopped them")
    scenario.calm()
    took_ms = scenario.live(20 * scenario.habits.delta_cap_ms)
    return f"{passed} views without a leader, then ten blocks in {took_ms} ms"


def _views(scenario: Scenario) -> int:
    return max(n.core.view for n in scenario.honest if n.core is not None)


class Whisperer(Equivocator):
    """Tells one node another story than everyone else, who still are a quorum."""

    def _is_told_another(self, target: int) -> bool:
        return target == (self.index + 1) % self.law.size


class Boundary:
    """A censor that makes two notarized blocks of an epoch's last height: only one node, the
    witness, learns that the first was notarized; the others nullify its view and go on."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._law, self._nodes = scenario.law, scenario.world.nodes
        self._views: dict[int, int] = {}  # of each epoch, the first that has a last block
        self._heights: dict[Hash32, int] = {}
        self._first: dict[tuple[int, int], Hash32] = {}  # what was proposed first in such a view
        self._equivocal: set[int] = set()  # epochs
        self._notarized: dict[int, set[Hash32]] = {}

    @property
    def forks(self) -> list[int]:
        """Epochs with two notarized last blocks."""
        return [e for e, blocks in self._notarized.items() if len(blocks) > 1]

    @property
    def equivocal_forks(self) -> list[int]:
        """Those whose first last block had a twin, proposed by the same leader in its view."""
        return [e for e in self.forks if e in self._equivocal]

    def __call__(
        self, source: int, target: int, messages: tuple[Message, ...]
    ) -> tuple[Message, ...]:
        for message in messages:
            self._note(message)
        return tuple(x for x in messages if not self._is_held(target, x))

    def _note(self, message: Message) -> None:
        if isinstance(message, Proposal):
            header = message.block.header
            self._heights[message.seal.block_hash] = header.height
            if self._law.is_last(header.height) and header.view == message.seal.view:
                at = self._views.setdefault(header.epoch, header.view)
                first = self._first.setdefault((header.epoch, header.view), header.hash())
                if at == header.view and first != header.hash():
                    self._equivocal.add(header.epoch)
        elif isinstance(message, Certificate) and message.kind == VoteKind.NOTARIZE:
            height = self._heights.get(message.block_hash, 0)
            if height > 0 and self._law.is_last(height):  # type: ignore[arg-type]
                self._notarized.setdefault(message.epoch, set()).add(message.block_hash)

    def _is_held(self, target: int, message: Message) -> bool:
        if not isinstance(message, Vote | Certificate) or message.kind == VoteKind.NULLIFY:
            return False
        epoch, view = message.epoch, message.view
        if self._views.get(epoch) != view:
            return False
        witness = (self._scenario.honest[0].index + view) % len(self._nodes)
        return target != witness and not self._has_left(witness, epoch, view)

    def _has_left(self, witness: int, epoch: int, view: int) -> bool:
        cores = [n.core for n in self._scenario.honest if n.index != witness]
        return all(c is not None and (c.epoch, c.view) > (epoch, view) for c in cores)


def epoch_fork() -> str:
    """An epoch's end under equivocation, with two notarized blocks of its last height."""
    scenario = network(5, size=4, liars=(Whisperer,), epoch_blocks=3)
    boundary = scenario.world.censor = Boundary(scenario)
    enough = wait(scenario, 600_000, lambda: len(boundary.equivocal_forks) >= 3)
    forks, equivocal = len(boundary.forks), len(boundary.equivocal_forks)
    require(enough, f"{forks} forks at an epoch's end, only {equivocal} under equivocation")
    scenario.calm()
    took_ms = scenario.live()
    return f"{forks} forks, {equivocal} of them under equivocation; then ten blocks in {took_ms} ms"


def finalize_fsync() -> str:
    """A crash after a finalize vote was written to the log and before its sync, of everyone in
    turn, with and without the power failing; then a restart."""
    scenario = network(4, size=4)
    crashes = 0
    for turn in range(40):
        node = scenario.world.nodes[turn % 4]
        node.ambush = _holds_a_finalize
        node.loses_power = turn % 8 < 4
        gone = wait(scenario, 10_000, lambda node=node: node.core is None)  # type: ignore[misc]
        require(gone, f"node {node.index} signed no finalize vote in 10 s")
        crashes += 1
        wait(scenario, 100)
        node.start()
        wait(scenario, 300)
    scenario.calm()
    lost = scenario.world.counts["unsynced writes lost"] + scenario.world.counts["torn tails"]
    require(lost > 0, "no finalize vote was lost")
    took_ms = scenario.live()
    return f"{crashes} crashes, {lost} votes lost before their sync; ten blocks in {took_ms} ms"


def _holds_a_finalize(records: tuple[bytes, ...]) -> bool:
    decoded: list[Record] = [decode(Record, data) for data in records]
    return any(isinstance(r, Vote) and r.kind == VoteKind.FINALIZE for r in decoded)


def slow_network() -> str:
    """Links of 350 to 450 ms, and a Δ that starts at 100 ms. Halved on each finality it would be
    too short again and again; with its floor measured from the links it stays where it is."""
    changes = {measures: _slow(measures) for measures in (False, True)}
    require(changes[False] > 0, "Δ was no trouble, so the scenario shows nothing")
    require(changes[True] == 0, f"Δ oscillates: {changes[True]} views were nullified in a minute")
    return f"views nullified in a minute: {changes[False]} unmeasured, {changes[True]} measured"


def _slow(measures: bool) -> int:
    """How many views were nullified within a minute after the first 20 s."""
    habits = Habits(delta_floor_ms=100, delta_cap_ms=10_000, measures_delta=measures)
    scenario = network(6, size=7, habits=habits)
    scenario.world.weather = Weather(least_ms=350, most_ms=450)
    wait(scenario, 20_000)
    height, before = scenario.oracle.height, scenario.world.counts["R6 a nullification"]
    wait(scenario, 60_000)
    require(scenario.oracle.height >= height + 10, "hardly a block in a minute")
    return (scenario.world.counts["R6 a nullification"] - before) // len(scenario.honest)


def _remembering(scenario: Callable[[], str]) -> Callable[[], str]:
    @functools.wraps(scenario)
    def run() -> str:
        with remembered_verdicts():
            return scenario()

    return run


SCENARIOS: Mapping[str, Callable[[], str]] = {
    "partition": _remembering(partition),
    "silent-leaders": _remembering(silent_leaders),
    "epoch-fork": _remembering(epoch_fork),
    "finalize-fsync": _remembering(finalize_fsync),
    "slow-network": _remembering(slow_network),
    "jailing-down-to-four": _remembering(jailing.down_to_four),
}
