"""The framing of a link, sans-I/O: bytes in, calls of a sink out (docs/spec/links.md).

Every frame is a header of 8 bytes, `stream` (4), `kind` (1), `size` (3), all big-endian, and a
body of `size` bytes. The content of a DATA frame is never collected here: the sink says where
it goes, and what has come of it is copied there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Protocol

from chain.errors import BlyanError
from node.net.links import limits
from node.net.priority import Priority


class LinkError(BlyanError):
    """The peer sent what no honest node sends. `points`: what that costs it."""

    code = "link"

    def __init__(self, reason: str, points: float = limits.POINTS_FRAME) -> None:
        super().__init__(reason)
        self.points = points


class Kind(IntEnum):
    OPEN = 1
    ANSWER = 2
    DATA = 3
    CREDIT = 4
    CANCEL = 5
    PING = 6
    PONG = 7
    BYE = 8
    MESSAGE = 9


class Status(IntEnum):
    """Of an answer, as on libp2p streams."""

    OK = 0
    FAILED = 1
    BUSY = 2


HEADER = Struct(">II")  # stream; kind << 24 | size
_OPEN = Struct(">BIIB")  # priority, credit, bytes of the request, bytes of the protocol's name
_ANSWER = Struct(">BI")  # status, bytes of the answer
_CREDIT = Struct(">I")
NONCE_BYTES = 8
_SIZES = {  # of bodies: least, most
    Kind.OPEN: (_OPEN.size + 1, _OPEN.size + limits.PROTOCOL_BYTES),
    Kind.ANSWER: (_ANSWER.size, _ANSWER.size),
    Kind.DATA: (1, limits.BODY_BYTES),
    Kind.CREDIT: (_CREDIT.size, _CREDIT.size),
    Kind.CANCEL: (0, 0),
    Kind.PING: (NONCE_BYTES, NONCE_BYTES),
    Kind.PONG: (NONCE_BYTES, NONCE_BYTES),
    Kind.BYE: (0, 0),
    Kind.MESSAGE: (1, limits.BODY_BYTES),
}
_WHOLE_LINK = (Kind.PING, Kind.PONG, Kind.BYE, Kind.MESSAGE)  # stream 0; all others name a stream
_DATA_WORD = Kind.DATA << 24  # the second word of a DATA frame, less its size
_SCRATCH_BYTES = 256 * 1024 + 4096  # what uvloop decrypts at once, and a rest of a frame
_FIRST_BYTES = limits.RECORD_BYTES - limits.HEADER_BYTES  # of content in a frame's first record


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that is not DATA."""

    stream: int
    kind: Kind
    body: bytes = b""

    def encode(self) -> bytes:
        return header(self.stream, self.kind, len(self.body)) + self.body


