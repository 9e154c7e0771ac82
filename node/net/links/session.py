"""The streams of one link: requests both ways, with credit and limits. Sans-I/O.

A stream is one request and its answer. Each direction's content has a size that is told before
it begins; it is over with its last byte, or with CANCEL. Whoever gets CANCEL and has not sent
all of its own content on that stream answers with CANCEL. The receiver forgets a stream when
both directions are over, and until then discards what still comes of it.

`Session` is the sink of a `Reader` and fills an `Outbox`. LinkError from it means that the peer
broke the rules: the link is closed and the peer blamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from chain import limits as protocol_limits
from chain.errors import UnreachableError
from node.net import limits as net_limits
from node.net.links import limits
from node.net.links.frames import (
    Answer,
    Frame,
    Kind,
    LinkError,
    Open,
    Status,
    message_frames,
    read_credit,
)
from node.net.links.outbox import Outbox, Sending
from node.net.priority import Priority

_SMALL_BYTES = 4096  # a DATA frame under this counts as a small one


class Ask:
    """A request of ours and its answer so far."""

    __slots__ = (
        "_done", "answer", "begun", "credit", "failure", "granted", "into", "is_cut", "is_over",
        "mark", "most", "progress", "protocol", "received", "size", "stream", "window",
    )  # fmt: skip

    def __init__(
        self,
        stream: int,
        protocol: str,
        most: int,
        window: int,
        into: memoryview | None,
        progress: Callable[[int], object] | None,
        done: Callable[[Ask], object],
    ) -> None:
        self.stream, self.protocol, self.most, self.window = stream, protocol, most, window
        self.into = into  # the caller's, or ours once the answer's size is known
        self.progress: Callable[[int], object] | None = progress
        self.answer: Answer | None = None
        self.size = 0  # of the answer, once it has begun
        self.received = 0  # bytes of the answer that are in `into`
        self.begun = 0  # the same, with the rest of the frame under way
        self.credit = self.granted = window  # what may still come; in all
        self.failure: Exception | None = None
        self.is_over = False  # for the caller: nothing is written to `into` any more
        self.is_cut = False  # not all of the request was sent, and CANCEL is due
        # Of the last look at the rate: time, bytes received of this answer, and of all content.
        self.mark: tuple[float, int, int] | None = None
        self._done = done

    def finish(self, failure: Exception | None = None) -> None:
        if self.is_over:
            return
        self.is_over, self.failure = True, failure
        if failure is not None:
            self.into = None
        self.progress = None
        self._done(self)


class Asked:
    """A request of the peer."""

    __slots__ = (
        "answered_at", "begun", "credit", "data", "is_admitted", "is_answered", "opened",
        "opened_at", "received", "request_credit", "stalled_at", "stalled_left", "stream",
    )  # fmt: skip

    def __init__(self, stream: int, opened: Open) -> None:
        self.stream, self.opened = stream, opened
        self.credit = opened.credit  # of the answer
        self.request_credit = limits.REQUEST_CREDIT_BYTES
        self.received = self.begun = 0
        self.data: memoryview | None = None  # of an admitted one
        self.is_admitted = False  # a slot is taken for it
        self.is_answered = False  # all of the answer is sent, or it was cancelled
        self.opened_at: float | None = None  # filled in by the watch
        self.answered_at: float | None = None
        self.stalled_at: float | None = None
        self.stalled_left = 0

    @property
    def is_whole(self) -> bool:
        return self.received == self.opened.size


class App(Protocol):
    """Whoever answers the peer's requests."""

    def admit(self, asked: Asked) -> tuple[Status, str] | None:
        """None: a slot is taken for this request. Else why not. Raises LinkError."""

    def asked(self, asked: Asked) -> None:
        """An admitted request has arrived whole: `session.answer` is expected some time."""

    def over(self, asked: Asked) -> None:
        """An admitted request needs its slot no more; stop working on it."""

    def message(self, data: bytes) -> None:
        """The peer sent a message. It must not take long."""


