"""A home that no node runs on, asked as if one did: the same API, from the disk alone.

Readers of the command line use it, so that a stopped network can still be read and checked.
Nothing is fetched, nothing is signed, and the home is owned while it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chain import records as r
from chain.errors import UnreachableError
from chain.hashes import Hash32
from chain.params import Genesis
from chain.store import ChainStore
from chain.types import PubKey, TxId
from node.config import Config, load_genesis
from node.genesis import GenesisChain, build_genesis
from node.home import Home, write_private
from node.mempool import Mempool
from node.net.info import PeerInfo
from node.net.links.info import LinkInfo
from node.rules import ProtocolRules
from node.scrub import CHAIN_STORE, Progress, scrub_store
from node.services.blobs import BlobService
from node.services.chain import ChainService
from node.services.placement import capacity_of
from node.services.rebuild import Rebuild
from node.services.retention import Retention
from node.services.retention_plan import RetentionRule
from node.services.tiles import TileService, chain_roots
from node.services.versions import VersionHistory
from tiles.store import TileStore

if TYPE_CHECKING:
    from node.client import Client

NO_NODE = "no node runs on this home, and this needs one: start it with `blyan-node start`"


class _NoNetwork:
    """The network port of a node without peers."""

    peer_id = "offline"

    def serve(self, protocol: str, handler: Any, **limits: Any) -> None:
        """Nobody asks."""

    def peers(self) -> list[PeerInfo]:
        return []

    def link_info(self) -> list[LinkInfo]:
        return []

    def addresses(self) -> list[str]:
        return []

    def report(self, peer: str, reason: str, weight: float) -> None:
        """Nobody is there to blame."""

    async def request(self, peer: str, protocol: str, data: bytes, **limits: Any) -> bytes:
        raise UnreachableError(NO_NODE)

    async def fetch(self, peer: str, protocol: str, data: bytes, **limits: Any) -> int:
        raise UnreachableError(NO_NODE)


class _NoPool(Mempool):
    def submit(self, raw: bytes, *, local: bool = True) -> TxId:
        raise UnreachableError(NO_NODE)


class _Info:
    def __init__(self, **values: Any) -> None:
        self._values = values

    def info(self) -> Mapping[str, Any]:
        return self._values


class _NoScrub:
    """`blyan tile scrub` reads a stopped node's store itself."""

    def start(self) -> Mapping[str, Any]:
        raise UnreachableError(NO_NODE)

    def info(self) -> Mapping[str, Any]:
        return {"running": False, "done_tiles": 0, "total_tiles": 0, "last": None}


class _Holdings:
    """What is on the disk. What a node keeps that has no room for the whole model depends on who
    else is there, and is not guessed."""

    def __init__(self, node: OfflineNode, config: Config) -> None:
        self._node, self._config = node, config
        self._tiles = sum(spec.tile_count for spec in node.tiles.specs)

    @property
    def _capacity(self) -> int:
        state = self._node.chain.state()
        return capacity_of(state, self._node.account, self._config.capacity_tiles)

    def keeps(self, shard: int, tile: int) -> bool:
        """Whether a tile surely belongs here."""
        return self._capacity >= self._tiles

    def info(self) -> Mapping[str, Any]:
        node, state = self._node, self._node.chain.state()
        here = 0
        for spec in node.tiles.specs:
            root = state.need(r.ShardRecord, r.shard_key(spec.index)).root
            here += sum(node.tiles.store.presence(spec.index, root))
        return {
            "model_tiles": self._tiles,
            "capacity_tiles": self._capacity,
            "replication_target": state.params(node.genesis.params).custody_replicas,
            "kept_tiles": here,
            "missing_tiles": 0,
            "beyond_capacity_tiles": 0,
            "under_replicated_tiles": 0,
            "gone_custodians": [],
            "provided_keys": 0,
            "store_bytes": node.tiles.store.used_bytes,
            "store_quota_bytes": self._config.store_quota,
            "evicted_tiles": 0,
            "no_room": None,
        }

    def tile_info(self, shard: int, root: Hash32, tile: int) -> Mapping[str, Any]:
        held = self._node.tiles.store.has_tile(shard, root, tile)
        params = self._node.chain.state().params(self._node.genesis.params)
        return {
            "replication_target": params.custody_replicas,
            "kept_here": held,
            "held_here": held,
            "holders": int(held),
            "peers": [],
        }


