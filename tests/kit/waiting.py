"""The only place where tests wait: a condition is polled until a deadline, never a guessed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.05
TIMEOUT_S = 120.0  # of what takes a second or a few: it costs nothing, and machines are busy


def until(condition: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """The first true value of `condition`; AssertionError naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s (last: {value!r})"
        time.sleep(POLL_S)


async def reached(condition: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """`until` in asyncio: others run meanwhile."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s (last: {value!r})"
        await asyncio.sleep(POLL_S)


async def paused(seconds: float) -> None:
    """An attacker's own pacing, which no event ends."""
    await asyncio.sleep(seconds)
