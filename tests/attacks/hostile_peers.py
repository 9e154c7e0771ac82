"""Attacks on links, requests and connections by peers who are no validators."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from dataclasses import replace
from typing import Any

import trio

from chain.address import peer_id_of
from chain.codec import encode
from chain.errors import UnreachableError
from chain.hashes import Hash32
from chain.types import (
    Certificate,
    Epoch,
    Height,
    Proposal,
    PubKey,
    Signature,
    View,
    Vote,
    VoteKind,
)
from consensus.simplex.messages import BlockReply, BlockRequest, CertificateRequest, Message
from node.net.peers import EXCHANGE_PROTOCOL, PeerAddresses, PeersAnswer
from node.net.port import Network
from node.services.blobs import PROTOCOL as BLOB
from node.services.sync_wire import PROTOCOL as SYNC
from node.services.sync_wire import SyncRequest
from node.services.tiles import PROTOCOL as TILE
from tests.kit.attacker import attack, connected, drain, say, stranger, thrown_out
from tests.kit.victims import Victim, Victims
from tests.kit.waiting import paused
from wallet.keys import KeyPair
from wallet.signing import sign_proposal, sign_vote

MAX_DIALS = 2000  # of a node, on the word of eight liars; without a limit 500 a second
MESHSUB, LINK = "/meshsub/1.1.0", "/blyan/consensus/1"
MESH_GARBAGE = (
    bytes([16]) + bytes(range(0xEF, 0xFF)),  # 17 bytes that once ended the host
    b"\xff" * 17,
    b"\x80\x80\x80\x80\x04" + bytes(12),  # announces a gigabyte
    b"\x10\x0a\xff\xff\x7fabc",  # truncated protobuf
    b"\x05\x22\x03abc",
)
LINK_GARBAGE = (
    (1 << 30).to_bytes(4, "big") + bytes(100),
    bytes(4) + bytes(100),
    b"\0\0\0\x02\x07x",
    b"\0\0\0\x01\x01",
)


async def garbage_on_streams(victims: Victims, chance: random.Random) -> None:
    def sends(protocol: str, data: bytes) -> Any:
        async def act(host: Any, peer: Any) -> None:
            stream = await host.new_stream(peer, [protocol])
            await stream.write(data)
            await drain(stream)

        return act

    for protocol, garbage in ((MESHSUB, MESH_GARBAGE), (LINK, LINK_GARBAGE)):
        for data in garbage:
            target = chance.choice(victims.nodes)
            act = sends(protocol, data)
            await asyncio.to_thread(attack, target, act, chance.randbytes(32))


async def half_open_connections(victims: Victims, chance: random.Random) -> None:
    """200 sockets that say nothing, garbage, or `/plaintext/2.0.0`, and stay."""
    line = b"\x13/multistream/1.0.0\n" + b"\x11/plaintext/2.0.0\n"
    with contextlib.ExitStack() as stack:
        for i in range(200):
            node = victims.nodes[i % len(victims.nodes)]
            target = (node.founded.config.p2p_host, node.founded.config.p2p_port)
            sock = stack.enter_context(socket.create_connection(target, timeout=5))
            with contextlib.suppress(OSError):
                sock.sendall((b"", line, chance.randbytes(100), b"\x13/multi")[i % 4])
        await paused(2)


# --- consensus links ------------------------------------------------------------------------


def votes(victims: Victims, chance: random.Random, epoch: int, view: int) -> tuple[Vote, ...]:
    """128 votes in the names of validators, with signatures that are not theirs."""
    signers = [v.founded.keys.consensus.public for v in victims.validators]
    return tuple(
        Vote(
            int(VoteKind.NOTARIZE),
            Epoch(epoch),
            View(view + i % 8),
            Hash32(chance.randbytes(32)),
            chance.choice(signers),
            Signature(chance.randbytes(64)),
        )
        for i in range(128)
    )


async def forged_votes(victims: Victims, chance: random.Random) -> None:
    """The costliest wrong packets: 128 signatures to verify in each."""
    status = victims.nodes[0].status()
    async with stranger(victims, chance) as net:
        for _ in range(60):
            packet = votes(victims, chance, status["epoch"], status["view"])
            for node in victims.nodes:
                say(net, node, *packet)
        await thrown_out(net, *victims.nodes)


async def random_bytes_as_messages(victims: Victims, chance: random.Random) -> None:
    async with stranger(victims, chance) as net:
        for _ in range(50):
            for node in victims.nodes:
                net.send(node.peer_id, chance.randbytes(chance.randrange(1, 3000)))
        await thrown_out(net, *victims.nodes)


async def messages_of_other_epochs(victims: Victims, chance: random.Random) -> None:
    """Canonical messages of the far past and future: nobody's fault, and of no consequence."""
    async with stranger(victims, chance) as net:
        for i in range(300):
            epoch = (0, 1, 2, 3, 2**40, 2**64 - 1)[i % 6]
            view = (0, 1, 2**63, 2**64 - 1)[i % 4]
            vote = sign_vote(
                KeyPair.from_seed(chance.randbytes(32)),
                chain_id=victims.genesis.chain_id,
                kind=VoteKind.NULLIFY,
                epoch=Epoch(epoch),
                view=View(view),
            )
            certificate = Certificate(
                i % 5, Epoch(epoch), View(view), Hash32(bytes(32)), b"\xff", (vote.signature,)
            )
            for node in victims.nodes:
                say(net, node, vote, certificate)
        await paused(1)


