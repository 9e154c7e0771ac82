"""The model's tiles at a node: held here, or fetched tile by tile and verified on the way."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from chain import records as r
from chain.errors import BlyanError, InputError, QuotaError, StorageError, VerifyError
from chain.hashes import Hash32
from chain.store import ChainStore
from node.services.peers import Peers
from node.services.threads import to_the_end
from node.services.tile_fetch import TILE_S, TileFetcher
from node.services.tile_serve import TileServer
from node.services.tile_transfer import TileWant
from node.services.tile_wire import PROTOCOL
from tiles import merkle
from tiles.layout import ShardSpec
from tiles.store import TileStore

__all__ = ["PROTOCOL", "Holders", "RootsOf", "TileService", "chain_roots"]

log = logging.getLogger("blyan.tiles")

AT_ONCE = 16  # tiles of one call that wait for peers or the disk at a time
ROOTS_KEPT = 256  # versions whose tile roots are remembered
MENDING = 64  # damaged tiles that are fetched again in the background at a time

RootsOf = Callable[[int, Hash32], Sequence[Hash32]]
Holders = Callable[[int, Hash32, int], Sequence[str]]
Remake = Callable[[int, Hash32, int], bytes | None]
Key = tuple[int, Hash32, int]  # shard, shard root, tile


def chain_roots(
    store: ChainStore, specs: Sequence[ShardSpec], genesis: Sequence[Sequence[Hash32]]
) -> RootsOf:
    """Tile roots under whatever shard root was ever on this chain, or VerifyError."""

    def roots_of(index: int, root: Hash32) -> Sequence[Hash32]:
        if merkle.shard_root(genesis[index], specs[index].data_bytes) == root:
            return genesis[index]
        rows = store.history("shard", r.shard_key(index))
        while rows:
            for event in rows:
                if event.data["root"] == root.hex():
                    return tuple(Hash32(bytes.fromhex(t)) for t in event.data["tiles"])
            before = rows[-1].height, rows[-1].position
            rows = store.history("shard", r.shard_key(index), before=before)
        raise VerifyError(f"shard {index} never had the root {root.hex()} on this chain")

    return roots_of


class TileService:
    """Tile bytes by (shard, shard root, tile).

    `roots_of(shard, root)` gives the tile roots of a version that may be fetched, and raises
    VerifyError for any other. `holders(shard, root, tile)` names the peers to ask, best first;
    all connected ones until somebody knows better.
    """

    def __init__(
        self,
        store: TileStore,
        specs: Sequence[ShardSpec],
        net: Peers,
        roots_of: RootsOf,
    ) -> None:
        self.store, self.specs = store, tuple(specs)
        self.holders: Holders = self._connected
        # Whoever cares for room: before so many bytes are kept (QuotaError: they are not), and
        # when a version, or one tile of it, is used.
        self.make_room: Callable[[int], None] = lambda size_bytes: None
        self.touched: Callable[..., None] = lambda shard, root, tile=-1: None
        self.remake: Remake = lambda shard, root, tile: None  # a tile that needs no peer
        self.fetcher = TileFetcher(net)
        self.damaged = 0
        self._net = net
        self._roots_of = roots_of
        self._roots: OrderedDict[tuple[int, Hash32], tuple[Hash32, ...]] = OrderedDict()
        self._fetching: dict[Key, _Fetch] = {}
        self._mending: set[asyncio.Task[None]] = set()
        self._server = TileServer(store, self.specs, net, self._mend)

    # --- what is held, or fetched ---------------------------------------------------

    async def model(self, roots: Sequence[Hash32]) -> list[bytes]:
        """Data sections of all shards at these shard roots."""
        return [await self.shard(i, root) for i, root in enumerate(roots)]

    async def shard(self, index: int, root: Hash32) -> bytes:
        """One shard version, from here or from peers, every tile verified."""
        spec = self._spec(index)
        for _ in range(spec.tile_count + 1):  # each try mends at least one tile
            self.touched(index, root)
            if root not in self.store.versions(index):
                try:
                    await self.ensure(index, root)
                except StorageError as error:
                    level = logging.DEBUG if isinstance(error, QuotaError) else logging.WARNING
                    log.log(level, "shard %s is not kept: %s", spec.name, error)
                    return await self._unkept(spec, root)
            try:
                return await asyncio.to_thread(self.store.read_shard, index, root)
            except InputError:
                continue  # dropped meanwhile
            except StorageError as error:
                self.damaged += 1
                log.warning("%s; fetching it from a peer", error)
        return await self._unkept(spec, root)  # the disk takes no repair

    async def _unkept(self, spec: ShardSpec, root: Hash32) -> bytes:
        """A version that there is no room for, from the tiles that are here and those of peers."""
        data = bytearray(spec.data_bytes)
        for tile in range(spec.tile_count):
            start, end = spec.tile_range(tile)
            data[start:end] = await self.tile(spec.index, root, tile)
        return bytes(data)

    async def tile(
        self, index: int, root: Hash32, tile: int, *, timeout_s: float = TILE_S
    ) -> bytes:
        """One tile, from here or from a peer; a fetched one is kept if the disk takes it."""
        spec = self._spec(index)
        if not 0 <= tile < spec.tile_count:
            raise VerifyError(f"shard {spec.name} has no tile {tile}")
        self.touched(index, root, tile)
        if self.store.has_tile(index, root, tile):
            try:
                return await asyncio.to_thread(self.store.read_tile, index, root, tile)
            except InputError:
                log.debug("tile %d of shard %s has just been dropped", tile, spec.name)
            except StorageError as error:
                self.damaged += 1
                log.warning("%s; fetching it from a peer", error)
        return await self._shared(index, root, tile, timeout_s).bytes()

    async def ensure(
        self,
        index: int,
        root: Hash32,
        tiles: Iterable[int] | None = None,
        *,
        timeout_s: float = TILE_S,
    ) -> None:
        """Have these tiles of a version in the store (all if None), fetched in this order.

        Ends when all that could be had are there. Raises UnreachableError for the first that
        could not, QuotaError or StorageError if the disk refuses, InputError if the version was
        dropped meanwhile; what was fetched stays.
        """
        spec = self._spec(index)
        missing = set(await self._begin(index, root))
        wanted = range(spec.tile_count) if tiles is None else tiles
        queue = iter([t for t in dict.fromkeys(wanted) if t in missing])
        failures: list[BlyanError] = []

        async def work() -> None:
            for tile in queue:
                if any(isinstance(f, StorageError) for f in failures):
                    return  # the next would be refused as well
                try:
                    await self._shared(index, root, tile, timeout_s).stored()
                except BlyanError as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
        if failures:
            raise failures[0]

    def put_shard(self, index: int, data: bytes, root: Hash32) -> None:
        """Store a whole version. Raises VerifyError if `data` is not `root`."""
        self.store.put_shard(index, data, root)

    def tile_roots(self, index: int, root: Hash32) -> tuple[Hash32, ...]:
        """The tile roots of a version. Raises VerifyError for one that is not known to exist."""
        self._spec(index)
        key = index, root
        found = self._roots.get(key)
        if found is None:
            found = tuple(self._roots_of(index, root))
            self._roots[key] = found
            if len(self._roots) > ROOTS_KEPT:
                self._roots.popitem(last=False)
        return found

    # --- what others see ------------------------------------------------------------

    @property
    def fetched(self) -> int:
        """Tiles that came from peers."""
        return self.fetcher.fetched

    @property
    def lies(self) -> int:
        """Answers of peers that were not the tile."""
        return self.fetcher.lies

    def metrics(self) -> Mapping[str, int]:
        return {
            "tiles_fetched": self.fetcher.fetched,
            "tiles_fetched_bytes": self.fetcher.fetched_bytes,
            "tiles_fetch_rate": int(self.fetcher.rate),  # bytes a second
            "tiles_lies": self.fetcher.lies,
            "tiles_damaged": self.damaged,
            "tiles_served": self._server.served,
            "tiles_served_bytes": self._server.served_bytes,
        }

    async def close(self) -> None:
        """End all transfers. What is verified and stored stays."""
        mending = list(self._mending)
        for task in mending:
            task.cancel()
        await asyncio.gather(*mending, return_exceptions=True)
        await self.fetcher.close()

    # --- inside ---------------------------------------------------------------------

    def _spec(self, index: int) -> ShardSpec:
        if not 0 <= index < len(self.specs):
            raise VerifyError(f"the model has no shard {index}")
        return self.specs[index]

    def _connected(self, index: int, root: Hash32, tile: int) -> Sequence[str]:
        return [p.peer_id for p in self._net.peers() if p.connected]

    async def _begin(self, index: int, root: Hash32) -> list[int]:
        """Make room for a version; its missing tiles."""

        def begin() -> list[int]:  # the chain's history is read from the disk, too
            return self.store.begin(index, root, self.tile_roots(index, root))

        return await asyncio.to_thread(begin)

    def _shared(self, index: int, root: Hash32, tile: int, timeout_s: float) -> _Fetch:
        """The fetch of a tile; whoever asks for the same meanwhile shares it."""
        key = index, root, tile
        found = self._fetching.get(key)
        if found is None:
            found = _Fetch(self, key, timeout_s)
            self._fetching[key] = found
        return found

    def forget(self, key: Key, fetch: _Fetch) -> None:
        """A fetch is over, or nobody waits for it: the next caller begins anew."""
        if self._fetching.get(key) is fetch:
            del self._fetching[key]

    def _mend(self, index: int, root: Hash32, tile: int) -> None:
        """A held tile turned out to be damaged: fetch it again, in the background."""
        self.damaged += 1
        if len(self._mending) >= MENDING:
            return  # the next scrub finds it
        task = asyncio.create_task(self._mend_one(index, root, tile))
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)

    async def _mend_one(self, index: int, root: Hash32, tile: int) -> None:
        try:
            await self.ensure(index, root, [tile])
        except BlyanError as error:
            log.warning("tile %d of shard %d could not be mended: %s", tile, index, error)


class _Fetch:
    """One tile that is fetched and stored, for as many callers as ask for it."""

    def __init__(self, service: TileService, key: Key, timeout_s: float) -> None:
        self._service, self._key, self._timeout_s = service, key, timeout_s
        self._callers = 0
        self._copy: bytes | None = None
        self._wants_copy = False
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._over)

    async def stored(self) -> None:
        """Until the tile is in the store. Raises UnreachableError or StorageError."""
        refused = await self._wait()
        if refused is not None:
            raise refused

    async def bytes(self) -> bytes:
        """The tile, even if the disk has refused it. Raises UnreachableError."""
        self._wants_copy = True
        refused = await self._wait()
        if self._copy is not None:
            return self._copy
        if refused is not None:
            raise refused
        index, root, tile = self._key
        return await asyncio.to_thread(self._service.store.read_tile, index, root, tile)

    async def _wait(self) -> StorageError | None:
        self._callers += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._callers -= 1
            if not self._callers and not self._task.done():
                self._service.forget(self._key, self)
                self._task.cancel()

    def _over(self, task: asyncio.Task[StorageError | None]) -> None:
        self._service.forget(self._key, self)
        if not task.cancelled():
            task.exception()  # whoever still waits raises it; perhaps nobody does

    async def _run(self) -> StorageError | None:
        index, root, tile = self._key
        service = self._service
        made = await asyncio.to_thread(service.remake, index, root, tile)
        if made is not None:
            return await self._keep(memoryview(made))
        want = TileWant(
            index,
            root,
            tile,
            service.specs[index].tile_bytes(tile),
            service.tile_roots(index, root)[tile],
        )
        holders = service.holders(index, root, tile)
        async with service.fetcher.fetch(want, holders, timeout_s=self._timeout_s) as data:
            return await self._keep(data)

    async def _keep(self, data: memoryview) -> StorageError | None:
        """Put a verified tile into the store; the error if the disk refuses it."""
        if self._wants_copy:
            self._copy = bytes(data)
        try:  # to the end, since the thread reads `data`
            await to_the_end(asyncio.to_thread(self._store, data))
        except StorageError as error:
            level = logging.DEBUG if isinstance(error, QuotaError) else logging.WARNING
            log.log(level, "a fetched tile is not kept: %s", error)
            return error
        return None

    def _store(self, data: memoryview) -> None:
        index, root, tile = self._key
        store = self._service.store
        self._service.make_room(len(data))
        if not store.presence(index, root):
            store.begin(index, root, self._service.tile_roots(index, root))
        store.put_tile(index, root, tile, data)
