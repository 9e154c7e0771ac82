"""Which tiles a node keeps, fetches first and throws away first, as pure functions
(docs/spec/placement.md).

The custody order of a tile is the election's (consensus/custodians.py). Everyone knows it, so
nobody has to agree with anybody: a node keeps a tile if fewer than the replication target of those
that stand before it are there. When one of them goes, exactly the next in the order steps in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from chain.hashes import Context, Hash32
from chain.types import ChainId, PubKey, ShardIndex, TileIndex
from consensus.custodians import CustodyOrder
from consensus.election import tile_subject

GROUP_TILES = 64  # consecutive tiles of a shard that share one provider record
Tile = tuple[int, int]  # shard, tile
Ahead = Mapping[Tile, tuple[PubKey, ...]]  # of each tile that may be ours: who stands before us

_SPREAD = Context("placement")  # orders what is equal, differently at each node
_PROVIDE = Context("provide")


# --- what to keep -----------------------------------------------------------------------


def standing(
    order: CustodyOrder, account: PubKey, tiles: Iterable[Tile], depth: int
) -> dict[Tile, tuple[PubKey, ...]]:
    """The tiles before which fewer than `depth` others stand, and who they are.

    With as many candidates gone as `depth` exceeds the replication target, no other tile can
    fall to us.
    """
    accounts, listed = order.layout.accounts, list(tiles)
    if account not in accounts or depth <= 0:
        return {}
    subjects = [tile_subject(ShardIndex(shard), TileIndex(tile)) for shard, tile in listed]
    leading = order.leading(subjects, depth)
    rows, ranks = (leading == accounts.index(account)).nonzero()
    return {
        listed[row]: tuple(accounts[i] for i in leading[row, :rank].tolist())
        for row, rank in zip(rows.tolist(), ranks.tolist(), strict=True)
    }


@dataclass(frozen=True, slots=True)
class Keep:
    """What a node keeps now. `beyond`: tiles that fell to it and for which it has no capacity."""

    tiles: frozenset[Tile]
    beyond: int


def keep(
    model: Sequence[Tile],
    before: Ahead,
    *,
    own: bytes,
    target: int,
    capacity: int,
    gone: Collection[PubKey] = frozenset(),
    lacking: Mapping[Tile, Collection[PubKey]] | None = None,
) -> Keep:
    """The tiles to keep: all if there is room for the whole model, else those before which fewer
    than `target` stand that are neither gone nor known to lack them.

    Beyond the capacity those go first to which we are only a substitute, then the higher ranks;
    of equals each node keeps others (`own`: its public key).
    """
    if capacity >= len(model):
        return Keep(frozenset(model), 0)
    known = lacking or {}
    fell: list[tuple[bool, int, bytes, Tile]] = []
    for tile, others in before.items():
        missing = known.get(tile, ())
        there = sum(1 for other in others if other not in gone and other not in missing)
        if there < target:
            fell.append((len(others) >= target, there, spread(own, tile), tile))
    fell.sort()
    kept = frozenset(tile for *_, tile in fell[:capacity])
    return Keep(kept, len(fell) - len(kept))


# --- what to fetch and to throw away ------------------------------------------------------


def fetch_order(missing: Iterable[Tile], holders: Callable[[Tile], int], own: bytes) -> list[Tile]:
    """Rarest first; those that nobody is known to hold last, since asking for them is in vain.

    Of equally rare ones each node begins with others, so that they can then serve each other.
    """

    def place(tile: Tile) -> tuple[bool, int, bytes]:
        count = holders(tile)
        return count == 0, count, spread(own, tile)

    return sorted(missing, key=place)


@dataclass(frozen=True, slots=True)
class Cached:
    """A tile that is here for use only. `used`: when last, on a clock that never goes back."""

    shard: int
    root: Hash32
    tile: int
    size_bytes: int
    used: float


def evict(cached: Iterable[Cached], need_bytes: int) -> list[Cached]:
    """The least recently used ones that make room for `need_bytes`; all if that is not enough."""
    chosen: list[Cached] = []
    for entry in sorted(cached, key=lambda c: (c.used, c.shard, c.root, c.tile)):
        if need_bytes <= 0:
            break
        chosen.append(entry)
        need_bytes -= entry.size_bytes
    return chosen


# --- what to tell the network --------------------------------------------------------------


def model_key(chain_id: ChainId) -> Hash32:
    """The provider key of those who hold every tile of the newest model."""
    return _PROVIDE.hash(chain_id)


def group_key(chain_id: ChainId, tile: Tile) -> Hash32:
    """The provider key of a tile's group. Versions share it: a round moves no record."""
    shard, index = tile
    group = index // GROUP_TILES
    return _PROVIDE.hash(chain_id, shard.to_bytes(4, "big"), group.to_bytes(4, "big"))


def provider_keys(
    chain_id: ChainId, model: Sequence[Tile], held: Collection[Tile], before: Ahead, target: int
) -> list[Hash32]:
    """The records a node should keep in the DHT, in a fixed order.

    The chain names the first `target` custodians of a tile, and where they can be reached: only
    what it does not say needs a record. That is one for a whole model, else one for each group
    in which we hold a tile as a substitute or unelected.
    """
    if held and len(held) >= len(model):
        return [model_key(chain_id)]
    groups: dict[Hash32, None] = {}
    for tile in sorted(held):
        others = before.get(tile)
        if others is None or len(others) >= target:
            groups.setdefault(group_key(chain_id, tile))
    return list(groups)


def spread(own: bytes, tile: Tile) -> bytes:
    """A number of this node and tile: what is equal is taken in another order by each node."""
    shard, index = tile
    return _SPREAD.hash(own, shard.to_bytes(4, "big"), index.to_bytes(4, "big"))


def by_shard(tiles: Iterable[Tile]) -> dict[int, tuple[int, ...]]:
    """In the order in which they come, or ascending for a set."""
    ordered = sorted(tiles) if isinstance(tiles, frozenset) else tiles
    found: dict[int, list[int]] = {}
    for shard, tile in ordered:
        found.setdefault(shard, []).append(tile)
    return {shard: tuple(listed) for shard, listed in found.items()}
