"""Rows of `bench.tiles` about moving tiles between processes on loopback.

Every node is a process of its own: a server with the network port, a store and the service that
answers for tiles; a client with the network port and the fetcher, which verifies every subtile as
it arrives into its buffers. The floor moves the same bytes over one bare asyncio TLS connection
on uvloop, into a preallocated buffer, unverified. A child takes its task as one JSON line on
stdin and answers with JSON lines.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bare_tls import BareReceiver, BareSender, contexts
from bench.measure import Row, Sizes, at_least, at_most, quantile
from chain import limits

ROOT = Path(__file__).resolve().parent.parent
CHILD_S = 120.0  # the longest that a child may be silent
LINKS_S = 10.0  # until links must be up
WARM_TILES = 8  # fetched before the clock starts, from one honest server
Json = dict[str, Any]


# --- children --------------------------------------------------------------------------------


def say(answer: Json) -> None:
    print(json.dumps(answer), flush=True)


def make_network(seed: int) -> Any:
    """A network port that notes whom it is told to blame."""
    from node.net.port import Network

    class Noting(Network):
        blamed: dict[str, str]

        def report(self, peer: str, reason: str, weight: float) -> None:
            self.blamed[peer] = reason
            super().report(peer, reason, weight)

    network = Noting(bytes([seed]) * 32, link_port=0)
    network.blamed = {}
    return network


async def serve(task: Json) -> None:
    """A server, until stdin ends. With `lies`, a bit of the last subtile of each answer is
    wrong."""
    from node.services.tile_serve import TileServer
    from tiles.layout import ShardSpec, TensorSpec
    from tiles.store import TileStore

    network = make_network(task["seed"])
    spec = ShardSpec(0, "expert", "sparse", (TensorSpec("w", "F32", (task["bytes"] // 4,)),))
    store = TileStore(Path(task["directory"]), [spec])
    honest = network.serve
    if task["lies"]:
        network.serve = lambda name, handler, **rest: honest(name, lying(handler), **rest)
    TileServer(store, [spec], network, lambda *_: None)
    network.serve = honest
    await network.start()
    settle()
    say({"address": network.addresses()[0], "peer": network.peer_id})
    await stdin_line()
    await network.stop()
    store.close()


def lying(handler: Callable[[str, bytes], Awaitable[Any]]) -> Callable[[str, bytes], Any]:
    async def answer(peer: str, data: bytes) -> Any:
        parts = list(await handler(peer, data))
        if parts and len(parts[-1]) > limits.SUBTILE_BYTES // 2:
            wrong = bytearray(parts[-1])
            wrong[-1] ^= 1
            parts[-1] = wrong
        return parts

    return answer


async def fetch(task: Json) -> None:
    """Fetch all tiles from the servers named, and say how long it took and who lied."""
    from chain.hashes import Hash32
    from node.services.tile_fetch import TileFetcher
    from node.services.tile_transfer import TileWant

    network = make_network(task["seed"])
    await network.start()
    for address in task["addresses"]:
        await network.dial(address)
    links = await links_up(network, len(task["addresses"]))
    fetcher = TileFetcher(network)
    size, tile_bytes = task["bytes"], limits.TILE_BYTES
    root = Hash32(bytes.fromhex(task["root"]))
    wants = [
        TileWant(0, root, tile, min(tile_bytes, size - tile * tile_bytes), Hash32(name))
        for tile, name in enumerate(map(bytes.fromhex, task["tiles"]))
    ]

    async def one(want: TileWant) -> None:
        async with fetcher.fetch(want, task["peers"]):
            pass

    settle()
    if task["warm"]:
        await asyncio.gather(*(one(want) for want in wants[:WARM_TILES]))
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(want) for want in wants))
    taken, used = time.perf_counter() - began, time.process_time() - cpu
    say({"seconds": taken, "cpu_s": used, "blamed": network.blamed, "links": links})
    await fetcher.close()
    await network.stop()


def settle() -> None:
    """As a node does once it runs: what was imported is not garbage to be looked for."""
    gc.collect()
    gc.freeze()


async def links_up(network: Any, count: int) -> int:
    """Wait for so many links; how many there are. Without them tiles go over libp2p."""
    deadline = time.monotonic() + LINKS_S
    while True:
        links = sum(link.up for link in network.link_info())
        if links >= count or time.monotonic() > deadline:
            return links
        await asyncio.sleep(0.05)


async def bare_serve(task: Json) -> None:
    server, _ = contexts(Path(task["directory"]))
    loop = asyncio.get_running_loop()
    sender = BareSender(task["bytes"])
    listening = await loop.create_server(lambda: sender, "127.0.0.1", 0, ssl=server)
    say({"port": listening.sockets[0].getsockname()[1]})
    await stdin_line()
    listening.close()


async def bare_fetch(task: Json) -> None:
    _, client = contexts(Path(task["directory"]))
    loop = asyncio.get_running_loop()
    done: asyncio.Future[float] = loop.create_future()
    receiver = BareReceiver(task["bytes"], task["hashes"], done)
    transport, _ = await loop.create_connection(
        lambda: receiver, "127.0.0.1", task["port"], ssl=client
    )
    began = time.perf_counter()
    transport.write(b"go")
    say({"seconds": await done - began})
    transport.close()


async def stdin_line() -> bytes:
    """The next line, or nothing at the end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return await reader.readline()


# --- the parent ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """What the servers hold: directories with the same version."""

    directories: list[Path]
    bytes: int
    root: str
    tiles: list[str]


