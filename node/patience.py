"""How long a job is waited for, in seconds that this process ran.

A stopped process (Ctrl-Z, SIGSTOP), a sleeping machine and a pause that was asked for stop this
clock: nothing was owed in that time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

TICK_S = 1.0
# Between two ticks more than this passes only if we did not run, or the machine was swamped; then
# we wait a little longer than we said.
MOST_BETWEEN_TICKS_S = 3.0


class RunningClock:
    """Seconds that this process has run since the clock was made. Something must look at it at
    least every three seconds while time is to count: `Patience` does."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._looked, self._passed, self._held = now(), 0.0, False

    def seconds(self) -> float:
        now = self._now()
        if not self._held:
            self._passed += min(max(now - self._looked, 0.0), MOST_BETWEEN_TICKS_S)
        self._looked = now
        return self._passed

    def hold(self) -> None:
        """Stand still until `go_on`."""
        self.seconds()
        self._held = True

    def go_on(self) -> None:
        self.seconds()
        self._held = False


class Patience:
    """`async with` a body that gets `limit_s` seconds, counted from its begin or its last
    `progress()`. Raises TimeoutError, as asyncio.timeout does."""

    def __init__(self, limit_s: float, clock: RunningClock) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._timeout = asyncio.timeout(None)
        self._since = 0.0
        self._tick: asyncio.TimerHandle | None = None

    def progress(self) -> None:
        """The body has got on: the time begins again."""
        self._since = self._clock.seconds()

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        self.progress()
        self._arm()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tick is not None:
            self._tick.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._tick = loop.call_later(min(TICK_S, self._limit_s), self._look)

    def _look(self) -> None:
        if self._clock.seconds() - self._since >= self._limit_s:
            self._timeout.reschedule(asyncio.get_running_loop().time())
        else:
            self._arm()
