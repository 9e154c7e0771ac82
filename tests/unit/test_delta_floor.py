"""Δ follows what is measured, and on a slow network it does not go up and down (DL)."""

from __future__ import annotations

import pytest

from chain.types import PubKey, Stake, Validator
from consensus.simplex import messages as m
from consensus.simplex.core import Simplex
from node.net.info import PeerInfo
from node.net.links.info import LinkInfo
from node.services.delta_floor import LOOK_S, DeltaFloor
from tests.sim.ledger import Law, name
from tests.sim.memory import remembered_verdicts
from tests.sim.node import Habits, SimNode
from tests.sim.oracle import Oracle
from tests.sim.world import Weather, World

ONE_WAY_MS = 400


class Pings:
    """Peers by round trip over libp2p, and over links; None: connected, and not measured yet."""

    def __init__(
        self, rtts: dict[str, float | None], links: dict[str, float] | None = None, own: str = "own"
    ) -> None:
        self.peer_id, self.rtts, self.links = own, rtts, links or {}

    def peers(self) -> list[PeerInfo]:
        return [PeerInfo(p, (), True, rtt, 0.0, "in") for p, rtt in self.rtts.items()]

    def link_info(self) -> list[LinkInfo]:
        return [LinkInfo(p, True, "us", rtt, 0, 0) for p, rtt in self.links.items()]


def members(**stakes: int) -> list[Validator]:
    key = PubKey(bytes(32))
    return [Validator(key, key, key, node, Stake(stake)) for node, stake in stakes.items()]


@pytest.mark.parametrize(
    ("stakes", "rtts", "floor_ms"),
    [
        ({"own": 1, "a": 1, "b": 1, "c": 1}, {"a": 100, "b": 300, "c": 900}, 600),
        ({"own": 5, "a": 1, "b": 1}, {"a": 100, "b": 900}, 50),  # a quorum by itself
        ({"own": 1, "a": 9, "b": 1, "c": 1}, {"a": 700, "b": 1, "c": 1}, 1400),  # stake, not heads
        ({"own": 1, "a": 1, "b": 1, "c": 1}, {"a": 100, "b": None}, 50),  # no quorum is known
        ({"own": 1, "a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, 50),  # not below the least
    ],
)
def test_twice_the_round_trip_of_a_quorum(
    stakes: dict[str, int], rtts: dict[str, float | None], floor_ms: int
) -> None:
    assert DeltaFloor(Pings(rtts), lambda: 50).measured(members(**stakes)) == floor_ms


def test_the_quicker_of_two_ways_counts_and_the_last_known_while_too_few_answer() -> None:
    now = 0.0
    pings = Pings({"a": 500.0, "b": 500.0}, {"a": 80.0, "b": 90.0})
    floor = DeltaFloor(pings, lambda: 50, lambda: now)
    everyone = members(own=1, a=1, b=1)
    assert floor.measured(everyone) == 180
    pings.rtts, pings.links = {}, {}
    now += LOOK_S
    assert floor.measured(everyone) == 180


def test_execution_adds_what_it_takes_and_how_much_that_varies() -> None:
    floor = DeltaFloor(Pings({}), lambda: 50)
    for _ in range(200):
        floor.executed(0.1)
    steady = floor.measured(members(own=1))
    assert steady == pytest.approx(200, abs=2)
    for took in (0.0, 0.2) * 100:
        floor.executed(took)
    assert floor.measured(members(own=1)) > 2 * steady


class Far(SimNode):
    """A simulated node; `measures`: it sets its floor at each finality, as the driver does."""

    measures = True

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        others = {name(i): 2.0 * ONE_WAY_MS for i in range(self.law.size) if i != self.index}
        pings = Pings(others, own=name(self.index))
        self.floor = DeltaFloor(pings, lambda: self.habits.delta_floor_ms)
        self.deltas: list[int] = []

    def _deliver(self, effect: m.Deliver, core: Simplex) -> None:
        super()._deliver(effect, core)
        if self.measures:
            core.set_delta_floor(
                self.floor.measured(self.law.context(core.epoch).validators.members)
            )
        self.deltas.append(core.delta_ms)


class Unmeasured(Far):
    measures = False


def far_apart(kind: type[Far]) -> tuple[list[Far], World]:
    """Four nodes, every message 400 ms on its way, work always waiting; 40 blocks."""
    law, world = Law(11, 4, 1000), World(11, Weather(ONE_WAY_MS, ONE_WAY_MS))
    oracle = Oracle(law, frozenset(range(4)))
    habits = Habits(
        execute_ms=0, empty_interval_ms=20, delta_floor_ms=100, delta_cap_ms=4000, transactions=1.0
    )
    nodes = [kind(i, law, world, oracle, habits) for i in range(4)]
    with remembered_verdicts():
        for node in nodes:
            node.start()
        assert world.run(lambda: all(n.height >= 40 for n in nodes), 400_000)
    return nodes, world


def lost_views(node: Far, first: int) -> int:
    """Views that gave no block, among those of the blocks from height `first` on."""
    headers = [block.header for block in node.disk.blocks[first:]]
    return headers[-1].view - headers[0].view - (len(headers) - 1)


def test_delta_on_a_slow_network_does_not_oscillate() -> None:
    nodes, _ = far_apart(Far)
    for node in nodes:
        settled = node.deltas[3:]
        assert set(settled) == {4 * ONE_WAY_MS}
        assert lost_views(node, 4) == 0


def test_without_a_measured_floor_it_would_and_blocks_become_final_all_the_same() -> None:
    nodes, _ = far_apart(Unmeasured)
    assert all(len(set(node.deltas[3:])) > 1 for node in nodes)