class Session:
    def __init__(self, app: App, *, dialled: bool) -> None:
        self._app = app
        self._parity = 1 if dialled else 0  # of the streams that we open
        self._next = 1 if dialled else 2
        self._last_asked = 0
        self.outbox = Outbox()
        self.asks: dict[int, Ask] = {}
        self.requests: dict[int, Asked] = {}
        self._request_bytes = 0  # announced by the peer and not yet handed on
        self.content_bytes = 0  # received in all
        self.window = limits.WINDOW_BYTES  # of each answer; see `note_rtt`
        self.small_frames = 0  # since the last time somebody asked; reset by the watch
        self.pong: bytes | None = None  # the last one received
        self.is_leaving = False  # the peer opens nothing more, and neither do we
        self._parts: list[bytes] = []  # of a message that is under way
        self._parts_bytes = 0

    # --- what we do -----------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        return not (self.asks or self.requests) and self.outbox.is_empty

    @property
    def is_flooded(self) -> bool:
        """Stop reading until the next second, or until the peer takes what waits for it."""
        return (
            self.small_frames > limits.FRAMES_PER_S
            or self.outbox.control_frames > limits.CONTROL_FRAMES
        )

    def ask(
        self,
        protocol: str,
        data: bytes,
        priority: Priority,
        most: int,
        done: Callable[[Ask], object],
        into: memoryview | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Ask:
        """Send a request; `done(ask)` is called once. Raises UnreachableError if it cannot be."""
        if self._next > 0xFFFFFFFF:
            self.leave()
        if self.is_leaving:
            raise UnreachableError("the link is about to close")
        if len(self.asks) >= limits.STREAMS:
            raise UnreachableError(f"{limits.STREAMS} requests to this peer are under way")
        stream, self._next = self._next, self._next + 2
        ask = self.asks[stream] = Ask(stream, protocol, most, self.window, into, progress, done)
        opened = Open(priority, ask.credit, len(data), protocol)
        self.outbox.control(Frame(stream, Kind.OPEN, opened.encode()))
        if data:
            credit = limits.REQUEST_CREDIT_BYTES
            self.outbox.content(Sending(stream, [memoryview(data)], priority, credit, _nothing))
        return ask

    def send(self, data: bytes) -> int:
        """Send a message: no answer, and no word whether it arrives. How many older ones were
        dropped because the peer does not take them."""
        return self.outbox.message(message_frames(data))

    def cancel(self, ask: Ask, failure: Exception) -> None:
        """Give a request up: what still comes of its answer is discarded."""
        if ask.is_over:
            return
        self._cancel(ask.stream)
        ask.finish(failure)

    def answer(
        self, asked: Asked, status: Status, parts: list[memoryview], priority: Priority
    ) -> None:
        """Send the answer to a request, unless its asker is gone."""
        if self.requests.get(asked.stream) is not asked or asked.is_answered:
            return
        size = sum(len(part) for part in parts)
        self.outbox.control(Frame(asked.stream, Kind.ANSWER, Answer(status, size).encode()))
        if size:
            self.outbox.content(Sending(asked.stream, parts, priority, asked.credit, self._sent))
        else:
            self._sent(asked.stream)

    def give_up(self, asked: Asked) -> None:
        """Answer a request no further."""
        if not asked.is_answered:
            self._cancel(asked.stream)
            self._end(asked)

    def note_rtt(self, least_ms: float) -> None:
        """The least round trip so far: what is granted ahead keeps a quick line full."""
        wanted = int(least_ms * limits.LINE_BYTES_PER_MS)
        self.window = min(max(limits.WINDOW_BYTES, wanted), limits.MAX_WINDOW_BYTES)

    def leave(self) -> None:
        """Neither side opens anything more; what is under way goes on."""
        if not self.is_leaving:
            self.is_leaving = True
            self.outbox.control(Frame(0, Kind.BYE))

    def lose(self, reason: str) -> None:
        """The link is gone."""
        self.is_leaving = True
        for ask in list(self.asks.values()):
            ask.finish(UnreachableError(reason))
        for asked in list(self.requests.values()):
            self._end(asked)
        self.asks.clear()
        self.requests.clear()

    def _cancel(self, stream: int) -> None:
        self.outbox.drop(stream)
        self.outbox.control(Frame(stream, Kind.CANCEL))

    # --- the sink of a reader ---------------------------------------------------------

    def frame(self, frame: Frame) -> None:
        self.small_frames += 1
        kind, stream = frame.kind, frame.stream
        if kind is Kind.OPEN:
            self._on_open(stream, Open.decode(frame.body))
        elif kind is Kind.ANSWER:
            self._on_answer(stream, Answer.decode(frame.body))
        elif kind is Kind.CREDIT:
            self._on_credit(stream, read_credit(frame.body))
        elif kind is Kind.CANCEL:
            self._on_cancel(stream)
        elif kind is Kind.PING:
            self.outbox.pong(frame.body)
        elif kind is Kind.PONG:
            self.pong = frame.body
        elif kind is Kind.MESSAGE:
            self._on_message(frame.body)
        else:
            self.is_leaving = True

    def begin(self, stream: int, size: int) -> None:
        self.small_frames += size < _SMALL_BYTES
        ask = self.asks.get(stream)
        if ask is not None:
            if size > ask.size - ask.begun:
                raise LinkError(f"more content than the answer's {ask.size} bytes")
            if size > ask.credit:
                raise LinkError(f"{size} bytes of an answer where {ask.credit} were granted")
            ask.begun += size
            ask.credit -= size
            return
        asked = self.requests.get(stream)
        if asked is None:
            raise LinkError(f"content on stream {stream}, which is over or never began")
        if size > asked.opened.size - asked.begun:
            raise LinkError(f"more content than the request's {asked.opened.size} bytes")
        if size > asked.request_credit:
            raise LinkError(f"{size} bytes of a request where {asked.request_credit} were granted")
        asked.begun += size
        asked.request_credit -= size

    def place(self, stream: int, left: int) -> memoryview | None:
        ask = self.asks.get(stream)
        if ask is not None:
            return ask.into[ask.received :] if ask.into is not None else None
        asked = self.requests.get(stream)
        if asked is None or asked.data is None:
            return None
        return asked.data[asked.received :]

    def data(self, stream: int, count: int) -> None:
        self.content_bytes += count
        ask = self.asks.get(stream)
        if ask is not None:
            self._on_answer_data(ask, count)
            return
        asked = self.requests.get(stream)
        if asked is None:
            return  # cancelled by the peer, in the midst of a frame
        asked.received += count
        if asked.is_whole:
            self._on_whole(asked)

    # --- messages ---------------------------------------------------------------------

    def _on_message(self, body: bytes) -> None:
        if body[0] > 1 or (body[0] == 1 and len(body) != limits.BODY_BYTES):
            raise LinkError(f"a part of a message of {len(body)} bytes that begins with {body[0]}")
        if body[0] == 0 and not self._parts:
            self._app.message(body[1:])
            return
        self._parts.append(body[1:])
        self._parts_bytes += len(body) - 1
        if self._parts_bytes > net_limits.MAX_FRAME_BYTES:
            raise LinkError(f"a message of over {net_limits.MAX_FRAME_BYTES} bytes")
        if body[0] == 0:
            data, self._parts, self._parts_bytes = b"".join(self._parts), [], 0
            self._app.message(data)

    # --- answers to us ----------------------------------------------------------------

    def _on_answer(self, stream: int, answer: Answer) -> None:
        ask = self.asks.get(stream)
        if ask is None or ask.answer is not None:
            raise LinkError(f"an answer on stream {stream}, where none is due")
        most = ask.most if answer.status is Status.OK else protocol_limits.MAX_REASON
        if answer.size > most:
            raise LinkError(
                f"too much for {ask.protocol}: an answer of {answer.size} bytes where at most "
                f"{most} are allowed"
            )
        ask.answer, ask.size = answer, answer.size
        if answer.status is not Status.OK:
            ask.progress = None
        ask.is_cut = self.outbox.drop(stream)  # refused before all of the request was sent
        if not ask.is_over:
            into = ask.into if answer.status is Status.OK else None
            ask.into = memoryview(bytearray(answer.size)) if into is None else into[: answer.size]
        if not answer.size:
            self._complete(ask)

    def _on_answer_data(self, ask: Ask, count: int) -> None:
        ask.received += count
        if ask.progress is not None:
            try:
                ask.progress(ask.received)
            except Exception as error:
                if ask.received < ask.size:
                    self._cancel(ask.stream)
                ask.finish(error)
        if ask.received == ask.size:
            self._complete(ask)
        elif ask.granted < ask.size and not ask.is_over:
            due = ask.received + ask.window - ask.granted
            if due >= ask.window // 2:
                ask.granted += due
                ask.credit += due
                self.outbox.grant(ask.stream, due)

    def _complete(self, ask: Ask) -> None:
        """All of the answer is here."""
        del self.asks[ask.stream]
        if ask.is_cut:  # only now, since CANCEL would also stop the answer
            self.outbox.control(Frame(ask.stream, Kind.CANCEL))
        ask.finish()

    # --- requests to us -----------------------------------------------------------------

    def _on_open(self, stream: int, opened: Open) -> None:
        if stream & 1 == self._parity:
            raise LinkError(f"stream {stream} is not the peer's to open")
        if stream <= self._last_asked:
            raise LinkError(f"stream {stream} after stream {self._last_asked}")
        if len(self.requests) >= limits.STREAMS:
            raise LinkError(f"more than {limits.STREAMS} requests at a time")
        self._last_asked = stream
        asked = self.requests[stream] = Asked(stream, opened)
        if self._request_bytes + opened.size > limits.REQUESTS_BYTES:
            refused: tuple[Status, str] | None = (Status.BUSY, "too many bytes of requests")
        else:
            refused = self._app.admit(asked)
        if refused is None:
            asked.is_admitted = True
            asked.data = memoryview(bytearray(opened.size))
            self._request_bytes += opened.size
            if opened.size > limits.REQUEST_CREDIT_BYTES:
                asked.request_credit = opened.size
                self.outbox.grant(stream, opened.size - limits.REQUEST_CREDIT_BYTES)
        else:
            reason = refused[1].encode()[: protocol_limits.MAX_REASON]
            self.answer(asked, refused[0], [memoryview(reason)], Priority.NORMAL)
        if asked.is_whole:
            self._on_whole(asked)

    def _on_whole(self, asked: Asked) -> None:
        if asked.is_answered:
            self.requests.pop(asked.stream, None)
        elif asked.is_admitted:
            self._request_bytes -= asked.opened.size
            self._app.asked(asked)

    def _on_credit(self, stream: int, count: int) -> None:
        asked = self.requests.get(stream)
        if asked is not None:
            asked.credit += count
        else:
            self._check_began(stream)
        self.outbox.credit(stream, count)

    def _on_cancel(self, stream: int) -> None:
        ask = self.asks.pop(stream, None)
        if ask is not None:
            if self.outbox.drop(stream):
                self.outbox.control(Frame(stream, Kind.CANCEL))
            ask.finish(UnreachableError("the peer gave up answering"))
            return
        asked = self.requests.pop(stream, None)
        if asked is None:
            self._check_began(stream)
            return
        if not asked.is_answered:
            self._cancel(stream)
        self._end(asked)

    def _check_began(self, stream: int) -> None:
        """A frame about a stream that is over may have crossed its last one."""
        if stream >= (self._next if stream & 1 == self._parity else self._last_asked + 1):
            raise LinkError(f"stream {stream} never began")

    def _sent(self, stream: int) -> None:
        """All of an answer was handed to the transport."""
        asked = self.requests.get(stream)
        if asked is not None:
            self._end(asked)

    def _end(self, asked: Asked) -> None:
        """Our side of a stream is over: forget it if the peer's is."""
        was_answered, asked.is_answered = asked.is_answered, True
        if asked.is_whole:
            self.requests.pop(asked.stream, None)
        if asked.is_admitted and not was_answered:
            if not asked.is_whole:
                self._request_bytes -= asked.opened.size
                asked.data = None
            self._app.over(asked)


def _nothing(stream: int) -> None:
    """A request has been sent: its answer says more."""
