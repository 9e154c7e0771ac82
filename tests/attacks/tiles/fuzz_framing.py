"""Fuzzing the framing and the streams of links.

A case is what a peer sends on one link: valid frames in a sensible order, spoiled, and cut into
pieces anywhere. Only LinkError may come of it; what is kept stays within the limits; and how the
bytes were cut makes no difference.
"""

from __future__ import annotations

from random import Random
from typing import Any

from node.net import limits as net_limits
from node.net.links import limits
from node.net.links.frames import Answer, Frame, Kind, LinkError, Open, Reader, Status, header
from node.net.links.session import Ask, Asked, Session
from node.net.priority import Priority
from tests.attacks.mutation import number, spoil_bytes

MOST_REQUEST = 2048  # bytes that the application admits
MOST_ANSWER = 4096  # bytes of an answer that is asked for
GUARD = 64  # bytes behind an asker's buffer that must stay as they are


class FramingTarget:
    name = "framing"
    size = 0

    def run(self, random: Random) -> str:
        """One case: what became of it. Raises AssertionError where a limit was broken."""
        received = spoiled(random, conversation(random))
        cuts = sorted(random.randrange(len(received) + 1) for _ in range(random.randrange(6)))
        whole = told(received, [])
        assert whole == told(received, cuts), "frames depend on how the bytes were cut"
        return Link(random).receive(received, cuts)


# --- the reader alone ------------------------------------------------------------------------


class Recorder:
    """A sink that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self._content = bytearray()
        self._room = memoryview(bytearray())

    def frame(self, frame: Frame) -> None:
        self.told.append((frame.stream, frame.kind, frame.body))

    def begin(self, stream: int, size: int) -> None:
        assert 0 < size <= limits.BODY_BYTES
        self._content = bytearray()
        self.told.append((stream, size, self._content))

    def place(self, stream: int, left: int) -> memoryview | None:
        if stream % 5 == 4:
            return None  # discarded
        self._room = memoryview(bytearray(left + stream % 3 * 7))
        return self._room

    def data(self, stream: int, count: int) -> None:
        if stream % 5 == 4:
            self._content += bytes(count)
        else:
            self._content += self._room[:count]


def told(received: bytes, cuts: list[int]) -> list[Any]:
    sink = Recorder()
    reader = Reader(sink)
    try:
        for start, end in zip([0, *cuts], [*cuts, len(received)], strict=True):
            reader.feed(received[start:end])
    except LinkError as error:
        sink.told.append(str(error))
    return sink.told


# --- a session over it ---------------------------------------------------------------------


class Link:
    """Our end of a link, with an application that answers now and then."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.session = Session(self, dialled=True)
        self.waiting: list[Asked] = []
        self.admitted = self.finished = 0
        self.buffers: list[tuple[Ask, bytearray, bytearray | None]] = []
        for priority in random.sample(list(Priority), 3):
            self.ask(priority)

    def ask(self, priority: Priority) -> None:
        buffer = bytearray(MOST_ANSWER + GUARD)
        into = memoryview(buffer)[:MOST_ANSWER] if self._random.random() < 0.7 else None
        data = bytes(self._random.choice((0, 10, 70_000)))
        ask = self.session.ask("/fuzz", data, priority, MOST_ANSWER, self._done, into)
        self.buffers.append((ask, buffer, None))

    def _done(self, ask: Ask) -> None:
        assert ask.is_over
        self.finished += 1
        for i, (mine, buffer, _) in enumerate(self.buffers):
            if mine is ask:
                self.buffers[i] = (ask, buffer, bytearray(buffer))  # not written to any more

    # what the session asks its application
    def admit(self, asked: Asked) -> tuple[Status, str] | None:
        if asked.opened.size > MOST_REQUEST:
            raise LinkError("too large a request")
        if self.admitted >= 8:
            return Status.BUSY, "busy"
        self.admitted += 1
        return None

    def asked(self, asked: Asked) -> None:
        assert asked.data is not None
        assert len(asked.data) == asked.opened.size == asked.received
        self.waiting.append(asked)

    def over(self, asked: Asked) -> None:
        self.admitted -= 1
        assert self.admitted >= 0

    def message(self, data: bytes) -> None:
        assert len(data) <= net_limits.MAX_FRAME_BYTES

    def receive(self, received: bytes, cuts: list[int]) -> str:
        reader, random, outcome = Reader(self.session), self._random, "taken"
        try:
            for start, end in zip([0, *cuts], [*cuts, len(received)], strict=True):
                reader.feed(received[start:end])
                self.act(random)
                self.check()
        except LinkError:
            outcome = "refused"
        self.check()
        self.session.lose("the case is over")
        assert self.finished == len(self.buffers), "an asker was told twice, or never"
        assert not self.admitted, "a slot is never given back"
        return outcome

    def act(self, random: Random) -> None:
        """What the node does between two reads."""
        if self.waiting and random.random() < 0.7:
            asked = self.waiting.pop(random.randrange(len(self.waiting)))
            if random.random() < 0.2:
                self.session.give_up(asked)
            else:
                parts = [memoryview(bytes(random.choice((1, 100, 80_000))))]
                self.session.answer(asked, Status.OK, parts, asked.opened.priority)
        if random.random() < 0.2:
            self.session.cancel(random.choice(self.buffers)[0], TimeoutError())
        for _ in range(random.randrange(4)):
            if (buffers := self.session.outbox.take()) is None:
                break
            assert sum(map(len, buffers)) <= 2 * limits.FRAME_BYTES

    def check(self) -> None:
        session = self.session
        assert len(session.requests) <= limits.STREAMS
        assert len(session.asks) <= len(self.buffers)
        assert self.admitted <= 8
        assert session._request_bytes <= 8 * MOST_REQUEST
        assert all(not any(buffer[MOST_ANSWER:]) for _, buffer, _ in self.buffers)
        for _, buffer, then in self.buffers:
            assert then is None or then == buffer, "an asker's buffer changes after its end"


