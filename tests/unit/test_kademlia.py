"""Contacts and provider records: what they believe, and how much of it."""

from __future__ import annotations

import hashlib

import pytest

from node.net import limits
from node.net.identity import Address
from node.net.kademlia import Contact, Contacts, Rate, Records, crowded, position


def at(host: str, port: int = 9645) -> tuple[Address, ...]:
    return (Address("ip4", host, port),)


def contact(i: int, addresses: tuple[Address, ...] = ()) -> Contact:
    return Contact(f"peer {i}", position(b"%d" % i), addresses)


def test_positions_are_sha256() -> None:
    assert position(b"key") == int(hashlib.sha256(b"key").hexdigest(), 16)


def test_the_closest_contacts_are_the_closest() -> None:
    table = Contacts(position(b"own"), lambda name: False)
    everyone = [contact(i) for i in range(60)]
    kept = [c for c in everyone if table.met(c)]
    target = position(b"target")
    expected = sorted(table.closest(target, 1000), key=lambda c: c.position ^ target)
    assert table.closest(target, 7) == expected[:7]
    assert len(table) == len(expected) <= len(kept)


def test_a_full_bucket_keeps_whom_it_is_connected_to() -> None:
    connected: set[str] = set()
    own = 1 << 255
    table = Contacts(own, connected.__contains__)
    for i in range(limits.DHT_BUCKET):
        assert table.met(Contact(f"old {i}", i, ()))
        connected.add(f"old {i}")
    assert not table.met(Contact("new", 999, ()))
    connected.discard("old 3")
    assert table.met(Contact("new", 999, ()))
    assert table.get("old 3") is None
    assert table.get("new") is not None
    assert len(table) == limits.DHT_BUCKET
    table.lost(Contact("new", 999, ()))
    assert table.get("new") is None


def test_meeting_again_does_not_lose_addresses() -> None:
    table = Contacts(0, lambda name: True)
    table.met(contact(1, at("192.0.2.1")))
    table.met(contact(1))
    found = table.get("peer 1")
    assert found is not None
    assert found.addresses == at("192.0.2.1")
    assert len(table) == 1


def test_names_at_one_host_cannot_fill_a_bucket() -> None:
    table = Contacts(1 << 255, lambda name: False)
    for i in range(10):
        table.met(Contact(f"peer {i}", i, at("192.0.2.7", 1000 + i)))
    assert len(table) == limits.MAX_DHT_PER_HOST
    assert not crowded(at("127.0.0.1"), [at("127.0.0.1")] * 100)


def test_records_end_and_are_bounded_by_key_and_provider() -> None:
    records = Records()
    for i in range(limits.DHT_BUCKET + 5):
        taken = records.add(b"key", f"peer {i}", at(f"192.0.2.{i}"), 0.0)
        assert taken == (i < limits.DHT_BUCKET)
    assert list(records.get(b"key", 1.0))[:2] == ["peer 0", "peer 1"]
    assert records.add(b"key", "peer 0", at("192.0.2.99"), 10.0)  # again: refreshed
    later = limits.RECORD_TTL_S + 5.0
    assert records.get(b"key", later) == {"peer 0": at("192.0.2.99")}
    assert len(records) == 1
    records.expire(later + 10.0)
    assert len(records) == 0
    for i in range(limits.MAX_DHT_RECORDS_PER_PEER + 1):
        taken = records.add(b"%d" % i, "greedy", at("192.0.2.1"), 0.0)
    assert not taken
    assert len(records) == limits.MAX_DHT_RECORDS_PER_PEER


def test_a_full_store_takes_from_the_greediest(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records()
    per_peer = limits.MAX_DHT_RECORDS_PER_PEER
    peers = limits.MAX_DHT_RECORDS // per_peer
    for peer in range(peers):
        for i in range(per_peer):
            assert records.add(b"%d %d" % (peer, i), f"greedy {peer}", (), 0.0)
    assert len(records) == limits.MAX_DHT_RECORDS
    assert records.add(b"mine", "modest", (), 0.0)
    assert len(records) == limits.MAX_DHT_RECORDS
    assert records.get(b"mine", 0.0) == {"modest": ()}
    assert not records.add(b"more", "greedy 1", (), 0.0)
    looked: list[float] = []
    monkeypatch.setattr(records, "expire", looked.append)
    for i in range(100):  # looking through all of them takes 0.1 s
        records.add(b"mine %d" % i, "modest", (), 1.0 + i)
    assert looked == [61.0]


def test_rates_are_per_peer_and_recover() -> None:
    rate = Rate(2.0, 3.0)
    assert [rate.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert rate.take("b", 0.0)
    assert rate.take("a", 1.0)
    for i in range(limits.MAX_KNOWN * 2):
        rate.take(f"peer {i}", 1.0)
    assert len(rate._left) <= limits.MAX_KNOWN
