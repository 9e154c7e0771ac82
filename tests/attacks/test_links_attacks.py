"""Hostile ends of links against real nodes: each is cut off and named, and others are served."""

import asyncio
import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chain.errors import UnreachableError
from node.net import limits as net_limits
from node.net.links import certificate as tls
from node.net.links import limits
from node.net.links.frames import Answer, Frame, Kind, LinkError, Status, header
from node.net.priority import Priority
from tests.kit.link_attacker import CHAIN, Wire, content, context_of, opening, wire
from tests.kit.links import End
from tests.kit.net import Station, stations
from tests.kit.waiting import paused
from tests.reference.links_ref import vectors

MIB = 1 << 20
SEED = hashlib.sha256(b"mallory").digest()
TILE = bytes(4 * MIB)


async def echo(peer: str, data: bytes) -> bytes:
    return data


async def tile(peer: str, data: bytes) -> bytes:
    return TILE


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[tuple[Station, Station, Station]]:
    """A victim and an honest peer with a link, and an attacker that libp2p is connected to."""
    async with stations("victim", "honest", link_port=0) as (victim, honest):
        victim.net.serve("/test/echo/1", echo, most=100_000, concurrent=8)
        victim.net.serve("/test/tile/1", tile, most=10, priority=Priority.BULK)
        await honest.until_linked(victim)
        await victim.until_linked(honest)
        mallory = Station("mallory")
        await mallory.net.start()
        try:
            await mallory.net.dial(victim.address)
            await victim.until_connected(mallory)
            yield victim, honest, mallory
            answer = await honest.net.request(
                victim.id, "/test/echo/1", b"still here", timeout_s=60, most=100
            )
            assert answer == b"still here"
            info = {i.peer_id: i.up for i in victim.net.link_info()}
            assert info[honest.id], "the honest peer's link was not touched"
        finally:
            await mallory.net.stop()


def points(victim: Station, peer: Station) -> float:
    return {p.peer_id: p.violations for p in victim.net.peers()}.get(peer.id, 100.0)


async def blamed(victim: Station, peer: Station) -> None:
    await victim.until(lambda: points(victim, peer) > 0)


HOSTILE = {case["why"]: bytes.fromhex(case["bytes"]) for case in vectors()["refused"]} | {
    "content on a stream that never began": content(1, b"x"),
    "an answer that nobody asked for": Frame(
        2, Kind.ANSWER, Answer(Status.OK, 5).encode()
    ).encode(),
    "content of an answer that nobody asked for": content(2, b"x"),
    "credit for a stream that never began": Frame(1, Kind.CREDIT, b"\0\0\0\1").encode(),
    "a cancel for a stream that never began": Frame(9, Kind.CANCEL).encode(),
    "a stream that is the victim's to open": opening(2),
    "the same stream twice": opening(1) + opening(1),
    "streams that go back": opening(5) + opening(3),
    "a request over its protocol's limit": opening(1, size=100_001),
    "more content than was announced": opening(1, size=3) + content(1, b"four"),
    "content after the end": opening(1, size=3) + content(1, b"abc") + content(1, b"d"),
    "content beyond the credit": opening(1, size=100_000) + content(1, bytes(65_000)) * 2,
    "too many streams": b"".join(opening(1 + 2 * i, size=1) for i in range(limits.STREAMS + 1)),
    "a web browser": b"GET / HTTP/1.1\r\nHost: victim\r\n\r\n",
}
COSTLY = (
    "a request over its protocol's limit",
    "too many streams",
    "a web browser",
    "16 MiB announced",
)


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
@pytest.mark.parametrize("why", HOSTILE)
def test_frames_that_no_honest_node_sends(why, piece):
    """Each ends the link at once, in whatever pieces it comes."""
    end = End(dialled=False)
    end.handler = lambda data: None
    if why in ("a request over its protocol's limit", "content beyond the credit"):
        end.refusal = (
            Status.BUSY,
            "",
        )  # what is too large for a protocol, only that protocol knows
    received = HOSTILE[why]
    if why == "a request over its protocol's limit":
        received += content(1, bytes(65_000)) * 2
    error = None
    try:
        for start in range(0, len(received), piece):
            end.reader.feed(received[start : start + piece])
    except LinkError as caught:
        error = caught
    assert error is not None
    assert error.points == limits.POINTS_FRAME


