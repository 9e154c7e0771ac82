"""What a loop says of errors that nobody awaits."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable

import pytest
import uvloop

from node.net.links import orphans

RESET = ConnectionResetError(104, "Connection reset by peer")


async def left(dropped: Callable[[asyncio.AbstractEventLoop], asyncio.Future[None]]) -> None:
    """Something that has failed is dropped without a look."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(orphans.tell)
    future = dropped(loop)
    await asyncio.wait([future])
    del future
    gc.collect()


def bare(error: Exception) -> Callable[[asyncio.AbstractEventLoop], asyncio.Future[None]]:
    def dropped(loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        future: asyncio.Future[None] = loop.create_future()
        future.set_exception(error)
        return future

    return dropped


def task(loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    async def fails() -> None:
        raise RESET

    return loop.create_task(fails())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_dial_that_was_given_up_is_no_error(
    run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    run(left(bare(RESET)))
    assert not [r for r in caplog.records if r.levelno >= logging.INFO]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("dropped", [bare(ValueError("ours")), task])
def test_all_else_is_told(
    run: Callable[..., None],
    dropped: Callable[[asyncio.AbstractEventLoop], asyncio.Future[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(left(dropped))
    (said,) = [r for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.ERROR]
    assert "never retrieved" in said.message
