"""Futures of uvloop's own that nobody can await any more.

`create_connection` has one for TCP and one for TLS. Where a dial is cancelled while it awaits the
first, and the other end resets, the second gets the error and is dropped
(github.com/MagicStack/uvloop/issues/437). Whoever dialled was told already.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

log = logging.getLogger("blyan.net")


def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A loop's exception handler: a broken connection of a bare future is no error of ours. A
    task's is, and so is everything else."""
    error, future = context.get("exception"), context.get("future")
    if isinstance(error, ConnectionError) and type(future) is asyncio.Future:
        log.debug("a dial that was given up: %r", error)
    else:
        loop.default_exception_handler(context)
