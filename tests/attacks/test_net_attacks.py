"""Hostile peers against a real network: whatever they send, the node stays and talks.

The attacker is a libp2p host (or a bare socket) in a trio run of its own.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from chain.codec import encode
from node.net import limits
from node.net.identity import Address
from node.net.peers import EXCHANGE_PROTOCOL, PeerAddresses, PeersAnswer
from tests.kit.net import Station, exchange, stations

MESHSUB = "/meshsub/1.1.0"
LINK = "/blyan/consensus/1"
GARBAGE_17 = bytes(range(0xEF, 0x100))


def attack(target: str, act: Callable[[Any, Any], Awaitable[None]]) -> None:
    """Run `act(host, peer_id)` on a libp2p host that is connected to `target`."""
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    from node.net.bridge import Metrics
    from node.net.guards import build_host

    async def main() -> None:
        host = build_host(os.urandom(32), Metrics(), lambda *_: None)
        peer = ID.from_string(Address.parse(target).peer_id)
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            await host.get_network().dial_addr(Multiaddr(target), peer)
            with trio.fail_after(20):
                await act(host, peer)
            await host.get_network().close_peer(peer)

    trio.run(main)


async def hit(station: Station, act: Callable[[Any, Any], Awaitable[None]]) -> None:
    await asyncio.to_thread(attack, station.address, act)


async def drain(stream: Any) -> None:
    """Until the other side closes or resets the stream, or the connection is gone."""
    from libp2p.network.stream.exceptions import StreamError

    with contextlib.suppress(StreamError):
        while await stream.read(4096):
            pass


def sends(protocol: str, data: bytes) -> Callable[[Any, Any], Awaitable[None]]:
    async def act(host: Any, peer: Any) -> None:
        stream = await host.new_stream(peer, [protocol])
        await stream.write(data)
        await drain(stream)

    return act


def framed(data: bytes) -> bytes:
    """As gossipsub frames an RPC: a varint length."""
    from libp2p.utils import encode_varint_prefixed

    return bytes(encode_varint_prefixed(data))


def rpc(**fields: Any) -> bytes:
    from libp2p.pubsub.pb import rpc_pb2

    return framed(rpc_pb2.RPC(publish=[rpc_pb2.Message(**fields)]).SerializeToString())


HOSTILE_GOSSIP = {
    "17 bytes of garbage": framed(GARBAGE_17[:16]),
    "an endless varint": b"\xff" * 17,
    "an announced gigabyte": b"\x80\x80\x80\x80\x04" + bytes(12),
    "a malformed key": rpc(
        from_id=b"x", seqno=bytes(8), data=b"d", topicIDs=["news"], signature=b"s", key=b"\xff"
    ),
    "no signature": rpc(from_id=b"x", seqno=bytes(8), data=b"d", topicIDs=["news"]),
    "two topics": rpc(from_id=b"x", seqno=bytes(8), data=b"d", topicIDs=["news", "other"]),
    "an empty sender": rpc(from_id=b"", seqno=b"", data=b"", topicIDs=["news"], signature=b"s"),
    "a bad sender record": framed(b"\x22\x03abc"),
}


@pytest.mark.parametrize("name", HOSTILE_GOSSIP)
def test_gossip_stream(name):
    async def act(host: Any, peer: Any) -> None:
        stream = await host.new_stream(peer, [MESHSUB])
        await stream.write(HOSTILE_GOSSIP[name])
        await stream.close()
        await drain(stream)

    async def scenario():
        async with stations("a", "b") as (a, b):
            await exchange(a, b)
            await hit(a, act)
            await exchange(a, b)
            assert "restarts" not in a.net.metrics()
            assert a.gossip == [g for g in a.gossip if g[0] == b.id]

    asyncio.run(scenario())


HOSTILE_LINK = {
    "an announced gigabyte": (1 << 30).to_bytes(4) + bytes(100),
    "one byte over the limit": (limits.MAX_FRAME_BYTES + 2).to_bytes(4) + b"\0",
    "no kind": bytes(4) + bytes(100),
    "an unknown kind": b"\0\0\0\x02\x07x",
    "a ping without its nonce": b"\0\0\0\x01\x01",
}


@pytest.mark.parametrize("name", HOSTILE_LINK)
def test_link_stream(name):
    async def scenario():
        async with stations("a", "b") as (a, b):
            await hit(a, sends(LINK, HOSTILE_LINK[name]))
            assert a.net.metrics()["stream_violations"] == 1
            await exchange(a, b)

    asyncio.run(scenario())


def test_a_link_flood_is_slowed_down_and_costs_no_memory():
    """More messages than the inbox holds, faster than they are handled: none is lost and the
    node goes on talking to others."""
    count = 4 * limits.LINK_INBOX_FRAMES

    async def act(host: Any, peer: Any) -> None:
        stream = await host.new_stream(peer, [LINK])
        for _ in range(count // 64):
            await stream.write((b"\0\0\0\x21\0" + bytes(32)) * 64)
        await stream.close()
        await drain(stream)

    async def scenario():
        async with stations("a", "b") as (a, b):
            await hit(a, act)
            await a.until(lambda: sum(1 for p, _ in a.messages if p != b.id) == count)
            await exchange(a, b)

    asyncio.run(scenario())


def test_requests():
    async def scenario():
        async with stations("a", "b") as (a, b):

            async def echo(peer: str, data: bytes) -> bytes:
                return data

            a.net.serve("/test/echo/1", echo, most=10)
            await hit(a, sends("/test/echo/1", (11).to_bytes(4) + bytes(11)))
            await hit(a, sends("/test/echo/1", (1 << 31).to_bytes(4)))
            await hit(a, sends(EXCHANGE_PROTOCOL, (17).to_bytes(4) + GARBAGE_17))
            assert a.net.metrics()["stream_violations"] == 2
            answer = await b.net.request(a.id, "/test/echo/1", b"0123456789", timeout_s=60, most=10)
            assert answer == b"0123456789"
            await exchange(a, b)

    asyncio.run(scenario())


def test_streams_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "MAX_STREAMS_PER_PEER", 8)

    async def act(host: Any, peer: Any) -> None:
        refused = 0
        for _ in range(20):
            try:
                await host.new_stream(peer, [MESHSUB])
            except Exception:
                refused += 1
        assert refused >= 10

    async def scenario():
        async with stations("a", "b") as (a, b):
            await hit(a, act)
            assert a.net.metrics()["streams_refused"] >= 10
            await exchange(a, b)

    asyncio.run(scenario())


def test_a_liar_in_peer_exchange_is_believed_only_as_far_as_it_goes():
    """Its addresses are dialled at most, and only those that a peer on this machine may know."""
    lies = PeersAnswer(
        ("/ip4/8.8.8.8/tcp/1", "nonsense", "/ip4/127.0.0.1/tcp/0"),
        (
            PeerAddresses("nobody", ("/ip4/127.0.0.1/tcp/1",)),
            PeerAddresses("12D3KooW" + "z" * 44, ("/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1")),
        ),
    )

    async def act(host: Any, peer: Any) -> None:
        asked = trio.Event()

        async def lie(stream: Any) -> None:
            await stream.read(4096)
            data = encode(lies)
            await stream.write(b"\0" + len(data).to_bytes(4) + data)
            await stream.close()
            asked.set()

        host.set_stream_handler(EXCHANGE_PROTOCOL, lie)
        host.set_stream_handler(LINK, drain)
        await asked.wait()

    async def scenario():
        async with stations("a", "b") as (a, b):
            dials = a.net.metrics().get("dials", 0)
            await hit(a, act)
            await exchange(a, b)
            known = a.net._state.book.known
            assert b.id in known
            addresses = [str(x) for k in known.values() for x in k.addresses]
            assert all(x.startswith("/ip4/127.0.0.1/tcp/") for x in addresses)
            assert a.net.metrics().get("dials", 0) == dials

    asyncio.run(scenario())


def test_whoever_brings_invalid_gossip_is_refused():
    async def scenario():
        async with stations("a", "b", "c") as (a, b, c):
            await exchange(a, b)
            a.judge = lambda peer, data: not data.startswith(b"invalid")
            c.judge = a.judge
            for i in range(11):
                if a.id not in b.connected:
                    break
                await b.net.publish("news", b"invalid %d" % i)
                await a.until(lambda n=i: a.net.metrics().get("gossip_rejected", 0) > n)
            await a.until(lambda: b.id not in a.connected)
            assert a.net.metrics()["banned"] == 1
            await exchange(a, c)
            assert b.id not in a.connected
            await a.until(lambda: a.net.metrics().get("banned_refused", 0) >= 1)

    asyncio.run(scenario())


def test_reports_add_up_to_a_refusal():
    async def scenario():
        async with stations("a", "b") as (a, b):
            a.net.report(b.id, "a wrong vote", 60)
            await a.until(lambda: a.net.peers()[0].violations > 50)
            assert b.id in a.connected
            a.net.report(b.id, "another", 60)
            await a.until(lambda: b.id not in a.connected)
            await b.until(lambda: (a.id, False) in b.changes)
            a.net.report("no peer id at all", "garbage", 1000)
            await a.until(lambda: a.net.metrics()["violations"] == 3)

    asyncio.run(scenario())


def test_connections_made_and_closed_leave_room(monkeypatch):
    """libp2p keeps the slot of an inbound connection after it has closed."""
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(limits, "MAX_PINNED", 0)

    async def nothing(host: Any, peer: Any) -> None:
        pass

    async def scenario():
        async with stations("a") as (a,):
            for _ in range(8):
                await hit(a, nothing)
            monkeypatch.undo()
            async with stations("b") as (b,):
                await b.net.dial(a.address)
                await exchange(a, b)

    asyncio.run(scenario())


async def speak(address: str, *lines: bytes) -> bytes:
    """Multistream-select over a bare socket; what the node answers until it closes or waits."""
    target = Address.parse(address)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    answer = b""
    try:
        for line in lines:
            writer.write(line)
            answer += await asyncio.wait_for(reader.read(1000), 60)
    finally:
        writer.close()
        await writer.wait_closed()
    return answer


def line(text: str) -> bytes:
    return bytes([len(text) + 1]) + text.encode() + b"\n"


@pytest.mark.parametrize("protocol", ["/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"])
def test_only_noise_is_spoken(protocol):
    async def scenario():
        async with stations("a", "b") as (a, b):
            answer = await speak(a.address, line("/multistream/1.0.0"), line(protocol))
            assert answer.startswith(line("/multistream/1.0.0"))
            assert answer.endswith(line("na"))
            await exchange(a, b)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "data", [GARBAGE_17, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000, b"\x13/multistream/1.0.0\n\xff"]
)
def test_garbage_on_the_socket(data):
    async def scenario():
        async with stations("a", "b") as (a, b):
            target = Address.parse(a.address)
            for _ in range(5):
                _, writer = await asyncio.open_connection(target.host, target.port)
                writer.write(data)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            await exchange(a, b)
            assert "restarts" not in a.net.metrics()

    asyncio.run(scenario())


def test_own_gossip_that_comes_back_after_a_restart_is_nobody_s_fault():
    """Neighbours offer a restarted node what it said before the restart."""

    async def scenario():
        async with stations("a", "b") as (a, b):
            await exchange(a, b)
            pubsub = a.net._host.pubsub

            def forget() -> None:
                pubsub.seen_messages.cache.clear()

            own = []
            inner = pubsub.push_msg

            async def note(forwarder: Any, msg: Any) -> None:
                if forwarder == pubsub.my_id:
                    own.append(msg)
                await inner(forwarder, msg)

            pubsub.push_msg = note
            await a.net.publish("news", b"said before")
            await b.until_gossip(b"said before")
            forget()
            other = next(iter(pubsub.peers))
            a.net._bridge.to_trio(pubsub.manager.run_task, inner, other, own[0])
            await exchange(a, b)
            assert a.net.peers()[0].violations == 0

    asyncio.run(scenario())