@dataclass(frozen=True, slots=True)
class Open:
    """A request begins. `credit`: bytes of the answer that may be sent at once; `size`: bytes
    of the request, which follow as DATA."""

    priority: Priority
    credit: int
    size: int
    protocol: str

    def encode(self) -> bytes:
        name = self.protocol.encode("ascii")
        return _OPEN.pack(self.priority, self.credit, self.size, len(name)) + name

    @classmethod
    def decode(cls, body: bytes) -> Open:
        priority, credit, size, length = _OPEN.unpack_from(body)
        name = body[_OPEN.size :]
        if len(name) != length or not name.isascii() or not name.decode().isprintable():
            raise LinkError("a request whose protocol name is not what it says")
        if priority > Priority.BULK:
            raise LinkError(f"a request of unknown priority {priority}")
        return cls(Priority(priority), credit, size, name.decode())


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer begins: `size` bytes follow as DATA, a reason in UTF-8 unless `status` is OK."""

    status: Status
    size: int

    def encode(self) -> bytes:
        return _ANSWER.pack(self.status, self.size)

    @classmethod
    def decode(cls, body: bytes) -> Answer:
        status, size = _ANSWER.unpack(body)
        if status > Status.BUSY:
            raise LinkError(f"an answer of unknown status {status}")
        return cls(Status(status), size)


def header(stream: int, kind: Kind, size: int) -> bytes:
    return HEADER.pack(stream, kind << 24 | size)


def credit_frame(stream: int, count: int) -> bytes:
    return Frame(stream, Kind.CREDIT, _CREDIT.pack(count)).encode()


def read_credit(body: bytes) -> int:
    count: int = _CREDIT.unpack(body)[0]
    if not count:
        raise LinkError("a grant of nothing")
    return count


def data_frame(stream: int, content: Sequence[memoryview]) -> list[bytes | memoryview]:
    """One DATA frame in buffers that each fill whole TLS records, if they can.

    The header goes with the first bytes of the content: by itself it would be a record of its
    own, and what is behind it would straddle records.
    """
    if len(content) == 1:
        (only,) = content
        head = HEADER.pack(stream, _DATA_WORD | len(only))
        if len(only) > _FIRST_BYTES:
            return [b"".join((head, only[:_FIRST_BYTES])), only[_FIRST_BYTES:]]
        return [b"".join((head, only))]
    return [b"".join((header(stream, Kind.DATA, sum(map(len, content))), *content))]


def message_frames(data: bytes) -> list[bytes]:
    """The frames of a message, which goes unanswered. Each begins with a byte: 1 if more of the
    message follows in the next, 0 if this is its last."""
    room = limits.BODY_BYTES - 1
    starts = range(0, len(data), room) or (0,)
    last = starts[-1]
    return [
        b"".join((header(0, Kind.MESSAGE, len(part) + 1), bytes((start != last,)), part))
        for start in starts
        for part in (data[start : start + room],)
    ]


class Sink(Protocol):
    """What a `Reader` tells, in the order of the bytes. Any of it may raise LinkError."""

    def frame(self, frame: Frame) -> None:
        """A whole frame other than DATA; its body has a permitted size."""

    def begin(self, stream: int, size: int) -> None:
        """A DATA frame with `size` bytes of content follows."""

    def place(self, stream: int, left: int) -> memoryview | None:
        """Where the next bytes of that frame go: at least `left` bytes, or None to discard
        them."""

    def data(self, stream: int, count: int) -> None:
        """The next `count` bytes of the frame are in their place (or were discarded)."""


class Reader:
    """Cuts received bytes into frames.

    `get_buffer` and `advance` are what `asyncio.BufferedProtocol` wants: read into the one, at
    least a byte, then tell the other how many bytes came. Whatever comes, each costs a bounded
    amount of work and memory. (Reading straight into the content's place saves a copy and costs
    a turn of the event loop for each frame, which is more: ADR 11.)
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._start = self._end = 0  # of what was read and not yet taken
        self._stream = self._left = 0  # of the DATA frame under way

    def get_buffer(self) -> memoryview:
        """Where to read to next; never empty, since what is taken makes room."""
        return self._scratch[self._end :]

    def advance(self, count: int) -> bool:
        """`count` bytes are in the last buffer. True: more frames are there than are taken in
        one turn; call `advance(0)` in the next, before reading on. Raises LinkError: the link is
        of no more use."""
        self._end += count
        for _ in range(limits.TURN_READ_FRAMES):
            if self._left and self._start < self._end:
                self._move()
            if self._left or not self._take():
                self._compact()
                return False
        self._compact()
        return True

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes in, calls of the sink out: as if `data` had been read. Raises LinkError."""
        view, at = memoryview(data), 0
        while at < len(view):
            buffer = self.get_buffer()
            count = min(len(buffer), len(view) - at)
            buffer[:count] = view[at : at + count]
            at += count
            while self.advance(count):
                count = 0

    def _take(self) -> bool:
        """Take the next frame, of DATA only the header. False: it is not there as a whole."""
        start = self._start
        if self._end - start < limits.HEADER_BYTES:
            return False
        stream, word = HEADER.unpack_from(self._scratch, start)
        body = start + limits.HEADER_BYTES
        size = word - _DATA_WORD
        if stream and 1 <= size <= limits.BODY_BYTES:
            self._sink.begin(stream, size)
            self._stream, self._left, self._start = stream, size, body
            return True
        kind, size = self._check(stream, word)
        if self._end - body < size:
            return False
        self._start = body + size
        self._sink.frame(Frame(stream, kind, bytes(self._scratch[body : body + size])))
        return True

    @staticmethod
    def _check(stream: int, word: int) -> tuple[Kind, int]:
        number, size = word >> 24, word & 0xFFFFFF
        sizes = _SIZES.get(number)  # type: ignore[call-overload]  # an IntEnum is its number
        if sizes is None:
            raise LinkError(f"a frame of unknown kind {number}")
        if not sizes[0] <= size <= sizes[1]:
            raise LinkError(f"a frame of kind {number} with {size} bytes, not {sizes}")
        kind = Kind(number)
        if (stream == 0) is not (kind in _WHOLE_LINK):
            raise LinkError(f"a frame of kind {number} on stream {stream}")
        return kind, size

    def _move(self) -> None:
        """What is there of a DATA frame's content goes to its place."""
        start = self._start
        count = min(self._left, self._end - start)
        place = self._sink.place(self._stream, self._left)
        if place is not None:
            place[:count] = self._scratch[start : start + count]
        self._start = start + count
        self._left -= count
        self._sink.data(self._stream, count)

    def _compact(self) -> None:
        kept = self._end - self._start
        if kept and self._start:
            self._scratch[:kept] = bytes(self._scratch[self._start : self._end])
        self._start, self._end = 0, kept
