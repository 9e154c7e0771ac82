"""A node's store as it follows a `LocalChain` that has had its rounds: it writes what each round
made and keeps versions by rule, as the daemon does.

What every version's bytes were is known from the chain's own store, which keeps them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chain.hashes import Hash32
from learning.init import initial_shard
from learning.spec import ModelSpec
from node.services.new_versions import NewVersions, NoTiles
from node.services.rebuild import Rebuild
from node.services.retention import Retention, retained_from
from node.services.retention_plan import RetentionRule
from node.services.versions import ShardVersion, VersionHistory
from tests.kit.local_chain import LocalChain
from tiles.store import TileStore
from tiles.store.disk import Disk

RULE = RetentionRule(keep_versions=2, retention_rounds=4, snapshot_every=3)


class Past(VersionHistory):
    """A chain's history as it was at some height."""

    def __init__(self, chain: LocalChain) -> None:
        state_roots = [v.tile_roots for v in map(chain.history.genesis, range(len(chain.specs)))]
        super().__init__(chain.store, chain.specs, state_roots)
        self.height = 0

    def newest_first(self, shard: int) -> Iterator[ShardVersion]:
        return (v for v in super().newest_first(shard) if v.height <= self.height)


@dataclass(slots=True)
class Model:
    """One version of the model: from which height on it counts, and its data sections."""

    height: int
    round: int
    roots: tuple[Hash32, ...]
    shards: tuple[bytes, ...]


def models(chain: LocalChain) -> list[Model]:
    """Every model that a chain has had, genesis first."""
    events = reversed(chain.store.history("model"))
    found = []
    for height, round_ in [(0, -1), *((e.height, e.data["round"]) for e in events)]:
        past = Past(chain)
        past.height = height
        roots = tuple(next(past.newest_first(s.index)).root for s in chain.specs)
        shards = tuple(chain.tiles.read(i, root) for i, root in enumerate(roots))
        found.append(Model(height, round_, roots, shards))
    return found


@dataclass(slots=True)
class Follower:
    """`payloads`: whether the node has the deltas, and so the steps."""

    chain: LocalChain
    directory: Path
    rule: RetentionRule = RULE
    disk: Disk | None = None
    payloads: bool = True
    at: int = 0  # the model that it has come to
    only: Sequence[int] | None = None  # the shards that it cares for; all if None
    past: list[Model] = field(init=False)
    history: Past = field(init=False)
    store: TileStore = field(init=False)
    retention: Retention = field(init=False)
    rebuild: Rebuild = field(init=False)

    def __post_init__(self) -> None:
        self.past, self.history = models(self.chain), Past(self.chain)
        self.open()
        for index in self.indices:
            if not self.store.versions(index):
                self.store.put_shard(index, self.past[0].shards[index], self.past[0].roots[index])

    def open(self) -> None:
        """Open the store, as a start of the node does."""
        specs, history = self.chain.specs, self.history
        self.store = TileStore(self.directory, specs, disk=self.disk)
        self.retention = Retention(self.store, history, self.chain.chain, self.rule)
        model = ModelSpec.from_json(dict(self.chain.genesis.model))
        self.rebuild = Rebuild(
            self.store,
            history,
            lambda shard, root: history.version(shard, root).tile_roots,
            lambda shard: initial_shard(model, specs[shard]),
        )

    @property
    def indices(self) -> Sequence[int]:
        return range(len(self.chain.specs)) if self.only is None else self.only

    @property
    def newest(self) -> Model:
        return self.past[self.at]

    @property
    def round(self) -> int:
        """The round in progress."""
        return self.newest.round + 1

    def follow(self, rounds: int = 1) -> None:
        """What this node makes of the next rounds."""
        for _ in range(rounds):
            self.advance()
            self.write()
            self.tidy()

    def advance(self) -> None:
        self.at += 1
        self.history.height = self.newest.height

    def write(self) -> None:
        """The newest versions: from the last ones and steps, else from a peer, which is here the
        chain's own store."""
        made = self._made()
        for index in self.indices:
            root = self.newest.roots[index]
            if root not in self.store.versions(index):
                made.write(index, root)
                self.fetch(index, root)

    def fetch(self, index: int, root: Hash32) -> None:
        theirs = self.chain.tiles.store
        for tile in self.store.begin(index, root, theirs.tile_roots(index, root)):
            self.store.put_tile(index, root, tile, theirs.read_tile(index, root, tile))

    def tidy(self) -> None:
        record = self._made().record
        for index in self.indices:
            self.retention.catch_up(index, record)
            self.retention.tidy(index, self.round)

    def _made(self) -> NewVersions:
        return NewVersions(
            self.store, self.chain.specs, self.history, NoTiles(), self._round_payloads
        )

    def shards(self, model: Model) -> list[bytes]:
        """A model's data sections as this node has them."""
        return [self.store.read_shard(i, root) for i, root in enumerate(model.roots)]

    def retained(self) -> list[Model]:
        """The models that it should be able to give."""
        start = retained_from(self.store, self.history)
        return [m for m in self.past[: self.at + 1] if start is not None and m.height >= start]

    def check(self) -> None:
        """Every retained model has the bytes that it had."""
        for model in self.retained():
            assert self.shards(model) == list(model.shards), f"model of height {model.height}"

    def _round_payloads(self, number: int) -> Sequence[bytes] | None:
        state = self.chain.state
        records = [state.delta(delta) for delta in state.round(number).accepted]
        return [self.chain.blobs.held[d.blob] for d in records] if self.payloads else None
