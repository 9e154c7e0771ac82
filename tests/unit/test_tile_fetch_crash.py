"""`kill -9` in the middle of a fetch: what was said to be stored is there, nothing else is
believed, and the next start goes on from it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from chain import limits
from chain.codec import decode
from node.net.requests import Content
from node.services.tile_serve import TileServer
from node.services.tile_wire import PROTOCOL, TileRequest
from tests.kit.net import stations
from tests.kit.tile_child import shard_spec
from tests.kit.wire import Wire
from tiles import merkle
from tiles.store import TileStore

SIZE = 6 * limits.TILE_BYTES + 500_000
DATA = random.Random(5).randbytes(SIZE)
ROOTS = merkle.tile_roots(DATA)
ROOT = merkle.shard_root(ROOTS, SIZE)
ROOT_DIRECTORY = Path(__file__).parents[2]


class Killer:
    """Serves the shard; at the request that was agreed on it kills who asked."""

    def __init__(self, store: TileStore) -> None:
        self._wire = Wire()
        TileServer(store, [shard_spec(SIZE)], self._wire, lambda *_: None)
        self.requests: list[int] = []  # tiles
        self.kill_at: int | None = None  # number of requests of this life
        self.child: asyncio.subprocess.Process | None = None

    async def __call__(self, peer: str, data: bytes) -> Content:
        request: TileRequest = decode(TileRequest, data)
        self.requests.append(request.tile)
        if len(self.requests) == self.kill_at and self.child is not None:
            os.kill(self.child.pid, signal.SIGKILL)
        answer: Content = await self._wire.handler(peer, data)
        return answer


async def live(killer: Killer, address: str, directory: Path, kill_at: int | None) -> list[str]:
    """One life of the child; the lines that it wrote to their end."""
    killer.requests, killer.kill_at = [], kill_at
    arguments = [address, str(directory), str(SIZE), *(root.hex() for root in ROOTS)]
    killer.child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kit.tile_child", *arguments),
        cwd=ROOT_DIRECTORY,
        stdout=asyncio.subprocess.PIPE,
    )
    written, _ = await asyncio.wait_for(killer.child.communicate(), 180)
    return written.decode().split("\n")[:-1]


def present(directory: Path) -> set[int]:
    """Tiles that a fresh look at the store finds, all of them sound."""
    with TileStore(directory, [shard_spec(SIZE)]) as store:
        assert store.scrub() == []
        held = {i for i, here in enumerate(store.presence(0, ROOT)) if here}
        for tile in held:
            start = tile * limits.TILE_BYTES
            assert store.read_tile(0, ROOT, tile) == DATA[start : start + limits.TILE_BYTES]
    return held


def test_a_fetch_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stations("holder") as (holder,):
            store = TileStore(tmp_path / "holder", [shard_spec(SIZE)])
            store.put_shard(0, DATA, ROOT)
            held: set[int] = set()
            killer = Killer(store)
            holder.net.serve(PROTOCOL, killer, most=64, concurrent=16)
            for kill_at in (3, 2, None):
                lines = await live(killer, holder.address, tmp_path / "child", kill_at)
                asked = set(killer.requests)
                assert not asked & held, "what was stored is not fetched again"
                said = {int(line.split()[1]) for line in lines if line.startswith("have")}
                now = present(tmp_path / "child")
                assert held | said <= now <= held | asked
                held = now
            assert lines[-1] == "whole"
            assert len(held) == 7
            store.close()

    asyncio.run(scenario())
