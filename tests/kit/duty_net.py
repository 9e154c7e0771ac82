"""Validators with their real duties on one `LocalChain`: what a network does in a learning round,
without network and consensus.

Each validator has its own home and tile store; they share one chain, one blob store and one worker
process. A block is made whenever transactions wait or the state needs one, never by a clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from chain import phases
from chain import records as r
from chain.errors import UnreachableError
from chain.hashes import BLOB, Hash32
from chain.receipts import Receipt
from chain.records import RoundPhase
from chain.state import State
from chain.transactions import Payload
from chain.types import BlobId, Block, TxId
from node.mempool import Mempool
from node.services.bundles import BundlePiece
from node.services.duties import Duties
from node.services.placement import Make
from node.worker.client import Worker
from tests.kit.local_chain import LocalBlobs, LocalChain
from tiles.layout import ShardSpec
from tiles.store import TileStore
from wallet.keys import Keys

PATIENT = {"blocks": 100_000, "ms": 100_000_000}  # windows that only a finished phase ends
PARAMS: dict[str, Any] = {
    "train": PATIENT,
    "reveal": PATIENT,
    "screen": PATIENT,
    "aggregate": PATIENT,
    "join": {"blocks": 1, "ms": 1000},
    "settle": {"blocks": 1, "ms": 1000},
}


@dataclass
class LocalHome:
    path: Path


class SharedBlobs:
    """The chain's blobs with the ports that duties ask."""

    def __init__(self, blobs: LocalBlobs) -> None:
        self._blobs = blobs

    def has(self, blob_id: BlobId) -> bool:
        return self._blobs.local(blob_id) is not None

    def local(self, blob_id: BlobId) -> bytes | None:
        return self._blobs.local(blob_id)

    async def host(self, data: bytes) -> None:
        self._blobs.put(data)

    async def get(self, blob_id: BlobId, most: int = 1 << 26, *, keep: bool = True) -> bytes:
        data = await self._blobs.get(blob_id)
        if len(data) > most or BLOB.hash(data) != blob_id:
            raise UnreachableError("a blob that is not what was asked for")
        return data

    async def get_checkpoint(
        self, state_hash: Hash32, most: int = 1 << 26, check: Callable[[bytes], bool] = bool
    ) -> bytes:
        data = await self._blobs.get_checkpoint(state_hash)
        if not check(data):
            raise UnreachableError("a checkpoint that is not what was asked for")
        return data


class OneByOne:
    """Bundles without peers that serve any: every piece is asked for alone."""

    def __init__(self, blobs: SharedBlobs) -> None:
        self._blobs = blobs

    async def have(self, pieces: Sequence[BundlePiece], most: int) -> None:
        for piece in pieces:
            with suppress(UnreachableError):
                await self._blobs.get(piece.blob, most=most)


class OwnTiles:
    """One validator's store; what it lacks comes from another's."""

    def __init__(self, net: DutyNet, directory: Path, specs: tuple[ShardSpec, ...]) -> None:
        self._net, self.specs = net, specs
        self.store = TileStore(directory, specs)
        self.fetched = 0

    async def shard(self, index: int, root: Hash32) -> bytes:
        if root not in self.store.versions(index):
            for other in self._net.nodes:
                if root in other.tiles.store.versions(index):
                    data = other.tiles.store.read_shard(index, root)
                    self.store.put_shard(index, data, root)
                    self.fetched += 1
                    break
            else:
                raise UnreachableError(f"nobody has shard {index} at {root.hex()}")
        return self.store.read_shard(index, root)

    async def tile(self, index: int, root: Hash32, tile: int) -> bytes:
        if not self.store.has_tile(index, root, tile):
            await self.shard(index, root)
        return self.store.read_tile(index, root, tile)


class WholeModel:
    """The placement of a node that keeps everything."""

    def __init__(self, tiles: OwnTiles) -> None:
        self._tiles = tiles

    def holds(self, shard: int, root: Hash32) -> bool:
        return all(self._tiles.store.presence(shard, root) or (False,))

    async def hold(self, state: State, make: Make) -> None:
        for shard in range(state.model.shards):
            root = state.need(r.ShardRecord, r.shard_key(shard)).root
            if not self.holds(shard, root):
                await asyncio.to_thread(make, shard, root, None)
            if not self.holds(shard, root):
                await self._tiles.shard(shard, root)


