"""One client's connection: nobody holds one of a bounded number of places by being slow.

uvicorn ends a connection that is idle between requests. Here one also ends that does not finish
the head of a request, sends on after its answer, or does not take its answer.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # from the first byte, or the connection, to the whole head of a request
TAKE_S = 30.0  # an answer must be taken up: 64 KiB of it within this time


class Connection(H11Protocol):
    _late: asyncio.TimerHandle | None = None  # runs while no request is being answered
    _stuck: asyncio.TimerHandle | None = None  # runs while the client does not read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._read_again()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(TAKE_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._read_again()
        super().resume_writing()

    def _watch(self) -> None:
        """Once started, the clock runs until a request has come whole, however many bytes come."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.abort)

    def _disarm(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _read_again(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
