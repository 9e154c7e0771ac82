"""The core's timers on the main loop, and when one fires sooner than the core asked for.

R5 leaves the length of a timeout to each node, since a nullify is always safe to sign. A leader
whose link broke is not waited for; and the time for which an idle leader may wait is not given to
one that has work (docs/spec/consensus.md, R1). What follows a proposal, above all its execution,
has as long as the core says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from consensus.simplex.messages import StartTimer, Timer, TimerKind

GONE_S = 0.25  # how long a leader whose link broke is waited for: a short break mends by then


@dataclass(slots=True)
class _Running:
    handle: asyncio.TimerHandle
    began: float  # all on the loop's clock
    due: float  # as the core asked
    busy_s: float  # the same for a leader that has work


class Timers:
    """`fire(timer)` is called once for each that was started and not cancelled. `works()`: whether
    transactions wait. `is_gone(timer)`: it waits for a leader whose link is broken."""

    def __init__(
        self,
        fire: Callable[[Timer], None],
        works: Callable[[], bool],
        is_gone: Callable[[Timer], bool],
        empty_interval_ms: Callable[[], int],
    ) -> None:
        self._fire, self._works, self._is_gone = fire, works, is_gone
        self._idle_ms = empty_interval_ms
        self._running: dict[Timer, _Running] = {}
        self._work_since: float | None = None  # without a moment in which nothing waited

    @property
    def running(self) -> list[Timer]:
        return list(self._running)

    def start(self, effect: StartTimer) -> None:
        if effect.at_most:
            self._hasten(effect)
            return
        self.cancel(effect.timer)
        loop, timer, delay_s = asyncio.get_running_loop(), effect.timer, effect.delay_ms / 1000
        now = loop.time()
        is_hurried = timer.kind is TimerKind.PROPOSAL
        busy_s = max(0.0, delay_s - self._idle_ms() / 1000) if is_hurried else delay_s
        running = _Running(loop.call_later(delay_s, self._ring, timer), now, now + delay_s, busy_s)
        self._running[timer] = running
        due = self._due(running)
        if self._is_gone(timer):
            due = min(due, now + GONE_S)
        self._set(timer, running, due)

    def _hasten(self, effect: StartTimer) -> None:
        running = self._running.get(effect.timer)
        if running is not None:
            due = asyncio.get_running_loop().time() + effect.delay_ms / 1000
            running.due = min(running.due, due)
            self._set(effect.timer, running, min(due, running.handle.when()))

    def cancel(self, timer: Timer) -> None:
        old = self._running.pop(timer, None)
        if old is not None:
            old.handle.cancel()

    def stop(self) -> None:
        for timer in self.running:
            self.cancel(timer)

    def work_came(self) -> None:
        """A transaction is here. The leader gets it and proposes: from now on it has no longer than
        if it had had work when the view began."""
        if self._work_since is None:
            self._work_since = asyncio.get_running_loop().time()
            self._reset()

    def work_done(self) -> None:
        """A block is final. If nothing waits any more, the leader may be idle."""
        if self._work_since is not None and not self._works():
            self._work_since = None
            self._reset()

    def peer_left(self) -> None:
        """Somebody's link broke: perhaps that of the leader who is waited for."""
        at = asyncio.get_running_loop().time() + GONE_S
        for timer, running in list(self._running.items()):
            if self._is_gone(timer):
                self._set(timer, running, min(at, running.handle.when()))

    def _due(self, running: _Running) -> float:
        if self._work_since is None:
            return running.due
        return min(running.due, max(running.began, self._work_since) + running.busy_s)

    def _reset(self) -> None:
        for timer, running in list(self._running.items()):
            if timer.kind is TimerKind.PROPOSAL and not self._is_gone(timer):
                self._set(timer, running, self._due(running))

    def _set(self, timer: Timer, running: _Running, due: float) -> None:
        if due != running.handle.when():
            running.handle.cancel()
            running.handle = asyncio.get_running_loop().call_at(due, self._ring, timer)

    def _ring(self, timer: Timer) -> None:
        running = self._running[timer]
        rung = running.handle
        self.work_done()  # what waited may have been dropped without a block
        if running.handle is rung:  # else it rings again later
            del self._running[timer]
            self._fire(timer)
