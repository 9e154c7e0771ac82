"""Snapshots for peers: of the state at fixed heights, made when they are asked for.

The states are kept by their trees, which share what has not changed since; parts and chunks are
made in threads, few at a time and with pauses, since this process has votes to cast.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from chain.codec import decode, encode
from chain.errors import DecodeError, UnreachableError
from chain.execute import Executed
from chain.hashes import Hash32
from chain.light import LightBlock
from chain.snapshot import Place, SnapshotManifest, make_chunk, places, plan
from chain.tree import StateTree
from chain.types import Block, Height
from node.net.priority import Priority
from node.services.chain import ChainService
from node.services.peers import Peers
from node.services.snapshot_wire import (
    KEPT,
    MAX_REQUEST_BYTES,
    PROTOCOL,
    ChunkRequest,
    LightRequest,
    ManifestRequest,
    Offers,
    OffersRequest,
    SnapshotRequest,
)
from node.services.threads import Workers

CONCURRENT = 8  # answers at a time, one peer half of them: 32 MiB at most
MAKING = 1  # of them so many that are made
CACHED = 4  # encoded chunks: whoever fetches at the same time asks for the same
PAUSE_S = 0.005  # after some milliseconds of work
POINTS_IMPOSSIBLE = 10.0


@dataclass(slots=True)
class _Kept:
    """The state after a block, held so that it stays. `listed` once somebody has asked for it."""

    tree: StateTree
    listed: SnapshotManifest | None = None
    places: dict[Hash32, Place] = field(default_factory=dict)


class SnapshotServer:
    """Keeps the states of the newest snapshot heights, and answers for them."""

    def __init__(self, chain: ChainService, net: Peers) -> None:
        self._chain, self._net = chain, net
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._cache: OrderedDict[Hash32, bytes] = OrderedDict()
        self._making, self._planning = Workers(MAKING), asyncio.Lock()
        self.served = self.served_bytes = 0
        self._keep_newest()
        chain.finalized(self._finalized)
        net.serve(
            PROTOCOL,
            self.answer,
            most=MAX_REQUEST_BYTES,
            concurrent=CONCURRENT,
            priority=Priority.BULK,
        )

    @property
    def heights(self) -> tuple[int, ...]:
        """Of the snapshots that are offered, the newest first."""
        return tuple(sorted(self._kept, reverse=True))

    def _finalized(self, block: Block, done: Executed) -> None:
        height = block.header.height
        self._keep(height, self._chain.store.tree_at(height) or done.tree)

    def _keep_newest(self) -> None:
        """Those that this node still has, after a start."""
        tip, interval = self._chain.tip.height, self._chain.genesis.params.snapshot_blocks
        newest = tip - tip % interval
        for height in range(newest - (KEPT - 1) * interval, newest + 1, interval):
            tree = self._chain.tree_at(height)
            if tree is not None:
                self._keep(height, tree)

    def _keep(self, height: int, tree: StateTree) -> None:
        if height <= 0 or height % self._chain.genesis.params.snapshot_blocks:
            return
        self._kept[height] = _Kept(tree)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    async def answer(self, peer: str, data: bytes) -> bytes:
        try:
            request: SnapshotRequest = decode(SnapshotRequest, data)
        except DecodeError as error:
            self._net.report(peer, f"snapshot: {error}", POINTS_IMPOSSIBLE)
            raise
        match request:
            case OffersRequest():
                found = tuple(Height(h) for h in self.heights if h > request.above)
                return encode(Offers(found))
            case LightRequest():
                return encode(light_block(self._chain, request.height))
            case ManifestRequest():
                return encode(await self._manifest(request.height))
            case ChunkRequest():
                return await self._chunk(request)

    async def _manifest(self, height: int) -> SnapshotManifest:
        kept = self._of(height)
        async with self._planning:  # who asks meanwhile gets the same
            if kept.listed is None:
                header = self._chain.store.header(Height(height))
                if header is None:
                    raise UnreachableError(f"block {height} is not here")
                parts = await self._making.run(plan, self._tree(height, kept), _pause)
                listed = SnapshotManifest(header, parts)
                found = zip(parts, places(listed), strict=True)
                kept.places = {part.hash: place for part, place in found if part.size}
                kept.listed = listed
            return kept.listed

    async def _chunk(self, request: ChunkRequest) -> bytes:
        kept = self._of(request.height)
        if kept.listed is None:
            await self._manifest(request.height)
        place = kept.places.get(request.hash)
        if place is None:
            raise UnreachableError(f"the snapshot of height {request.height} has no such part")
        data = self._cache.get(request.hash)
        if data is None:
            data = await self._making.run(_encoded, self._tree(request.height, kept), place)
            self._cache[request.hash] = data
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        self.served += 1
        self.served_bytes += len(data)
        return data

    def _tree(self, height: int, kept: _Kept) -> StateTree:
        """To be read through and let go: a tree keeps in memory what is read of it."""
        return self._chain.store.tree_at(height) or kept.tree

    def _of(self, height: int) -> _Kept:
        kept = self._kept.get(height)
        if kept is None:
            raise UnreachableError(f"there is no snapshot of height {height} here")
        return kept


def _encoded(tree: StateTree, place: Place) -> bytes:
    return encode(make_chunk(tree, place))


def _pause() -> None:
    time.sleep(PAUSE_S)


def light_block(chain: ChainService, height: int) -> LightBlock:
    """What shows that the block of a height is final. UnreachableError if this node cannot."""
    found = chain.certified(height)
    if found is None:
        raise UnreachableError(f"this node cannot show that a block {height} is final")
    headers, certificate = found
    validators = chain.validators_at(headers[-1].epoch)
    if validators is None:
        raise UnreachableError(f"the validators of epoch {headers[-1].epoch} are forgotten here")
    return LightBlock(headers, certificate, validators)