class OfflineNode:
    """What `NodeSeam` asks, read from a home that the caller owns. Close it."""

    def __init__(self, home: Home, config: Config, start: GenesisChain, account: PubKey) -> None:
        self.genesis: Genesis = start.genesis
        self.genesis_tree = start.tree
        self.account = account
        self.api_address, self.api_token = config.api_url, ""
        rules = ProtocolRules()
        self.store = ChainStore(home.chain_db)
        self.chain = ChainService(start, self.store, rules)
        self.started_ms = self.chain.tip.time_ms
        self.net = _NoNetwork()
        self.pool = _NoPool(self.genesis, rules, self.chain.state, lambda raw: None)
        self.blobs = BlobService(home.blobs, self.net)
        genesis_roots = [s.tile_roots for s in start.rooted]
        self.history = VersionHistory(self.store, start.specs, genesis_roots)
        self.tiles = TileService(
            TileStore(home.tiles, start.specs),
            start.specs,
            self.net,
            chain_roots(self.store, start.specs, genesis_roots),
        )
        self.rebuild = Rebuild(
            self.tiles.store, self.history, self.tiles.tile_roots, lambda shard: start.shards[shard]
        )
        self.tiles.remake = self.rebuild.tile
        self.placement = _Holdings(self, config)
        tip = self.chain.tip
        self.consensus = _Info(
            epoch=tip.epoch, view=tip.view, delta_ms=0, index=None, halted="the node is stopped"
        )
        self.sync = _Info(synced=False, target=tip.height)
        self.scrub = _NoScrub()

    def metrics(self) -> Mapping[str, int | float]:
        return {}

    def close(self) -> None:
        self.tiles.store.close()
        self.store.close()


@contextmanager
def offline_node(home: Home, config: Config) -> Iterator[OfflineNode]:
    """Own a home and open its files. LockedError if a node runs on it after all."""
    from wallet.keystore import Keystore

    with home.lock():
        start = build_genesis(load_genesis(home))
        entries = {e.name: e.account for e in Keystore(home.keystore).list()}
        account = entries.get(config.account, PubKey(bytes(32)))
        node = OfflineNode(home, config, start, account)
        try:
            yield node
        finally:
            node.close()


@contextmanager
def offline_client(home: Home, config: Config) -> Iterator[Client]:
    """A client that asks the home's own files. LockedError if a node runs on it after all."""
    import httpx

    from node.api.app import create_app
    from node.client import Client

    with offline_node(home, config) as node:
        transport = httpx.ASGITransport(create_app(node), raise_app_exceptions=False)
        yield Client("http://localhost", None, transport)


def scrub_home(home: Home, config: Config, progress: Progress) -> dict[str, Any]:
    """Read all tiles of a stopped node's home, and mend what needs nobody else: a report as the
    API gives it, which the node finds at its next start."""
    with offline_node(home, config) as node:
        rule = RetentionRule(config.keep_versions, config.retention_rounds, config.snapshot_every)
        retention = Retention(node.tiles.store, node.history, node.chain, rule)
        retention.keeps = node.placement.keeps
        report = scrub_store(
            node.tiles.store,
            CHAIN_STORE,
            retention.missing,
            node.rebuild.tile,
            "the node fetches it from peers once it runs",
            progress,
        ).to_json(node.tiles.specs)
        write_private(home.scrub_file, json.dumps(report) + "\n")
        return report
