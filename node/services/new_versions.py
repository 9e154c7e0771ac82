"""A round's new shard versions, written from what this node has of the round: only tiles that have
changed, and the steps that old versions shrink to later (docs/spec/versions.md).

A changed tile comes from this node's own aggregation or check, else from the tile before and the
accepted deltas, if their payloads are here. What cannot be made is left missing, for peers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from chain.errors import (
    BlyanError,
    DecodeError,
    InputError,
    QuotaError,
    StorageError,
    VerifyError,
)
from chain.hashes import Hash32
from chain.params import Params
from chain.records import DeltaRecord
from chain.state import State
from chain.transactions import TileChange
from chain.types import BlobId
from node.services.versions import ShardVersion, VersionHistory
from tiles.delta import SectionSource
from tiles.layout import ShardSpec
from tiles.steps import DeltaSections, TileStep, apply_step, make_step
from tiles.store import TileStore
from tiles.stored import StoredPayload

log = logging.getLogger("blyan.versions")

# Of a round's accepted deltas, if all are here.
Payloads = Callable[[int], Sequence[bytes | SectionSource] | None]


class LocalBlobs(Protocol):
    def has(self, blob_id: BlobId) -> bool: ...


class LocalPayloads(Protocol):
    def local(self, record: DeltaRecord) -> StoredPayload | None: ...


def local_payloads(
    state: State, params: Params, payloads: LocalPayloads, blobs: LocalBlobs, round_: int
) -> list[StoredPayload] | None:
    """Payloads of the deltas that a round accepted, if all are here and new tiles follow from them
    and the last ones, which with momentum they do not; for a thread."""
    if params.momentum_ppm:
        return None
    records = [state.delta(delta) for delta in state.round(round_).accepted]
    if not all(blobs.has(record.blob) for record in records):
        return None
    found = []
    for record in records:
        try:
            payload = payloads.local(record)
        except StorageError as error:  # tiles come without steps, too
            log.warning("no steps of round %d: %s", round_, error)
            return None
        if payload is None:  # damaged
            return None
        found.append(payload)
    return found


class OwnTiles(Protocol):
    """Tiles that this node made in a round, by root."""

    def has_tile(self, round_: int, root: Hash32) -> bool: ...

    def tile(self, round_: int, root: Hash32) -> bytes | None: ...


class NoTiles:
    """A node that has made none."""

    def has_tile(self, round_: int, root: Hash32) -> bool:
        return False

    def tile(self, round_: int, root: Hash32) -> bytes | None:
        return None


class NewVersions:
    """Writes versions one after the other, in one thread. Keeps a round's deltas while it lives."""

    def __init__(
        self,
        store: TileStore,
        specs: Sequence[ShardSpec],
        history: VersionHistory,
        own: OwnTiles,
        payloads: Payloads,
    ) -> None:
        self._store, self._specs, self._history = store, specs, history
        self._own, self._payloads = own, payloads
        self._round: _RoundSteps | None = None

    def write(self, shard: int, root: Hash32, tiles: Collection[int] | None = None) -> None:
        """As much of a version as can be made here: all of it, or of these tiles.

        Raises VerifyError for a root that the shard never had, StorageError if the disk refuses.
        """
        version, base = self._history.made_from(shard, root)
        if base is None:
            return
        spec = self._specs[shard]
        wanted = range(spec.tile_count) if tiles is None else sorted(set(tiles))
        changed = [t for t in wanted if version.tile_roots[t] != base.tile_roots[t]]
        known = self._steps(spec, version, base, changed)
        steps = known or {}
        made = _Made(self._store, spec, base, version, changed, steps, self._own)
        if tiles is not None or not self._apply(base, version, made):
            self._put(spec, version, made)
        if known is not None and self._store.presence(shard, base.root):
            # A tile that is shorter than its step stays beside them.
            self._store.put_steps(shard, root, base.root, list(steps.values()))

    def record(self, shard: int, root: Hash32) -> None:
        """The steps of a version whose tiles are here, if a crash came between the two."""
        version, base = self._history.made_from(shard, root)
        if base is None or not self._store.presence(shard, base.root):
            return
        tiles = enumerate(zip(version.tile_roots, base.tile_roots, strict=True))
        changed = [tile for tile, (new, old) in tiles if new != old]
        steps = self._steps(self._specs[shard], version, base, changed)
        if steps is not None:
            self._store.put_steps(shard, root, base.root, list(steps.values()))

    def _apply(self, base: ShardVersion, version: ShardVersion, made: _Made) -> bool:
        """The whole version at once, if its base is whole and every changed tile can be made."""
        shard = made.spec.index
        if base.root not in self._store.versions(shard) or len(made) < len(made.changed):
            return False
        try:
            root = self._store.apply(shard, base.root, made)
        except QuotaError:
            raise
        except (VerifyError, InputError, StorageError, KeyError) as error:
            log.warning("shard %s is not made from its last version: %s", made.spec.name, error)
            return False
        if root != version.root:  # the base was another than its name says: never happens twice
            raise StorageError(f"shard {made.spec.name}: its new version has another root")
        return True

    def _put(self, spec: ShardSpec, version: ShardVersion, made: _Made) -> None:
        """Tile by tile; what is unchanged comes from older versions by itself."""
        for tile in self._store.begin(spec.index, version.root, version.tile_roots):
            if tile not in made:
                continue
            try:
                data = made[tile]
            except (BlyanError, KeyError) as error:
                log.info("tile %d of shard %s is fetched: %s", tile, spec.name, error)
                continue
            self._store.put_tile(spec.index, version.root, tile, data)

    def _steps(
        self, spec: ShardSpec, version: ShardVersion, base: ShardVersion, changed: Sequence[int]
    ) -> dict[int, TileStep] | None:
        """Steps to the changed tiles, as far as they are worth it; None if they are not known."""
        if self._round is None or self._round.number != version.round:
            changes = self._history.changes(version)
            try:
                self._round = _RoundSteps(self._specs, version.round, changes, self._payloads)
            except (
                DecodeError,
                VerifyError,
                StorageError,
            ) as error:  # tiles come without steps, too
                log.warning("no steps of round %d: %s", version.round, error)
                self._round = _RoundSteps(self._specs, version.round, changes, lambda _: None)
        found = {}
        for tile in changed:
            old, new = base.tile_roots[tile], version.tile_roots[tile]
            if not self._round.knows(spec.index, tile, old, new):
                return None
            step = self._round.step(spec, tile, old, new)
            if step is not None:
                found[tile] = step
        return found


