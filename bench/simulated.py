"""What agreement costs on slow links, in simulated networks: a seed gives the same figures.

What is measured, and from where to where, stands in `tests/sim/latency.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.measure import Row, at_most, quantile
from tests.sim.latency import ONE_WAY_MS, Cost, crash, finality, points

TARGET_OVER_MS = 50.0  # beyond three one-way delays


@dataclass(frozen=True, slots=True)
class Amount:
    """`packets`: about how many of a leader's packets it dies before, one run each."""

    size: int = 31
    seeds: int = 5
    views: int = 40
    crash_seeds: tuple[int, int] = (8, 2)  # with 4 validators, and with `size`
    packets: int = 20


SMALL = Amount(size=7, seeds=1, views=4, crash_seeds=(1, 0), packets=4)


def finalities(amount: Amount) -> Iterator[Row]:
    """Many validators on links of 50 to 150 ms. Floor: proposal, notarize, finalize, one way each;
    for a transaction too, if its leader's turn came with it."""
    runs = [finality(seed, amount.size, amount.views) for seed in range(amount.seeds)]
    blocks = [float(ms) for run in runs for ms in run.of_blocks]
    transactions = [float(ms) for run in runs for ms in run.of_transactions]
    floor, name = 3.0 * ONE_WAY_MS, f"finality_{amount.size}"
    yield at_most(f"{name}_p50", quantile(blocks, 0.5), "ms", floor + TARGET_OVER_MS, floor)
    yield at_most(f"{name}_p99", quantile(blocks, 0.99), "ms", None, floor)
    yield at_most(f"{name}_of_tx_p50", quantile(transactions, 0.5), "ms", None, floor)


def crashes(amount: Amount) -> Iterator[Row]:
    """A leader dies at many points of its view, also in the middle of sending its proposal: while
    transactions wait, and while there are none."""
    for size, seeds in zip((4, amount.size), amount.crash_seeds, strict=True):
        if not seeds:
            continue
        busy, idle = (
            [
                cost
                for seed in range(seeds)
                for point in points(size, amount.packets)
                if (cost := crash(seed, size, point, busy=busy)) is not None
            ]
            for busy in (True, False)
        )
        lost = max(cost.lost_views for cost in (*busy, *idle))
        yield at_most(f"crash_{size}_views", float(lost), "views", 1.0)
        for what, costs in (("", busy), ("_idle", idle)):
            yield _worst(f"crash_{size}{what}", costs)


def _worst(name: str, costs: list[Cost]) -> Row:
    """In parts of 3Δ and a round trip. Floor: 2Δ and one message, before which nobody gives up a
    silent leader, less what an uneventful view takes."""
    worst = max(costs, key=lambda cost: cost.extra_ms / cost.limit_ms)
    floor = worst.least_ms / worst.limit_ms
    return at_most(name, worst.extra_ms / worst.limit_ms, "of 3Δ+rtt", 1.0, floor)
