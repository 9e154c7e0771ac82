"""The duties of an event of custody: commit in time, recompute what others committed to, show what
is wrong or disputed (docs/spec/custody.md).

Only what is held here counts: what would have to be fetched first is not kept, and that is what
the chain asks.
"""

from __future__ import annotations

import asyncio
import logging

from chain import custody
from chain import custody_records as c
from chain.custody_records import CustodyStatus
from chain.errors import InputError, StorageError
from chain.hashes import Hash32
from chain.state import State
from chain.transactions import Custody, CustodyOpening
from node.services.custody_plan import CheckCustody, CommitCustody, OpenCustody, Suspect
from node.services.duty_context import DutyContext
from tiles import merkle
from tiles.store import TileStore

log = logging.getLogger("blyan.duties")


async def commit(context: DutyContext, duty: CommitCustody) -> None:
    """Commit to every subtile asked of us, or to nothing if one is not here (StorageError)."""
    event = _event(context.state(), duty.event)
    me = custody.member_of(event, context.account) if event is not None else None
    if event is None or me is None:
        return
    store = context.node.tiles.store

    def commitments() -> tuple[Hash32, ...]:
        return tuple(
            custody.commitment(context.account, event.seed, at, _subtile(store, event.places[at]))
            for at in custody.positions(event, me)
        )

    await context.send(Custody(event.seed, await asyncio.to_thread(commitments)))


async def check(context: DutyContext, duty: CheckCustody) -> None:
    """Note whose commitments to our subtiles are wrong; the plan then opens them in turn."""
    state = context.state()
    event = _event(state, duty.event)
    me = custody.member_of(event, context.account) if event is not None else None
    if event is None or me is None:
        return
    store = context.node.tiles.store
    wrong = await asyncio.to_thread(_wrong, state, event, me, store)
    for account, position in wrong:
        log.warning(
            "custodian %s committed to something else than place %d", account.hex(), position
        )
    context.custody.note(event.seed, wrong)


async def open_subtile(context: DutyContext, duty: OpenCustody) -> None:
    """Post a subtile with its path. StorageError if it is not here."""
    event = _event(context.state(), duty.event)
    if event is None:
        return
    place, store = event.places[duty.position], context.node.tiles.store

    def opening() -> CustodyOpening:
        data = _subtile(store, place)
        hashes = store.subtile_hashes(place.shard, place.shard_root, place.tile)
        proof = merkle.prove_subtile_of(hashes, place.tile_bytes, place.subtile)
        return CustodyOpening(duty.event, duty.custodian, duty.position, proof.siblings, data)

    await context.send(await asyncio.to_thread(opening))


def _event(state: State, name: Hash32) -> c.CustodyEvent | None:
    """The event if it is still in progress."""
    event = custody.current(state)
    return event if event is not None and event.seed == name else None


def _subtile(store: TileStore, place: c.CustodyPlace) -> bytes:
    """A named subtile from our own disk."""
    try:
        return store.read_subtiles(place.shard, place.shard_root, place.tile, place.subtile, 1)
    except (InputError, StorageError) as error:
        raise StorageError(
            f"custody asks for subtile {place.subtile} of tile {place.tile}, shard {place.shard}, "
            f"which is not here: {error}"
        ) from None


def _wrong(state: State, event: c.CustodyEvent, me: int, store: TileStore) -> tuple[Suspect, ...]:
    """Commitments of others to our places that are not what we compute."""
    found = []
    absent: list[StorageError] = []
    for at in custody.positions(event, me):
        others = [
            i
            for i in event.places[at].custodians
            if i != me and event.members[i].status == CustodyStatus.COMMITTED
        ]
        try:
            data = _subtile(store, event.places[at]) if others else b""
        except StorageError as error:
            absent.append(error)
            continue
        for other in others:
            account = event.members[other].account
            right = custody.commitment(account, event.seed, at, data)
            if custody.committed(state, event, other, at) != right:
                found.append((account, at))
    if absent:
        log.warning("others have to check %d of our places: %s", len(absent), absent[0])
    return tuple(found)
