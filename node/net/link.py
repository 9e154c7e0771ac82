"""The consensus link: one long-lived stream per peer and direction (docs/spec/network.md).

Opening a stream costs a protocol negotiation (milliseconds of CPU); a vote on an open stream
costs a fraction of one. Frames: length (4 bytes, big-endian, of kind and body), kind (1 byte),
body. Kinds: 0 message, 1 ping, 2 pong (body: 8 bytes, returned as they came).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import trio

from node.net import limits, streams
from node.net.bridge import Bridge, Metrics

MESSAGE, PING, PONG = 0, 1, 2
_NONCE = 8


class Outbox:
    """Frames waiting for one peer. `push` from any thread, `take` from trio.

    Bounded by count and bytes; the oldest goes first, since consensus retransmits what still
    matters and the newest vote matters most.
    """

    def __init__(self, wake: Callable[[], object], metrics: Metrics) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._wake, self._metrics = wake, metrics
        self._woken = False

    def push(self, kind: int, body: bytes) -> None:
        data = b"".join(((len(body) + 1).to_bytes(4), bytes((kind,)), body))
        dropped = 0
        with self._lock:
            self._frames.append(data)
            self._bytes += len(data)
            while len(self._frames) > 1 and (
                len(self._frames) > limits.LINK_QUEUE_FRAMES
                or self._bytes > limits.LINK_QUEUE_BYTES
            ):
                self._bytes -= len(self._frames.popleft())
                dropped += 1
            wake, self._woken = not self._woken, True
        if dropped:
            self._metrics.add("link_dropped", dropped)
        if wake:
            self._wake()

    def take(self) -> bytes:
        """As many whole frames as fit one write (or one large frame); empty if none wait."""
        with self._lock:
            taken: list[bytes] = []
            size = 0
            while self._frames and (
                not taken or size + len(self._frames[0]) <= limits.WRITE_BYTES - 64
            ):
                taken.append(self._frames.popleft())
                size += len(taken[-1])
            self._bytes -= size
            if not taken:
                self._woken = False
        return taken[0] if len(taken) == 1 else b"".join(taken)


class Frames:
    """Cuts received bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Complete (kind, body) pairs. Raises TooLargeError or StreamError."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[int, bytes]] = []
        start = 0
        while len(buffer) - start >= 5:
            size = int.from_bytes(buffer[start : start + 4])
            if size > limits.MAX_FRAME_BYTES + 1:
                raise streams.TooLargeError(f"a link frame of {size} bytes")
            if size == 0:
                raise streams.StreamError("a link frame without a kind")
            if len(buffer) - start < 4 + size:
                break
            kind = buffer[start + 4]
            body = bytes(buffer[start + 5 : start + 4 + size])
            if kind > PONG or (kind != MESSAGE and len(body) != _NONCE):
                raise streams.StreamError(f"a link frame of unknown form (kind {kind})")
            frames.append((kind, body))
            start += 4 + size
        del buffer[:start]
        return frames


class Link:
    """What is known of the link to one peer. Lives in the trio thread, except `outbox`."""

    def __init__(self, name: str, bridge: Bridge, metrics: Metrics) -> None:
        self.name = name  # the peer id as text
        self.outbox = Outbox(lambda: bridge.to_trio(self._rouse), metrics)
        self.wake = trio.Event()  # the writer sleeps on it
        self.write_now: Callable[[bytes], bool] | None = None  # while the writer sleeps
        self._unwritten = b""  # taken from the outbox; `write_now` could not
        self.scope = trio.CancelScope()  # of its writer
        self.is_closed = False  # no connection is left, or none is wanted
        self.gone = trio.Event()  # and the writer has ended
        self.up = False  # our stream is open: the peer counts as connected
        self.heard = time.monotonic()  # last bytes on its stream to us
        self.rtt_ms: float | None = None
        self.inbound: streams.Stream | None = None  # its stream to us
        self.received = 0  # messages posted to asyncio; written by trio only
        self.handled = 0  # messages asyncio is done with; written by asyncio only
        self.is_waiting = False  # the reader waits for asyncio to catch up
        self._room = trio.Event()

    def _rouse(self) -> None:
        """Something waits in the outbox: write it at once if that can be done, since waking
        the writer costs as much again."""
        while self.write_now is not None and not self._unwritten:
            self._unwritten = self.outbox.take()
            if not self._unwritten:
                return
            if self.write_now(self._unwritten):
                self._unwritten = b""
            else:
                break
        self.wake.set()

    def take(self) -> bytes:
        """What the writer must write next."""
        data, self._unwritten = self._unwritten, b""
        return data or self.outbox.take()

    def close(self) -> None:
        self.is_closed = True
        self.scope.cancel()
        self._room.set()

    @property
    def is_usable(self) -> bool:
        return self.up and not self.is_closed

    @property
    def is_full(self) -> bool:
        return self.received - self.handled > limits.LINK_INBOX_FRAMES

    async def wait_for_room(self) -> None:
        """Stop reading while asyncio lags behind: TCP then slows the sender down."""
        while self.is_full and not self.is_closed:
            self._room = trio.Event()
            self.is_waiting = True
            if self.is_full:
                await self._room.wait()
        self.is_waiting = False

    def make_room(self) -> None:
        """In the trio thread, after `handled` has grown."""
        self._room.set()

    def ping(self) -> None:
        sent = int(time.monotonic() * 1e6)
        self.outbox.push(PING, sent.to_bytes(_NONCE))

    def pong(self, body: bytes) -> None:
        """Smoothed as TCP does (RFC 6298), one eighth a sample. A foreign nonce is ignored."""
        took_ms = time.monotonic() * 1e3 - int.from_bytes(body) / 1e3
        if 0 <= took_ms < limits.SILENCE_S * 1e3:
            old = self.rtt_ms
            self.rtt_ms = took_ms if old is None else old + (took_ms - old) / 8
