"""What the chain's history says of a shard's versions: which there were, and what made them.

Everything is read from the node's own final chain, so nothing here needs to be verified again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chain import records as r
from chain.codec import decode
from chain.errors import InputError, StorageError, VerifyError
from chain.hashes import Hash32
from chain.store import ChainStore
from chain.store_rows import EventRow
from chain.transactions import TileChange, TileUpdate, Transaction
from chain.types import TxId
from tiles import merkle
from tiles.layout import ShardSpec

PAGE = 64  # versions read at once: a row of a large shard names 4,096 tiles
GENESIS_ROUND = -1
LAST_HEIGHT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ShardVersion:
    """One version of a shard on this chain. `number` counts the rounds that changed it.

    `round` made it, and it counts from `height` on; genesis's has GENESIS_ROUND and 0. A round that
    was rolled back made two: the second equals the one of number `returns_to`.
    """

    number: int
    root: Hash32
    round: int
    height: int
    tile_roots: tuple[Hash32, ...]
    returns_to: int | None = None


class VersionHistory:
    """Reads a chain's store; for any thread."""

    def __init__(
        self,
        store: ChainStore,
        specs: Sequence[ShardSpec],
        genesis_roots: Sequence[tuple[Hash32, ...]],
    ) -> None:
        """`genesis_roots`: the tile roots of each shard in its first version."""
        self._store, self.specs = store, tuple(specs)
        self._first = [
            ShardVersion(0, merkle.shard_root(roots, spec.data_bytes), GENESIS_ROUND, 0, roots)
            for spec, roots in zip(specs, genesis_roots, strict=True)
        ]

    def genesis(self, shard: int) -> ShardVersion:
        if not 0 <= shard < len(self._first):
            raise InputError(f"the model has no shard {shard}")
        return self._first[shard]

    def newest_first(self, shard: int) -> Iterator[ShardVersion]:
        """All versions of a shard, the newest first and genesis's last, read as they are needed."""
        first = self.genesis(shard)
        for event in self._events("shard", r.shard_key(shard)):
            yield _version(event)
        yield first

    def line(self, shard: int) -> Iterator[ShardVersion]:
        """The versions that were made one out of the other, the newest first: without what a round
        made and was rolled back, and without the return to what was before."""
        versions = self.newest_first(shard)
        version = next(versions, None)
        while version is not None:
            back = version.returns_to
            if back is None:
                yield version
                version = next(versions, None)
                continue
            older = next((v for v in versions if v.number <= back), None)
            if older is None or older.number < back:
                yield version  # for the one before, of which a node that began later was not told
            version = older

    def version(self, shard: int, root: Hash32) -> ShardVersion:
        """The newest version with a root. VerifyError if the shard never had it."""
        found = next((v for v in self.newest_first(shard) if v.root == root), None)
        if found is None:
            raise VerifyError(f"shard {shard} never had the root {root.hex()} on this chain")
        return found

    def made_from(self, shard: int, root: Hash32) -> tuple[ShardVersion, ShardVersion | None]:
        """A version and the one that it was made from; None for genesis's. VerifyError as above."""
        for versions in (self.line(shard), self.newest_first(shard)):
            for version in versions:
                if version.root == root:
                    return version, next(versions, None)
        raise VerifyError(f"shard {shard} never had the root {root.hex()} on this chain")

    def changes(self, version: ShardVersion) -> Iterator[TileChange]:
        """Every change of the updates in the round that made a version, also of other shards.

        More than one may name a tile: that which counted leads to the version's tile root.
        """
        for event in self._events("update", None, below=version.height + 1):
            if event.data["round"] < version.round:
                return
            if event.data["round"] == version.round:
                yield from self._update(TxId(Hash32(event.key))).changes

    def _update(self, update: TxId) -> TileUpdate:
        stored = self._store.tx(update)
        tx: Transaction | None = decode(Transaction, stored.raw) if stored else None
        if tx is None or not isinstance(tx.payload, TileUpdate):
            raise StorageError(f"the chain names update {update.hex()}, but its bytes are not here")
        return tx.payload

    def _events(self, kind: str, key: bytes | None, below: int | None = None) -> Iterator[EventRow]:
        """Newest first, page by page; only those of blocks under `below` if that is given."""
        page = self._store.history(kind, key, limit=PAGE, before=(below or LAST_HEIGHT, 0))
        while page:
            yield from page
            last = page[-1]
            page = self._store.history(kind, key, limit=PAGE, before=(last.height, last.position))


def _version(event: EventRow) -> ShardVersion:
    data = event.data
    return ShardVersion(
        data["version"],
        Hash32(bytes.fromhex(data["root"])),
        data["round"],
        event.height,
        tuple(Hash32(bytes.fromhex(root)) for root in data["tiles"]),
        data.get("returns_to"),
    )
