"""Hostile peers in the DHT: garbage, floods, lies about providers and peers, silent streams.

What py-libp2p's own DHT made of the same is in docs/adr/0013. The attacker is a libp2p host in a
trio run of its own; its answers are given by a station whose DHT was told to lie.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from chain.address import peer_id_of
from chain.errors import UnreachableError
from node.net import limits
from node.net.identity import Address
from tests.kit.net import Station, stations

KAD = "/blyan/kad/1.0.0"
KEY = bytes(range(32))
Act = Callable[[Any, Any], Awaitable[None]]


async def hit(station: Station, act: Act) -> None:
    """Run `act(host, peer_id)` on a libp2p host that is connected to the station."""

    def attack() -> None:
        from libp2p.exceptions import BaseLibp2pError
        from libp2p.peer.id import ID
        from multiaddr import Multiaddr

        from node.net.bridge import Metrics
        from node.net.guards import build_host

        async def main() -> None:
            host = build_host(os.urandom(32), Metrics(), lambda *_: None)
            peer = ID.from_string(Address.parse(station.address).peer_id or "")
            async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
                with contextlib.suppress(BaseLibp2pError), trio.fail_after(20):
                    await host.get_network().dial_addr(Multiaddr(station.address), peer)
                    await act(host, peer)
                await host.get_network().close_peer(peer)

        trio.run(main)

    await asyncio.to_thread(attack)


def message(
    kind: str, key: bytes = KEY, provider: bytes = b"", addresses: int = 0, entries: int = 1
) -> bytes:
    from libp2p.kad_dht.pb.kademlia_pb2 import Message
    from libp2p.utils import encode_varint_prefixed
    from multiaddr import Multiaddr

    made = Message(type=kind, key=key)
    for _ in range(entries if provider else 0):
        entry = made.providerPeers.add(id=provider)
        entry.addrs.extend([Multiaddr("/ip4/127.0.0.1/tcp/1").to_bytes()] * addresses)
    return bytes(encode_varint_prefixed(made.SerializeToString()))


async def drain(stream: Any) -> None:
    from libp2p.network.stream.exceptions import StreamError

    with contextlib.suppress(StreamError), trio.move_on_after(5):
        while await stream.read(4096):
            pass


def sends(data: bytes) -> Act:
    async def act(host: Any, peer: Any) -> None:
        stream = await host.new_stream(peer, [KAD])
        await stream.write(data)
        await stream.close()
        await drain(stream)

    return act


async def works(provider: Station, seeker: Station) -> None:
    """A record still gets through from one to the other."""
    key = hashlib.sha256(os.urandom(8)).digest()
    before = provider.net.metrics().get("dht_records_given", 0)
    provider.net.provide(key)
    await provider.until(lambda: provider.net.metrics().get("dht_records_given", 0) > before)
    assert provider.id in await seeker.net.providers(key)


def hostile() -> dict[str, bytes]:
    return {
        "garbage": b"\x10" + b"\xff" * 16,
        "an endless length": b"\xff" * 17,
        "an announced gigabyte": b"\x80\x80\x80\x80\x04" + bytes(12),
        "no key": message("FIND_NODE", b""),
        "a long key": message("GET_PROVIDERS", bytes(limits.MAX_DHT_KEY + 1)),
        "a value": message("PUT_VALUE"),
        "a provider that is somebody else": message("ADD_PROVIDER", provider=bytes(38)),
        "a provider that is nobody": message("ADD_PROVIDER", provider=b"\xff" * 60),
        "half a message": message("ADD_PROVIDER", provider=bytes(38))[:20],
    }


@pytest.fixture(autouse=True)
def _few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WANTED_CONNECTIONS", 0)
    monkeypatch.setattr(limits, "PROVIDE_RETRY_S", 0.2)


def test_hostile_messages_end_their_stream_and_nothing_else() -> None:
    async def scenario() -> None:
        async with stations("a", "b") as (a, b):
            for data in hostile().values():
                await hit(a, sends(data))
            await works(b, a)
            metrics = a.net.metrics()
            assert metrics["violations"] >= len(hostile()) - 2
            assert "contained_errors" not in metrics
            assert "restarts" not in metrics

    asyncio.run(scenario())


def test_silent_streams_lock_nobody_else_out() -> None:
    async def scenario() -> None:
        async with stations("a", "b") as (a, b):
            silent, done = asyncio.Event(), trio.Event()
            loop, tokens = asyncio.get_running_loop(), []

            async def act(host: Any, peer: Any) -> None:
                for _ in range(12):
                    await host.new_stream(peer, [KAD])
                tokens.append(trio.lowlevel.current_trio_token())
                loop.call_soon_threadsafe(silent.set)
                await done.wait()

            attacker = asyncio.create_task(hit(a, act))
            await silent.wait()
            await works(b, a)
            assert a.net.metrics()["dht_busy"] >= 12 - limits.MAX_DHT_AT_ONCE_PER_PEER
            tokens[0].run_sync_soon(done.set)
            await attacker

    asyncio.run(scenario())


def test_a_flood_of_records_is_bounded_and_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_DHT_RECORDS_PER_PEER", 10)
    monkeypatch.setattr(limits, "DHT_BURST", 60.0)

    async def scenario() -> None:
        async with stations("a", "b") as (a, b):

            async def act(host: Any, peer: Any) -> None:
                own = host.get_id().to_bytes()
                for stream_no in range(40):
                    stream = await host.new_stream(peer, [KAD])
                    for i in range(limits.MAX_DHT_STREAM):
                        key = b"%d %d" % (stream_no, i)
                        await stream.write(message("ADD_PROVIDER", key, own, addresses=100))
                    await drain(stream)

            await hit(a, act)
            metrics = a.net.metrics()
            assert metrics["dht_records_taken"] == 10
            assert 0 < metrics["dht_records_refused"] <= 60
            assert metrics["violations"] >= 1
            await works(b, a)

    asyncio.run(scenario())


def test_a_record_said_many_times_in_one_message_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading 8 addresses takes half a millisecond, and a message has room for 500 such entries."""
    from node.net import dht

    read: list[int] = []
    monkeypatch.setattr(dht, "_addresses", lambda raw, host: read.append(1) or ())

    async def scenario() -> None:
        async with stations("a", "b") as (a, _):

            async def act(host: Any, peer: Any) -> None:
                own = host.get_id().to_bytes()
                stream = await host.new_stream(peer, [KAD])
                await stream.write(message("ADD_PROVIDER", KEY, own, addresses=8, entries=500))
                await stream.close()
                await drain(stream)

            await hit(a, act)
            assert a.net.metrics()["dht_records_taken"] == 1
            assert len(read) == 1

    asyncio.run(scenario())