class DutyNode:
    """A validator, as `node.services.duty_context.DutyNode` wants one."""

    def __init__(self, net: DutyNet, keys: Keys, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._net, self._keys = net, keys
        self.genesis, self.account = net.local.genesis, keys.account.public
        self.home = LocalHome(directory)
        self.store, self.chain = net.local.store, net.local.chain
        self.history = net.local.history
        self.blobs = SharedBlobs(net.local.blobs)
        self.bundles = OneByOne(self.blobs)
        self.tiles = OwnTiles(net, directory / "tiles", net.local.tiles.specs)
        self.placement = WholeModel(self.tiles)
        self.sent: list[Payload] = []
        self.far: dict[str, float] = {}  # peer ids, ms

    def round_trips(self) -> dict[str, float]:
        return self.far

    async def submit_duty(self, payload: Payload) -> Receipt:
        self.sent.append(payload)
        return await self._net.receipt(self._net.local.duty(payload, self._keys))


class DutyNet:
    """Use as an async context: duties and block production run inside."""

    def __init__(self, directory: Path, *, learners: int = 2, **options: Any) -> None:
        (directory / "chain").mkdir()
        self.local = LocalChain(directory / "chain", learners=3, **(PARAMS | options))
        self.local.pool = Mempool(
            self.local.genesis, self.local.rules, self.local.chain.state, self._announce
        )
        self.learners = learners  # that a round waits for before its join window closes
        self.worker = Worker(nice=0)
        self._wake = asyncio.Event()
        self._waiting: dict[TxId, asyncio.Future[Receipt]] = {}
        self.nodes: list[DutyNode] = []
        for i, keys in enumerate(self.local.validators):
            self.nodes.append(DutyNode(self, keys, directory / f"node-{i}"))
        for spec in self.local.tiles.specs:
            (root,) = self.local.tiles.store.versions(spec.index)
            for node in self.nodes:
                node.tiles.store.put_shard(
                    spec.index, self.local.tiles.read(spec.index, root), root
                )
        self.local.tiles = self.nodes[0].tiles  # the API serves what the first validator holds
        self.duties = [Duties(node, self.worker) for node in self.nodes]
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self.local.chain.finalized(self._final)

    @property
    def state(self) -> State:
        return self.local.state

    async def __aenter__(self) -> DutyNet:
        self._tasks = [asyncio.create_task(d.run()) for d in self.duties]
        self._tasks.append(asyncio.create_task(self._produce()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for duties in self.duties:
            await duties.close()
        self.local.store.close()
        for result in ended:
            if isinstance(result, Exception):
                raise result

    async def receipt(self, tx_id: TxId) -> Receipt:
        """The receipt of a transaction that waits, once it is final."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[tx_id] = future
        found: Receipt = await future
        return found

    async def until(self, reached: Callable[[State], bool]) -> None:
        """Until something holds in the state; the chain moves by itself."""
        moved = asyncio.Event()
        self.local.chain.finalized(lambda *_: moved.set())
        while not reached(self.state):
            await moved.wait()
            moved.clear()

    def _announce(self, raw: bytes) -> None:
        self._wake.set()

    def _final(self, block: Block, done: Any) -> None:
        for receipt in done.receipts:
            future = self._waiting.pop(receipt.tx_id, None)
            if future is not None and not future.done():
                future.set_result(receipt)

    async def _produce(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self.local.block()
            while self.local.pool.size or self._needs_block():
                await asyncio.sleep(0)
                self.local.block()

    def _needs_block(self) -> bool:
        """Whether the round goes on with time alone."""
        current = self.state.round()
        if phases.waits_for_blocks(self.state):
            return True
        if current.phase == RoundPhase.OPEN:
            return len(current.joined) >= self.learners
        return current.phase == RoundPhase.SETTLE and current.loss_after != 0
