"""The part of the network port that serving and fetching by request needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from node.net.asking import Progress
from node.net.info import PeerInfo
from node.net.priority import Priority
from node.net.requests import RequestHandler


class Peers(Protocol):
    """`node.net.Network`, or a double of it without sockets."""

    def serve(
        self,
        protocol: str,
        handler: RequestHandler,
        *,
        most: int,
        concurrent: int = 8,
        priority: Priority = Priority.NORMAL,
    ) -> None: ...

    def peers(self) -> Sequence[PeerInfo]: ...

    def report(self, peer: str, reason: str, weight: float) -> None: ...

    async def request(
        self,
        peer: str,
        protocol: str,
        data: bytes,
        *,
        timeout_s: float,
        most: int,
        priority: Priority = Priority.NORMAL,
    ) -> bytes: ...

    async def fetch(
        self,
        peer: str,
        protocol: str,
        data: bytes,
        *,
        into: memoryview,
        progress: Progress | None = None,
        timeout_s: float,
        priority: Priority = Priority.NORMAL,
    ) -> int: ...
