"""A network of handlers in one process: each request is answered by the peer's own handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chain.errors import UnreachableError
from node.net.info import PeerInfo
from node.net.requests import parts_of


class Wire:
    """One node's side. `servers`: each peer's answer to any request; `handler`: the node's own."""

    def __init__(self) -> None:
        self.servers: dict[str, Any] = {}
        self.reported: list[str] = []
        self.asked: list[str] = []
        self.handler: Any = None

    def serve(self, protocol: str, handler: Any, **_: Any) -> None:
        self.handler = handler

    def peers(self) -> list[PeerInfo]:
        return [PeerInfo(name, (), True, None, 0.0, "out") for name in self.servers]

    def report(self, peer: str, reason: str, weight: float) -> None:
        self.reported.append(peer)

    async def request(self, peer: str, protocol: str, data: bytes, **_: Any) -> bytes:
        self.asked.append(peer)
        return b"".join(parts_of(await self.servers[peer]("asker", data)))

    async def fetch(
        self,
        peer: str,
        protocol: str,
        data: bytes,
        *,
        into: memoryview,
        progress: Callable[[int], object] | None = None,
        **_: Any,
    ) -> int:
        answer = await self.request(peer, protocol, data)
        if len(answer) > len(into):
            raise UnreachableError("the peer answered too much")
        into[: len(answer)] = answer
        if progress is not None:
            progress(len(answer))
        return len(answer)
