"""Which tiles this node holds, how it knows who holds the others, and how that heals
(docs/spec/placement.md).

What to keep is decided by `placement_plan` from the chain's election and from who is there. This
service looks at both, fetches what is missing, finds holders when no connected peer has a tile, and
says what it provides. It never blocks the node: without room or holders it says so and goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from chain import custody
from chain import records as r
from chain.errors import QuotaError, UnreachableError
from chain.hashes import ZERO_HASH, Hash32
from chain.limits import DEFAULT_CAPACITY_TILES
from chain.params import Genesis
from chain.state import State
from chain.types import Certificate, Height, PubKey
from node.services.custodians import GRACE_S, Custodians, Lacking, Standings, replicas
from node.services.holder_search import HolderSearch, PlacementChain, PlacementNet
from node.services.placement_plan import (
    Ahead,
    Keep,
    Tile,
    by_shard,
    fetch_order,
    keep,
    provider_keys,
    spread,
)
from node.services.presence import Presence, Versions
from node.services.tile_cache import TileCache
from node.services.tile_transfer import TileWant
from node.services.tiles import TileService

log = logging.getLogger("blyan.placement")

TICK_S = 5.0  # how often the plan is looked at again
CHUNK = 32  # tiles ordered by rarity and fetched together
URGENT = 1024  # shards of which something is missing that every look asks about
LOOK_S = 1.0  # presence is not asked for more often than this, whoever wants to fetch
FULL_S = 60.0  # how often a full disk is looked at again
MAX_LISTED = 32  # holders of a tile that are listed


class StorePort(Protocol):
    def certificate(self, height: Height) -> Certificate | None: ...


# Writes what can be made here of (shard, root) and these tiles, or of all if None.
Make = Callable[[int, Hash32, Sequence[int] | None], None]


@dataclass(slots=True)
class _Plan:
    """What is kept now, and what it follows from."""

    epochs: tuple[r.EpochRecord, ...] = ()
    before: tuple[Ahead, ...] = ()  # of each epoch
    kept: Keep = field(default_factory=lambda: Keep(frozenset(), 0))
    by_shard: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    target: int = 0
    gone: frozenset[PubKey] = frozenset()
    under: int = 0  # kept tiles that fewer hold than the target, as far as we know


class Placement:
    """One node's. `run` until cancelled. Belongs to one event loop."""

    def __init__(
        self,
        genesis: Genesis,
        account: PubKey,
        chain: PlacementChain,
        store: StorePort,
        tiles: TileService,
        net: PlacementNet,
        cache: TileCache,
        *,
        capacity_tiles: int = 0,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`capacity_tiles`: 0 for what the account has announced, else the default."""
        self._chain_id, self._target = genesis.chain_id, replicas(chain.state, genesis.params)
        self._account, self._chain, self._store = account, chain, store
        self._tiles, self._net, self.cache, self._clock = tiles, net, cache, clock
        self._capacity_set, self._tick_s = capacity_tiles, min(TICK_S, grace_s / 2)
        self._model: list[Tile] = [(s.index, t) for s in tiles.specs for t in range(s.tile_count)]
        self._custodians = Custodians(account, clock(), grace_s)
        self.presence = Presence(net, tiles.store, tiles.specs, self._of_interest)
        self._plan = _Plan()
        self._standings = Standings(account, self._model, self._target, chain.rules)
        self._lacking = Lacking()
        self._looked = self._full_since = -1e9
        self._model_roots: tuple[Hash32, dict[int, Hash32]] | None = None
        self._interest: tuple[Hash32, float, tuple[Versions, Versions]] | None = None
        self._search = HolderSearch(genesis.chain_id, account, chain, net, self.presence, clock)
        self._provided: dict[Hash32, None] = {}
        self._wake = asyncio.Event()
        self._planned = asyncio.Event()
        tiles.holders = self.holders
        tiles.fetcher.on_missing = self._missed
        tiles.make_room, tiles.touched = cache.make_room, cache.touch
        chain.finalized(self._finalized)
        net.on_peer(lambda *_: self._stir())
        if self.capacity(chain.state()) >= len(self._model):
            self._adopt(self._whole(chain.state()))

    # --- what duties ask --------------------------------------------------------------

    def holds(self, shard: int, root: Hash32) -> bool:
        """Whether all that this node keeps of a version is here, or nothing can be done about it:
        as long as there is no room, nothing is missed."""
        if self.cache.full is not None and self._clock() - self._full_since < FULL_S:
            return True
        return not self._missing_of(shard, root)

    def keeps(self, shard: int, tile: int) -> bool:
        """Whether a tile's newest version belongs here."""
        return (shard, tile) in self._plan.kept.tiles

    def wanted(self, shard: int) -> tuple[int, ...]:
        """The tiles of a shard that this node keeps."""
        return self._plan.by_shard.get(shard, ())

    def missing(self, state: State) -> dict[int, list[int]]:
        """Tiles of the newest model that this node keeps and has not, by shard."""
        roots = self._roots(state)
        missing = {s: self._missing_of(s, roots[s]) for s in self._plan.by_shard}
        return {shard: tiles for shard, tiles in missing.items() if tiles}

    async def hold(self, state: State, make: Make) -> None:
        """Have all of them: what can be made here, then from peers, rarest first.

        `make(shard, root, tiles)` writes what it can of a version, in a thread. Raises
        UnreachableError if some tile could not be had; what could be is here then. Without room it
        ends quietly, and says so in `info`.
        """
        roots = self._roots(state)
        try:
            for shard in self.missing(state):
                await self._make(shard, roots[shard], make)
            await self._fetch(self.missing(state), roots)
        except QuotaError as error:
            self.cache.note_full(error)
            self._full_since = self._clock()
        else:
            self.cache.note_room()

    async def _make(self, shard: int, root: Hash32, make: Make) -> None:
        wanted = self.wanted(shard)
        tiles = None if len(wanted) == self._tiles.specs[shard].tile_count else wanted
        await self._need_room(())
        try:
            await asyncio.to_thread(make, shard, root, tiles)
        except QuotaError:  # what is only cached gives way
            await self._need_room((shard, tile) for tile in self._missing_of(shard, root))
            await asyncio.to_thread(make, shard, root, tiles)
        tile_roots = self._tiles.tile_roots(shard, root)
        await asyncio.to_thread(self._tiles.store.begin, shard, root, tile_roots)

    async def _need_room(self, tiles: Iterable[Tile]) -> None:
        size = sum(self._tiles.specs[shard].tile_bytes(tile) for shard, tile in tiles)
        await asyncio.to_thread(self.cache.make_room, size)

    async def _fetch(self, missing: Mapping[int, list[int]], roots: Mapping[int, Hash32]) -> None:
        if not missing:
            return
        await self._look()
        held_by = self.presence.holdings.holders
        order = await asyncio.to_thread(
            fetch_order,
            [(shard, tile) for shard, tiles in missing.items() for tile in tiles],
            lambda tile: len(held_by(tile[0], roots[tile[0]], tile[1])),
            self._account,
        )
        failures: list[UnreachableError] = []
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            await self._need_room(chunk)
            failures += await self._fetch_chunk(chunk, roots)
        if failures:
            raise UnreachableError(f"{len(failures)} fetches failed, the first: {failures[0]}")

    # --- what others ask ----------------------------------------------------------------

    def holders(self, shard: int, root: Hash32, tile: int) -> Sequence[str]:
        """Connected peers to ask for a tile: those that say they hold it, then those of which it
        is not known; all if every one says that it does not."""
        connected = [p.peer_id for p in self._net.peers() if p.connected]
        said = {p: self.presence.holdings.holds(p, shard, root, tile) for p in connected}
        known = [p for p in connected if said[p]]
        return [*known, *(p for p in connected if said[p] is None)] or connected

    def _missed(self, peer: str, want: TileWant) -> None:
        self.presence.missed(peer, want.shard, want.root, want.tile)

    def info(self) -> dict[str, Any]:
        """For status, metrics and pages, in plain values."""
        plan, state = self._plan, self._chain.state()
        missing = sum(map(len, self.missing(state).values()))
        return {
            "model_tiles": len(self._model),
            "capacity_tiles": self.capacity(state),
            "replication_target": self._target(),
            "kept_tiles": len(plan.kept.tiles),
            "missing_tiles": missing,
            "beyond_capacity_tiles": plan.kept.beyond,
            "under_replicated_tiles": plan.under,
            "gone_custodians": sorted(a.hex() for a in plan.gone),
            "provided_keys": len(self._provided),
            "store_bytes": self._tiles.store.used_bytes,
            "store_quota_bytes": self.cache.quota_bytes,
            "evicted_tiles": self.cache.evicted,
            "no_room": self.cache.full,
        }

    def metrics(self) -> dict[str, int | float]:
        info = self.info()
        figures = {f"placement_{k}": v for k, v in info.items() if isinstance(v, int)}
        return {
            **figures,
            "placement_gone_custodians": len(info["gone_custodians"]),
            "placement_no_room": int(info["no_room"] is not None),
            "placement_false_claims_total": self.presence.false_claims,
        }

    def tile_info(self, shard: int, root: Hash32, tile: int) -> dict[str, Any]:
        """Who is known to hold a tile now: peer ids, our own first."""
        held = self._tiles.store.has_tile(shard, root, tile)
        peers = self.presence.holdings.holders(shard, root, tile)
        return {
            "replication_target": self._target(),
            "kept_here": self.keeps(shard, tile),
            "held_here": held,
            "holders": len(peers) + held,
            "peers": sorted(peers)[:MAX_LISTED],
        }

    def capacity(self, state: State) -> int:
        """Tiles that this node offers to keep."""
        return capacity_of(state, self._account, self._capacity_set)

    # --- life ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep plan, presence and provider records up to date."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.presence.run())
            group.create_task(self._keep_planning())

    async def planned(self) -> None:
        """Until there is a plan."""
        await self._planned.wait()

    async def _keep_planning(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._replan()
                await self._provide()
                if self.cache.full is not None and not self.missing(self._chain.state()):
                    self.cache.note_room()  # what there was no room for is not ours any more
            except Exception:
                log.exception("placement was not planned; it is tried again")
            try:
                async with asyncio.timeout(self._tick_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _stir(self) -> None:
        self._wake.set()
        self.presence.wake()

    def _finalized(self, block: Any, done: object = None) -> None:
        """Who has signed is there; a new epoch or model is planned for at once."""
        header, now = block.header, self._clock()
        certificate = self._store.certificate(Height(header.height))
        state = self._chain.state()
        if certificate is not None:
            epoch = state.get(r.EpochRecord, r.epoch_key(certificate.epoch))
            members = epoch.validators.members if epoch is not None else ()
            signed = [members[i].account for i in certificate.indices() if i < len(members)]
            self._custodians.signed(signed, now)
        self._pin(state)
        if self._plan.epochs and self._plan.epochs[0].epoch != header.epoch:
            self._wake.set()

    # --- planning -------------------------------------------------------------------------

    async def _replan(self) -> None:
        state, now = self._chain.state(), self._clock()
        epochs = self._epochs(state)
        members = {v.account: v.node_id for e in epochs for v in e.validators.members}
        connected = self._connected()
        self._custodians.connected([a for a, n in members.items() if n in connected], now)
        gone = self._custodians.gone(members, now)
        if self.capacity(state) >= len(self._model):
            await self._standings.ahead(epochs[1:])
            plan = self._whole(state)
        else:
            plan = await self._elected(state, epochs, gone)
        plan.gone = gone
        plan.under = await asyncio.to_thread(self._under, plan, self._roots(state))
        self._adopt(plan)

    def _epochs(self, state: State) -> tuple[r.EpochRecord, ...]:
        """This epoch and, its seed being known by now, the next: its tiles are fetched ahead."""
        number = state.head.epoch
        following = state.get(r.EpochRecord, r.epoch_key(number + 1))
        current = state.epoch(number)
        if following is None or following.seed == ZERO_HASH:
            return (current,)
        return current, following

    def _whole(self, state: State) -> _Plan:
        plan = _Plan(epochs=self._epochs(state), kept=Keep(frozenset(self._model), 0))
        plan.by_shard = by_shard(plan.kept.tiles)
        return plan

    async def _elected(
        self, state: State, epochs: tuple[r.EpochRecord, ...], gone: frozenset[PubKey]
    ) -> _Plan:
        """What falls to us in this epoch and, as far as there is room, in the next."""
        plan = _Plan(epochs=epochs, before=await self._standings.of(epochs, len(gone)))
        capacity, roots = self.capacity(state), self._roots(state)
        plan.kept = await asyncio.to_thread(self._choose, plan, capacity, roots, gone)
        plan.by_shard = by_shard(plan.kept.tiles)
        return plan

    def _choose(
        self, plan: _Plan, capacity: int, roots: Mapping[int, Hash32], gone: frozenset[PubKey]
    ) -> Keep:
        """In a thread: some microseconds a tile."""
        kept, beyond = frozenset[Tile](), 0
        for number, ahead in enumerate(plan.before):
            lacking = self._lacks(plan.epochs[0], ahead, roots) if number == 0 else {}
            part = keep(
                self._model,
                {t: others for t, others in ahead.items() if t not in kept},
                own=self._account,
                target=self._target(),
                capacity=capacity - len(kept),
                gone=gone,
                lacking=lacking,
            )
            kept |= part.tiles
            beyond += part.beyond if number == 0 else 0
        return Keep(kept, beyond)

    def _lacks(
        self, epoch: r.EpochRecord, before: Ahead, roots: Mapping[int, Hash32]
    ) -> dict[Tile, frozenset[PubKey]]:
        names = {v.account: v.node_id for v in epoch.validators.members}
        holdings = self.presence.holdings

        def says(account: PubKey, tile: Tile) -> bool | None:
            return holdings.holds(names[account], tile[0], roots[tile[0]], tile[1])

        return self._lacking.of(before, self._target(), says, self._clock())

    def _adopt(self, plan: _Plan) -> None:
        changed = plan.kept != self._plan.kept
        self._plan, self._interest = plan, None
        self._pin(self._chain.state())
        self._planned.set()
        if changed:
            log.info("keeping %d of %d tiles", len(plan.kept.tiles), len(self._model))
            self.presence.wake()

    def _under(self, plan: _Plan, roots: Mapping[int, Hash32]) -> int:
        """Kept tiles of which fewer holders are known than the target, or than there are nodes."""
        there = len(plan.epochs[0].validators.members) - len(plan.gone) if plan.epochs else 1
        target = max(1, min(self._target(), there))
        count = 0
        for shard, tiles in plan.by_shard.items():
            root = roots[shard]
            held = self._tiles.store.presence(shard, root)
            own = sum(1 << i for i, is_held in enumerate(held) if is_held)
            enough = self.presence.holdings.at_least(shard, root, target, own)
            count += sum(1 for t in tiles if not enough >> t & 1)
        return count

    # --- parts --------------------------------------------------------------------------

    def _roots(self, state: State) -> dict[int, Hash32]:
        """Shard roots of the newest model, read once a model."""
        root = state.model.root
        if self._model_roots is None or self._model_roots[0] != root:
            shards = range(len(self._tiles.specs))
            found = {i: state.need(r.ShardRecord, r.shard_key(i)).root for i in shards}
            self._model_roots = root, found
        return self._model_roots[1]

    def _missing_of(self, shard: int, root: Hash32) -> list[int]:
        wanted = self._plan.by_shard.get(shard, ())
        if not wanted:
            return []
        held = self._tiles.store.presence(shard, root)
        return [t for t in wanted if not held or not held[t]]

    def _of_interest(self) -> tuple[Versions, Versions]:
        """Shards of which something is missing here; others that we keep something of, or may.
        Each peer is asked about them: worked out at most once a second."""
        state, now = self._chain.state(), self._clock()
        if self._interest is not None:
            root, at, found = self._interest
            if root == state.model.root and now - at < LOOK_S:
                return found
        roots, missing = self._roots(state), self.missing(state)
        shards = dict.fromkeys(self._plan.by_shard)
        for before in self._plan.before:
            shards |= dict.fromkeys(shard for shard, _ in before)
        urgent = dict.fromkeys(sorted(missing)[:URGENT])
        others = [(s, roots[s]) for s in sorted(shards) if s not in urgent]
        found = [(s, roots[s]) for s in urgent], others
        self._interest = state.model.root, now, found
        return found

    def _pin(self, state: State) -> None:
        """What is kept by election stays in every version that is here (which of them stay is
        retention's business), and so does what custody may ask of us."""
        asked = {(shard, tile) for shard, _, tile in custody.custody_tiles(state, self._account)}
        kept = self._plan.kept.tiles
        self.cache.pinned = kept | asked if asked - kept else kept

    # --- fetching -----------------------------------------------------------------------

    async def _look(self) -> None:
        """Presence, as it is now."""
        if self._clock() - self._looked >= LOOK_S:
            self._looked = self._clock()
            await self.presence.ask_all()

    async def _fetch_chunk(
        self, chunk: Sequence[Tile], roots: Mapping[int, Hash32]
    ) -> list[UnreachableError]:
        """Failures, one a shard. QuotaError if there is no room."""
        parts = by_shard(chunk).items()
        done = await asyncio.gather(
            *(self._fetch_of(shard, roots[shard], tiles) for shard, tiles in parts),
            return_exceptions=True,
        )
        for result in done:
            if isinstance(result, BaseException) and not isinstance(result, UnreachableError):
                raise result
        return [result for result in done if isinstance(result, UnreachableError)]

    async def _fetch_of(self, shard: int, root: Hash32, tiles: Sequence[int]) -> None:
        known = self._connected()
        try:
            await self._tiles.ensure(shard, root, tiles)
        except UnreachableError:
            held = self._tiles.store.presence(shard, root)
            left = [t for t in tiles if not held or not held[t]] or tiles
            found = await self._search.seek((shard, left[0]))
            if not found and self._connected() <= known:
                raise
            await self._tiles.ensure(shard, root, tiles)

    def _connected(self) -> set[str]:
        return {p.peer_id for p in self._net.peers() if p.connected}

    # --- telling ------------------------------------------------------------------------

    async def _provide(self) -> None:
        """Give out records of what is held beside what the chain says of us."""
        state, plan = self._chain.state(), self._plan
        missing = {(s, t) for s, tiles in self.missing(state).items() for t in tiles}
        held = plan.kept.tiles - missing
        before = plan.before[0] if plan.before else {}

        def ordered() -> list[Hash32]:
            keys = provider_keys(self._chain_id, self._model, held, before, self._target())
            return sorted(keys, key=lambda key: spread(self._account, (key[0], key[1])))

        keys = dict.fromkeys(await asyncio.to_thread(ordered))
        for key in [k for k in self._provided if k not in keys]:
            self._net.withdraw(key)
            del self._provided[key]
        for key in keys:
            if key not in self._provided and self._net.provide(key):
                self._provided[key] = None


def capacity_of(state: State, account: PubKey, configured: int) -> int:
    """Tiles that a node offers to keep: as configured, else announced, else the default."""
    if configured:
        return configured
    announced = state.get(r.NodeRecord, r.node_key(account))
    return (announced.capacity_tiles if announced else 0) or DEFAULT_CAPACITY_TILES
