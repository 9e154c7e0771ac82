"""What both sides of the network port share, and what outlives a restart of the trio thread."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from node.net.bridge import Bridge, Metrics
from node.net.identity import Address
from node.net.link import Link
from node.net.peers import Book
from node.net.requests import Content, Service

# Run in the asyncio thread, whoever calls them.
Deliver = Callable[[Link, list[bytes]], None]
PeerChange = Callable[[str, bool], None]
JudgeGossip = Callable[[str, str, bytes], Coroutine[Any, Any, bool | None]]
AnswerRequest = Callable[[str, str, bytes], Coroutine[Any, Any, Content]]


@dataclass(slots=True)
class State:
    """One node's network. Trio writes everything below `listen` after the start, except the keys
    of `provided`, which asyncio adds and removes."""

    seed: bytes  # of the node's Ed25519 key, 32 bytes
    name: str  # its peer id as text
    bridge: Bridge
    metrics: Metrics
    deliver: Deliver
    peer_change: PeerChange
    judge: JudgeGossip
    answer: AnswerRequest
    announce: tuple[Address, ...]
    listen: Address  # with the real port once it is bound
    book: Book
    topics: set[str] = field(default_factory=set)
    services: dict[str, Service] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    directions: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)  # the IP address at which a peer is seen
    provided: dict[bytes, float] = field(default_factory=dict)  # keys, and when a record is due

    def own_addresses(self) -> list[str]:
        """As told to peers: a wildcard host stands, they know where they see us."""
        listed = self.announce or (self.listen,)
        return [str(address.with_peer(self.name)) for address in listed]
