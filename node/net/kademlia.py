"""Kademlia's bookkeeping: distances, contacts and provider records. It touches no socket, and the
time is passed in (docs/spec/network.md, "Provider records").

What py-libp2p's own has not: contacts are peers that were met, never hearsay; a record comes from
its provider alone; and everything is bounded (docs/adr/0013).
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from node.net import limits
from node.net.identity import Address

EXPIRE_EVERY_S = 60.0  # a full store is looked through no more often: it takes 0.1 s


def position(key: bytes) -> int:
    """Where a key, or the bytes of a peer id, lies: its SHA-256 as a number of 256 bits."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


@dataclass(slots=True)
class Contact:
    """A peer of the DHT and where it listens."""

    name: str
    position: int
    addresses: tuple[Address, ...]


class Contacts:
    """The routing table: buckets by the length of the prefix shared with our own position."""

    def __init__(self, own: int, is_connected: Callable[[str], bool]) -> None:
        self._own, self._is_connected = own, is_connected
        self._buckets: dict[int, OrderedDict[str, Contact]] = {}

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def met(self, contact: Contact) -> bool:
        """A peer that has answered or connected. False: its bucket is full of steadier ones."""
        bucket = self._buckets.setdefault(
            (self._own ^ contact.position).bit_length(), OrderedDict()
        )
        known = bucket.pop(contact.name, None)
        if known is None and not self._make_room(bucket, contact):
            return False
        if known is not None and not contact.addresses:
            contact.addresses = known.addresses
        bucket[contact.name] = contact
        return True

    def lost(self, contact: Contact) -> None:
        """It could not be reached."""
        bucket = self._buckets.get((self._own ^ contact.position).bit_length())
        if bucket is not None:
            bucket.pop(contact.name, None)

    def closest(self, target: int, count: int = limits.DHT_BUCKET) -> list[Contact]:
        everyone = (c for bucket in self._buckets.values() for c in bucket.values())
        return sorted(everyone, key=lambda c: c.position ^ target)[:count]

    def get(self, name: str) -> Contact | None:
        found = (bucket.get(name) for bucket in self._buckets.values())
        return next((c for c in found if c is not None), None)

    def _make_room(self, bucket: OrderedDict[str, Contact], contact: Contact) -> bool:
        """Old contacts are the steadiest (Kademlia): only who is not connected gives way."""
        if crowded(contact.addresses, (c.addresses for c in bucket.values())):
            return False
        if len(bucket) < limits.DHT_BUCKET:
            return True
        for name in bucket:
            if not self._is_connected(name):
                del bucket[name]
                return True
        return False


@dataclass(slots=True)
class Record:
    """One provider of one key."""

    addresses: tuple[Address, ...]
    expires: float


class Records:
    """Provider records that others have given us: each from the provider itself, for some hours."""

    def __init__(self) -> None:
        self._keys: dict[bytes, OrderedDict[str, Record]] = {}
        self._by_provider: Counter[str] = Counter()
        self._count = 0
        self._expired_at = float("-inf")

    def __len__(self) -> int:
        return self._count

    def add(self, key: bytes, name: str, addresses: tuple[Address, ...], now: float) -> bool:
        """False: there is no room for it."""
        providers = self._keys.get(key)
        if providers is None or name not in providers:
            if self._by_provider[name] >= limits.MAX_DHT_RECORDS_PER_PEER:
                return False
            if self._count >= limits.MAX_DHT_RECORDS and now - self._expired_at > EXPIRE_EVERY_S:
                self._expired_at = now
                self.expire(now)
            if self._count >= limits.MAX_DHT_RECORDS and not self._take_from_greediest(name):
                return False
            providers = self._live(key, now)
            if len(providers) >= limits.DHT_BUCKET:
                return False
            if crowded(addresses, (r.addresses for r in providers.values())):
                return False
            self._keys[key] = providers
            self._by_provider[name] += 1
            self._count += 1
        providers[name] = Record(addresses, now + limits.RECORD_TTL_S)
        providers.move_to_end(name)
        return True

    def get(self, key: bytes, now: float) -> dict[str, tuple[Address, ...]]:
        return {name: record.addresses for name, record in self._live(key, now).items()}

    def expire(self, now: float) -> None:
        for key in list(self._keys):
            self._live(key, now)

    def _live(self, key: bytes, now: float) -> OrderedDict[str, Record]:
        providers = self._keys.get(key, OrderedDict())
        for name in [n for n, record in providers.items() if record.expires <= now]:
            self._remove(key, name)
        return self._keys.get(key, OrderedDict())

    def _remove(self, key: bytes, name: str) -> None:
        providers = self._keys[key]
        del providers[name]
        if not providers:
            del self._keys[key]
        self._count -= 1
        self._by_provider[name] -= 1
        if self._by_provider[name] <= 0:
            del self._by_provider[name]

    def _take_from_greediest(self, name: str) -> bool:
        """When full, whoever has the most records loses one to whoever has fewer."""
        ((greediest, most),) = self._by_provider.most_common(1)
        if most <= self._by_provider[name] + 1:
            return False
        key = next(k for k, providers in self._keys.items() if greediest in providers)
        self._remove(key, greediest)
        return True


class Rate:
    """A token bucket for each peer; those that rest are forgotten."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, as of

    def take(self, name: str, now: float) -> bool:
        left, since = self._left.pop(name, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_s)
        self._left[name] = (max(0.0, left - 1.0), now)
        if len(self._left) > limits.MAX_KNOWN:
            self._left.popitem(last=False)
        return left >= 1.0


def crowded(addresses: tuple[Address, ...], others: Iterable[tuple[Address, ...]]) -> bool:
    """Whether too many of the others are at one of these hosts: names cost nothing, hosts do.
    Loopback is everybody's."""
    hosts = {a.host for a in addresses if not a.is_loopback}
    if not hosts:
        return False
    count = 0
    for listed in others:
        count += any(a.host in hosts for a in listed)
    return count >= limits.MAX_DHT_PER_HOST
