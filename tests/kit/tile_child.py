"""A process that fetches one shard and may be killed at any moment.

    python -m tests.kit.tile_child ADDRESS DIRECTORY BYTES TILE_ROOT…

It writes `have N` once tile N is in its store, and `whole` at the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from chain.hashes import Hash32
from node.net.port import Network
from node.services.tiles import TileService
from tiles import merkle
from tiles.layout import ShardSpec, TensorSpec
from tiles.store import TileStore


def shard_spec(size: int) -> ShardSpec:
    return ShardSpec(0, "layers.0.experts.0", "sparse", (TensorSpec("w", "F32", (size // 4,)),))


async def main(address: str, directory: str, size: int, roots: list[Hash32]) -> None:
    net = Network(hashlib.sha256(b"child").digest())
    await net.start()
    store = TileStore(Path(directory), [shard_spec(size)])
    tiles = TileService(store, [shard_spec(size)], net, lambda shard, root: roots)
    root = merkle.shard_root(roots, size)
    await net.dial(address)

    async def have(tile: int) -> None:
        await tiles.ensure(0, root, [tile])
        print("have", tile, flush=True)

    await asyncio.gather(*(have(tile) for tile in range(len(roots))))
    print("whole", flush=True)
    await tiles.close()
    store.close()
    await net.stop()


if __name__ == "__main__":
    _, address, directory, size, *roots = sys.argv
    asyncio.run(main(address, directory, int(size), [Hash32(bytes.fromhex(r)) for r in roots]))
