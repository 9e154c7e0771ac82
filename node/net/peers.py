"""Who else is there: addresses worth dialling, violation points, and the exchange of both
between peers. Plain bookkeeping with the time passed in; it touches no socket.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from chain import limits as protocol_limits
from chain.codec import Seq, Text, decode, encode, wire
from chain.errors import InputError
from node.net import limits
from node.net.identity import Address

EXCHANGE_PROTOCOL = "/blyan/peers/1"

_Addresses = Annotated[
    tuple[Annotated[str, Text(protocol_limits.MAX_ADDRESS)], ...], Seq(limits.MAX_ADDRESSES)
]


@wire(200)
@dataclass(frozen=True, slots=True)
class PeerAddresses:
    """One peer and where it listens, `/p2p/` part included."""

    peer_id: Annotated[str, Text(protocol_limits.MAX_NAME)]
    addresses: _Addresses


@wire(201)
@dataclass(frozen=True, slots=True)
class PeersRequest:
    """The asker's own listen addresses; a wildcard host stands for 'where you see me'."""

    addresses: _Addresses


@wire(202)
@dataclass(frozen=True, slots=True)
class PeersAnswer:
    """The answerer's own listen addresses, and peers it is connected to."""

    own: _Addresses
    peers: Annotated[tuple[PeerAddresses, ...], Seq(limits.MAX_EXCHANGED)]


@dataclass(slots=True)
class Known:
    """A peer that may be dialled."""

    name: str
    addresses: OrderedDict[Address, bool] = field(default_factory=OrderedDict)  # is it sure?
    wanted: bool = False  # asked for by the operator: never given up
    pinned: bool = False  # a validator, as we are: kept as long as it is one
    failures: int = 0  # since it was last connected
    lost_at: float = 0.0  # when the first of them happened

    def learn(self, address: Address, *, sure: bool = False) -> None:
        """`sure`: the operator named it, or the peer was met there. Others' word does not
        displace that, or a liar could part peers who know each other."""
        self.addresses[address] = sure or self.addresses.get(address, False)
        self.addresses.move_to_end(address)
        while len(self.addresses) > limits.MAX_ADDRESSES:
            doubtful = (a for a, is_sure in self.addresses.items() if not is_sure)
            del self.addresses[next(doubtful, next(iter(self.addresses)))]

    def to_dial(self) -> list[Address]:
        """The sure ones, then the newest of the others; few of these, since they may be lies."""
        newest = list(self.addresses)[::-1]
        doubtful = [a for a in newest if not self.addresses[a]]
        return [a for a in newest if self.addresses[a]] + doubtful[: limits.MAX_DOUBTFUL]

    @property
    def is_hearsay(self) -> bool:
        """Known by others' word alone."""
        return not any(self.addresses.values())

    @property
    def is_kept(self) -> bool:
        """Redialled for ever, whatever limit others meet."""
        return self.wanted or self.pinned


class Violations:
    """Points per peer that halve every minute; over the limit the peer is refused a while."""

    def __init__(self) -> None:
        self._points: dict[str, tuple[float, float]] = {}  # peer -> (points, as of)
        self._banned: dict[str, float] = {}  # peer -> until

    def add(self, peer: str, points: float, now: float) -> bool:
        """True if this takes the peer over the limit."""
        total = self.points(peer, now) + points
        self._points[peer] = (total, now)
        while len(self._points) > limits.MAX_KNOWN:
            self._points.pop(min(self._points, key=lambda p: self.points(p, now)))
        if total < limits.VIOLATION_LIMIT or self.is_banned(peer, now):
            return False
        self._banned[peer] = now + limits.BAN_S
        return True

    def points(self, peer: str, now: float) -> float:
        points, since = self._points.get(peer, (0.0, now))
        return float(points * 0.5 ** ((now - since) / limits.VIOLATION_HALF_LIFE_S))

    def is_banned(self, peer: str, now: float) -> bool:
        until = self._banned.get(peer)
        if until is None:
            return False
        if now < until:
            return True
        del self._banned[peer]
        self._points.pop(peer, None)
        return False


