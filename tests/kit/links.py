"""Links without sockets: two sessions whose bytes a test carries across, in pieces of any size."""

from __future__ import annotations

from collections.abc import Callable

from chain.errors import UnreachableError
from node.net.links.frames import Reader, Status
from node.net.links.session import Ask, Asked, Session
from node.net.priority import Priority

Handler = Callable[[bytes], tuple[Status, list[bytes]] | None]  # None: answered later


class End:
    """One side: a session, its reader, and what its application saw."""

    def __init__(self, *, dialled: bool) -> None:
        self.session = Session(self, dialled=dialled)
        self.reader = Reader(self.session)
        self.handler: Handler = lambda data: (Status.OK, [data[::-1]])
        self.refusal: tuple[Status, str] | None = None
        self.priority = Priority.NORMAL  # of answers
        self.working: list[Asked] = []  # admitted and not over
        self.seen: list[bytes] = []
        self.messages: list[bytes] = []

    def admit(self, asked: Asked) -> tuple[Status, str] | None:
        if self.refusal is None:
            self.working.append(asked)
        return self.refusal

    def asked(self, asked: Asked) -> None:
        data = bytes(asked.data or b"")
        self.seen.append(data)
        made = self.handler(data)
        if made is not None:
            self.answer(asked, *made)

    def answer(self, asked: Asked, status: Status, parts: list[bytes]) -> None:
        views = [memoryview(part) for part in parts if part]
        self.session.answer(asked, status, views, self.priority)

    def over(self, asked: Asked) -> None:
        self.working.remove(asked)

    def message(self, data: bytes) -> None:
        self.messages.append(data)

    def ask(
        self,
        data: bytes,
        *,
        priority: Priority = Priority.NORMAL,
        most: int = 1 << 26,
        into: memoryview | None = None,
        progress: Callable[[int], object] | None = None,
        done: Callable[[Ask], object] = lambda ask: None,
    ) -> Ask:
        return self.session.ask("/test/1", data, priority, most, done, into, progress)

    def take(self) -> bytes | None:
        """The next bytes to send."""
        buffers = self.session.outbox.take()
        return None if buffers is None else b"".join(buffers)


class Pair:
    """Two ends. `carry` takes bytes across until nothing moves any more."""

    def __init__(self) -> None:
        self.one, self.two = End(dialled=True), End(dialled=False)

    def carry(self, piece: int | None = None, frames: int | None = None) -> int:
        """In pieces of so many bytes; at most so many writes. Returns the bytes carried."""
        carried = written = 0
        moved = True
        while moved:
            moved = False
            for sender, receiver in ((self.one, self.two), (self.two, self.one)):
                if frames is not None and written >= frames:
                    return carried
                data = sender.take()
                if data is None:
                    continue
                moved, written, carried = True, written + 1, carried + len(data)
                for start in range(0, len(data), piece or len(data)):
                    receiver.reader.feed(data[start : start + (piece or len(data))])
        return carried


def content(ask: Ask) -> bytes:
    """The answer of a request that is over. Raises what it failed with."""
    assert ask.is_over
    if ask.failure is not None:
        raise ask.failure
    assert ask.answer is not None
    assert ask.into is not None
    if ask.answer.status is not Status.OK:
        raise UnreachableError(bytes(ask.into).decode())
    return bytes(ask.into)
