"""A whole chain in one process: real genesis, execution, store, mempool, tiles and certificates.

`LocalChain` stands where a node does (`node.seam.NodeSeam`), without network and consensus: its
blocks are built by the elected leader's keys, certified by every validator, and committed through
the real `ChainService`. Keys and time are deterministic, so every run gives the same hashes.

    with LocalChain(tmp_path) as chain:
        chain.send(Transfer(to, Grains(5)), chain.learners[0])
        chain.block()
        chain.learn(garbage=1)          # a whole learning round with synthetic deltas
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chain import certificates, limits
from chain.codec import encode
from chain.errors import UnreachableError, VerifyError
from chain.execute import Context, Execution, epoch_of, seal_header
from chain.hashes import BLOB, Hash32
from chain.params import Genesis, parse_genesis
from chain.receipts import Receipt
from chain.state import State
from chain.store import ChainStore
from chain.transactions import Payload
from chain.types import (
    BlobId,
    Block,
    Certificate,
    Grains,
    Height,
    PubKey,
    TimeMs,
    TxId,
    Validator,
    View,
    VoteKind,
)
from consensus import election, vrf
from node.genesis import build_genesis
from node.mempool import Mempool
from node.net.info import PeerInfo
from node.net.links.info import LinkInfo
from node.rules import ProtocolRules
from node.scrub import LEFT, Finding, Repair, ScrubReport
from node.services.chain import ChainService, vrf_input
from node.services.versions import VersionHistory
from node.stamping import spend_of
from tiles.layout import ShardSpec
from tiles.store import TileStore
from wallet.keys import KeyPair, Keys
from wallet.signing import sign_transaction, sign_vote

TEMPLATE = Path(__file__).parents[2] / "genesis.json"
STAKES = (4, 3, 2, 1)  # of the validators, times 100 BLY: unequal, so that shares can be seen
FUNDS = Grains(1_000 * 10**8)
START_MS = 1_790_000_000_000  # 2026-09-21
STEP_MS = 1000
TINY: dict[str, Any] = {
    "layers": 1,
    "width": 16,
    "heads": 2,
    "experts": 2,
    "top_k": 1,
    "expert_width": 16,
    "context": 32,
    "init_seed": "kit",
}


def key(name: str) -> KeyPair:
    """A key pair that every run derives alike from a name."""
    return KeyPair.from_seed(hashlib.sha256(name.encode()).digest())


def keys(name: str) -> Keys:
    return Keys(*(key(f"{name}/{role}") for role in ("account", "node", "consensus", "vrf")))


class LocalChain:
    """One chain, and what `NodeSeam` asks of a node. Everything is synchronous."""

    def __init__(
        self,
        directory: Path,
        *,
        validators: int = 4,
        learners: int = 3,
        start_ms: int = START_MS,
        model: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        **params: Any,
    ) -> None:
        self.validators = [keys(f"validator {i}") for i in range(validators)]
        self.learners = [key(f"learner {i}") for i in range(learners)]
        self.genesis: Genesis = self._genesis(start_ms, model or TINY, training or {}, params)
        self.rules = ProtocolRules()
        start = build_genesis(self.genesis)
        self.genesis_tree = start.tree
        self.store = ChainStore(directory / "chain.db")
        self.specs = start.specs
        genesis_roots = [shard.tile_roots for shard in start.rooted]
        self.history = VersionHistory(self.store, start.specs, genesis_roots)
        self.chain = ChainService(start, self.store, self.rules)
        self.pool = Mempool(self.genesis, self.rules, self.chain.state, lambda raw: None)
        self.tiles = LocalTiles(directory / "tiles", start.specs)
        for index, (data, shard) in enumerate(zip(start.shards, start.rooted, strict=True)):
            self.tiles.store.put_shard(index, data, shard.root)
        self.placement = LocalPlacement(self.tiles, self.genesis.validators[-1].node_id)
        self.blobs = LocalBlobs()
        self.net = LocalNet(self.genesis)
        self.consensus = LocalInfo(
            lambda: {"epoch": self.chain.tip.epoch, "view": self.chain.tip.view, "index": 0}
        )
        self.scrub = LocalScrub()
        self.sync = LocalInfo(lambda: {"synced": True, "target": self.chain.tip.height})
        self.account: PubKey = self.validators[0].account.public
        self.api_address = "http://127.0.0.1:8645"
        self.api_token = "kit-token"
        self.started_ms = start_ms
        self._view = 0
        self._nonces: dict[PubKey, int] = {}

    def __enter__(self) -> LocalChain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.store.close()
        self.tiles.store.close()

    def metrics(self) -> dict[str, int | float]:
        return {"kit": 1}

    @property
    def state(self) -> State:
        return self.chain.state()

    # --- transactions ----------------------------------------------------------------

    def sign(
        self,
        payload: Payload,
        signer: KeyPair,
        *,
        sender: PubKey | None = None,
        fee: int | None = None,
    ) -> bytes:
        """An encoded transaction with the account's next nonce; `sender` for a node key's duty."""
        account = signer.public if sender is None else sender
        least = self.genesis.params.min_fee_grains * spend_of(payload).units
        return encode(
            sign_transaction(
                signer,
                chain_id=self.genesis.chain_id,
                nonce=self.pool.next_nonce(account),
                payload=payload,
                fee=Grains(least if fee is None else fee),
                sender=sender,
            )
        )

    def send(self, payload: Payload, signer: KeyPair, *, fee: int | None = None) -> TxId:
        """Put a signed transaction into the pool, which checks it."""
        return self.pool.submit(self.sign(payload, signer, fee=fee))

    def duty(self, payload: Payload, validator: Keys) -> TxId:
        """A validator's duty: signed by its node key, without a fee."""
        raw = self.sign(payload, validator.node, sender=validator.account.public, fee=0)
        return self.pool.submit(raw)

    # --- blocks ----------------------------------------------------------------------

    def blocks(self, count: int) -> None:
        for _ in range(count):
            self.block()

    def block(self, *extra: bytes, certify: bool = True) -> tuple[Receipt, ...]:
        """The elected leader's next block of what waits, and of `extra` raw transactions (which
        may fail); certified by every validator, and final."""
        parent = self.chain.tip
        epoch = epoch_of(self.genesis, parent.height + 1)
        self._view = parent.view + 1 if parent.epoch == epoch else 1
        record = self.chain.state().epoch(epoch)
        leader = record.validators.members[
            election.leader(record.seed, View(self._view), record.validators)
        ]
        own = next(k for k in self.validators if k.consensus.public == leader.consensus_key)
        proof = vrf.prove(own.vrf.seed, vrf_input(parent, epoch, self._view))
        ctx = Context(
            Height(parent.height + 1),
            TimeMs(parent.time_ms + STEP_MS),
            epoch,
            View(self._view),
            self.chain.tip_hash,
            leader.consensus_key,
            vrf.output(proof),
        )
        tree = self.chain.tree_after(self.chain.tip_hash)
        if tree is None:
            raise LookupError("the tip has its state")
        execution = Execution(tree, self.genesis, self.rules, ctx)
        txs = self.pool.fill(execution, limits.MAX_BLOCK_BYTES // 2)
        for raw in extra:
            execution.apply(raw)
        txs = (*txs, *extra)
        done = execution.finish()
        block = Block(seal_header(ctx, self.genesis, txs, (), done, proof), txs, ())
        self.chain.keep(block, done)
        self.chain.commit((block,), self.certify(block) if certify else None)
        self.pool.committed(done.receipts, done.changes)
        return done.receipts

    def certify(self, block: Block) -> Certificate:
        """A finalization signed by all validators but the last, when there are enough."""
        record = self.chain.state().epoch(block.header.epoch)
        signers = self.validators if len(self.validators) < 4 else self.validators[:-1]
        votes = [
            sign_vote(
                k.consensus,
                chain_id=self.genesis.chain_id,
                kind=VoteKind.FINALIZE,
                epoch=block.header.epoch,
                view=block.header.view,
                block_hash=block.hash(),
            )
            for k in signers
        ]
        return certificates.assemble(record.validators, votes)

    def until(self, reached: Callable[[State], bool], most: int = 200) -> None:
        """Blocks until something holds in the state."""
        for _ in range(most):
            if reached(self.state):
                return
            self.block()
        raise LookupError(f"not reached within {most} blocks")

    # --- learning --------------------------------------------------------------------

    def learn(self, **options: Any) -> int:
        """A whole learning round; see `tests.kit.learning.run_round`. Its number."""
        from tests.kit.learning import run_round

        return run_round(self, **options)

    # --- inside ----------------------------------------------------------------------

    def _genesis(
        self,
        start_ms: int,
        model: dict[str, Any],
        training: dict[str, Any],
        params: dict[str, Any],
    ) -> Genesis:
        """`training`, `params`: what is other than in the template."""
        document = json.loads(TEMPLATE.read_text())
        document["time_ms"] = start_ms
        document["model"] = model
        document["training"].update(training)
        document["params"].update(
            {"stamp_bits": 4, "seed_blocks": 4, "custody_interval_blocks": 10**9}
            | {"evidence_blocks": params.get("epoch_blocks", 128)}
            | params
        )
        document["validators"] = [
            {
                "account": k.account.public.hex(),
                "node_key": k.node.public.hex(),
                "consensus_key": k.consensus.public.hex(),
                "vrf_key": k.vrf.public.hex(),
                "node_id": _peer_id(k.node.public),
                "stake": STAKES[i % len(STAKES)] * 100 * 10**8 * 10,
            }
            for i, k in enumerate(self.validators)
        ]
        funded = [*self.learners, *(k.account for k in self.validators)]
        document["accounts"] = [{"account": k.public.hex(), "grains": FUNDS} for k in funded]
        self.genesis_text = json.dumps(document)
        return parse_genesis(self.genesis_text)


class LocalTiles:
    """Shards of this directory alone."""

    def __init__(self, directory: Path, specs: Sequence[ShardSpec]) -> None:
        self.specs = tuple(specs)
        self.store = TileStore(directory, specs)

    async def shard(self, index: int, root: Hash32) -> bytes:
        return self.read(index, root)

    async def tile(self, index: int, root: Hash32, tile: int) -> bytes:
        if not self.store.presence(index, root):
            raise VerifyError(f"shard {index} never had the root {root.hex()} on this chain")
        return self.store.read_tile(index, root, tile)

    def read(self, index: int, root: Hash32) -> bytes:
        if root not in self.store.versions(index):
            raise VerifyError(f"shard {index} never had the root {root.hex()} on this chain")
        return self.store.read_shard(index, root)


class LocalScrub:
    """A node whose disk has one damaged tile. A scrub is under way when it is first looked at."""

    def __init__(self) -> None:
        self.scrubs = self._looked = 0
        self.action = LEFT

    def start(self) -> dict[str, Any]:
        self.scrubs, self._looked = self.scrubs + 1, 0
        return self.info()

    def info(self) -> dict[str, Any]:
        self._looked += 1
        running = self.scrubs > 0 and self._looked == 1
        report = ScrubReport("chain", START_MS + self.scrubs - running, START_MS + 9, tiles=7)
        finding = Finding((0, Hash32(bytes(32)), 0), 3)
        detail = "none of 0 connected peers has it" if self.action == LEFT else ""
        report.repairs.append(Repair(finding, self.action, detail))
        last = report.to_json(())
        return {"running": running, "done_tiles": 3, "total_tiles": 7, "last": last}


class LocalPlacement:
    """Everything is kept here, and one peer holds what is here."""

    def __init__(self, tiles: LocalTiles, peer: str) -> None:
        self._tiles, self._peer = tiles, peer
        self.target = 3

    def info(self) -> dict[str, Any]:
        tiles = sum(spec.tile_count for spec in self._tiles.specs)
        return {
            "model_tiles": tiles,
            "capacity_tiles": 65_536,
            "replication_target": self.target,
            "kept_tiles": tiles,
            "missing_tiles": 0,
            "beyond_capacity_tiles": 0,
            "under_replicated_tiles": tiles,
            "gone_custodians": [],
            "provided_keys": 1,
            "store_bytes": self._tiles.store.used_bytes,
            "store_quota_bytes": 0,
            "evicted_tiles": 0,
            "no_room": None,
        }

    def tile_info(self, shard: int, root: Hash32, tile: int) -> dict[str, Any]:
        held = self._tiles.store.has_tile(shard, root, tile)
        return {
            "replication_target": self.target,
            "kept_here": True,
            "held_here": held,
            "holders": 2 * held,
            "peers": [self._peer] * held,
        }


class LocalBlobs:
    """Blobs and checkpoints in memory."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def put(self, data: bytes) -> BlobId:
        blob = BlobId(BLOB.hash(data))
        self.held[blob] = data
        return blob

    def local(self, blob_id: BlobId) -> bytes | None:
        return self.held.get(blob_id)

    async def get(self, blob_id: BlobId, most: int = 1 << 26, *, keep: bool = True) -> bytes:
        return self._get(blob_id)

    def put_checkpoint(self, state_hash: Hash32, data: bytes) -> None:
        self.held[b"checkpoint" + state_hash] = data

    def local_checkpoint(self, state_hash: Hash32) -> bytes | None:
        return self.held.get(b"checkpoint" + state_hash)

    async def get_checkpoint(self, state_hash: Hash32) -> bytes:
        return self._get(b"checkpoint" + state_hash)

    def _get(self, name: bytes) -> bytes:
        if name not in self.held:
            raise UnreachableError(f"none of 0 connected peers has {name[-32:].hex()}")
        return self.held[name]


class LocalNet:
    """Peers as the port would tell of them: the other validators of the genesis."""

    def __init__(self, genesis: Genesis) -> None:
        self.peer_id = genesis.validators[0].node_id
        self.infos = [
            PeerInfo(
                peer_id=v.node_id,
                addresses=(f"/ip4/127.0.0.1/tcp/{9645 + i}/p2p/{v.node_id}",),
                connected=True,
                rtt_ms=0.4 * i,
                violations=0.0,
                direction="out" if i % 2 else "in",
            )
            for i, v in enumerate(genesis.validators)
            if i
        ]

    def addresses(self) -> list[str]:
        return [f"/ip4/127.0.0.1/tcp/9645/p2p/{self.peer_id}"]

    def peers(self) -> list[PeerInfo]:
        return list(self.infos)

    def link_info(self) -> list[LinkInfo]:
        up = [i.peer_id for i in self.infos if i.connected]
        return [LinkInfo(name, True, "us", 1.0, 1 << 30, 1 << 20) for name in up[1:]]

    def disconnect(self, index: int) -> None:
        self.infos[index] = replace(self.infos[index], connected=False, rtt_ms=None, direction=None)


class LocalInfo:
    """A service of which only `info` is asked."""

    def __init__(self, info: Callable[[], dict[str, Any]]) -> None:
        self.info = info


def _peer_id(node_key: bytes) -> str:
    from chain.address import peer_id_of

    return peer_id_of(node_key)


def members(chain: LocalChain) -> tuple[Validator, ...]:
    return chain.state.validators()