async def wrong_certificates(victims: Victims, chance: random.Random) -> None:
    """A real certificate with other bitmaps, views and signatures."""
    async with stranger(victims, chance) as net:
        for node in victims.nodes:
            block = next(
                b
                for h in range(node.height, 0, -1)
                if (b := node.block(h)).finalization is not None
            )
            real = block.finalization
            assert real is not None
            view = View(node.status()["view"] + 1)
            for bitmap in (b"", b"\xff", b"\x07\x00", b"\x01", bytes(64), b"\x0f"):
                say(net, node, replace(real, signers=bitmap, view=view))
            for kind in (0, 1, 2, 4, 255):
                say(net, node, replace(real, kind=kind, view=view))
        await thrown_out(net, *victims.nodes)


async def proposals_by_strangers(victims: Victims, chance: random.Random) -> None:
    """Blocks with a wrong root, sealed by a key that is no validator's, or by a wrong signature."""
    key = KeyPair.from_seed(chance.randbytes(32))
    async with stranger(victims, chance) as net:
        for node in victims.nodes:
            for i in range(30):
                status = node.status()
                real = node.block(status["height"])
                header = replace(
                    real.block.header,
                    height=Height(status["height"] + 1),
                    view=View(status["view"]),
                    parent=real.block.hash(),
                    state_root=Hash32(chance.randbytes(32)),
                )
                block = replace(real.block, header=header)
                seal = sign_proposal(
                    key,
                    chain_id=victims.genesis.chain_id,
                    epoch=Epoch(status["epoch"]),
                    view=View(status["view"]),
                    block_hash=block.hash(),
                )
                if i % 2:
                    leader = victims.validators[i % len(victims.validators)].founded.keys
                    seal = replace(seal, signer=PubKey(leader.consensus.public))
                say(net, node, Proposal(seal, block, real.finalization, ()), BlockReply(block))
                if node.peer_id not in connected(net):
                    break
        await thrown_out(net, *victims.nodes)


async def flood_of_small_messages(victims: Victims, chance: random.Random) -> None:
    """20,000 requests for blocks nobody has and certificates of huge ranges, each a packet."""
    status = victims.nodes[0].status()
    async with stranger(victims, chance) as net:
        for i in range(5000):
            ask: Message = BlockRequest(Hash32(chance.randbytes(32)))
            if i % 2:
                ask = CertificateRequest(Epoch(status["epoch"]), View(0), View(2**64 - 1))
            for node in victims.nodes[:4]:
                say(net, node, ask)
            if i % 250 == 0:
                await paused(0.02)
        await paused(1)


async def packets_full_of_requests(victims: Victims, chance: random.Random) -> None:
    """Well-formed packets of 128 messages as fast as the link takes them."""
    async with stranger(victims, chance) as net:
        for _ in range(1500):
            packet = [BlockRequest(Hash32(chance.randbytes(32))) for _ in range(128)]
            for node in victims.nodes[:2]:
                say(net, node, *packet)
            await asyncio.sleep(0)
        await paused(2)


# --- requests -------------------------------------------------------------------------------


