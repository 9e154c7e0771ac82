"""Latency in simulated networks: where figures come from, and that every row is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import simulated
from tests.sim import latency
from tests.sim.latency import ONE_WAY_MS, Point


def test_a_block_takes_three_messages_and_a_transaction_waits_for_it() -> None:
    found = latency.finality(seed=1, size=4, views=4)
    assert len(found.of_blocks) == 4 * 4
    # No path is shorter than three of the shortest links, nor, by the middle, much than the mean.
    assert min(found.of_blocks) >= 3 * latency.LEAST_MS
    middle = sorted(found.of_blocks)[len(found.of_blocks) // 2]
    assert 2 * ONE_WAY_MS <= middle <= 4 * ONE_WAY_MS
    assert sum(found.of_transactions) / len(found.of_transactions) > middle
    assert found == latency.finality(seed=1, size=4, views=4)


def test_a_leader_that_dies_before_it_proposes_costs_its_view() -> None:
    cost = latency.crash(1, 4, Point("effect", 0), busy=True)
    assert cost is not None
    assert (cost.lost_views, cost.told) == (1, 0)
    assert 2 * cost.delta_ms - 2 * ONE_WAY_MS < cost.extra_ms <= cost.limit_ms
    assert cost == latency.crash(1, 4, Point("effect", 0), busy=True)


def test_a_leader_that_dies_midway_is_not_waited_for_as_an_idle_one() -> None:
    """Who has the proposal knows that the leader was not idle: 2Δ from then are enough (R1)."""
    cost = latency.crash(1, 4, Point("packet", 4), busy=True)
    assert cost is not None
    assert (cost.lost_views, cost.told) == (1, 1)
    whole = 2 * cost.delta_ms
    assert whole - 2 * ONE_WAY_MS < cost.extra_ms <= whole + 2 * ONE_WAY_MS
    assert cost.extra_ms <= cost.limit_ms


def test_a_leader_that_has_told_a_quorum_may_die() -> None:
    cost = latency.crash(1, 4, Point("packet", 5), busy=True)
    assert cost is not None
    assert (cost.lost_views, cost.told) == (0, 2)
    assert cost.extra_ms < 2 * latency.MOST_MS


def test_a_point_beyond_the_view_is_no_crash() -> None:
    assert latency.crash(1, 4, Point("packet", 1000), busy=True) is None


@pytest.mark.parametrize(
    ("measure", "names"),
    [
        (simulated.finalities, ["finality_5_p50", "finality_5_p99", "finality_5_of_tx_p50"]),
        (
            simulated.crashes,
            ["crash_4_views", "crash_4", "crash_4_idle"],
        ),
    ],
)
def test_every_row_is_measured(measure: object, names: list[str]) -> None:
    amount = replace(simulated.SMALL, size=5, packets=8)
    rows = list(measure(amount))  # type: ignore[operator]
    assert [row.name for row in rows] == names
    assert all(row.value > 0 for row in rows)
