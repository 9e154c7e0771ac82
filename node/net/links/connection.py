"""One TLS connection with a peer: a `Session` between asyncio and the application.

Nothing here takes long in one turn of the event loop: what is read and what is written in one is
bounded, and the transport holds little, so that a vote is never far behind.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol, cast

from chain import limits as protocol_limits
from chain.errors import InvariantError, UnreachableError, VerifyError
from node.net import limits as net_limits
from node.net.bridge import Metrics
from node.net.links import limits
from node.net.links.certificate import ALPN, peer_of
from node.net.links.frames import NONCE_BYTES, Frame, Kind, LinkError, Reader, Status
from node.net.links.session import Ask, Asked, Session
from node.net.links.watch import Watch
from node.net.priority import Priority
from node.net.requests import RequestHandler, Service, parts_of, reason_of

log = logging.getLogger("blyan.net")


class Owner(Protocol):
    """Who has the connection: the table of links."""

    metrics: Metrics

    def service(self, protocol: str) -> tuple[Service, RequestHandler] | None:
        """What answers a protocol."""

    def blame(self, peer: str, reason: str, points: float) -> None:
        """The peer broke the rules of a link."""

    def lost(self, connection: Connection) -> None:
        """The connection has ended."""

    def message(self, peer: str, data: bytes) -> None:
        """The peer sent a message."""


class Connection(asyncio.BufferedProtocol):
    """Made when TLS is: `peer` is who the other side is, or `refusal` why it is nobody."""

    def __init__(self, owner: Owner, *, dialled: bool) -> None:
        self._owner, self.dialled = owner, dialled
        self.metrics = owner.metrics
        self.session = Session(self, dialled=dialled)
        self._reader = Reader(self.session)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._can_write = True
        self._is_pumping = False  # a turn of writing is due
        self._is_reading = True
        self._is_full = False  # more was read than was taken: the rest comes first
        self._slots: dict[Asked, tuple[Service, RequestHandler]] = {}  # admitted
        self._tasks: dict[Asked, asyncio.Task[None]] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._pinged_at = 0.0
        self._leave_by: float | None = None
        self.peer = ""
        self.refusal: VerifyError | None = None
        self.is_admitted = self.is_closed = False
        self.closed = asyncio.Event()  # of no more use
        self.ended = asyncio.Event()  # and the socket is closed
        self.rtt_ms: float | None = None
        self._least_rtt_ms = limits.SILENCE_S * 1e3
        self.bytes_in = self.bytes_out = 0

    # --- life -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.set_write_buffer_limits(high=1, low=0)  # what waits, waits here: in order
        self._hold()  # until it is known to be welcome
        try:
            self.peer = _authenticate(transport.get_extra_info("ssl_object"))
        except VerifyError as error:
            self.refusal = error
            self._transport.abort()

    def begin(self) -> None:
        """The peer is welcome: read."""
        self.is_admitted = True
        now = self._loop.time()
        self._watch = Watch(self.session, now)
        self._ticker = self._loop.call_later(1.0, self._tick)
        self._ping(now)
        self._read_on()

    def leave(self) -> None:
        """Open nothing more; close once what is under way is over, or time is up."""
        if self._leave_by is None and not self.is_closed:
            self._leave_by = self._loop.time() + limits.DRAIN_S
            self.session.leave()
            self._pump()

    def close(self, reason: str) -> None:
        """At once; what the peer has not taken is lost."""
        log.debug("link with %s closed: %s", self.peer, reason)
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            log.debug("link with %s broke: %r", self.peer, error)
        self.ended.set()
        self._end(f"the link with {self.peer} broke before the answer had arrived")

    def eof_received(self) -> bool:
        return False  # a link is open both ways or not at all

    def _end(self, reason: str) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        self.session.lose(reason)
        self.closed.set()
        self._owner.lost(self)

    @property
    def is_usable(self) -> bool:
        return self.is_admitted and not (self.is_closed or self.session.is_leaving)

    @property
    def can_ask(self) -> bool:
        return self.is_usable and len(self.session.asks) < limits.STREAMS

    # --- reading --------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, count: int) -> None:
        self.bytes_in += count
        if self.is_closed:
            return
        try:
            is_more = self._reader.advance(count)
        except LinkError as error:
            self._violated(error)
            return
        if self.session.pong is not None:
            self._note_pong()
        if is_more:
            self._is_full = True
            self._hold()
            self._loop.call_soon(self._take_more)
        elif self.session.is_flooded:
            self._hold()
        self._pump()

    def _take_more(self) -> None:
        """The rest of what was read: others had their turn meanwhile."""
        self._is_full = False
        self.buffer_updated(0)
        if not self._is_full and not self.session.is_flooded:
            self._read_on()

    def _violated(self, error: LinkError) -> None:
        self.close(f"{self.peer} was cut off: {error}")
        if error.points:
            self.metrics.add("tls_violations")
            self._owner.blame(self.peer, f"link: {error}", error.points)

    def _hold(self) -> None:
        if self._is_reading and self._transport is not None:
            self._is_reading = False
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if not self._is_reading and self._transport is not None and self.is_admitted:
            self._is_reading = True
            self._transport.resume_reading()

    # --- writing --------------------------------------------------------------------

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._pump()

    def _pump(self) -> None:
        """Write what waits, in this turn if the last one has not just ended."""
        if not self._is_pumping:
            self._turn()

    def _turn(self) -> None:
        """Not entered again from within: writing may call `resume_writing`."""
        self._is_pumping = True
        is_more = self._write_some()
        self._is_pumping = is_more
        if is_more:
            self._loop.call_soon(self._turn)

    def _write_some(self) -> bool:
        """Hand a turn's frames over at once, which is one call of the system for all of them.
        Whether there is more that can be written."""
        transport, outbox = self._transport, self.session.outbox
        if transport is None or not self._can_write or self.is_closed:
            return False
        buffers: list[bytes | memoryview] = []
        for _ in range(limits.TURN_FRAMES):
            taken = outbox.take()
            if taken is None:
                break
            buffers += taken
        if not buffers:
            return False
        self.bytes_out += sum(map(len, buffers))
        transport.writelines(buffers)
        return taken is not None and self._can_write

    # --- time -----------------------------------------------------------------------

    def _tick(self) -> None:
        now = self._loop.time()
        self._ticker = self._loop.call_later(1.0, self._tick)
        try:
            self._watch.look(now, self.bytes_in)
        except LinkError as error:
            self._violated(error)
            return
        if not self.session.is_flooded and not self._is_full:
            self._read_on()
        if self.session.is_leaving:
            self._leave_by = self._leave_by or now + limits.DRAIN_S
            if self.session.is_idle or now > self._leave_by:
                self._say_goodbye()
                return
        elif now - self._pinged_at >= limits.PING_S:
            self._ping(now)
        self._pump()

    def _say_goodbye(self) -> None:
        """Close in order: what is written goes out, then TLS's own end."""
        if self._transport is not None:
            self._transport.close()
        self._end(f"the link with {self.peer} was closed")

    def _ping(self, now: float) -> None:
        self._pinged_at = now
        nonce = (time.monotonic_ns() // 1000).to_bytes(NONCE_BYTES)  # finer than the loop's clock
        self.session.outbox.control(Frame(0, Kind.PING, nonce))
        self._pump()

    def _note_pong(self) -> None:
        """Smoothed as TCP does (RFC 6298), one eighth a sample. A foreign nonce is ignored."""
        nonce, self.session.pong = self.session.pong or b"", None
        took_ms = time.monotonic_ns() / 1e6 - int.from_bytes(nonce) / 1e3
        if 0 <= took_ms < limits.SILENCE_S * 1e3:
            old = self.rtt_ms
            self.rtt_ms = took_ms if old is None else old + (took_ms - old) / 8
            self._least_rtt_ms = min(self._least_rtt_ms, took_ms)
            self.session.note_rtt(self._least_rtt_ms)

    # --- messages ---------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send a message before any content. It may be lost."""
        dropped = self.session.send(data)
        if dropped:
            self.metrics.add("link_dropped", dropped)
        self._pump()

    def message(self, data: bytes) -> None:
        """As `session.App`."""
        if not self.is_closed:
            self._owner.message(self.peer, data)

    # --- asking ---------------------------------------------------------------------

    async def ask(
        self,
        protocol: str,
        data: bytes,
        *,
        timeout_s: float,
        most: int,
        priority: Priority,
        into: memoryview | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> memoryview:
        """The answer, in `into` if that is given. Raises UnreachableError, or what `progress`
        raises; then, and once it returns, nothing writes to `into` any more."""
        waiting: asyncio.Future[None] = self._loop.create_future()

        def done(_: Ask) -> None:
            if not waiting.done():
                waiting.set_result(None)

        ask = self.session.ask(protocol, data, priority, most, done, into, progress)
        self._pump()
        try:
            async with asyncio.timeout(timeout_s):
                await waiting
        except TimeoutError:
            self.metrics.add("requests_timeout")
            raise UnreachableError(
                f"{self.peer} did not answer {protocol} within {timeout_s:g} s"
            ) from None
        finally:
            self.session.cancel(ask, UnreachableError("given up"))  # nothing, once it is over
            self._pump()
        return _content(ask, self.peer)

    # --- answering --------------------------------------------------------------------

    def admit(self, asked: Asked) -> tuple[Status, str] | None:
        """As `session.App`: a slot of the service, or why not."""
        opened = asked.opened
        found = self._owner.service(opened.protocol)
        if found is None:
            return Status.FAILED, f"unknown protocol {opened.protocol}"
        service = found[0]
        if opened.size > service.most:
            raise LinkError(
                f"too much for {opened.protocol}: a request of {opened.size} bytes where at "
                f"most {service.most} are allowed"
            )
        if not service.enter(self.peer):
            self.metrics.add("requests_busy")
            return Status.BUSY, "too many requests at a time"
        self._slots[asked] = found
        return None

    def asked(self, asked: Asked) -> None:
        task = self._loop.create_task(self._answer(asked))
        self._tasks[asked] = task
        task.add_done_callback(functools.partial(self._answered, asked))

    async def _answer(self, asked: Asked) -> None:
        protocol = asked.opened.protocol
        service, handler = self._slots[asked]
        status = Status.FAILED
        try:
            async with asyncio.timeout(net_limits.SERVE_TIMEOUT_S):
                parts = parts_of(await handler(self.peer, bytes(asked.data or b"")))
            size = sum(map(len, parts))
        except Exception as error:
            reason = reason_of(error, protocol, self.metrics)
        else:
            if size > net_limits.MAX_RESPONSE_BYTES:
                reason = f"an answer of {size} bytes, over the limit"
                log.error("the handler of %s made %s", protocol, reason)
            elif self.session.outbox.bytes + size > limits.ANSWERS_BYTES:
                status, reason = Status.BUSY, "too many bytes of answers wait to be taken"
            else:
                self.metrics.add("tls_requests_served")
                self.session.answer(asked, Status.OK, parts, service.priority)
                self._pump()
                return
        cut = reason.encode()[: protocol_limits.MAX_REASON]
        self.session.answer(asked, status, [memoryview(cut)], Priority.NORMAL)
        self._pump()

    def _answered(self, asked: Asked, task: asyncio.Task[None]) -> None:
        self._tasks.pop(asked, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("answering %s failed", asked.opened.protocol, exc_info=error)
            self.metrics.add("handler_errors")

    def over(self, asked: Asked) -> None:
        task = self._tasks.pop(asked, None)  # now: who opens and cancels in masses is quicker
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            self.metrics.add("requests_abandoned")
        self._slots.pop(asked)[0].leave(self.peer)


def _content(ask: Ask, peer: str) -> memoryview:
    """What a finished request brought. Raises what it failed with."""
    if ask.failure is not None:
        raise ask.failure
    answer, content = ask.answer, ask.into
    if answer is None or content is None:
        raise InvariantError("a finished request has an answer")
    if answer.status is Status.OK:
        return content
    word = "refused" if answer.status is Status.FAILED else "is too busy for"
    reason = bytes(content).decode(errors="replace")
    raise UnreachableError(f"{peer} {word} the request: {reason}")


def _authenticate(tls: ssl.SSLObject | None) -> str:
    """The peer id at the other end. Raises VerifyError."""
    if tls is None or tls.version() != "TLSv1.3" or tls.selected_alpn_protocol() != ALPN:
        raise VerifyError(f"not TLS 1.3 with {ALPN}")
    certificate = tls.getpeercert(binary_form=True)
    if certificate is None:
        raise VerifyError("no certificate")
    return peer_of(certificate, datetime.now(UTC))