def hold(sizes: Sizes) -> Held:
    """Stores with one version, the files of all but the first being links to those of the first."""
    from bench.tile_store import noise
    from tiles.layout import ShardSpec, TensorSpec
    from tiles.store import TileStore
    from tiles.tree import ShardTree

    data = noise(sizes.transfer_mib << 20)
    tree = ShardTree.of_data(data)
    spec = ShardSpec(0, "expert", "sparse", (TensorSpec("w", "F32", (len(data) // 4,)),))
    directories = [sizes.directory / f"server-{i}" for i in range(sizes.servers)]
    with TileStore(directories[0], [spec]) as store:
        store.put_shard(0, data, tree.root)
    for other in directories[1:]:
        for path in sorted(directories[0].rglob("*")):
            target = other / path.relative_to(directories[0])
            if path.is_dir():
                target.mkdir(parents=True)
            elif path.name != "lock":
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)
    tiles = [root.hex() for root in tree.tile_roots]
    return Held(directories, len(data), tree.root.hex(), tiles)


@asynccontextmanager
async def child(**task: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child at its task, ended with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.tile_transfer", json.dumps(task)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        limit=1 << 24,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def answer(process: asyncio.subprocess.Process) -> Json:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), CHILD_S)
    if not line:
        raise RuntimeError("a child ended without an answer; its error stands above")
    said: Json = json.loads(line)
    return said


async def over_links(held: Held, servers: int, liar: bool) -> tuple[float, Json, str | None]:
    """(MB/s, what the client says, peer id of the liar) of one fetch of everything."""
    async with AsyncExitStack() as stack:
        born = []
        for i in range(servers):
            lies = liar and i == servers - 1
            process = await stack.enter_async_context(
                child(
                    do="serve",
                    seed=i + 1,
                    directory=str(held.directories[i]),
                    bytes=held.bytes,
                    lies=lies,
                )
            )
            born.append(await answer(process))
        client = await stack.enter_async_context(
            child(
                do="fetch",
                seed=99,
                addresses=[b["address"] for b in born],
                peers=[b["peer"] for b in born],
                bytes=held.bytes,
                root=held.root,
                tiles=held.tiles,
                warm=servers == 1,
            )
        )
        said = await answer(client)
    return held.bytes / 1e6 / said["seconds"], said, born[-1]["peer"] if liar else None


async def over_bare(held: Held, directory: Path, *, hashes: bool) -> float:
    """MB/s over one bare TLS connection."""
    task = {"directory": str(directory), "bytes": held.bytes, "hashes": hashes}
    async with child(do="bare_serve", **task) as server:
        port = (await answer(server))["port"]
        async with child(do="bare_fetch", port=port, **task) as client:
            return held.bytes / 1e6 / float((await answer(client))["seconds"])


def transfer(sizes: Sizes) -> Iterator[Row]:
    """All tiles of an expert from one process to another, verified, over a link. `of_bare`: of a
    bare connection's speed; `of_hashed`: of one whose receiver hashes what it gets. Speeds are the
    best of the runs, since whatever else wants the cores only takes from them; shares are the
    median of the turns, in which both meet the same."""
    held = hold(sizes)

    ours: list[float] = []
    bare: list[float] = []
    hashed: list[float] = []

    async def measure() -> int:
        links = 0
        for _ in range(2 * sizes.repeats):
            speed, said, _ = await over_links(held, 1, liar=False)
            ours.append(speed)
            links = said["links"]
            bare.append(await over_bare(held, sizes.directory, hashes=False))
            hashed.append(await over_bare(held, sizes.directory, hashes=True))
        return links

    links = asyncio.run(measure())
    of_bare, of_hashed = (
        quantile([100 * mine / other for mine, other in zip(ours, others, strict=True)], 0.5)
        for others in (bare, hashed)
    )
    yield at_least("transfer_speed", max(ours), "MB/s", 700.0, max(bare))
    yield at_least("transfer_of_bare", of_bare, "%", 85.0, 100.0)
    yield at_least("transfer_of_hashed", of_hashed, "%", None, 100.0)
    yield at_least("transfer_links", links, "links", 1)
    drop(held)


def peers(sizes: Sizes) -> Iterator[Row]:
    """The same from four peers at once, all honest and with one of them lying."""
    held = hold(sizes)

    async def measure() -> tuple[list[float], list[float], int, int]:
        honest, lied, named, wrong = [], [], 0, 0
        for _ in range(sizes.repeats):
            honest.append((await over_links(held, sizes.servers, liar=False))[0])
            speed, said, liar = await over_links(held, sizes.servers, liar=True)
            lied.append(speed)
            named += liar in said["blamed"]
            wrong += len(set(said["blamed"]) - {liar})
        return honest, lied, named, wrong

    honest, lied, named, wrong = asyncio.run(measure())
    floor = quantile(honest, 0.5)
    yield at_least("peers_one_lying", quantile(lied, 0.5), "MB/s", 0.85 * floor, floor)
    yield at_least("peers_liar_named", 100 * named / sizes.repeats, "%", 100.0)
    yield at_most("peers_wrongly_named", wrong, "peers", 0.0)
    drop(held)


def drop(held: Held) -> None:
    for directory in held.directories:
        shutil.rmtree(directory)


TASKS: dict[str, Callable[[Json], Awaitable[None]]] = {
    "serve": serve,
    "fetch": fetch,
    "bare_serve": bare_serve,
    "bare_fetch": bare_fetch,
}


def main(arguments: Sequence[str]) -> None:
    import uvloop

    logging.basicConfig(level=logging.ERROR)  # liars are counted, not told of
    task = json.loads(arguments[0])
    uvloop.run(TASKS[task.pop("do")](task))


if __name__ == "__main__":
    main(sys.argv[1:])