class Book:
    """Known peers by name. Survives a restart of the trio thread."""

    def __init__(self, own: str) -> None:
        self.own = own
        self.known: OrderedDict[str, Known] = OrderedDict()
        self.violations = Violations()

    def learn(self, name: str, addresses: list[Address], *, wanted: bool = False) -> Known | None:
        """Remember addresses of a peer. None: it is ourselves, or there is no room."""
        if name == self.own:
            return None
        known = self.known.get(name)
        if known is None:
            if len(self.known) >= limits.MAX_KNOWN and not (wanted or self._make_room()):
                return None
            known = self.known[name] = Known(name)
        for address in addresses:
            known.learn(address.with_peer(name), sure=wanted)
        known.wanted = known.wanted or wanted
        return known

    def pin(self, peers: Mapping[str, Sequence[Address]]) -> None:
        """Pin exactly these, as many as there is room for; their addresses are hearsay."""
        chosen = dict(list(peers.items())[: limits.MAX_PINNED])
        for name, known in self.known.items():
            known.pinned = name in chosen
        for name, addresses in chosen.items():
            if name != self.own:
                known = self.known.setdefault(name, Known(name))
                known.pinned = True
                for address in addresses:
                    known.learn(address.with_peer(name))

    def is_pinned(self, name: str) -> bool:
        known = self.known.get(name)
        return known is not None and known.pinned

    def _make_room(self) -> bool:
        for name, known in self.known.items():
            if not known.is_kept and known.failures:
                del self.known[name]
                return True
        return False

    def give_up(self, known: Known, now: float) -> bool:
        """Whether a learned peer has been unreachable for so long that it is forgotten."""
        if known.is_kept or not known.failures or now - known.lost_at < limits.FORGET_S:
            return False
        self.known.pop(known.name, None)
        return True


def backoff_s(failures: int, *, loopback: bool, hearsay: bool, jitter: float) -> float:
    """Seconds until the next attempt; `jitter` in [0, 1) spreads it over 75 to 100 %."""
    first, most = limits.BACKOFF_FIRST_S, limits.BACKOFF_MOST_S
    if hearsay:
        first, most = limits.BACKOFF_HEARSAY_FIRST_S, limits.BACKOFF_HEARSAY_MOST_S
    elif loopback:
        most = limits.BACKOFF_LOOPBACK_S
    delay = min(most, first * 2.0 ** min(failures, 16))
    return delay * (0.75 + 0.25 * jitter)


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def seen_from(addresses: tuple[str, ...], host: str) -> list[Address]:
    """The usable ones of a peer's claimed listen addresses, given where we see the peer.

    A wildcard becomes that host. Only a peer on this machine may claim loopback addresses,
    and then nothing else: they mean another machine everywhere else.
    """
    usable = []
    for text in addresses:
        try:
            address = Address.parse(text)
        except InputError:
            continue
        if address.is_wildcard:
            address = address.at(host)
        if address.port and address.is_loopback == is_loopback(host):
            usable.append(address)
    return usable


def answer(
    own: list[str], connected: list[tuple[str, list[Address]]], asker: str, host: str
) -> bytes:
    """A PeersAnswer for a peer seen at `host`: of each peer the addresses in its own scope."""
    local = is_loopback(host)
    peers = []
    for name, addresses in connected:
        if name == asker:
            continue
        fit = tuple(str(a) for a in addresses if a.is_loopback == local)
        if fit:
            peers.append(PeerAddresses(name, fit[: limits.MAX_ADDRESSES]))
    return encode(PeersAnswer(tuple(own), tuple(peers[: limits.MAX_EXCHANGED])))


def parse_answer(data: bytes) -> PeersAnswer:
    """Raises DecodeError."""
    parsed: PeersAnswer = decode(PeersAnswer, data, most=limits.MAX_EXCHANGE_BYTES)
    return parsed


def parse_request(data: bytes) -> PeersRequest:
    """Raises DecodeError."""
    parsed: PeersRequest = decode(PeersRequest, data, most=limits.MAX_EXCHANGE_BYTES)
    return parsed
