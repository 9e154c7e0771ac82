"""A hostile end of a link: real TLS under a key of its own, and whatever bytes a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from node.net.links.certificate import make_contexts
from node.net.links.frames import HEADER, Frame, Kind, Open, header
from node.net.priority import Priority
from tests.kit.net import Station

CHAIN = bytes(32)  # the network of every station that names none
LARGE = 1 << 26


def context_of(seed: bytes, chain_id: bytes = CHAIN) -> ssl.SSLContext:
    """What an honest node under this key would dial with."""
    return make_contexts(seed, chain_id, datetime.now(UTC)).client


def opening(
    stream: int, protocol: str = "/test/echo/1", size: int = 0, credit: int = 1 << 20
) -> bytes:
    return Frame(stream, Kind.OPEN, Open(Priority.BULK, credit, size, protocol).encode()).encode()


def content(stream: int, data: bytes) -> bytes:
    return header(stream, Kind.DATA, len(data)) + data


class Wire:
    """One TLS connection to a station's link port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        """The victim may have hung up: that is what most tests wait for."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self._writer.write(data)
            await self._writer.drain()

    async def frame(self, kind: Kind) -> tuple[int, bytes]:
        """The next frame of this kind: its stream and body. Others are passed over."""
        while True:
            stream, word = HEADER.unpack(await self._reader.readexactly(8))
            body = await self._reader.readexactly(word & 0xFFFFFF)
            if word >> 24 == kind:
                return stream, body

    async def ended(self) -> None:
        """Until the victim has closed the connection; what still came is read and dropped."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while await self._reader.read(65536):
                pass

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def wire(victim: Station, context: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    """Dial a station's link port; without `context`, in plain TCP."""
    links = victim.net._asking.links
    assert links is not None
    options = {} if context is None else {"ssl": context, "server_hostname": ""}
    streams = await asyncio.open_connection("127.0.0.1", links.port, **options)
    made = Wire(*streams)
    try:
        yield made
    finally:
        await made.close()
