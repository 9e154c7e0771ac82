"""Requests to peers: over a link where there is one, else over a libp2p stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from chain.errors import UnreachableError
from node.net.bridge import Bridge, Metrics
from node.net.priority import Priority

if TYPE_CHECKING:
    from node.net.links.connection import Connection
    from node.net.links.links import Links

Progress = Callable[[int], object]
HostMethod = Callable[[str], Callable[..., Awaitable[Any]]]


class Asking:
    """Both ways behind one face: services do not see which was taken."""

    def __init__(self, bridge: Bridge, host: HostMethod, metrics: Metrics) -> None:
        """`host(name)`: a method of the trio side, to be called through the bridge."""
        self._bridge, self._host, self._metrics = bridge, host, metrics
        self.links: Links | None = None

    def _link(self, peer: str) -> Connection | None:
        if self.links is None:
            return None
        link = self.links.get(peer)
        self._metrics.add("tls_fallbacks" if link is None else "tls_requests_sent")
        return link

    async def request(
        self,
        peer: str,
        protocol: str,
        data: bytes,
        timeout_s: float,
        most: int,
        priority: Priority,
    ) -> bytes:
        """As `Network.request`."""
        link = self._link(peer)
        if link is None:
            return await self.over_stream(peer, protocol, data, timeout_s, most)
        return bytes(
            await link.ask(protocol, data, timeout_s=timeout_s, most=most, priority=priority)
        )

    async def over_stream(
        self, peer: str, protocol: str, data: bytes, timeout_s: float, most: int
    ) -> bytes:
        """The same, over libp2p whether there is a link or not."""
        ask = self._host("request")
        answer: bytes = await self._bridge.call(ask, peer, protocol, data, timeout_s, most)
        return answer

    async def fetch(
        self,
        peer: str,
        protocol: str,
        data: bytes,
        into: memoryview,
        progress: Progress | None,
        timeout_s: float,
        priority: Priority,
    ) -> int:
        """As `Network.fetch`."""
        into = into.cast("B")
        link = self._link(peer)
        if link is not None:
            content = await link.ask(
                protocol,
                data,
                timeout_s=timeout_s,
                most=len(into),
                priority=priority,
                into=into,
                progress=progress,
            )
            return len(content)
        transfer = _Transfer(into, progress)
        fetch = self._host("fetch")
        try:
            size: int = await self._bridge.call(
                fetch, peer, protocol, data, timeout_s, len(into), transfer.take
            )
        except UnreachableError:
            if transfer.failure is not None:
                raise transfer.failure from None
            raise
        finally:
            transfer.is_over = True
        return size


class _Transfer:
    """An answer on its way into the asker's buffer, written in the asyncio thread alone."""

    def __init__(self, into: memoryview, progress: Progress | None) -> None:
        self._into, self._progress = into, progress
        self._filled = 0
        self.failure: Exception | None = None  # raised by `progress`
        self.is_over = False  # the caller has its buffer back

    async def take(self, part: bytes) -> None:
        if self.is_over:
            raise UnreachableError("the transfer has ended")
        end = self._filled + len(part)
        self._into[self._filled : end] = part
        self._filled = end
        if self._progress is None:
            return
        try:
            self._progress(end)
        except Exception as error:
            self.failure = error
            raise UnreachableError("the asker refused what arrived") from None
