"""Peers that answer for tiles with something else, over real networks on loopback: the asker has
its tiles in the end, knows who lied, and nothing unverified reached its disk or anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from chain import limits
from chain.codec import decode
from chain.errors import DecodeError, UnreachableError, VerifyError
from chain.hashes import Hash32
from node.net.identity import Address
from node.services.tile_wire import PROTOCOL, TileRequest, read_request
from node.services.tiles import TileService
from tests.kit.net import Station, stations
from tiles import merkle
from tiles.layout import ShardSpec, TensorSpec
from tiles.store import TileStore

STEP = limits.SUBTILE_BYTES
SIZE = 2 * limits.TILE_BYTES + 5 * STEP + 100
SPEC = ShardSpec(0, "layers.0.experts.0", "sparse", (TensorSpec("w", "F32", (SIZE // 4,)),))
DATA = random.Random(7).randbytes(SIZE)
ROOTS = merkle.tile_roots(DATA)
ROOT = merkle.shard_root(ROOTS, SIZE)
LINK = "/blyan/consensus/1"

Spoil = Callable[[TileRequest, bytearray], object]


def roots_of(shard: int, root: Hash32) -> Sequence[Hash32]:
    return ROOTS


def answer_to(request: TileRequest) -> bytearray:
    """What an honest peer answers."""
    start = request.tile * limits.TILE_BYTES
    data = DATA[start : start + limits.TILE_BYTES]
    hashes = b"".join(merkle.subtile_hashes(data)) if request.hashes else b""
    first, end = request.first * STEP, (request.first + request.count) * STEP
    return bytearray(hashes + data[first:end])


class Node:
    """A station that holds the shard, or wants it."""

    def __init__(self, station: Station, directory: Path, *, holds: bool) -> None:
        self.net = station.net
        self.store = TileStore(directory / station.id, [SPEC])
        self.tiles = TileService(self.store, [SPEC], station.net, roots_of)
        if holds:
            self.store.put_shard(0, DATA, ROOT)

    async def close(self) -> None:
        await self.tiles.close()
        self.store.close()


def serve_spoilt(station: Station, spoil: Spoil) -> None:
    async def lie(peer: str, data: bytes) -> bytes:
        request: TileRequest = decode(TileRequest, data)
        answer = answer_to(request)
        spoil(request, answer)
        return bytes(answer)

    station.net.serve(PROTOCOL, lie, most=64, concurrent=16)


@contextlib.asynccontextmanager
async def linked(*names: str, links: bool = True) -> AsyncIterator[list[Station]]:
    """Stations of which the first has a link to each other one, or none at all."""
    options = {"link_port": 0} if links else {}
    async with stations(*names, **options) as made:
        if links:
            net = made[0].net
            await made[0].until(lambda: sum(i.up for i in net.link_info()) == len(names) - 1)
        yield made


def play(directory: Path, spoil: Spoil, act: Callable[..., Awaitable[None]], links: bool) -> None:
    """A node without the shard, a bad one, and an honest one that comes up second."""

    async def scenario() -> None:
        async with linked("asker", "bad", "honest", links=links) as (a, b, c):
            serve_spoilt(b, spoil)
            asker, honest = Node(a, directory, holds=False), Node(c, directory, holds=True)
            asker.tiles.holders = lambda shard, root, tile: [b.id, c.id]
            await act(asker, a, b)
            assert asker.store.scrub() == []
            await asker.close()
            await honest.close()

    asyncio.run(scenario())


def flip(at: int) -> Spoil:
    return lambda request, answer: answer.__setitem__(at, answer[at] ^ 1)


def swap(request: TileRequest, answer: bytearray) -> None:
    """Two subtiles of the same tile change places."""
    at = 32 * 16 if request.hashes else 0
    first, second = answer[at : at + STEP], answer[at + STEP : at + 2 * STEP]
    answer[at : at + 2 * STEP] = second + first


def other_tile(request: TileRequest, answer: bytearray) -> None:
    """Hashes and bytes of another tile of the same shard."""
    other = TileRequest(
        request.shard, request.root, 1 - request.tile % 2, request.first, request.count, 1
    )
    answer[:] = answer_to(other)[-len(answer) :]


LIES = {
    "a flipped bit in the last byte": flip(-1),
    "a flipped bit in a hash": flip(5),
    "two subtiles swapped": swap,
    "another tile": other_tile,
    "zeros": lambda request, answer: answer.__setitem__(slice(None), bytes(len(answer))),
}


@pytest.mark.parametrize(
    ("name", "links"), [*((name, True) for name in LIES), ("a flipped bit in the last byte", False)]
)
def test_lies_name_their_sender(name: str, links: bool, tmp_path: Path) -> None:
    async def act(asker: Node, a: Station, b: Station) -> None:
        assert await asker.tiles.shard(0, ROOT) == DATA
        assert asker.tiles.lies >= 1
        await a.until(lambda: all(p.violations >= 49 for p in a.net.peers() if p.peer_id == b.id))
        assert all(p.violations == 0 for p in a.net.peers() if p.peer_id != b.id)

    play(tmp_path, LIES[name], act, links)


@pytest.mark.parametrize(
    ("name", "links"),
    [
        *((name, True) for name in ("too much", "too little", "60 MiB", "nothing")),
        *((name, False) for name in ("too much", "too little")),
    ],
)
def test_answers_of_another_length(name: str, links: bool, tmp_path: Path) -> None:
    spoils: dict[str, Spoil] = {
        "too much": lambda request, answer: answer.extend(bytes(STEP)),
        "too little": lambda request, answer: answer.__delitem__(slice(len(answer) // 2, None)),
        "60 MiB": lambda request, answer: answer.extend(bytes(60 * 1024 * 1024)),
        "nothing": lambda request, answer: answer.clear(),
    }

    async def act(asker: Node, a: Station, b: Station) -> None:
        assert await asker.tiles.shard(0, ROOT) == DATA
        assert asker.tiles.lies == 0
        blamed = {p.peer_id for p in a.net.peers() if p.violations > 1}
        assert blamed <= {b.id}

    play(tmp_path, spoils[name], act, links)


def test_a_peer_that_never_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with linked("asker", "silent", "honest") as (a, b, c):
            asker, honest = Node(a, tmp_path, holds=False), Node(c, tmp_path, holds=True)

            async def silent(peer: str, data: bytes) -> bytes:
                await asyncio.get_running_loop().create_future()
                raise AssertionError

            b.net.serve(PROTOCOL, silent, most=64, concurrent=16)
            asker.tiles.holders = lambda shard, root, tile: [b.id, c.id]
            async with asyncio.timeout(45):
                assert await asker.tiles.shard(0, ROOT) == DATA
            asker.store.drop(0, ROOT)
            asker.tiles.holders = lambda shard, root, tile: [b.id]
            with pytest.raises(UnreachableError, match="has sent 0 of"):
                await asker.tiles.tile(0, ROOT, 1, timeout_s=0.5)
            await asker.close()
            await honest.close()

    asyncio.run(scenario())


def drip(target: str, tiles_asked: list[int], stop: trio.Event) -> Any:
    """A libp2p host connected to `target` that answers with a byte a second."""
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    from node.net.bridge import Metrics
    from node.net.guards import build_host

    async def on_tile(stream: Any) -> None:
        raw = await stream.read(4096)
        request: TileRequest = decode(TileRequest, raw[4:])
        tiles_asked.append(request.tile)
        answer = answer_to(request)
        await stream.write(b"\0" + len(answer).to_bytes(4, "big"))
        for byte in answer:
            await stream.write(bytes([byte]))
            with trio.move_on_after(1):
                await trio.sleep_forever()

    async def on_link(stream: Any) -> None:
        """Answers pings, so that it counts as alive."""
        while data := await stream.read(4096):
            if len(data) >= 13 and data[4] == 1:
                await mine.write(data[:4] + b"\x02" + data[5:13])

    host = build_host(random.Random(3).randbytes(32), Metrics(), lambda *_: None)
    mine: Any = None

    async def main() -> None:
        nonlocal mine
        peer = ID.from_string(Address.parse(target).peer_id)
        host.set_stream_handler(PROTOCOL, on_tile)
        host.set_stream_handler(LINK, on_link)
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            await host.get_network().dial_addr(Multiaddr(target), peer)
            mine = await host.new_stream(peer, [LINK])
            with trio.fail_after(30):
                await stop.wait()
            await host.get_network().close_peer(peer)

    return str(host.get_id()), main


def test_a_peer_that_sends_one_byte_a_second(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stations("asker", "honest") as (a, b):
            asker, honest = Node(a, tmp_path, holds=False), Node(b, tmp_path, holds=True)
            asked: list[int] = []
            stop = trio.Event()
            name, main = drip(a.address, asked, stop)
            token: list[Any] = []

            async def run() -> None:
                token.append(trio.lowlevel.current_trio_token())
                await main()

            attacker = asyncio.create_task(asyncio.to_thread(trio.run, run))
            await a.until(lambda: name in a.connected)
            asker.tiles.holders = lambda shard, root, tile: [name, b.id]
            async with asyncio.timeout(45):
                assert await asker.tiles.shard(0, ROOT) == DATA
            assert asked
            token[0].run_sync_soon(stop.set)
            await attacker
            await asker.close()
            await honest.close()

    asyncio.run(scenario())


def test_a_peer_that_goes_away_in_the_middle(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with linked("asker", "leaves", "honest") as (a, b, c):
            asker, honest = Node(a, tmp_path, holds=False), Node(c, tmp_path, holds=True)

            async def leave(peer: str, data: bytes) -> bytes:
                leaving.append(asyncio.create_task(b.net.stop()))
                return bytes(answer_to(decode(TileRequest, data)))

            leaving: list[asyncio.Task[None]] = []
            b.net.serve(PROTOCOL, leave, most=64, concurrent=16)
            asker.tiles.holders = lambda shard, root, tile: [b.id, c.id]
            async with asyncio.timeout(45):
                assert await asker.tiles.shard(0, ROOT) == DATA
            await asyncio.gather(*leaving)
            await asker.close()
            await honest.close()

    asyncio.run(scenario())


def test_askers_that_ask_for_what_cannot_exist(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with linked("asker", "holder") as (a, b):
            holder = Node(b, tmp_path, holds=True)
            bad = TileRequest(0, ROOT, 9, 0, 1, 0).encoded()
            for data in (b"", b"x" * 40, bad):
                answer = await a.net.request(b.id, PROTOCOL, data, timeout_s=60, most=10)
                assert answer == b""
            await b.until(lambda: any(p.violations > 25 for p in b.net.peers()))
            good = TileRequest(0, ROOT, 2, 5, 1, 0)
            answer = await a.net.request(b.id, PROTOCOL, good.encoded(), timeout_s=60, most=STEP)
            assert answer == answer_to(good) == DATA[-100:]
            await holder.close()

    asyncio.run(scenario())


def test_requests_of_random_bytes_are_refused_or_meant() -> None:
    chance = random.Random(11)
    good = TileRequest(0, ROOT, 2, 1, 4, 1).encoded()
    meant = 0
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            data = data[: chance.randrange(len(data))] + chance.randbytes(chance.randrange(40))
        try:
            request = read_request(bytes(data), [SPEC])
        except (DecodeError, VerifyError):
            continue
        meant += 1
        assert request.encoded() == data
        assert answer_to(request)
    assert meant
