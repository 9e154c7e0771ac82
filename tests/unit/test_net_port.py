"""The network port between real networks on loopback."""

import asyncio
import hashlib
import time

import pytest
import trio
from libp2p.network.stream.net_stream import NetStream
from nacl.signing import SigningKey

from chain.address import peer_id_of
from chain.errors import BlyanError, InputError, UnreachableError
from node.net import limits
from node.net.gossip import GuardedPubsub
from node.net.identity import PortInUseError
from node.net.port import Network
from tests.kit.net import Station, exchange, stations


def test_three_networks_exchange_gossip_messages_and_requests():
    async def scenario():
        async with stations("a", "b", "c") as (a, b, c):
            await exchange(a, b)
            await exchange(b, c)

            async def reverse(peer: str, data: bytes) -> bytes:
                assert peer == a.id
                return data[::-1]

            b.net.serve("/test/reverse/1", reverse, most=100)
            answer = await a.net.request(b.id, "/test/reverse/1", b"abc", timeout_s=60, most=3)
            assert answer == b"cba"
            assert not any(peer == a.id for peer, _ in a.gossip), "own publishes come back"
            info = {p.peer_id: p for p in a.net.peers()}[b.id]
            assert info.connected
            assert info.direction == "in"
            assert b.address in info.addresses
            await a.until(lambda: all(p.rtt_ms is not None for p in a.net.peers()))

    asyncio.run(scenario())


def test_peer_exchange_connects_four_that_know_one_address():
    async def scenario():
        async with stations("a", "b", "c", "d") as four:
            for station in four:
                assert station.connected == {o.id for o in four} - {station.id}
                await station.until(lambda s=station: all(p.addresses for p in s.net.peers()))

    asyncio.run(scenario())


def test_the_same_content_from_two_publishers_is_one_message():
    async def scenario():
        async with stations("a", "b", "c") as (a, b, c):
            await exchange(a, c)
            await exchange(b, c)
            await a.net.publish("news", b"block 7")
            await b.until_gossip(b"block 7")
            await b.net.publish("news", b"block 7")
            await b.net.publish("news", b"after")
            await c.until_gossip(b"after")
            assert [d for _, d in c.gossip].count(b"block 7") == 1

    asyncio.run(scenario())


def test_a_topic_subscribed_to_while_a_peer_is_greeted_reaches_it(monkeypatch):
    """libp2p lists a peer once its greeting is written: a topic that came between the two was
    never announced to it."""
    greet, write = GuardedPubsub.get_hello_packet, NetStream.write
    greeting: dict[trio.lowlevel.Task, GuardedPubsub] = {}  # who is about to write a greeting

    def note(pubsub: GuardedPubsub) -> object:
        greeting[trio.lowlevel.current_task()] = pubsub
        return greet(pubsub)

    async def write_then_subscribe(stream: NetStream, data: bytes) -> None:
        await write(stream, data)
        if pubsub := greeting.pop(trio.lowlevel.current_task(), None):
            await pubsub.subscribe("late")

    monkeypatch.setattr(GuardedPubsub, "get_hello_packet", note)
    monkeypatch.setattr(NetStream, "write", write_then_subscribe)

    async def scenario():
        async with stations("a", "b") as (a, b):
            heard: list[bytes] = []

            async def judge(peer: str, data: bytes) -> bool:
                heard.append(data)
                b.ring()
                return True

            b.net._gossip["late"] = judge  # `subscribe`, but for the announcement
            await exchange(a, b)
            await a.net.publish("late", b"to whoever wants it")
            await b.until(lambda: heard == [b"to whoever wants it"])

    asyncio.run(scenario())


def test_a_burst_of_gossip_arrives_whole():
    async def scenario():
        async with stations("a", "b") as (a, b):
            await exchange(a, b)
            burst = [b"burst %d" % i for i in range(300)]
            await asyncio.gather(*(a.net.publish("news", data) for data in burst))
            await b.until(lambda: set(burst) <= {d for _, d in b.gossip})

    asyncio.run(scenario())


def test_messages_keep_their_order_and_large_ones_arrive():
    async def scenario():
        async with stations("a", "b") as (a, b):
            large = bytes(limits.MAX_FRAME_BYTES)
            sent = [b"%d" % i for i in range(200)] + [large, b"last"]
            assert all(a.net.send(b.id, data) for data in sent)
            await b.until(lambda: len(b.messages) == len(sent))
            assert [d for _, d in b.messages] == sent
            assert not a.net.send(b.id, large + b"+")
            assert not a.net.send(peer_id_of(bytes(32)), b"nobody")

    asyncio.run(scenario())


def test_what_is_too_large_to_gossip_is_refused_and_the_largest_arrives():
    async def scenario():
        async with stations("a", "b") as (a, b):
            await exchange(a, b)
            with pytest.raises(InputError, match="too many to gossip"):
                await a.net.publish("news", bytes(limits.MAX_GOSSIP_BYTES + 1))
            largest = bytes(limits.MAX_GOSSIP_BYTES)
            await a.net.publish("news", largest)
            await b.until_gossip(largest)

    asyncio.run(scenario())


