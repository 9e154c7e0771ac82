"""Hostile peers: a network port that says what an attacker wants, or a bare libp2p host."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

from chain.codec import encode
from consensus.simplex.messages import Envelope, Message
from node.net.bridge import Metrics
from node.net.port import Network
from tests.kit.victims import Victim, Victims
from tests.kit.waiting import reached

ACT_S = 120.0
Act = Callable[[Any, Any], Awaitable[None]]  # libp2p host, peer id of the victim


@contextlib.asynccontextmanager
async def peer(seed: bytes, *targets: Victim) -> AsyncIterator[Network]:
    """A network port under this key that is connected to these nodes."""
    net = Network(seed)
    await net.start()
    try:
        for target in targets:
            await net.dial(target.address)
        yield net
    finally:
        await net.stop()


@contextlib.asynccontextmanager
async def stranger(victims: Victims, chance: random.Random) -> AsyncIterator[Network]:
    """A new identity, connected to every node."""
    async with peer(chance.randbytes(32), *victims.nodes) as net:
        yield net


def connected(net: Network) -> set[str]:
    return {p.peer_id for p in net.peers() if p.connected}


def say(net: Network, target: Victim, *messages: Message) -> bool:
    return net.send(target.peer_id, encode(Envelope(messages)))


async def thrown_out(net: Network, *targets: Victim, timeout_s: float = 20) -> None:
    """Wait until these nodes have disconnected this peer."""
    names = {target.peer_id for target in targets}
    await reached(lambda: not names & connected(net), timeout_s, "the attacker is thrown out")


def attack(target: Victim, act: Act, seed: bytes) -> None:
    """Run `act(host, peer_id)` on a bare libp2p host that is connected to `target`.

    What the victim does to the connection meanwhile is its right and no failure.
    """
    from libp2p.exceptions import BaseLibp2pError
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    from node.net.guards import build_host

    async def main() -> None:
        host = build_host(seed, Metrics(), lambda *_: None)
        peer_id = ID.from_string(target.peer_id)
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            with contextlib.suppress(BaseLibp2pError, trio.TooSlowError):
                await host.get_network().dial_addr(Multiaddr(target.address), peer_id)
                with trio.fail_after(ACT_S):
                    await act(host, peer_id)
                await host.get_network().close_peer(peer_id)

    trio.run(main)


async def drain(stream: Any) -> None:
    """Until the other side closes or resets the stream, or the connection is gone."""
    from libp2p.network.stream.exceptions import StreamError

    with contextlib.suppress(StreamError), trio.move_on_after(5):
        while await stream.read(4096):
            pass
