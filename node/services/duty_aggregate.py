"""The duties of custodians: aggregate, recompute what others aggregated, hold the result
(docs/spec/rounds.md, "Aggregation").
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence

from chain import limits, momentum
from chain import records as r
from chain.codec import decode, encode
from chain.errors import InputError, StorageError
from chain.hashes import Hash32
from chain.state import State
from chain.transactions import Attest, AttestKind, TileChange, TileUpdate, Transaction, Verdict
from chain.types import ShardIndex, TileIndex, TxId
from node.services.duty_context import DutyContext
from node.services.duty_plan import Aggregate, CheckUpdate, HoldModel
from node.services.duty_plan import tiles_to_update as due_tiles
from node.services.new_versions import NewVersions
from tiles.aggregate import TileResult, aggregate_tile
from tiles.delta import PayloadTile, SectionSource
from tiles.momentum import share_of
from tiles.parts import NoDelta, TileDelta
from tiles.stored import StoredPayload

log = logging.getLogger("blyan.duties")
UPDATE_BYTES = limits.MAX_TX_BYTES - 1024  # room for the transaction around the changes


async def aggregate(context: DutyContext, duty: Aggregate) -> None:
    """Update every tile whose turn is ours, in as few transactions as they fit into."""
    state = context.state()
    current = state.round(duty.round)
    if (current.phase, current.rank) != (r.RoundPhase.AGGREGATE, duty.rank):
        return
    work = _Round(context, state, current, await _payloads(context, state, current))
    changes = []
    for shard, tile in due_tiles(state, context.rules, current, context.account):
        changes.append(await work.change(shard, tile))
    updates = [
        TileUpdate(duty.round, duty.rank, current.base_root, group) for group in pack(changes)
    ]
    for update in updates:
        await context.send(update)


async def check_update(context: DutyContext, duty: CheckUpdate) -> None:
    """Recompute an update to the byte and say whether it is right."""
    state = context.state()
    current = state.round(duty.round)
    stored = context.node.store.tx(duty.update)
    update = update_of(stored.raw if stored else None, duty.update)
    work = _Round(context, state, current, await _payloads(context, state, current))
    right = True
    for change in update.changes:
        own = await work.change(change.shard, change.tile)
        if own != change:
            log.warning(
                "update %s is wrong at shard %d, tile %d",
                duty.update.hex()[:16],
                change.shard,
                change.tile,
            )
            right = False
            break
    verdict = Verdict.YES if right else Verdict.NO
    await context.send(
        Attest(AttestKind.UPDATE, duty.round, Hash32(duty.update), verdict, 0, current.base_root)
    )


async def hold_model(context: DutyContext, duty: HoldModel) -> None:
    """Have what this node keeps of the newest model: from what it made, else from peers."""
    tiles = context.node.tiles
    made = NewVersions(
        tiles.store, tiles.specs, context.node.history, context.files, context.local_payloads
    )
    await context.node.placement.hold(context.state(), made.write)
    log.info("holding model %s", duty.root.hex()[:16])


# --- recomputing -----------------------------------------------------------------------


async def _payloads(
    context: DutyContext, state: State, current: r.RoundRecord
) -> list[StoredPayload]:
    """Payloads of the accepted deltas in the state's order: the aggregation's whole input."""
    records = [state.delta(delta) for delta in current.accepted]
    most = context.bound.of_round(state, current.number)
    return await asyncio.gather(*(context.payloads.get(record, most) for record in records))


class _Round:
    """The aggregation of one round, tile by tile."""

    def __init__(
        self,
        context: DutyContext,
        state: State,
        current: r.RoundRecord,
        payloads: Sequence[SectionSource],
    ) -> None:
        self._context, self._payloads, self._number = context, payloads, current.number
        self._roots = {
            i: state.need(r.ShardRecord, r.shard_key(i)).root for i in range(state.model.shards)
        }
        self._tile_roots = {i: state.need(r.TileRoots, r.tiles_key(i)).roots for i in self._roots}
        self._share = share_of(context.params().momentum_ppm)
        numbers = self._roots if self._share else ()
        found = {i: momentum.past(state, current.number, i) for i in numbers}
        self._past = {i: past for i, past in found.items() if past is not None}

    async def change(self, shard: int, tile: int) -> TileChange:
        """One tile's change; the new tile is on disk before anyone hears of it. A base tile that is
        not kept here comes from a peer."""
        base = await self._context.node.tiles.tile(shard, self._roots[shard], tile)
        past, before = self._past.get(shard), None
        if past is not None and past.roots[tile] != self._tile_roots[shard][tile]:
            before = await self._context.node.tiles.tile(shard, past.root, tile)
        return await asyncio.to_thread(self._change, base, before, shard, tile)

    def _change(self, base: bytes, before: bytes | None, shard: int, tile: int) -> TileChange:
        """In a thread. `before`: the tile one version earlier, if it moves on from there."""
        result = self._aggregate(base, before, shard, tile)
        self._context.files.save_tile(self._number, result.new_root, result.new_tile)
        return TileChange(
            ShardIndex(shard),
            TileIndex(tile),
            self._tile_roots[shard][tile],
            result.new_root,
            result.gram_root,
            result.gram_total_bytes,
            result.weights,
        )

    def _aggregate(self, base: bytes, before: bytes | None, shard: int, tile: int) -> TileResult:
        deltas = list(self._deltas(len(base) // 4, shard, tile))
        return aggregate_tile(base, deltas, before, self._share)

    def _deltas(self, elements: int, shard: int, tile: int) -> Iterator[TileDelta]:
        """Each delta's share of the tile; nothing where it has not trained the shard."""
        specs = self._context.node.tiles.specs
        for payload in self._payloads:
            if payload.has(shard):
                yield PayloadTile(payload, specs, shard, tile)
            else:
                yield NoDelta(elements)


def pack(changes: Sequence[TileChange]) -> Iterator[tuple[TileChange, ...]]:
    """Changes in groups that one `tile_update` can carry."""
    group: list[TileChange] = []
    size = 0
    for change in changes:
        length = len(encode(change))
        if length > UPDATE_BYTES:
            raise InputError(f"a tile change of {length} bytes does not fit a transaction")
        if group and (size + length > UPDATE_BYTES or len(group) == limits.MAX_TILE_CHANGES):
            yield tuple(group)
            group, size = [], 0
        group.append(change)
        size += length
    if group:
        yield tuple(group)


def update_of(raw: bytes | None, update: TxId) -> TileUpdate:
    """The tile update in a stored transaction."""
    if raw is None:
        raise StorageError(f"the chain names update {update.hex()}, but its bytes are not here")
    tx: Transaction = decode(Transaction, raw)
    if not isinstance(tx.payload, TileUpdate) or tx.id() != update:
        raise StorageError(f"transaction {update.hex()} is no tile update")
    return tx.payload
