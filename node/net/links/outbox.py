"""What waits to be sent on one link, and what goes next. Sans-I/O.

Control frames go first: they are small, bounded in number, and open what follows. Content goes
by priority, a frame at a time, streams of one priority in turns. So a vote waits for what the
transport has already taken, which is a turn's frames at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from node.net.links import limits
from node.net.links.frames import Frame, Kind, credit_frame, data_frame
from node.net.priority import Priority


class Sending:
    """Content on its way out on one stream."""

    __slots__ = ("_parts", "credit", "done", "left", "priority", "stream")

    def __init__(
        self,
        stream: int,
        parts: list[memoryview],
        priority: Priority,
        credit: int,
        done: Callable[[int], object],
    ) -> None:
        """`parts`: not empty, and none of them is. `done(stream)`: all of it was handed over."""
        self.stream, self.priority, self.credit, self.done = stream, priority, credit, done
        self._parts = deque(parts)
        self.left = sum(len(part) for part in parts)

    def take(self) -> list[bytes | memoryview]:
        """The next DATA frame, as large as credit and frame allow."""
        room = min(self.credit, limits.BODY_BYTES)
        first = self._parts[0]
        if len(first) > room:
            self._parts[0] = first[room:]
            self.credit -= room
            self.left -= room
            return data_frame(self.stream, (first[:room],))
        content = []
        while room and self._parts:
            part = self._parts[0]
            if len(part) <= room:
                content.append(self._parts.popleft())
            else:
                self._parts[0] = part[room:]
                content.append(part[:room])
            room -= len(content[-1])
        size = sum(len(part) for part in content)
        self.credit -= size
        self.left -= size
        return data_frame(self.stream, content)


class Outbox:
    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._credit: dict[int, int] = {}  # stream -> to be granted: grants add up
        self._pong: bytes | None = None  # only the last ping is answered
        self._messages: deque[list[bytes]] = deque()  # each in its frames
        self._rest: deque[bytes] = deque()  # of the message that is being sent
        self._message_bytes = 0  # in both
        self._ready: dict[Priority, deque[Sending]] = {p: deque() for p in Priority}
        self._sending: dict[int, Sending] = {}  # ready, or waiting for credit
        self.bytes = 0  # of content that waits

    # --- to be sent -----------------------------------------------------------------

    def control(self, frame: Frame) -> None:
        self._control.append(frame.encode())

    def pong(self, nonce: bytes) -> None:
        self._pong = Frame(0, Kind.PONG, nonce).encode()

    def grant(self, stream: int, count: int) -> None:
        self._credit[stream] = self._credit.get(stream, 0) + count

    def content(self, sending: Sending) -> None:
        self._sending[sending.stream] = sending
        self.bytes += sending.left
        if sending.credit:
            self._ready[sending.priority].append(sending)

    def credit(self, stream: int, count: int) -> None:
        """The peer takes `count` bytes more of a stream."""
        sending = self._sending.get(stream)
        if sending is None:
            return  # all of it is sent
        if not sending.credit:
            self._ready[sending.priority].append(sending)
        sending.credit += count

    def drop(self, stream: int) -> bool:
        """Send no more of a stream. False: nothing of it waited."""
        self._credit.pop(stream, None)
        sending = self._sending.pop(stream, None)
        if sending is None:
            return False
        self.bytes -= sending.left
        if sending.credit:
            self._ready[sending.priority].remove(sending)
        return True

    def left(self, stream: int) -> tuple[int, bool]:
        """(bytes that wait, whether for credit) of a stream."""
        sending = self._sending.get(stream)
        return (sending.left, not sending.credit) if sending else (0, False)

    def message(self, frames: list[bytes]) -> int:
        """Send a message before any content. Returns how many older ones were dropped for it:
        consensus says again what still matters, and the newest matters most."""
        self._messages.append(frames)
        self._message_bytes += sum(map(len, frames))
        dropped = 0
        while len(self._messages) > 1 and (
            len(self._messages) > limits.MESSAGES or self._message_bytes > limits.MESSAGES_BYTES
        ):
            self._message_bytes -= sum(map(len, self._messages.popleft()))
            dropped += 1
        return dropped

    # --- being sent -----------------------------------------------------------------

    @property
    def control_frames(self) -> int:
        return len(self._control)

    @property
    def is_empty(self) -> bool:
        """Nothing waits, not even for credit."""
        waits = self._control or self._credit or self._pong or self._sending
        return not (waits or self._messages or self._rest)

    def take(self) -> list[bytes | memoryview] | None:
        """The next buffers to write, at most a frame of content; None if nothing can be sent."""
        if self._control or self._credit or self._pong:
            return [self._take_control()]
        if self._messages or self._rest:
            return [self._take_messages()]
        for ready in self._ready.values():  # in the order of priorities
            if ready:
                return self._take_content(ready)
        return None

    def _take_control(self) -> bytes:
        frames = []
        if self._pong is not None:
            frames.append(self._pong)
            self._pong = None
        while self._control and len(frames) < 64:
            frames.append(self._control.popleft())
        if not self._control:  # a grant never overtakes the frame that opens its stream
            frames += [credit_frame(stream, n) for stream, n in self._credit.items()]
            self._credit.clear()
        return b"".join(frames)

    def _take_messages(self) -> bytes:
        """At most a frame's worth: small ones that were sent in one moment go as one write."""
        frames: list[bytes] = []
        size = 0
        while self._rest or self._messages:
            if not self._rest:
                self._rest.extend(self._messages.popleft())
            if frames and size + len(self._rest[0]) > limits.FRAME_BYTES:
                break
            frames.append(self._rest.popleft())
            size += len(frames[-1])
        self._message_bytes -= size
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _take_content(self, ready: deque[Sending]) -> list[bytes | memoryview]:
        sending = ready.popleft()
        before = sending.left
        buffers = sending.take()
        self.bytes -= before - sending.left
        if not sending.left:
            del self._sending[sending.stream]
            sending.done(sending.stream)
        elif sending.credit:
            ready.append(sending)
        return buffers
