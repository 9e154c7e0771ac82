"""What all duties work with: the node, the model's shape, the worker, and the data of the round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from chain import records as r
from chain.errors import BlyanError, TxError, VerifyError
from chain.hashes import Hash32
from chain.params import Genesis, Params
from chain.receipts import Receipt
from chain.rules import Rules
from chain.state import State
from chain.store_rows import StoredTx
from chain.transactions import Payload
from chain.types import BlobId, PubKey, TxId
from corpus.batches import Assignment
from node import round_specs
from node.data import RoundData, fetch_round_data
from node.round_specs import RoundSpecs
from node.sealed import unseal
from node.services.bundles import BundlePiece, pieces_of
from node.services.custody_plan import CustodyChecks
from node.services.duty_files import DutyFiles
from node.services.new_versions import local_payloads
from node.services.payload_bound import PayloadBound
from node.services.placement import Make
from node.services.round_payloads import RoundPayloads
from node.services.versions import VersionHistory
from node.worker.client import Worker
from tiles.layout import ShardSpec
from tiles.store import TileStore
from tiles.stored import StoredPayload

log = logging.getLogger("blyan.duties")


class ChainPort(Protocol):
    @property
    def rules(self) -> Rules: ...

    def state(self) -> State: ...

    def finalized(self, callback: Callable[..., None]) -> object: ...


class BlobPort(Protocol):
    def has(self, blob_id: BlobId) -> bool: ...

    def local(self, blob_id: BlobId) -> bytes | None: ...

    async def get(self, blob_id: BlobId, most: int = ..., *, keep: bool = ...) -> bytes: ...

    async def host(self, data: bytes) -> None: ...

    async def get_checkpoint(
        self, state_hash: Hash32, most: int = ..., check: Callable[[bytes], bool] = ...
    ) -> bytes: ...


class BundlePort(Protocol):
    async def have(self, pieces: Sequence[BundlePiece], most: int) -> None: ...


class TilePort(Protocol):
    @property
    def specs(self) -> tuple[ShardSpec, ...]: ...

    @property
    def store(self) -> TileStore: ...

    async def shard(self, index: int, root: Hash32) -> bytes: ...

    async def tile(self, index: int, root: Hash32, tile: int) -> bytes: ...


class PlacementPort(Protocol):
    """What this node keeps of the model (node/services/placement.py)."""

    def holds(self, shard: int, root: Hash32) -> bool: ...

    async def hold(self, state: State, make: Make) -> None: ...


class StorePort(Protocol):
    def tx(self, tx_id: TxId) -> StoredTx | None: ...


class HomePort(Protocol):
    path: Path


class DutyNode(Protocol):
    """What duties need of a node."""

    genesis: Genesis
    account: PubKey

    @property
    def home(self) -> HomePort: ...

    @property
    def store(self) -> StorePort: ...

    @property
    def chain(self) -> ChainPort: ...

    @property
    def history(self) -> VersionHistory: ...

    @property
    def blobs(self) -> BlobPort: ...

    @property
    def bundles(self) -> BundlePort: ...

    @property
    def tiles(self) -> TilePort: ...

    @property
    def placement(self) -> PlacementPort: ...

    async def submit_duty(self, payload: Payload) -> Receipt: ...

    def round_trips(self) -> Mapping[str, float]:
        """Milliseconds to each connected peer and back, by peer id."""


class InHand:
    """Work of one kind that is under way: `with` it, or wait until none is."""

    def __init__(self) -> None:
        self._count, self._none = 0, asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def over(self, most_s: float) -> None:
        """Until none is under way, at most so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._none.wait()


