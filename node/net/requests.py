"""Request and answer: one stream each, with limits and timeouts (docs/spec/network.md).

request:  length (4 bytes, big-endian), bytes
answer:   status (1 byte: 0 ok, 1 failed, 2 busy), length, bytes (a reason unless ok)
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from chain import limits as protocol_limits
from chain.errors import BlyanError, UnreachableError
from node.net import limits, streams
from node.net.bridge import Metrics
from node.net.priority import Priority

log = logging.getLogger("blyan.net")

OK, FAILED, BUSY = 0, 1, 2
Buffer = bytes | bytearray | memoryview
Content = Buffer | Sequence[Buffer]  # an answer, whole or in parts that nobody joins
RequestHandler = Callable[[str, bytes], Awaitable[Content]]  # awaited in the asyncio thread
Answer = Callable[[str, bytes], Awaitable[Content]]  # awaited in the trio thread
Take = Callable[[bytes], Awaitable[None]]  # gets an answer part by part
_PART_BYTES = 256 * 1024  # handed on at a time: waking the other thread costs as much as 10 KiB


@dataclass(slots=True)
class Service:
    """One served protocol. `most`: bytes of a request; `concurrent`: requests at a time;
    `priority`: of its answers."""

    protocol: str
    answer: Answer
    most: int
    concurrent: int
    priority: Priority = Priority.NORMAL
    running: int = 0
    by_peer: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # trio and links share slots

    def enter(self, peer: str) -> bool:
        """Take a slot for a request of `peer`, to be given back with `leave`. False: too many.

        A peer gets at most half of what others leave, so that a few that never take their answers
        do not lock out all the rest.
        """
        with self._lock:
            own = self.by_peer[peer]
            left = self.concurrent - (self.running - own)
            if not left or own >= max(1, (left + 1) // 2):
                return False
            self.running += 1
            self.by_peer[peer] += 1
            return True

    def leave(self, peer: str) -> None:
        with self._lock:
            self.running -= 1
            self.by_peer[peer] -= 1
            if self.by_peer[peer] <= 0:
                del self.by_peer[peer]


def parts_of(content: Content) -> list[memoryview]:
    """The parts of an answer as bytes, empty ones left out. Raises TypeError for what is none."""
    parts = [content] if isinstance(content, bytes | bytearray | memoryview) else content
    views = (memoryview(part) for part in parts)
    return [v if v.format == "B" and v.ndim == 1 else v.cast("B") for v in views if v.nbytes]


def reason_of(error: Exception, protocol: str, metrics: Metrics) -> str:
    """What the asker is told of a handler's failure: nothing of a bug of ours."""
    if isinstance(error, BlyanError):
        return str(error)
    if isinstance(error, trio.TooSlowError | TimeoutError):
        return "timeout"
    log.error("the handler of %s raised", protocol, exc_info=error)
    metrics.add("handler_errors")
    return "internal error"


async def ask(stream: Any, data: bytes, most: int) -> bytes:
    """Send one request on a fresh stream and return the answer of at most `most` bytes."""
    await _send(stream, data)
    return await streams.read_frame(stream, most)


async def fetch(stream: Any, data: bytes, most: int, take: Take) -> int:
    """As `ask`, but `take` gets the answer as it arrives; returns its length in bytes."""
    await _send(stream, data)
    size = int.from_bytes(await streams.read_exactly(stream, 4))
    if size > most:
        raise streams.TooLargeError(f"a frame of {size} bytes where at most {most} are allowed")
    for start in range(0, size, _PART_BYTES):
        await take(await streams.read_exactly(stream, min(_PART_BYTES, size - start)))
    return size


async def _send(stream: Any, data: bytes) -> None:
    """Send the request; returns when an answer follows. Raises UnreachableError if none does."""
    await streams.write(stream, streams.frame(data))
    status = (await streams.read_exactly(stream, 1))[0]
    if status == OK:
        return
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
        if not service.enter(peer):
            self.metrics.add("requests_busy")
            await self._reply(stream, BUSY, [memoryview(b"too many requests at a time")])
            return
        try:
            with trio.fail_after(limits.READ_TIMEOUT_S):
                data = await streams.read_frame(stream, service.most)
            answered: list[tuple[int, list[memoryview]]] = []  # empty if the asker went away
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
            service.leave(peer)

    async def _answer(self, peer: str, data: bytes) -> tuple[int, list[memoryview]]:
        try:
            with trio.fail_after(limits.SERVE_TIMEOUT_S):
                parts = parts_of(await self.service.answer(peer, data))
        except Exception as error:
            reason = reason_of(error, self.service.protocol, self.metrics)
        else:
            size = sum(part.nbytes for part in parts)
            if size <= limits.MAX_RESPONSE_BYTES:
                return OK, parts
            reason = f"an answer of {size} bytes, over the limit"
            log.error("the handler of %s made %s", self.service.protocol, reason)
        return FAILED, [memoryview(reason.encode()[: protocol_limits.MAX_REASON])]

    async def _reply(self, stream: Any, status: int, parts: list[memoryview]) -> None:
        size = sum(part.nbytes for part in parts)
        with trio.fail_after(limits.REPLY_TIMEOUT_S):
            await streams.write(stream, bytes([status]), size.to_bytes(4), *parts)
            await stream.close()


async def _cancel_when_gone(stream: Any, scope: trio.CancelScope) -> None:
    """The asker sends nothing after its request: whatever comes means that it gave up."""
    try:
        await stream.read(1)
    except Exception as error:
        log.debug("the asker went away: %r", error)
    scope.cancel()