class Liar:
    """Lies in place of a station's honest answers (in its trio thread)."""

    def __init__(self, station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
        from node.net.dht import Dht

        self.asked = self.told = 0
        honest = Dht._answer

        def answer(dht: Dht, name: str, data: bytes) -> Any:
            if dht._state.name != station.id:
                return honest(dht, name, data)
            return self.lie(data)

        monkeypatch.setattr(Dht, "_answer", answer)

    def lie(self, data: bytes) -> Any:
        """Made-up providers and ever closer peers, behind closed ports and foreign addresses."""
        from libp2p.kad_dht.pb.kademlia_pb2 import Message
        from libp2p.peer.id import ID
        from multiaddr import Multiaddr

        self.asked += 1
        question = Message()
        question.ParseFromString(data)
        made = Message(type=question.type, key=question.key)
        for entries in (made.providerPeers, made.closerPeers):
            for i in range(200):
                self.told += 1
                name = peer_id_of(hashlib.sha256(b"nobody %d" % self.told).digest())
                entry = entries.add(id=ID.from_string(name).to_bytes())
                for text in ("/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.9/tcp/22", "/dns4/x/tcp/1"):
                    entry.addrs.append(Multiaddr(text).to_bytes())
                if i % 7 == 0:
                    entry.addrs.append(b"\xff\xff\xff")
        return made


def test_made_up_providers_and_peers_cost_some_dials_and_are_not_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with stations("victim", "liar", "friend", dial=False) as (victim, liar, friend):
            lies = Liar(liar, monkeypatch)
            await friend.net.dial(victim.address)
            await victim.net.dial(liar.address)
            await victim.until_connected(liar, friend)
            found = await victim.net.providers(KEY)
            assert 0 < len(found) <= limits.MAX_FOUND
            assert lies.asked >= 1
            for name in found[:3]:
                with pytest.raises(UnreachableError):
                    await victim.net.reach(name)
            # Bounded by what one lookup asks, whatever is named; and only here on loopback.
            metrics = victim.net.metrics()
            assert metrics["visits"] <= limits.MAX_DOUBTFUL * (limits.VISIT_BURST + 40)
            assert victim.connected == {liar.id, friend.id}
            # Another who asks the victim hears nothing of it.
            made_up = {peer_id_of(hashlib.sha256(b"nobody %d" % i).digest()) for i in range(99999)}
            dht = victim.net._host.dht
            assert len(dht.records) == 0
            assert not made_up & {c.name for c in dht.contacts.closest(0, 10_000)}
            assert len(dht.contacts) == 2
            await works(friend, victim)

    asyncio.run(scenario())
