"""Attacks on the link port, on tile requests, on presence and on provider records."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

from chain.codec import decode, encode
from chain.errors import UnreachableError
from chain.hashes import Hash32
from chain.types import ShardIndex, TileIndex
from node.net.identity import Address
from node.net.links.address import MAX_BYTES, PROTOCOL, LinkAddresses
from node.net.links.frames import Frame, Kind
from node.net.port import Network
from node.services import presence
from node.services.presence import PresenceAnswer, PresenceRequest, ShardPresence
from node.services.tile_wire import PROTOCOL as TILE
from node.services.tile_wire import TileRequest
from tests.kit.attacker import attack, drain, peer, stranger, thrown_out
from tests.kit.link_attacker import content, context_of, opening
from tests.kit.victims import Victim, Victims
from tests.kit.waiting import paused, reached

KAD = "/blyan/kad/1.0.0"
CLOSED_S = 8.0  # a connection that does not show who it is has five seconds
LINKED_S = 40.0
HEALED_S = 60.0
SERVED_S = 5.0  # an honest asker beside the attack


async def link_place(net: Network, node: Victim) -> tuple[str, int]:
    """Where a node says that it accepts links."""
    told = await net.request(
        node.peer_id, PROTOCOL, encode(LinkAddresses(())), timeout_s=10, most=MAX_BYTES
    )
    found: LinkAddresses = decode(LinkAddresses, told)
    place = Address.parse(found.addresses[0])
    return place.host, place.port


async def still_linked(victims: Victims) -> None:
    """All nodes have links with all others."""

    def linked() -> bool:
        for node in victims.nodes:
            found = {p["peer_id"]: p["link"] for p in (node.get("peers") or {"peers": []})["peers"]}
            if not all(found.get(n.peer_id) for n in victims.nodes if n is not node):
                return False
        return True

    await reached(lambda: linked() or None, LINKED_S, "all nodes have links")


async def closed(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
        async with asyncio.timeout(CLOSED_S):
            while await reader.read(65536):
                pass
    return reader.at_eof() or reader.exception() is not None


# --- before a link exists --------------------------------------------------------------------


async def garbage_at_the_link_port(victims: Victims, chance: random.Random) -> None:
    """Bytes that are no TLS, and TLS that goes on in garbage: closed, and nobody is hurt."""

    def junk() -> bytes:
        return chance.choice(
            (
                chance.randbytes(chance.randrange(1, 3000)),
                b"\x16\x03\x01\x40\x00" + chance.randbytes(0x4000),
                b"\x16\x03\x01\xff\xff\x01" + bytes(70_000),
                b"\x15\x03\x03\x00\x02\x02\x28",
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                bytes(100_000),
            )
        )

    async def throw(place: tuple[str, int]) -> bool:
        try:
            reader, writer = await asyncio.open_connection(*place)
        except OSError:
            return True
        with contextlib.suppress(ConnectionError):
            writer.write(junk())
            await writer.drain()
        done = await closed(reader)
        writer.close()
        return done

    async with stranger(victims, chance) as net:
        for node in victims.nodes:
            place = await link_place(net, node)
            for _ in range(5):
                assert all(await asyncio.gather(*(throw(place) for _ in range(12))))
    await still_linked(victims)


async def links_of_nobody(victims: Victims, chance: random.Random) -> None:
    """TLS without a certificate, of another network, of an old version, of who is no peer."""

    def bare(newest: ssl.TLSVersion) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        made.maximum_version = newest
        made.set_alpn_protocols(["blyan/link/2"])
        return made

    async def knock(place: tuple[str, int], context: ssl.SSLContext) -> None:
        try:
            reader, writer = await asyncio.open_connection(
                *place, ssl=context, server_hostname="", ssl_handshake_timeout=CLOSED_S
            )
        except (OSError, ssl.SSLError):
            return
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            writer.write(opening(1, TILE, 4) + content(1, b"\xff" * 4))
            await writer.drain()
        assert await closed(reader), "a link of nobody stays open"
        writer.close()

    async with stranger(victims, chance) as net:
        for node in victims.nodes:
            place = await link_place(net, node)
            contexts = [
                bare(ssl.TLSVersion.TLSv1_3),
                bare(ssl.TLSVersion.TLSv1_2),
                context_of(chance.randbytes(32), chance.randbytes(32)),
                context_of(chance.randbytes(32), victims.genesis.chain_id),
            ]
            await asyncio.gather(*(knock(place, context) for context in contexts * 3))
    await still_linked(victims)


async def slow_handshakes(victims: Victims, chance: random.Random) -> None:
    """Connections in masses that say a handshake one byte after the other."""

    async def crawl(place: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(*place)
            hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500)
            for byte in hello[:24]:
                writer.write(bytes([byte]))
                await writer.drain()
                await paused(0.3)
            writer.close()

    async with stranger(victims, chance) as net:
        places = [await link_place(net, node) for node in victims.nodes]
        await asyncio.gather(*(crawl(place) for place in places for _ in range(120)))
    await still_linked(victims)


# --- on a link --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def raw_link(
    victims: Victims, node: Victim, seed: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A link of a peer that libp2p knows, whose bytes are ours."""
    async with peer(seed, node) as net:
        place = await link_place(net, node)
        reader, writer = await asyncio.open_connection(
            *place, ssl=context_of(seed, victims.genesis.chain_id), server_hostname=""
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def garbage_on_links(victims: Victims, chance: random.Random) -> None:
    """Frames of random kinds and sizes: the link ends, and its peer is charged."""
    for node in victims.nodes:
        seed = chance.randbytes(32)
        async with peer(seed, node) as net:
            place = await link_place(net, node)
            for _ in range(4):
                try:
                    reader, writer = await asyncio.open_connection(
                        *place, ssl=context_of(seed, victims.genesis.chain_id), server_hostname=""
                    )
                except OSError:
                    break  # it is banned
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    writer.write(chance.randbytes(4000))
                    await writer.drain()
                assert await closed(reader), "garbage does not end a link"
                writer.close()
            await thrown_out(net, node)
    await still_linked(victims)


def tile_request(victims: Victims, shard: int = 1, tile: int = 0) -> bytes:
    root = victims.nodes[0].get("model")["shards"][shard]["root"]
    return TileRequest(
        ShardIndex(shard), Hash32(bytes.fromhex(root)), TileIndex(tile), 0, 1, 1
    ).encoded()


async def is_served(victims: Victims, chance: random.Random, node: Victim) -> None:
    """An honest stranger gets a tile, over a link, while others do what they do."""
    chain_id = victims.genesis.chain_id
    net = Network(chance.randbytes(32), chain_id=chain_id, link_port=0)
    await net.start()
    try:
        await net.dial(node.address)
        began = time.monotonic()
        data = await net.request(
            node.peer_id, TILE, tile_request(victims), timeout_s=20, most=1 << 20
        )
        assert len(data) > 100_000, "the tile did not come"
        assert time.monotonic() - began < SERVED_S * victims.slack, "an honest asker waits"
    finally:
        await net.stop()


async def one_byte_a_second(victims: Victims, chance: random.Random) -> None:
    """Requests for tiles that take for ever to say, answers that are never taken: on all streams
    of some links at once."""
    request = tile_request(victims)

    async def dribble(node: Victim) -> None:
        with contextlib.suppress(OSError):
            async with raw_link(victims, node, chance.randbytes(32)) as (_, writer):
                for stream in range(1, 61, 2):
                    writer.write(opening(stream, TILE, len(request), credit=1 << 20))
                for stream in range(61, 125, 2):
                    writer.write(opening(stream, TILE, len(request), credit=1))
                    writer.write(content(stream, request))
                for at in range(8):
                    for stream in range(1, 61, 2):
                        writer.write(content(stream, request[at : at + 1]))
                    await writer.drain()
                    await paused(1)

    target = victims.nodes[0]
    crawling = [asyncio.create_task(dribble(target)) for _ in range(4)]
    await paused(2)
    await is_served(victims, chance, target)
    await asyncio.gather(*crawling)
    await still_linked(victims)


async def flood_of_tile_requests(victims: Victims, chance: random.Random) -> None:
    """Three peers that ask for tiles without end, over links and streams."""
    request, target, chain_id = tile_request(victims), victims.nodes[0], victims.genesis.chain_id
    nets = [
        Network(chance.randbytes(32), chain_id=chain_id, link_port=0 if i else None)
        for i in range(3)
    ]
    until = time.monotonic() + 6

    async def ask(net: Network) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(UnreachableError):
                await net.request(target.peer_id, TILE, request, timeout_s=5, most=1 << 20)
            await asyncio.sleep(0)

    try:
        for net in nets:
            await net.start()
            await net.dial(target.address)
        asking = [asyncio.create_task(ask(net)) for net in nets for _ in range(24)]
        await paused(1)
        await is_served(victims, chance, target)
        await asyncio.gather(*asking)
    finally:
        await asyncio.gather(*(net.stop() for net in nets))
    await still_linked(victims)


async def pings_and_credits(victims: Victims, chance: random.Random) -> None:
    """Masses of the smallest frames: read slowly, and nobody else waits."""
    target = victims.nodes[0]
    until = time.monotonic() + 5

    async def flood() -> None:
        with contextlib.suppress(OSError):
            async with raw_link(victims, target, chance.randbytes(32)) as (_, writer):
                ping = Frame(0, Kind.PING, bytes(8)).encode() * 500
                while time.monotonic() < until:
                    writer.write(ping)
                    async with asyncio.timeout(5):
                        await writer.drain()

    floods = [asyncio.create_task(flood()) for _ in range(3)]
    await paused(1)
    await is_served(victims, chance, target)
    await asyncio.gather(*floods, return_exceptions=True)
    await still_linked(victims)


# --- presence and provider records ----------------------------------------------------------


async def removed_tiles_beside_liars(victims: Victims, chance: random.Random) -> None:
    """Peers that claim every tile and give garbage, while a node's tiles are removed on disk."""
    node = victims.nodes[-1]
    counts = [len(s["tile_roots"]) for s in victims.nodes[0].get("model")["shards"]]
    served = 0

    async def claim(peer: str, data: bytes) -> bytes:
        asked: PresenceRequest = decode(PresenceRequest, data)
        rows = tuple(ShardPresence(counts[ref.shard], b"") for ref in asked.shards)
        return encode(PresenceAnswer(chance.getrandbits(60) | 1, rows))

    async def lie(peer: str, data: bytes) -> bytes:
        nonlocal served
        served += 1
        return chance.randbytes(150_000)

    liars = [
        Network(chance.randbytes(32), chain_id=victims.genesis.chain_id, link_port=0)
        for _ in range(3)
    ]
    try:
        for net in liars:
            net.serve(presence.PROTOCOL, claim, most=presence.MAX_REQUEST_BYTES)
            net.serve(TILE, lie, most=64)
            await net.start()
            for each in victims.nodes:
                await net.dial(each.address)
        await paused(5)
        shutil.rmtree(node.home.tiles)
        began = time.monotonic()

        def healed() -> bool | None:
            """It has noticed, and has all of them again."""
            held = node.get("holdings")
            on_disk = node.home.tiles.exists() and len(list(node.home.tiles.iterdir())) > len(
                counts
            )
            return True if held and not held["missing_tiles"] and on_disk else None

        node.client.post("tiles/scrub", headers={"Authorization": f"Bearer {node.home.token()}"})
        await reached(healed, HEALED_S * victims.slack, "removed tiles are here again")
        assert time.monotonic() - began < HEALED_S * victims.slack
    finally:
        await asyncio.gather(*(net.stop() for net in liars))
    await still_linked(victims)


async def huge_provider_records(victims: Victims, chance: random.Random) -> None:
    """Records of many addresses for many keys, many times over, as fast as they are taken."""
    from libp2p.kad_dht.pb.kademlia_pb2 import Message
    from libp2p.utils import encode_varint_prefixed
    from multiaddr import Multiaddr

    place = Multiaddr("/dns4/" + "a" * 60 + ".invalid/tcp/1").to_bytes()

    def record(own: bytes) -> bytes:
        made = Message(type=Message.MessageType.ADD_PROVIDER, key=chance.randbytes(128))
        for _ in range(40):
            made.providerPeers.add(id=own).addrs.extend([place] * 20)
        return bytes(encode_varint_prefixed(made.SerializeToString()))

    async def act(host: Any, peer: Any) -> None:
        own = host.get_id().to_bytes()
        for _ in range(30):
            stream = await host.new_stream(peer, [KAD])
            for _ in range(16):
                await stream.write(record(own))
            await stream.close()
            await drain(stream)

    for node in victims.nodes[:3]:
        await asyncio.to_thread(attack, node, act, chance.randbytes(32))
    await still_linked(victims)