# --- what a peer sends ---------------------------------------------------------------------


def conversation(random: Random) -> list[bytes]:
    """Frames of a peer: its own requests (even streams) and answers to ours (1, 3, 5)."""
    frames: list[bytes] = []
    for stream in (1, 3, 5):
        size = random.choice((0, 1, 100, 3000, MOST_ANSWER))
        status = Status.OK if size > 256 else random.choice(list(Status))
        frames.append(Frame(stream, Kind.ANSWER, Answer(status, size).encode()).encode())
        frames += content(random, stream, size)
    for number_of in range(random.randrange(1, 5)):
        stream, size = 2 + 2 * number_of, random.choice((0, 5, 1000, MOST_REQUEST))
        priority = random.choice(list(Priority))
        opened = Open(priority, random.choice((0, 1000, 2**21)), size, "/fuzz/1")
        frames.append(Frame(stream, Kind.OPEN, opened.encode()).encode())
        frames += content(random, stream, size)
        if random.random() < 0.4:
            frames.append(Frame(stream, Kind.CREDIT, (1 << 16).to_bytes(4)).encode())
        if random.random() < 0.3:
            frames.append(Frame(stream, Kind.CANCEL).encode())
    if random.random() < 0.03:  # more than a link carries at a time
        opened = Open(Priority.NORMAL, 0, 1, "/fuzz/1")
        many = range(20, 20 + 2 * random.choice((limits.STREAMS - 5, limits.STREAMS + 5)), 2)
        frames += [Frame(stream, Kind.OPEN, opened.encode()).encode() for stream in many]
    for kind in (Kind.PING, Kind.PONG):
        frames.insert(random.randrange(len(frames) + 1), Frame(0, kind, bytes(8)).encode())
    return frames


def content(random: Random, stream: int, size: int) -> list[bytes]:
    frames = []
    while size:
        part = min(size, random.choice((1, 500, 4096)))
        frames.append(header(stream, Kind.DATA, part) + random.randbytes(part))
        size -= part
    return frames


def spoiled(random: Random, frames: list[bytes]) -> bytes:
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        at = random.randrange(len(frames))
        frame = frames[at]
        match random.randrange(9):
            case 0:
                del frames[at]
                frames = frames or [frame]
            case 1:
                frames.insert(random.randrange(len(frames)), frame)
            case 2:
                other = random.randrange(len(frames))
                frames[at], frames[other] = frames[other], frames[at]
            case 3:  # another stream
                stream = random.choice((0, 1, 2, 3, 4, 99, 100, 2**32 - 1))
                frames[at] = stream.to_bytes(4) + frame[4:]
            case 4:  # another kind
                frames[at] = frame[:4] + bytes([random.randrange(12)]) + frame[5:]
            case 5:  # another size
                size = number(random, len(frame) - 8) % 2**24
                frames[at] = frame[:5] + size.to_bytes(3) + frame[8:]
            case 6:  # other numbers inside
                body = spoil_bytes(random, frame[8:], 1)
                size = len(body) if random.random() < 0.8 else max(0, len(frame) - 8)
                frames[at] = frame[:5] + min(size, 2**24 - 1).to_bytes(3) + body
            case 7:
                frames[at] = spoil_bytes(random, frame, 1)
            case _:
                frames = frames * 3 if len(frames) < 50 else frames[:at]
                frames = frames or [frame]
    return b"".join(frames)
