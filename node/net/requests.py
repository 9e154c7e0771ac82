"""Request and answer: one stream each, with limits and timeouts (docs/spec/network.md).

request:  length (4 bytes, big-endian), bytes
answer:   status (1 byte: 0 ok, 1 failed, 2 busy), length, bytes (a reason unless ok)
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from chain import limits as protocol_limits
from chain.errors import BlyanError, UnreachableError
from node.net import limits, streams
from node.net.bridge import Metrics

log = logging.getLogger("blyan.net")

OK, FAILED, BUSY = 0, 1, 2
Answer = Callable[[str, bytes], Awaitable[bytes]]  # awaited in the trio thread


@dataclass(slots=True)
class Service:
    """One served protocol. `most`: bytes of a request; `concurrent`: requests at a time."""

    protocol: str
    answer: Answer
    most: int
    concurrent: int
    running: int = 0
    by_peer: Counter[str] = field(default_factory=Counter)

    @property
    def per_peer(self) -> int:
        """One peer gets at most half of the slots, so that it cannot starve the others."""
        return max(1, (self.concurrent + 1) // 2)


async def ask(stream: Any, data: bytes, most: int) -> bytes:
    """Send one request on a fresh stream and return the answer of at most `most` bytes."""
    await streams.write(stream, streams.frame(data))
    status = (await streams.read_exactly(stream, 1))[0]
    if status == OK:
        return await streams.read_frame(stream, most)
    if status not in (FAILED, BUSY):
        raise streams.StreamError(f"unknown status {status}")
    reason = await streams.read_frame(stream, protocol_limits.MAX_REASON)
    word = "refused" if status == FAILED else "is too busy for"
    raise UnreachableError(f"the peer {word} the request: {reason.decode(errors='replace')}")


class Server:
    """Answers the requests of one service."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self.service, self.metrics = service, metrics

    async def handle(self, stream: Any, peer: str) -> None:
        """Read one request and answer it. Raises TooLargeError for the caller to report."""
        service = self.service
        if service.running >= service.concurrent or service.by_peer[peer] >= service.per_peer:
            self.metrics.add("requests_busy")
            await self._reply(stream, BUSY, b"too many requests at a time")
            return
        service.running += 1
        service.by_peer[peer] += 1
        try:
            with trio.fail_after(limits.READ_TIMEOUT_S):
                data = await streams.read_frame(stream, service.most)
            answered: list[tuple[int, bytes]] = []  # empty if the asker went away
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, stream, nursery.cancel_scope)
                answered.append(await self._answer(peer, data))
                nursery.cancel_scope.cancel()
            if not answered:
                self.metrics.add("requests_abandoned")
                return
            self.metrics.add("requests_served")
            await self._reply(stream, *answered[0])
        finally:
            service.running -= 1
            service.by_peer[peer] -= 1
            if service.by_peer[peer] <= 0:
                del service.by_peer[peer]

    async def _answer(self, peer: str, data: bytes) -> tuple[int, bytes]:
        try:
            with trio.fail_after(limits.SERVE_TIMEOUT_S):
                answer = await self.service.answer(peer, data)
        except BlyanError as error:
            reason = str(error)
        except trio.TooSlowError:
            reason = "timeout"
        except Exception:
            log.exception("the handler of %s raised", self.service.protocol)
            self.metrics.add("handler_errors")
            reason = "internal error"
        else:
            if len(answer) <= limits.MAX_RESPONSE_BYTES:
                return OK, answer
            reason = f"an answer of {len(answer)} bytes, over the limit"
            log.error("the handler of %s made %s", self.service.protocol, reason)
        return FAILED, reason.encode()[: protocol_limits.MAX_REASON]

    async def _reply(self, stream: Any, status: int, data: bytes) -> None:
        with trio.fail_after(limits.REPLY_TIMEOUT_S):
            await streams.write(stream, bytes([status]), streams.frame(data))
            await stream.close()


async def _cancel_when_gone(stream: Any, scope: trio.CancelScope) -> None:
    """The asker sends nothing after its request: whatever comes means that it gave up."""
    try:
        await stream.read(1)
    except Exception as error:
        log.debug("the asker went away: %r", error)
    scope.cancel()