def test_content_of_a_cancelled_answer_ends_with_its_credit():
    end = End(dialled=True)
    ask = end.ask(b"", most=10 * MIB)
    end.reader.feed(answer(10 * MIB)(ask.stream))
    end.session.cancel(ask, UnreachableError("given up"))
    part = content(ask.stream, bytes(65_000))
    with pytest.raises(LinkError, match="were granted"):
        end.reader.feed(part * (limits.WINDOW_BYTES // 65_000 + 1))


@pytest.mark.parametrize("why", COSTLY)
def test_they_cost_the_link_and_points(why):
    async def scenario():
        async with scene() as (victim, _, mallory), wire(victim, context_of(SEED)) as link:
            data = HOSTILE[why]
            await link.send(data[:5])
            await link.send(data[5:])
            await asyncio.wait_for(link.ended(), 60)
            await blamed(victim, mallory)

    asyncio.run(scenario())


def test_openings_and_cancels_in_masses_cost_the_others_nothing():
    async def scenario():
        async with scene() as (victim, honest, _), wire(victim, context_of(SEED)) as link:
            began, answered = time.monotonic(), 0

            async def flood() -> None:
                for stream in range(1, 2 * 30_000, 2):
                    await link.send(opening(stream) + Frame(stream, Kind.CANCEL).encode())

            async def drain() -> None:
                await link.ended()

            attack = [asyncio.create_task(flood()), asyncio.create_task(drain())]
            while time.monotonic() - began < 2.5:
                await honest.net.request(victim.id, "/test/echo/1", b"x", timeout_s=2, most=1)
                answered += 1
            for task in attack:
                task.cancel()
            await asyncio.gather(*attack, return_exceptions=True)
            assert answered > 20
            (connection,) = victim.net._asking.links._peers[
                next(i.peer_id for i in victim.net.link_info() if i.peer_id != honest.id)
            ].connections
            assert len(connection._tasks) <= limits.STREAMS
            assert connection.session.outbox.control_frames <= 2 * limits.FRAMES_PER_S

    asyncio.run(scenario())


# --- answers ------------------------------------------------------------------------------

Reply = Callable[[Wire, int], Awaitable[None]]


def replies(*parts: bytes | Callable[[int], bytes]) -> Reply:
    async def reply(link: Wire, stream: int) -> None:
        for part in parts:
            await link.send(part(stream) if callable(part) else part)

    return reply


def answer(size: int, status: Status = Status.OK) -> Callable[[int], bytes]:
    return lambda stream: Frame(stream, Kind.ANSWER, Answer(status, size).encode()).encode()


def data(body: bytes) -> Callable[[int], bytes]:
    return lambda stream: content(stream, body)


BAD_ANSWERS = {
    "larger than asked for": replies(answer(2 * MIB + 1)),
    "four gigabytes": replies(answer(2**32 - 1)),
    "more content than announced": replies(answer(3), data(b"four")),
    "content before the answer": replies(data(b"x")),
    "two answers": replies(answer(3), answer(3)),
    "content after the end": replies(answer(3), data(b"abc"), data(b"d")),
    "a reason of a megabyte": replies(answer(MIB, Status.FAILED)),
}  # fmt: skip


@pytest.mark.parametrize("why", BAD_ANSWERS)
def test_answers_that_no_honest_node_gives(why):
    async def scenario():
        async with scene() as (victim, _, mallory), wire(victim, context_of(SEED)) as link:
            await victim.until_linked(mallory)
            buffer = bytearray(2 * MIB + 64)
            fetching = asyncio.create_task(
                victim.net.fetch(
                    mallory.id,
                    "/test/tile/1",
                    b"",
                    into=memoryview(buffer)[: 2 * MIB],
                    timeout_s=60,
                )
            )
            stream, _ = await link.frame(Kind.OPEN)
            await BAD_ANSWERS[why](link, stream)
            if why == "content after the end":
                assert await fetching == 3
            else:
                with pytest.raises(UnreachableError, match=mallory.id):
                    await fetching
            await asyncio.wait_for(link.ended(), 60)
            await blamed(victim, mallory)
            assert buffer[2 * MIB :] == bytes(64), "nothing is written behind the buffer"

    asyncio.run(scenario())


def test_an_answer_of_one_byte_a_second(monkeypatch):
    """Cut off, named, and blamed; the asker can go elsewhere long before its own timeout."""
    monkeypatch.setattr(limits, "RATE_WINDOW_S", 1.0)

    async def scenario():
        async with scene() as (victim, _, mallory), wire(victim, context_of(SEED)) as link:
            await victim.until_linked(mallory)
            into = memoryview(bytearray(MIB))
            fetching = asyncio.create_task(
                victim.net.fetch(mallory.id, "/test/tile/1", b"", into=into, timeout_s=60)
            )
            stream, _ = await link.frame(Kind.OPEN)
            await link.send(answer(MIB)(stream))

            async def drip() -> None:
                while True:
                    await link.send(content(stream, b"x"))
                    await paused(0.5)

            dripping = asyncio.create_task(drip())
            with pytest.raises(UnreachableError, match="too slow") as caught:
                await asyncio.wait_for(fetching, 15)
            assert mallory.id in str(caught.value)
            dripping.cancel()
            await blamed(victim, mallory)

    asyncio.run(scenario())


@pytest.mark.parametrize("reads", [True, False], ids=["grants nothing", "reads nothing"])
def test_an_asker_that_takes_nothing(reads, monkeypatch):
    """What waits for it is bounded, and after a while it is given up."""
    monkeypatch.setattr(limits, "STALL_S", 1.0)
    monkeypatch.setattr(net_limits, "REPLY_TIMEOUT_S", 3.0)

    async def scenario():
        async with scene() as (victim, _, mallory), wire(victim, context_of(SEED)) as link:
            await victim.until_linked(mallory)
            service = victim.net._state.services["/test/tile/1"]
            credit = MIB if reads else 1 << 30
            for stream in (1, 3, 5, 7):
                await link.send(opening(stream, "/test/tile/1", credit=credit))
            reading = asyncio.create_task(link.ended()) if reads else None
            await victim.until(lambda: service.running > 0)
            connection = victim.net._asking.links.get(mallory.id)
            assert connection is not None
            await victim.until(lambda: service.running == 0, 60)
            assert connection.session.outbox.bytes == 0
            assert connection._transport.get_write_buffer_size() <= 4 * MIB
            if reading is not None:
                reading.cancel()

    asyncio.run(scenario())


def test_answers_beyond_what_may_wait_for_one_peer_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "ANSWERS_BYTES", 5 * MIB)

    async def scenario():
        async with scene() as (victim, _, mallory), wire(victim, context_of(SEED)) as link:
            await victim.until_linked(mallory)
            for stream in (1, 3):
                await link.send(opening(stream, "/test/tile/1", credit=1))
            answers = [await link.frame(Kind.ANSWER) for _ in range(2)]
            assert [Answer.decode(body).status for _, body in answers] == [Status.OK, Status.BUSY]

    asyncio.run(scenario())


# --- who it is --------------------------------------------------------------------------------


def forged(extension_of: bytes, chain_id: bytes = CHAIN) -> ssl.SSLContext:
    """A client context whose certificate carries the extension of `extension_of`'s node key, as
    anyone saw it: made for another certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    theirs = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = theirs.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    value = tls.signed_key(extension_of, spki)
    made = tls.make_certificate(chain_id, key.public_key(), value, datetime.now(UTC))
    authority = tls.authority_certificate(chain_id).public_bytes(Encoding.PEM).decode()
    return tls.make_context(key, made, authority, server_side=False)


def without_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def other_protocol() -> ssl.SSLContext:
    context = context_of(SEED)
    context.set_alpn_protocols(["h2"])
    return context


STRANGERS = {
    "the honest peer's key, whose certificate it saw": lambda: forged(
        hashlib.sha256(b"honest").digest()
    ),
    "no certificate": without_certificate,
    "another application": other_protocol,
    "the victim's own key": lambda: context_of(hashlib.sha256(b"victim").digest()),
    "a key that libp2p does not know": lambda: context_of(bytes([9]) * 32),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_get_no_link(who, monkeypatch):
    """Nobody is blamed for them: whoever they name is not there."""
    monkeypatch.setattr(limits, "ADMIT_S", 0.3)

    async def scenario():
        async with scene() as (victim, _, _):
            before = victim.net.metrics()["tls_up"]
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                async with wire(victim, STRANGERS[who]()) as link:
                    await link.send(opening(1))
                    await asyncio.wait_for(link.ended(), 60)
            await victim.until(lambda: victim.net.metrics().get("tls_refused", 0) >= 1)
            assert victim.net.metrics()["tls_up"] == before
            assert {p.violations for p in victim.net.peers()} == {0.0}

    asyncio.run(scenario())


def test_another_network_s_node_gets_no_link():
    async def scenario():
        async with scene() as (victim, _, _):
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                ours = context_of(SEED, chain_id=bytes([1]) * 32)
                ours.verify_mode = ssl.CERT_NONE  # it does not mind us
                async with wire(victim, ours) as link:
                    await asyncio.wait_for(link.ended(), 60)
            await victim.until(lambda: victim.net.metrics().get("tls_refused", 0) >= 1)

    asyncio.run(scenario())


def test_a_link_address_that_leads_to_somebody_else():
    """The attacker says that its links are accepted where the honest peer's are."""

    async def scenario():
        async with scene() as (victim, honest, mallory):
            links = victim.net._asking.links
            port = honest.net._asking.links.port
            text = f"/ip4/127.0.0.1/tcp/{port}"
            from chain.codec import encode
            from node.net.links.address import PROTOCOL, LinkAddresses

            lie = encode(LinkAddresses((text,)))
            await mallory.net.request(victim.id, PROTOCOL, lie, timeout_s=60, most=4096)
            dials = victim.net.metrics().get("tls_dials", 0)
            await victim.until(lambda: victim.net.metrics().get("tls_dials", 0) > dials)
            await victim.until(lambda: victim.net.metrics().get("tls_refused", 0) >= 1)
            assert links.get(mallory.id) is None
            with pytest.raises(UnreachableError):
                await mallory.net.request(victim.id, PROTOCOL, b"\xff", timeout_s=60, most=4096)

    asyncio.run(scenario())


def test_connections_that_say_nothing(monkeypatch):
    """Half-open ones are few and short-lived, and once they are gone others get in."""
    monkeypatch.setattr(limits, "HANDSHAKE_S", 1.0)

    async def scenario():
        async with scene() as (victim, _, mallory):
            links = victim.net._asking.links
            socks = [
                socket.create_connection(("127.0.0.1", links.port))
                for _ in range(limits.HALF_OPEN_PER_HOST + 8)
            ]
            try:
                await victim.until(lambda: victim.net.metrics().get("tls_refused", 0) >= 8)
                assert links._strangers.total() <= limits.HALF_OPEN_PER_HOST
                await victim.until(lambda: not links._strangers, 60)
            finally:
                for sock in socks:
                    sock.close()
            async with wire(victim, context_of(SEED)):
                await victim.until_linked(mallory)

    asyncio.run(scenario())


def test_many_links_of_one_peer_are_two():
    async def scenario():
        async with scene() as (victim, _, mallory), contextlib.AsyncExitStack() as stack:
            wires = [
                await stack.enter_async_context(wire(victim, context_of(SEED))) for _ in range(6)
            ]
            for old in wires[:-2]:
                await asyncio.wait_for(old.ended(), 60)
            peer = victim.net._asking.links._peers[mallory.id]
            assert len(peer.connections) <= limits.LINKS_PER_PEER
            await wires[-1].send(opening(1, size=2) + content(1, b"ok"))
            assert (await asyncio.wait_for(wires[-1].frame(Kind.DATA), 60))[1] == b"ok"

    asyncio.run(scenario())


def test_bytes_that_are_no_tls():
    async def scenario():
        async with scene() as (victim, _, _):
            for garbage in (b"\x16\x03\x01\xff\xff" + bytes(100), b"GET / HTTP/1.1\r\n\r\n"):
                async with wire(victim) as link:
                    await link.send(garbage)
                    await asyncio.wait_for(link.ended(), 60)
            await victim.until(lambda: victim.net.metrics().get("tls_refused", 0) >= 2)

    asyncio.run(scenario())


def test_repeated_violations_end_in_a_ban_of_both():
    async def scenario():
        async with scene() as (victim, _, mallory):
            for _ in range(3):
                async with wire(victim, context_of(SEED)) as link:
                    await link.send(header(1, Kind.DATA, 1) + b"x")
                    await asyncio.wait_for(link.ended(), 60)
            await victim.until(lambda: mallory.id not in victim.connected)
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                async with wire(victim, context_of(SEED)) as link:
                    await asyncio.wait_for(link.ended(), 60)
            assert mallory.id not in {i.peer_id for i in victim.net.link_info()}

    asyncio.run(scenario())
