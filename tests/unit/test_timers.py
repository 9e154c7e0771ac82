"""When a view is given up: the core says, and the driver may be quicker (R1, R5)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from chain.types import Epoch, View
from consensus.simplex.messages import StartTimer, Timer, TimerKind
from node.services.timers import GONE_S, Timers
from tests.kit.fast_time import passes, run_fast

DELTA_MS, IDLE_MS = 250, 1000
PROPOSAL = Timer(TimerKind.PROPOSAL, Epoch(0), View(1))
ADVANCE = Timer(TimerKind.ADVANCE, Epoch(0), View(1))
RETRANSMIT = Timer(TimerKind.RETRANSMIT, Epoch(0), View(0))


class Bench:
    """Timers, and when each of them rang."""

    def __init__(self, loop_time: Callable[[], float]) -> None:
        self.rang: dict[Timer, float] = {}
        self.works = self.gone = False
        self.timers = Timers(
            lambda timer: self.rang.setdefault(timer, loop_time()) and None,
            lambda: self.works,
            lambda timer: self.gone and timer.kind is TimerKind.PROPOSAL,
            lambda: IDLE_MS,
        )

    def begin(self) -> None:
        """A view, as the core begins it."""
        self.timers.start(StartTimer(PROPOSAL, 2 * DELTA_MS + IDLE_MS))
        self.timers.start(StartTimer(ADVANCE, 3 * DELTA_MS + IDLE_MS))
        self.timers.start(StartTimer(RETRANSMIT, DELTA_MS))


def run(scenario: Callable[[Bench], Coroutine[Any, Any, None]]) -> dict[Timer, float]:
    import asyncio

    async def main() -> dict[Timer, float]:
        bench = Bench(asyncio.get_running_loop().time)
        await scenario(bench)
        await passes(10)
        assert not bench.timers.running
        return bench.rang

    return run_fast(main())


def test_an_idle_leader_has_the_empty_interval() -> None:
    async def idle(bench: Bench) -> None:
        bench.begin()

    rang = run(idle)
    assert rang == pytest.approx({PROPOSAL: 1.5, ADVANCE: 1.75, RETRANSMIT: 0.25})


def test_a_leader_with_work_has_two_delta() -> None:
    async def busy(bench: Bench) -> None:
        bench.works = True
        bench.timers.work_came()
        bench.begin()

    rang = run(busy)
    assert rang == pytest.approx({PROPOSAL: 0.5, ADVANCE: 1.75, RETRANSMIT: 0.25})


def test_work_that_comes_later_is_waited_for_from_then_on() -> None:
    async def late(bench: Bench) -> None:
        bench.begin()
        await passes(0.4)
        bench.works = True
        bench.timers.work_came()
        await passes(0.2)
        bench.timers.work_came()  # more of it gives nobody more time

    rang = run(late)
    assert rang == pytest.approx({PROPOSAL: 0.9, ADVANCE: 1.75, RETRANSMIT: 0.25})


def test_work_never_makes_a_timer_later_than_the_core_asked() -> None:
    async def at_last(bench: Bench) -> None:
        bench.begin()
        await passes(1.4)
        bench.works = True
        bench.timers.work_came()

    rang = run(at_last)
    assert rang == pytest.approx({PROPOSAL: 1.5, ADVANCE: 1.75, RETRANSMIT: 0.25})


def test_without_work_the_leader_is_idle_again() -> None:
    """The block that took it is final, but a view began before that."""

    async def done(bench: Bench) -> None:
        bench.works = True
        bench.timers.work_came()
        bench.begin()
        await passes(0.1)
        bench.works = False
        bench.timers.work_done()

    assert run(done)[PROPOSAL] == pytest.approx(1.5)


def test_work_that_was_dropped_is_noticed_when_the_timer_rings() -> None:
    async def dropped(bench: Bench) -> None:
        bench.works = True
        bench.timers.work_came()
        bench.begin()
        bench.works = False

    assert run(dropped)[PROPOSAL] == pytest.approx(1.5)


def test_a_leader_whose_link_broke_is_hardly_waited_for() -> None:
    async def before(bench: Bench) -> None:
        bench.gone = True
        bench.begin()

    async def within(bench: Bench) -> None:
        bench.begin()
        await passes(0.1)
        bench.gone = True
        bench.timers.peer_left()
        bench.works = True
        bench.timers.work_came()

    assert run(before)[PROPOSAL] == pytest.approx(GONE_S)
    assert run(within)[PROPOSAL] == pytest.approx(0.1 + GONE_S)


def test_a_cancelled_timer_does_not_ring() -> None:
    async def cancelled(bench: Bench) -> None:
        bench.begin()
        bench.timers.cancel(ADVANCE)
        bench.timers.start(StartTimer(RETRANSMIT, 2 * DELTA_MS))  # again: it rings once, later

    assert run(cancelled) == pytest.approx({PROPOSAL: 1.5, RETRANSMIT: 0.5})


def test_a_timer_is_hastened_and_never_delayed() -> None:
    """R1: with the proposal the advance timer has 2Δ left, unless it had less."""

    async def early(bench: Bench) -> None:
        bench.begin()
        await passes(0.1)
        bench.timers.start(StartTimer(ADVANCE, 2 * DELTA_MS, at_most=True))

    assert run(early)[ADVANCE] == pytest.approx(0.6)

    async def late(bench: Bench) -> None:
        bench.begin()
        await passes(1.5)
        bench.timers.start(StartTimer(ADVANCE, 2 * DELTA_MS, at_most=True))

    assert run(late)[ADVANCE] == pytest.approx(1.75)


def test_a_timer_that_does_not_run_is_not_hastened() -> None:
    async def over(bench: Bench) -> None:
        bench.timers.start(StartTimer(ADVANCE, 2 * DELTA_MS, at_most=True))
        assert not bench.timers.running

    assert run(over) == {}