async def hostile_requests(victims: Victims, chance: random.Random) -> None:
    """Garbage to every protocol, 100 at a time, and far too large."""

    async def ask(net: Network, node: Victim, protocol: str, data: bytes) -> None:
        with contextlib.suppress(UnreachableError):
            await net.request(node.peer_id, protocol, data, timeout_s=10, most=1 << 23)

    whole = encode(SyncRequest(Height(1), 255))
    async with stranger(victims, chance) as net:
        for node in victims.nodes:
            jobs = [ask(net, node, SYNC, whole) for _ in range(60)]
            jobs += [ask(net, node, BLOB, bytes([i % 3]) + chance.randbytes(32)) for i in range(40)]
            await asyncio.gather(*jobs)
            for protocol in (SYNC, BLOB, TILE, EXCHANGE_PROTOCOL):
                for size in (0, 1, 33, 40, 41, 70_000):
                    await ask(net, node, protocol, chance.randbytes(size))


async def readers_that_never_read(victims: Victims, chance: random.Random) -> None:
    """Ask for all blocks on many streams and never read an answer."""
    request = encode(SyncRequest(Height(1), 255))

    async def act(host: Any, peer: Any) -> None:
        streams = []
        for _ in range(40):
            stream = await host.new_stream(peer, [SYNC])
            await stream.write(len(request).to_bytes(4, "big") + request)
            streams.append(stream)
        await rest(2)

    for node in victims.nodes[:2]:
        await asyncio.to_thread(attack, node, act, chance.randbytes(32))


async def rest(seconds: float) -> None:
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


# --- addresses and identities ---------------------------------------------------------------


async def poisoned_peer_exchange(victims: Victims, chance: random.Random) -> None:
    """Thousands of peers that do not exist, and wrong addresses of those who do."""
    ports = range(40_000, 60_000)

    def bogus() -> str:
        return f"/ip4/127.0.0.1/tcp/{chance.choice(ports)}"

    async def lie(peer: str, data: bytes) -> bytes:
        real = [PeerAddresses(n.peer_id, tuple(bogus() for _ in range(8))) for n in victims.nodes]
        fake = [
            PeerAddresses(peer_id_of(chance.randbytes(32)), tuple(bogus() for _ in range(8)))
            for _ in range(64 - len(real))
        ]
        return encode(PeersAnswer((), tuple(real + fake)))

    before = {node.peer_id: node.metrics()["net_dials"] for node in victims.nodes}
    liars = []
    for _ in range(8):
        net = Network(chance.randbytes(32))
        net._state.services.clear()
        net.serve(EXCHANGE_PROTOCOL, lie, most=1 << 16, concurrent=16)
        liars.append(net)
    try:
        for net in liars:
            await net.start()
            for node in victims.nodes:
                await net.dial(node.address)
        await paused(10)
        for node in victims.nodes:
            dials = node.metrics()["net_dials"] - before[node.peer_id]
            assert dials < MAX_DIALS, f"{dials} dials because a liar said so"
    finally:
        for net in liars:
            await net.stop()


async def no_room_for_others(victims: Victims, chance: random.Random) -> None:
    """80 identities take the places of one node; a validator that restarts still comes in."""
    target, other = victims.validators[0], victims.validators[1]
    seeds = [chance.randbytes(32) for _ in range(80)]
    hold = trio.Event()
    count = 0

    async def crowd() -> None:
        from libp2p.peer.id import ID
        from multiaddr import Multiaddr

        from node.net.bridge import Metrics
        from node.net.guards import build_host

        peer_id = ID.from_string(target.peer_id)

        async def one(seed: bytes) -> None:
            nonlocal count
            host = build_host(seed, Metrics(), lambda *_: None)
            host.set_stream_handler(LINK, drain)
            async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
                with contextlib.suppress(Exception):
                    await host.get_network().dial_addr(Multiaddr(target.address), peer_id)
                    stream = await host.new_stream(peer_id, [LINK])
                    count += 1
                    while True:
                        await stream.write(b"\0\0\0\x09\x01" + bytes(8))
                        await rest(2)

        async with trio.open_nursery() as nursery:
            for seed in seeds:
                nursery.start_soon(one, seed)
                await rest(0.02)
            await hold.wait()
            nursery.cancel_scope.cancel()

    box: list[Any] = []

    async def run() -> None:
        box.append(trio.lowlevel.current_trio_token())
        await crowd()

    thread = asyncio.create_task(asyncio.to_thread(trio.run, run))
    await paused(10)
    assert count >= 40, f"only {count} of the crowd came in"
    other.end()
    other.start()
    try:
        for _ in range(300):
            await paused(0.1)
            if other.status() and other.peer_id in {
                p["peer_id"] for p in target.get("peers")["peers"]
            }:
                break
        else:
            raise AssertionError("the restarted validator is not let in")
    finally:
        box[0].run_sync_soon(hold.set)
        await thread