class _RoundSteps:
    """The steps of one round: weights from the chain, deltas from payloads that are here."""

    def __init__(
        self,
        specs: Sequence[ShardSpec],
        number: int,
        changes: Iterator[TileChange],
        payloads: Payloads,
    ) -> None:
        self.number = number
        self._deltas: list[DeltaSections] = []
        self._weights: dict[tuple[int, int, Hash32, Hash32], tuple[int, ...]] = {}
        raw = payloads(number)
        if raw is None:
            return  # no steps: these versions are kept whole or not at all
        self._deltas = [DeltaSections(payload, specs) for payload in raw]
        for change in changes:
            key = change.shard, change.tile, change.base_root, change.new_root
            self._weights[key] = change.weights

    def knows(self, shard: int, tile: int, base: Hash32, new: Hash32) -> bool:
        return (shard, tile, base, new) in self._weights

    def step(self, spec: ShardSpec, tile: int, base: Hash32, new: Hash32) -> TileStep | None:
        """None if the tile is no longer than its step."""
        weights = self._weights[spec.index, tile, base, new]
        return make_step(spec, tile, base, new, self._deltas, weights)


class _Made(Mapping[int, bytes]):
    """Changed tiles by index, made when they are asked for: a shard may be larger than memory."""

    def __init__(
        self,
        store: TileStore,
        spec: ShardSpec,
        base: ShardVersion,
        version: ShardVersion,
        changed: Sequence[int],
        steps: Mapping[int, TileStep],
        own: OwnTiles,
    ) -> None:
        self.spec, self.changed = spec, changed
        self._store, self._base, self._version = store, base, version
        self._steps, self._own = steps, own
        roots, round_ = version.tile_roots, version.round
        self._tiles = dict.fromkeys(
            t for t in changed if t in steps or own.has_tile(round_, roots[t])
        )

    def __getitem__(self, tile: int) -> bytes:
        """Raises KeyError if it cannot be made, VerifyError if the step does not lead to it."""
        data = self._own.tile(self._version.round, self._version.tile_roots[tile])
        if data is not None:
            return data
        if tile not in self._steps:
            raise KeyError(tile)
        base = self._store.read_tile(self.spec.index, self._base.root, tile)
        return apply_step(self.spec, self._steps[tile], base)

    def __contains__(self, tile: object) -> bool:
        """Whether it may be made: Mapping's own would make it."""
        return tile in self._tiles

    def __iter__(self) -> Iterator[int]:
        return iter(self._tiles)

    def __len__(self) -> int:
        return len(self._tiles)
