"""One process, one node: assembles the services, runs them, and ends them in order."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import logging.handlers
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chain import records as r
from chain.errors import BlyanError, QuotaError
from chain.execute import Executed
from chain.hashes import Hash32
from chain.params import Genesis
from chain.receipts import Receipt
from chain.store import ChainStore
from chain.transactions import Payload
from chain.types import Block, PubKey, TxId
from learning.init import initial_shard
from learning.memory import MIB
from learning.spec import ModelSpec
from node.clock import Clock
from node.config import Config, load_genesis
from node.genesis import GenesisChain, build_genesis
from node.home import Home, unlock
from node.mempool import Mempool
from node.net.links import orphans
from node.net.port import Network
from node.pool_journal import PoolJournal
from node.rules import ProtocolRules
from node.services.blob_keeping import BlobKeeping
from node.services.blobs import BlobService
from node.services.bundles import BundleService, Relay
from node.services.chain import ChainService
from node.services.consensus import ConsensusService
from node.services.delta_floor import round_trips
from node.services.duties import Duties
from node.services.mesh import Mesh
from node.services.new_versions import NewVersions, NoTiles
from node.services.payload_bound import PayloadBound
from node.services.placement import Placement
from node.services.pruning import Pruner, check_history
from node.services.rebuild import Rebuild
from node.services.retention import Retention
from node.services.retention_plan import RetentionRule
from node.services.scrub import ScrubService
from node.services.sender import DutySender
from node.services.snapshot_entry import SnapshotEntry, adopt
from node.services.snapshot_serve import SnapshotServer
from node.services.sync import SyncService
from node.services.tile_cache import TileCache
from node.services.tiles import TileService, chain_roots
from node.services.tx_gossip import TxGossip
from node.services.versions import VersionHistory
from node.worker.client import Worker
from tiles.store import TileStore
from wallet.keys import Keys

log = logging.getLogger("blyan.node")
TURN_S = 1.5  # in which a leader that is told to stop may still propose: an idle one waits for 1 s
_TURN_LOOK_S = 0.02
STOP_S = 4.0  # everything is ended by then, whatever hangs
LOG_BYTES, LOG_FILES = 8 * 1024 * 1024, 3


class Node:
    """A running node; the attributes are what `node/seam.py` promises to API and explorer."""

    def __init__(self, home: Home, config: Config, start: GenesisChain, keys: Keys) -> None:
        self.home, self.config, self.keys = home, config, keys
        self.genesis: Genesis = start.genesis
        self.genesis_tree = start.tree  # what the first versions of shards are read from
        self.account: PubKey = keys.account.public
        self.api_token = home.create_token()
        self.api_address = config.api_url
        self.started_ms = time.time_ns() // 1_000_000
        self.rules = ProtocolRules()
        self.halted: asyncio.Event = asyncio.Event()
        self.net = Network(
            keys.node.seed,
            listen=f"/ip4/{config.p2p_host}/tcp/{config.p2p_port}",
            chain_id=self.genesis.chain_id,
            link_port=config.link_port,
        )
        params = self.genesis.params
        self.store = ChainStore(home.chain_db, params.unbonding_blocks, params.unbonding_ms)
        check_history(home, config, self.store)
        self.chain = ChainService(start, self.store, self.rules)
        genesis_roots = [s.tile_roots for s in start.rooted]
        self.history = VersionHistory(self.store, start.specs, genesis_roots)
        self._journal = PoolJournal(home.path)
        self.pool = Mempool(
            self.genesis, self.rules, self.chain.state, self._announce, self._journal
        )
        self.blobs = BlobService(home.blobs, self.net)
        self.bundles = BundleService(self.blobs, self.net)
        self._keeping = BlobKeeping(self.blobs, self.chain, config.retention_rounds)
        self.tiles = TileService(
            TileStore(home.tiles, start.specs, quota_bytes=config.store_quota or None),
            start.specs,
            self.net,
            chain_roots(self.store, start.specs, genesis_roots),
        )
        self.placement = Placement(
            self.genesis,
            self.account,
            self.chain,
            self.store,
            self.tiles,
            self.net,
            TileCache(
                self.tiles.store,
                start.specs,
                quota_bytes=config.store_quota,
                free_bytes=lambda: _free_bytes(home.tiles),
                clock=time.monotonic,
            ),
            capacity_tiles=config.capacity_tiles,
        )
        self._keep_versions(start)
        self.snapshots = SnapshotServer(self.chain, self.net)
        self.entered = asyncio.Event()  # a snapshot waits to be adopted
        self.sync = SyncService(
            self.chain,
            self.net,
            SnapshotEntry(self.chain, self.net, home.sync, Clock().now_ms, config.trust),
            mode=config.sync,
            on_entered=self.entered.set,
        )
        self.consensus = ConsensusService(
            self.chain, self.pool, self.net, keys, home.wal, self.sync.want, self._halt
        )
        self.sync.attach(self.consensus)
        self.mesh = Mesh(self.chain, self.net)
        self._txs = TxGossip(
            self.net, self.pool, lambda: self.mesh.pinned, self.consensus.wake, self._is_final
        )
        self._sender = DutySender(
            self.genesis.chain_id, self.account, keys.node, self.chain, self.pool
        )
        self._duties = Duties(self, Worker(most_bytes=config.memory_mib * MIB))
        self._round_began = 0.0
        self.chain.finalized(self._committed)
        self.pruner = Pruner(self.chain, config)

    def _keep_versions(self, start: GenesisChain) -> None:
        """What makes, keeps, thins and mends the versions of the model on disk."""
        model = ModelSpec.from_json(dict(self.genesis.model))
        store, config = self.tiles.store, self.config
        self._rebuild = Rebuild(
            store,
            self.history,
            self.tiles.tile_roots,
            lambda shard: initial_shard(model, start.specs[shard]),
        )
        self.tiles.remake = self._rebuild.tile
        self.retention = Retention(
            store,
            self.history,
            self.chain,
            RetentionRule(config.keep_versions, config.retention_rounds, config.snapshot_every),
        )
        self.retention.recorder = lambda: (
            NewVersions(
                store,
                start.specs,
                self.history,
                NoTiles(),
                lambda round_: self._duties.local_payloads(round_),
            ).record
        )
        self.retention.keeps = self.placement.keeps
        self.placement.cache.shed = self.retention.shed
        touch_cache = self.tiles.touched

        def touched(shard: int, root: Hash32, tile: int = -1) -> None:
            touch_cache(shard, root, tile)
            self.retention.used(shard, root)

        self.tiles.touched = touched
        self.scrub = ScrubService(
            self.tiles,
            self.retention.missing,
            self._rebuild.tile,
            self.home.scrub_file,
            config.scrub_interval_hours * 3600.0,
        )
        self._put_genesis(start)

    def _put_genesis(self, start: GenesisChain) -> None:
        """The first versions, unless the chain or the store has gone on from them. What there is no
        room for follows from the seed when it is asked for."""
        state, store = self.chain.state(), self.tiles.store
        for index, (data, shard) in enumerate(zip(start.shards, start.rooted, strict=True)):
            is_newest = state.need(r.ShardRecord, r.shard_key(index)).root == shard.root
            if not is_newest or store.versions(index) or store.partial_versions(index):
                continue
            try:
                self.tiles.put_shard(index, data, shard.root)
            except QuotaError as error:
                log.info("the genesis model is not kept whole: %s", error)
                return

    # --- what others ask ------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        return self.net.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return self.net.addresses()

    def peers(self) -> Sequence[Mapping[str, Any]]:
        return [
            {
                "peer_id": p.peer_id,
                "address": p.addresses[0] if p.addresses else None,
                "rtt_ms": p.rtt_ms,
                "inbound": p.direction == "in",
                "violations": p.violations,
            }
            for p in self.net.peers()
            if p.connected
        ]

    async def submit_duty(self, payload: Payload) -> Receipt:
        """Send a validator's duty, signed by the node key; the receipt of the final block."""
        return await self._sender.submit(payload)

    def round_trips(self) -> Mapping[str, float]:
        """Milliseconds to each connected peer and back, by peer id."""
        return round_trips(self.net)

    def metrics(self) -> Mapping[str, int | float]:
        info = self.consensus.info()
        return {
            "height": self.chain.tip.height,
            "view": info["view"],
            "delta_ms": info["delta_ms"],
            "consensus_refused": info["refused"],
            "consensus_rejected_proposals": info["rejected_proposals"],
            "mempool_txs": self.pool.size,
            "mempool_bytes": self.pool.bytes,
            "mempool_refused": self.pool.refused_total,
            "mempool_displaced": self.pool.displaced_total,
            "mempool_journal_syncs": self._journal.syncs,
            "blobs_fetched": self.blobs.fetched,
            "blobs_lies": self.blobs.lies,
            "blobs_dropped": self._keeping.dropped,
            "bundles_served": self.bundles.served,
            "bundles_fetched": self.bundles.fetched,
            **self.tiles.metrics(),
            "tiles_rebuilt": self._rebuild.rebuilt,
            **self.retention.metrics(),
            **self.pruner.metrics(),
            **self.scrub.metrics(),
            "sync_batches": self.sync.batches,
            "sync_lies": self.sync.lies,
            "snapshot_chunks_served": self.snapshots.served,
            "snapshot_bytes_served": self.snapshots.served_bytes,
            **self._txs.metrics(),
            **self.mesh.metrics(),
            **self.placement.metrics(),
            **self._duties.metrics(),
            **{f"net_{name}": value for name, value in self.net.metrics().items()},
        }

    # --- life -----------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set, consensus halts or a snapshot waits to be adopted. Services start in
        the order of their needs."""
        from node.api.server import ApiServer

        self._restore_pool()
        api = ApiServer(self, self.config.api_host, self.config.api_port)
        await api.start()
        tasks: list[asyncio.Task[Any]] = []
        try:
            self.consensus.start()  # replay ends before the first input from the network
            await self.net.start()
            log.info("node %s at %s", self.node_id, ", ".join(self.addresses))
            tasks += [asyncio.create_task(self._dial(a)) for a in self.config.bootstrap]
            tasks.append(asyncio.create_task(self.mesh.run()))
            tasks.append(asyncio.create_task(self.sync.run()))
            tasks.append(asyncio.create_task(self._txs.run()))
            tasks.append(asyncio.create_task(self.placement.run()))
            tasks.append(asyncio.create_task(self._duties.run()))
            tasks.append(asyncio.create_task(self.retention.run()))
            tasks.append(asyncio.create_task(self._keeping.run()))
            if self.config.relay:
                relay = Relay(self.bundles, PayloadBound(self.genesis), self.chain.state())
                self.chain.finalized(lambda *_: relay.committed(self.chain.state()))
                tasks.append(asyncio.create_task(relay.run()))
            tasks.append(asyncio.create_task(self.scrub.run()))
            gc.collect()
            gc.freeze()  # libraries stay as long as the node: not to be looked through for ever
            told = (stop, self.halted, self.entered)
            ends = [asyncio.create_task(event.wait()) for event in told]
            watched = [*ends, *tasks[len(self.config.bootstrap) :]]
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            tasks += ends
            for task in done:
                task.result()  # a service that died ends the node with its error
            if stop.is_set() and not self.halted.is_set():
                await self._finish_turn()
        finally:
            await self._end(api, tasks)

    def _restore_pool(self) -> None:
        """What clients were told to wait waits again, or is refused by now."""
        again, refused = self.pool.restore(
            self._journal.txs(), self._journal.refused(), self._is_final
        )
        if again or refused:
            log.info("%d acknowledged transactions wait again, %d are refused", again, refused)

    def _is_final(self, tx_id: TxId) -> bool:
        return self.store.tx(tx_id) is not None

    async def _finish_turn(self) -> None:
        """Whoever leads the view proposes before it goes, or the view would be lost to all."""
        own, alone = self.keys.consensus.public.hex(), len(self.chain.state().validators()) == 1
        with suppress(TimeoutError):
            async with asyncio.timeout(TURN_S):
                while not alone and self._leads(own):  # noqa: ASYNC110 - the core has no such event
                    await asyncio.sleep(_TURN_LOOK_S)

    def _leads(self, key: str) -> bool:
        found: bool = self.consensus.info()["leader"] == key
        return found

    async def _end(self, api: Any, tasks: list[asyncio.Task[Any]]) -> None:
        """In order, and bounded: no new requests, no duties, no messages; then the disk."""
        for task in tasks:
            task.cancel()
        self.scrub.close()
        try:
            async with asyncio.timeout(STOP_S):
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.gather(api.stop(), self._duties.close(), self.tiles.close())
                self.consensus.stop()
                await self.net.stop()
                await self._journal.close()
        except TimeoutError:
            log.warning("not everything ended within %g s; leaving it", STOP_S)
        self.tiles.store.close()
        self.store.close()

    async def _dial(self, address: str) -> None:
        try:
            peer = await self.net.dial(address)
            log.info("connected to bootstrap %s", peer)
        except BlyanError as error:
            log.warning("bootstrap %s: %s (it will be tried again)", address, error)

    def _halt(self, report: str) -> None:
        self.halted.set()
        try:
            (self.home.logs / "halt.txt").write_text(report + "\n")
        except OSError as error:  # perhaps what halts us: the disk is full
            log.error("the report of the halt cannot be written (%s): %s", error.strerror, report)

    def _announce(self, raw: bytes) -> None:
        self._txs.announce(raw)

    def _committed(self, block: Block, done: Executed) -> None:
        self.pool.committed(done.receipts, done.changes)
        for event in done.events:
            if event.kind == "phase" and event.data["phase"] == "done":
                self._round_done()

    def _round_done(self) -> None:
        """Learners' checkpoints are served until their round has settled, and one round more."""
        dropped = self.blobs.drop_checkpoints(self._round_began)
        self._round_began = time.time()
        if dropped:
            log.info("dropped %d checkpoints of settled rounds", dropped)
        _release_memory()


