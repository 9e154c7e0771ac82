"""Work in threads, which cannot be cancelled: whoever started it stays until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def to_the_end(work: Awaitable[T]) -> T:
    """The result of `work`, which is over when this returns or raises, cancelled or not."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    finally:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # whoever was cancelled does not hear of it


class Workers:
    """Threads for answering peers, so many at a time.

    A peer may take its question back, and its place is free then. The thread is not: without a
    bound of its own, asking and taking back for ever would take every thread of the process.
    """

    def __init__(self, at_once: int) -> None:
        self._room = asyncio.Semaphore(at_once)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._room:
            return await to_the_end(asyncio.to_thread(work, *args, **kwargs))
