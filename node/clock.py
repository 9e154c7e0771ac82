"""The node's clock: wall time that never jumps.

Blocks carry wall time, and a voter refuses what is too far ahead of its own. If the machine's
clock is stepped back by an hour, every proposal would seem to come from the future and the
network would stand still until the clock had caught up. So the node follows a clock that cannot
be set (it counts suspension, too) and lets the wall clock pull it by at most a tenth of the time
that passes: a step is absorbed slowly, and time always moves forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SLEW = 10  # one part in so many of the time passed may be gained or lost


def _wall_ns() -> int:
    return time.time_ns()


def _steady_ns() -> int:
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Clock:
    """Milliseconds since 1970 by `wall`, without its jumps; `steady` may start anywhere."""

    def __init__(
        self, wall: Callable[[], int] = _wall_ns, steady: Callable[[], int] = _steady_ns
    ) -> None:
        self._wall, self._steady = wall, steady
        self._now, self._last = wall(), steady()

    def now_ms(self) -> int:
        steady = self._steady()
        passed, self._last = max(0, steady - self._last), steady
        behind = self._wall() - (self._now + passed)
        most = passed // SLEW
        self._now += passed + max(-most, min(most, behind))
        return self._now // 1_000_000