class DutyContext:
    """Shared by the duties of one node; caches only what is costly and of the newest round."""

    def __init__(self, node: DutyNode, worker: Worker) -> None:
        self.node, self.worker = node, worker
        self.account = node.account
        self.files = DutyFiles(node.home.path / "duties")
        self.payloads = RoundPayloads(
            node.home.path / "duties" / "payloads", node.tiles.specs, node.blobs
        )
        self.bound = PayloadBound(node.genesis)
        self.custody = CustodyChecks()
        self.screens = InHand()
        self._sending: set[asyncio.Future[Receipt]] = set()
        self._data: tuple[Hash32, asyncio.Task[RoundData]] | None = None
        self._prepared: tuple[int, int] = (-1, 0)  # round, and of how many deltas

    @property
    def rules(self) -> Rules:
        return self.node.chain.rules

    def state(self) -> State:
        return self.node.chain.state()

    def params(self) -> Params:
        """Those in force."""
        return self.state().params(self.node.genesis.params)

    def specs(self, round_: int) -> RoundSpecs:
        """What a round trains, and how."""
        return round_specs.of_round(self.state(), self.node.genesis, round_)

    async def send(self, payload: Payload) -> None:
        """Send a duty and wait for its receipt. TxError if it was refused.

        Once sent it is seen through even if the duty is dropped meanwhile: its nonce stands before
        those of later duties, which would wait for ever if nobody minded that it is refused.
        """
        sending = asyncio.ensure_future(self.node.submit_duty(payload))
        self._sending.add(sending)
        sending.add_done_callback(self._sent)
        receipt = await asyncio.shield(sending)
        if not receipt.ok:
            raise TxError(receipt.code, receipt.reason)

    def _sent(self, sending: asyncio.Future[Receipt]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled() and (error := sending.exception()) is not None:
            log.debug("a duty was not taken: %s", error)  # whoever still waits hears it, too

    def holds(self, shard: int, root: Hash32) -> bool:
        return self.node.placement.holds(shard, root)

    async def newest_model(self, state: State, shards: Sequence[int] | None = None) -> list[bytes]:
        """Data sections of the state's model, or of some of its shards, from here or from peers,
        verified."""
        wanted = range(state.model.shards) if shards is None else shards
        records = [state.need(r.ShardRecord, r.shard_key(i)) for i in wanted]
        return [await self.node.tiles.shard(s.index, s.root) for s in records]

    async def payload(self, record: r.DeltaRecord) -> bytes:
        """A revealed delta's payload, in memory: for one duty, and not for all of a round's.
        UnreachableError if nobody has its blob, VerifyError if it does not open with the salt or is
        larger than any payload."""
        most = self.bound.of_round(self.state(), record.round)
        if record.blob_bytes > most:
            raise VerifyError(f"a payload of {record.blob_bytes} bytes, at most {most} expected")
        blob = await self.node.blobs.get(record.blob, most=most)
        return await asyncio.to_thread(unseal, blob, record.salt)

    def is_prepared(self, current: r.RoundRecord) -> bool:
        """Whether what the screen of a round will need is here, as far as it can be."""
        return not current.deltas or self._prepared == (current.number, len(current.deltas))

    async def prepare(self, current: r.RoundRecord) -> None:
        """Have it, before anybody waits. Blobs are sealed until their reveal; with a copy here a
        learner's own node may go. What cannot be had is asked for again when it is needed."""
        state = self.state()
        most = self.bound.of_round(state, current.number)
        pieces = pieces_of(map(state.delta, current.deltas), most)
        payloads = self.node.bundles.have(pieces, most)
        rest = (self.worker.profile(), self.round_data(current))  # a process, with torch
        for found in await asyncio.gather(payloads, *rest, return_exceptions=True):
            if isinstance(found, BlyanError):
                log.debug("not ready for the screen of round %d: %s", current.number, found)
            elif isinstance(found, BaseException):
                raise found
        self._prepared = (current.number, len(current.deltas))

    def local_payloads(self, round_: int) -> list[StoredPayload] | None:
        """Payloads of the deltas that a round accepted, if all are here; for a thread."""
        return local_payloads(self.state(), self.params(), self.payloads, self.node.blobs, round_)

    async def round_data(self, record: r.RoundRecord) -> RoundData:
        """Text of the round's datasets, fetched and split once however many ask."""
        if self._data is not None and self._data[0] == record.holdout:
            task = self._data[1]
            if not (task.done() and (task.cancelled() or task.exception())):
                return await asyncio.shield(task)
        state = self.state()
        records = [state.dataset(dataset) for dataset in record.datasets]
        fetching = asyncio.create_task(fetch_round_data(records, self.blob, self.keep))
        self._data = (record.holdout, fetching)
        return await asyncio.shield(fetching)

    async def blob(self, blob: BlobId, most: int) -> bytes:
        """A part of a dataset that is still to be checked, and so is not kept yet."""
        return await self.node.blobs.get(blob, most=most, keep=False)

    async def keep(self, data: bytes) -> None:
        """Host a part of a dataset that was checked."""
        await self.node.blobs.host(data)

    async def assignment(self, record: r.RoundRecord, learner: PubKey) -> Assignment:
        """A learner's data of a round."""
        data, specs = await self.round_data(record), self.specs(record.number)
        return Assignment(
            data.train,
            record.seed,
            learner,
            record.number,
            steps=specs.training.steps,
            batch=specs.training.batch,
            context=specs.model.context,
        )

    async def close(self) -> None:
        for sending in list(self._sending):
            sending.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        await self.payloads.close()
        if self._data is not None:
            self._data[1].cancel()
        await self.worker.close()

    def late(self, record: r.RoundRecord, window_ms: int) -> bool:
        """Whether half of the phase has passed: then waiting longer would cost the round."""
        return self.state().head.time_ms >= record.deadline_ms - window_ms // 2
