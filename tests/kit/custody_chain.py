"""Custody events on a `LocalChain`, played by the keys of its validators."""

from __future__ import annotations

from typing import Any

from chain import custody
from chain import custody_records as c
from chain.custody_records import CustodyPhase
from chain.hashes import Hash32
from chain.transactions import Custody, CustodyDispute, CustodyOpening
from chain.types import Grains
from tests.kit.local_chain import LocalChain
from tiles import merkle
from wallet.keys import Keys

CUSTODY_PARAMS: dict[str, Any] = {
    "custody_interval_blocks": 4,
    "custody_commit": {"blocks": 3, "ms": 0},
    "custody_open": {"blocks": 6, "ms": 0},
    "custody_bond_grains": 10**6,
    "seed_blocks": 2,
}


def event_of(chain: LocalChain) -> c.CustodyEvent:
    found = custody.current(chain.state)
    if found is None:
        raise LookupError("no event is in progress")
    return found


def keys_of(chain: LocalChain, member: int) -> Keys:
    account = event_of(chain).members[member].account
    return next(v for v in chain.validators if v.account.public == account)


def subtile(chain: LocalChain, position: int) -> bytes:
    place = event_of(chain).places[position]
    store = chain.tiles.store
    return store.read_subtiles(place.shard, place.shard_root, place.tile, place.subtile, 1)


def commit(chain: LocalChain, member: int, *, lie: bool = False) -> None:
    event = event_of(chain)
    account = event.members[member].account
    made = tuple(
        custody.commitment(account, event.seed, at, b"?" if lie else subtile(chain, at))
        for at in custody.positions(event, member)
    )
    chain.duty(Custody(event.seed, made), keys_of(chain, member))


def opening(chain: LocalChain, member: int, position: int) -> CustodyOpening:
    event = event_of(chain)
    place = event.places[position]
    tile = chain.tiles.store.read_tile(place.shard, place.shard_root, place.tile)
    proof = merkle.prove_subtile(tile, place.subtile)
    return CustodyOpening(
        event.seed,
        event.members[member].account,
        position,
        proof.siblings,
        subtile(chain, position),
    )


def until(chain: LocalChain, phase: CustodyPhase | None) -> None:
    def there(_: object) -> bool:
        event = custody.current(chain.state)
        return (None if event is None else event.phase) == phase

    chain.until(there)


def troubled_event(chain: LocalChain) -> Hash32:
    """Of four custodians one lies and is convicted, one is silent, one is disputed falsely.
    The event's seed; it has ended."""
    until(chain, CustodyPhase.COMMIT)
    event = event_of(chain)
    first = event.places[0].custodians
    liar, honest, silent = first
    for member in range(len(event.members)):
        if member != silent:
            commit(chain, member, lie=member == liar)
    until(chain, CustodyPhase.DISPUTE)
    doubter = next(i for i in range(len(event.members)) if i not in (liar, honest))
    dispute = CustodyDispute(event.seed, event.members[honest].account, 0, Grains(10**6))
    chain.send(dispute, keys_of(chain, doubter).account)
    chain.block()
    chain.duty(opening(chain, liar, 0), keys_of(chain, honest))
    chain.block()
    chain.duty(opening(chain, honest, 0), keys_of(chain, honest))
    until(chain, None)
    return event.seed