def _free_bytes(directory: Path) -> int:
    """What the disk of a directory has left, also if somebody has removed that directory."""
    try:
        return shutil.disk_usage(directory).free
    except FileNotFoundError:
        return shutil.disk_usage(directory.parent).free


def _release_memory() -> None:
    """A round passes payloads and checkpoints of megabytes through several threads, and glibc
    keeps what they free; give it back. Elsewhere there is no such call, and nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def configure_logging(home: Home, level: str) -> None:
    """To a rotating file in the home, and to stderr when it is a terminal or a service log."""
    form = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    root = logging.getLogger("blyan")
    root.setLevel(level.upper())
    root.propagate = False  # a library's handler on the root logger would print it twice
    for handler in (
        logging.handlers.RotatingFileHandler(
            Path(home.logs) / "node.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES
        ),
        logging.StreamHandler(sys.stderr),
    ):
        handler.setFormatter(form)
        root.addHandler(handler)


async def _main(home: Home, config: Config, start: GenesisChain, keys: Keys) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(orphans.tell)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    while True:
        adopt(home.sync, home.chain_db)
        node = Node(home, config, start, keys)
        await node.run(stop)
        if not node.entered.is_set() or stop.is_set():
            return 1 if node.halted.is_set() else 0
        log.info("going on from a snapshot")
        del node
        gc.unfreeze()
        gc.collect()


def run(home: Home, config: Config, ask: Callable[[str], str] | None = None) -> int:
    """Start, and return the exit code once the node was told to stop. The caller owns the home.

    `ask` gets a passphrase from the operator where no file has it.
    """
    import uvloop

    home.create()
    configure_logging(home, config.log_level)
    began = time.monotonic()
    genesis = load_genesis(home)
    start = build_genesis(genesis)
    keys = unlock(home, config.account, ask)
    chain_id = genesis.chain_id.hex()
    log.info("starting on %s (%s), home %s", genesis.network, chain_id[:16], home.path)
    code: int = uvloop.run(_main(home, config, start, keys))
    log.info("stopped after %.0f s", time.monotonic() - began)
    return code