def test_requests_fail_with_a_reason():
    async def scenario():
        async with stations("a", "b") as (a, b):
            stuck = asyncio.Event()

            async def refuse(peer: str, data: bytes) -> bytes:
                if data == b"known":
                    raise BlyanError("no such block")
                if data == b"bug":
                    raise KeyError("secret")
                if data == b"slow":
                    await stuck.wait()
                return bytes(1000)

            b.net.serve("/test/refuse/1", refuse, most=10, concurrent=2)

            async def ask(data: bytes, timeout_s: float = 10, most: int = 2000) -> bytes:
                return await a.net.request(
                    b.id, "/test/refuse/1", data, timeout_s=timeout_s, most=most
                )

            assert await ask(b"") == bytes(1000)
            with pytest.raises(UnreachableError, match="no such block"):
                await ask(b"known")
            with pytest.raises(UnreachableError, match="internal error") as caught:
                await ask(b"bug")
            assert "secret" not in str(caught.value)
            with pytest.raises(UnreachableError, match="did not answer"):
                await ask(b"slow", timeout_s=0.3)
            with pytest.raises(UnreachableError, match="too much"):
                await ask(b"", most=999)
            with pytest.raises(UnreachableError, match="not connected"):
                await a.net.request(
                    peer_id_of(bytes(32)), "/test/refuse/1", b"", timeout_s=1, most=1
                )
            with pytest.raises(UnreachableError):
                await a.net.request(b.id, "/test/unknown/1", b"", timeout_s=60, most=1)
            first = asyncio.create_task(ask(b"slow"))
            await b.until(lambda: b.net._state.services["/test/refuse/1"].running == 1)
            with pytest.raises(UnreachableError, match="too busy"):
                await ask(b"second")  # one peer gets half of the slots
            first.cancel()  # reaches the other side as a reset stream
            with pytest.raises(asyncio.CancelledError):
                await first
            stuck.set()
            await b.until(lambda: b.net._state.services["/test/refuse/1"].running == 0)
            assert await ask(b"") == bytes(1000)
            await exchange(a, b)

    asyncio.run(scenario())


def test_handlers_that_raise_harm_nobody():
    async def scenario():
        async with stations("a", "b") as (a, b):

            def boom(*_: object) -> None:
                raise RuntimeError("a bug of ours")

            def judge(*_: object) -> bool:
                raise RuntimeError("a bug of ours")

            b.net.on_message(boom)
            b.net.on_peer(boom)
            await exchange(a, b)
            good, b.judge = b.judge, judge
            await a.net.publish("news", b"not judged")
            await b.until(lambda: b.net.metrics().get("gossip_ignored", 0) >= 1)
            b.judge = good
            assert b.net.metrics()["handler_errors"] >= 2
            assert {p.violations for p in b.net.peers()} == {0.0}
            await exchange(a, b)

    asyncio.run(scenario())


def test_addresses_that_cannot_be_dialled():
    async def scenario():
        async with stations("a") as (a,):
            for bad in (
                "",
                "localhost:4001",
                "/ip4/127.0.0.1/tcp/1",
                "/ip4/127.0.0.1/udp/1/quic-v1/p2p/" + peer_id_of(bytes(32)),
                "/ip4/1.2.3.4.5/tcp/1/p2p/" + peer_id_of(bytes(32)),
                "/ip4/127.0.0.1/tcp/99999/p2p/" + peer_id_of(bytes(32)),
                "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWnonsense",
                a.address,
            ):
                with pytest.raises(InputError):
                    await a.net.dial(bad)

    asyncio.run(scenario())


def test_a_port_in_use_is_named_before_libp2p_starts():
    async def scenario():
        async with stations("a") as (a,):
            port = a.address.split("/")[4]
            second = Network(bytes(32), listen=f"/ip4/127.0.0.1/tcp/{port}")
            with pytest.raises(PortInUseError, match=port) as caught:
                await second.start()
            assert caught.value.exit_code == 1
            await second.stop()

    asyncio.run(scenario())


def test_peer_ids_are_libp2p_s():
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    for i in range(20):
        seed = hashlib.sha256(bytes([i])).digest()
        expected = str(ID.from_pubkey(create_new_key_pair(seed).public_key))
        assert peer_id_of(bytes(SigningKey(seed).verify_key)) == expected
        assert Network(seed).peer_id == expected


def test_stop_is_quick_and_nothing_works_afterwards():
    async def scenario():
        async with stations("a", "b") as (a, b):
            waiting = asyncio.create_task(
                a.net.dial("/ip4/127.0.0.1/tcp/1/p2p/" + peer_id_of(bytes(32)))
            )
            await a.until(lambda: len(a.net.peers()) == 2)
            start = time.monotonic()
            await a.net.stop()
            assert time.monotonic() - start < 2.0
            with pytest.raises(UnreachableError):
                await waiting
            with pytest.raises(UnreachableError):
                await a.net.publish("news", b"too late")
            assert not a.net.send(b.id, b"too late")
            await b.until(lambda: (a.id, False) in b.changes)

    asyncio.run(scenario())


def test_station_names_differ():
    assert Station("a").id != Station("b").id
