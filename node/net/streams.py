"""Bytes on a libp2p stream: exact reads, bounded writes, closing without surprises."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from chain.errors import BlyanError
from node.net import limits

log = logging.getLogger("blyan.net")

Stream = Any  # libp2p's INetStream; libp2p is imported only in its own thread


class StreamError(BlyanError):
    """The peer ended the stream early or sent what the protocol does not allow."""

    code = "stream"


class TooLargeError(StreamError):
    """A frame announces more bytes than its protocol allows."""

    code = "too_large"


async def read_exactly(stream: Stream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await stream.read(min(count - len(data), limits.WRITE_BYTES))
        if not part:
            raise StreamError(f"the stream ended after {len(data)} of {count} bytes")
        data += part
    return bytes(data)


async def read_frame(stream: Stream, most: int) -> bytes:
    """A 4-byte big-endian length, then as many bytes."""
    size = int.from_bytes(await read_exactly(stream, 4))
    if size > most:
        raise TooLargeError(f"a frame of {size} bytes where at most {most} are allowed")
    return await read_exactly(stream, size)


async def write(stream: Stream, *parts: bytes | memoryview) -> None:
    """In writes of WRITE_BYTES: small parts are joined, large ones are never copied whole."""
    waiting = bytearray()
    for part in parts:
        for start in range(0, len(part), limits.WRITE_BYTES):
            waiting += part[start : start + limits.WRITE_BYTES]
            if len(waiting) >= limits.WRITE_BYTES:
                await stream.write(bytes(waiting[: limits.WRITE_BYTES]))
                del waiting[: limits.WRITE_BYTES]
    if waiting:
        await stream.write(bytes(waiting))


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


async def reset(stream: Stream) -> None:
    """End the stream both ways, even under cancellation, and never wait long for it."""
    with trio.CancelScope(shield=True), trio.move_on_after(0.2):
        try:
            await stream.reset()
        except Exception as error:
            log.debug("reset of a stream failed: %r", error)


def socket_of(connection: Any) -> Any:
    """The trio socket stream under a swarm connection, or None.

    Closing a connection in order writes to it first, which a frozen peer blocks forever; its
    socket can always be closed.
    """
    layer = connection
    for name in ("muxed_conn", "secured_conn", "conn", "read_writer", "read_write_closer"):
        layer = getattr(layer, name, None)
    for _ in range(3):  # raw connection, trio stream wrapper, socket stream
        layer = getattr(layer, "stream", layer)
        if isinstance(layer, trio.SocketStream):
            return layer
    return None


class BufferedReads:
    """A stream that reads what there is and serves small reads from that, each after `gate`."""

    def __init__(self, stream: Stream, gate: Callable[[], Awaitable[None]]) -> None:
        self._stream, self._gate = stream, gate
        self._received = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, n: int) -> bytes:
        await self._gate()
        if not self._received:
            self._received += await self._stream.read(limits.WRITE_BYTES)
        part = bytes(self._received[:n])
        del self._received[:n]
        return part
