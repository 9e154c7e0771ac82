"""The node itself: status, peers, validators, and the search box."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chain import custody
from chain import datasets as dataset_rules
from chain import records as r
from chain.address import HUMAN_PART, parse_address
from chain.errors import InputError
from chain.hashes import ZERO_HASH, Hash32
from chain.types import GRAINS_PER_BLY, BlobId, Height, PubKey, TxId
from node.net.links.info import LinkInfo
from node.query import staking
from node.query.base import BadQuery, Json, Reader
from node.query.plain import address, nats, phase_name
from node.query.rounds import is_rolled_back
from node.version import version

SIGNED_WINDOW = 64  # newest heights whose certificates are counted for a validator's attendance
MAX_QUERY = 200  # characters of a search
MAX_HITS = 20
_MIN_PREFIX = 4  # hex digits from which a prefix is looked for
_PREFIXES = (
    (b"delt/", "delta"),
    (b"data/", "dataset"),
    (b"updt/", "update"),
    (b"acct/", "account"),
)


class NetworkQueries(Reader):
    def status(self) -> Json:
        """Where this node stands, in one look."""
        node, state = self.node, self.state
        header, current = node.chain.tip, state.round()
        consensus, sync = node.consensus.info(), node.sync.info()
        return {
            "network": node.genesis.network,
            "chain_id": node.genesis.chain_id.hex(),
            "version": version(),
            "node_id": node.net.peer_id,
            "account": address(node.account),
            "validator": state.validator(node.account) is not None,
            "height": header.height,
            "pruned_below": self.node.store.pruned.height,
            "block_hash": node.chain.tip_hash.hex(),
            "state_root": header.state_root.hex(),
            "time_ms": header.time_ms,
            "model_root": state.model.root.hex(),
            "model_version": state.model.version,
            "epoch": consensus.get("epoch", header.epoch),
            "view": consensus.get("view", header.view),
            "halted": consensus.get("halted") or None,
            "abstains": consensus.get("abstains"),
            "round": current.number,
            "phase": phase_name(current.phase),
            "loss": self._latest_loss(current),
            "peers": sum(1 for p in node.net.peers() if p.connected),
            "synced": bool(sync.get("synced", True)),
            "target_height": sync.get("target"),
            "sync": {name: sync.get(name) for name in ("phase", "first_height", "snapshot")},
            "uptime_s": max(0, time.time_ns() // 1_000_000 - node.started_ms) // 1000,
            "memory_mb": memory_mb(),
            "mempool": node.pool.size,
            "tiles": self._tiles(),
            "addresses": list(node.net.addresses()),
            "api": node.api_address,
        }

    def _tiles(self) -> Json:
        """This node's share of the model, in short; the rest is in `/holdings`."""
        info = self.node.placement.info()
        return {
            "kept": info["kept_tiles"],
            "missing": info["missing_tiles"],
            "under_replicated": info["under_replicated_tiles"],
            "bytes": info["store_bytes"],
            "no_room": info["no_room"],
        }

    def _latest_loss(self, current: r.RoundRecord) -> Json | None:
        """The newest measured holdout loss of a model that stands, of this round or the one
        before."""
        following = None
        for number in range(current.number, max(-1, current.number - 2), -1):
            record = self.state.round(number)
            after = 0 if is_rolled_back(record, following) else record.loss_after
            if loss := after or record.loss_before:
                return {"round": number, "nano_nats": loss, "nats": nats(loss)}
            following = record
        return None

    def genesis(self) -> Json:
        """The genesis document, as the chain id binds it."""
        return dict(self.node.genesis.document)

    def peers(self) -> Json:
        links = {link.peer_id: _link(link) for link in self.node.net.link_info() if link.up}
        listed = [
            {
                "peer_id": p.peer_id,
                "addresses": list(p.addresses),
                "connected": p.connected,
                "rtt_ms": p.rtt_ms,
                "direction": p.direction,
                "violations": p.violations,
                "account": self._account_of(p.peer_id),
                "link": links.get(p.peer_id),
            }
            for p in self.node.net.peers()
        ]
        return {
            "node_id": self.node.net.peer_id,
            "addresses": list(self.node.net.addresses()),
            "peers": listed,
        }

    def _account_of(self, peer_id: str) -> str | None:
        members = self.state.validators()
        return next((address(v.account) for v in members if v.node_id == peer_id), None)

    def validators(self) -> Json:
        """The set of the epoch in progress, and how many of the last certificates each signed."""
        state, store = self.state, self.node.store
        head = state.head
        record = state.epoch(head.epoch)
        members = record.validators.members
        signed, counted = [0] * len(members), 0
        for height in range(max(1, head.height - SIGNED_WINDOW + 1), head.height + 1):
            certificate = store.certificate(Height(height))
            if certificate is None or certificate.epoch != head.epoch:
                continue
            counted += 1
            for i in certificate.indices():
                signed[i] += 1
        proposed = [b.proposer for b in store.latest_blocks(SIGNED_WINDOW)]
        total = sum(v.stake for v in members)
        own = self.node.account
        return {
            "epoch": head.epoch,
            "seed": record.seed.hex(),
            "total_stake": total,
            "window": counted,
            "validators": [
                {
                    "index": i,
                    "account": address(v.account),
                    "consensus_key": v.consensus_key.hex(),
                    "vrf_key": v.vrf_key.hex(),
                    "node_id": v.node_id,
                    "stake": v.stake,
                    "share_permille": v.stake * 1000 // total if total else 0,
                    "signed": signed[i],
                    "proposed": proposed.count(v.consensus_key),
                    "missed_turns": staking.missed_turns(state, v.account),
                    "jailed": bool(state.account(v.account).jailed),
                    "jail": staking.jail(state, v.account),
                    "own": v.account == own,
                }
                for i, v in enumerate(members)
            ],
        }

    # --- search ----------------------------------------------------------------------

    def search(self, text: str) -> list[Json]:
        """What a height, hash, id, address, shard or title may mean, best first."""
        query = text.strip()
        if len(query) > MAX_QUERY:
            raise BadQuery(f"a search has at most {MAX_QUERY} characters")
        if not query:
            return []
        finders: tuple[Callable[[str], Iterator[Json]], ...] = (
            self._find_number,
            self._find_address,
            self._find_hash,
            self._find_prefix,
            self._find_shard,
            self._find_dataset,
        )
        hits: list[Json] = []
        for finder in finders:
            for hit in finder(query):
                if hit["url"] not in {h["url"] for h in hits} and len(hits) < MAX_HITS:
                    hits.append(hit)
        return hits

    def _find_number(self, query: str) -> Iterator[Json]:
        digits = query.removeprefix("#")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            return
        number = int(digits)
        if number <= self.node.chain.tip.height:
            yield _hit("block", digits, f"Block {number}", f"/blocks/{number}")
        if number <= self.state.head.round:
            yield _hit("round", digits, f"Round {number}", f"/rounds/{number}")

    def _find_address(self, query: str) -> Iterator[Json]:
        if not query.lower().startswith(HUMAN_PART + "1"):
            return
        try:
            key = parse_address(query)
        except InputError:
            return
        yield _hit("account", address(key), f"Account {address(key)}", f"/accounts/{address(key)}")

    def _find_hash(self, query: str) -> Iterator[Json]:
        value = _hex(query)
        if value is None or len(value) != 32:
            return
        state, store = self.state, self.node.store
        name = value.hex()
        height = store.height_of(Hash32(value))
        if height is not None:
            yield _hit("block", name, f"Block {height}", f"/blocks/{height}")
        yield from self._records(value, name)
        if store.tx(TxId(value)) is not None or self.node.pool.status(TxId(value)) is not None:
            yield _hit("tx", name, f"Transaction {name}", f"/txs/{name}")
        if state.raw(r.account_key(PubKey(value))) is not None:
            text = address(PubKey(value))
            yield _hit("account", text, f"Account {text}", f"/accounts/{text}")
        yield from self._roots(value)

    def _records(self, value: bytes, name: str) -> Iterator[Json]:
        state = self.state
        if state.raw(r.delta_key(TxId(value))) is not None:
            yield _hit("delta", name, f"Delta {name}", f"/deltas/{name}")
        if state.raw(r.dataset_key(Hash32(value))) is not None:
            yield _hit("dataset", name, f"Dataset {name}", f"/datasets/{name}")
        if state.raw(r.update_key(TxId(value))) is not None:
            yield _hit("update", name, f"Update {name}", f"/updates/{name}")
        event = custody.current(state)
        asked = event is not None and event.seed == value != ZERO_HASH
        if asked or self.node.store.history("custody", value, limit=1):
            yield _hit("custody", name, f"Custody event {name}", f"/custody/{name}")

    def _roots(self, value: bytes) -> Iterator[Json]:
        """Roots of the newest model: itself, its shards and tiles; and blobs that a delta names."""
        state = self.state
        if state.model.root == value:
            yield _hit("model", value.hex(), "The model", "/shards")
        for spec in self.node.tiles.specs:
            record = state.need(r.ShardRecord, r.shard_key(spec.index))
            if record.root == value:
                yield _hit("shard", spec.name, f"Shard {spec.name}", f"/shards/{spec.index}")
            roots = state.need(r.TileRoots, r.tiles_key(spec.index)).roots
            for i, root in enumerate(roots):
                if root == value:
                    title = f"Tile {spec.name}:{i}"
                    yield _hit("tile", f"{spec.name}:{i}", title, f"/tiles/{spec.index}/{i}")
        for delta in state.round().deltas:
            if state.delta(delta).blob == BlobId(value):
                yield _hit("delta", delta.hex(), f"Delta {delta.hex()}", f"/deltas/{delta.hex()}")

    def _find_prefix(self, query: str) -> Iterator[Json]:
        """Ids that begin with some hex digits, where the state's key order makes that cheap."""
        value = _hex(query[: len(query) // 2 * 2])
        if value is None or not _MIN_PREFIX <= len(query) < 64:
            return
        for prefix, kind in _PREFIXES:
            for key in self.state.tree.keys(prefix + value):
                name = key[len(prefix) :].hex()
                if name.startswith(query.lower()):
                    text = address(PubKey(bytes.fromhex(name))) if kind == "account" else name
                    yield _hit(kind, text, f"{kind.capitalize()} {text}", f"/{kind}s/{text}")

    def _find_shard(self, query: str) -> Iterator[Json]:
        name, _, tile = query.lower().partition(":")
        for spec in self.node.tiles.specs:
            if name and name in spec.name:
                if tile.isdigit() and int(tile) < spec.tile_count:
                    title = f"Tile {spec.name}:{int(tile)}"
                    yield _hit("tile", title[5:], title, f"/tiles/{spec.index}/{int(tile)}")
                yield _hit("shard", spec.name, f"Shard {spec.name}", f"/shards/{spec.index}")

    def _find_dataset(self, query: str) -> Iterator[Json]:
        for record in dataset_rules.all_datasets(self.state):
            if query.lower() in record.title.lower():
                name = record.id.hex()
                yield _hit("dataset", name, f"Dataset {record.title}", f"/datasets/{name}")


def _link(info: LinkInfo) -> Json:
    return {
        "dialled_by": info.dialled_by,
        "rtt_ms": info.rtt_ms,
        "bytes_in": info.bytes_in,
        "bytes_out": info.bytes_out,
    }


def _hit(kind: str, name: str, title: str, url: str) -> Json:
    return {"kind": kind, "id": name, "title": title, "url": url}


def _hex(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) if text.isalnum() else None
    except ValueError:
        return None


def memory_mb() -> int:
    """Resident memory of this process in MiB; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // (1 << 20)


def bly(grains: int) -> str:
    """Grains as BLY with the decimals that are needed: `1.5` for 150000000."""
    whole, rest = divmod(grains, GRAINS_PER_BLY)
    decimals = f"{rest:08d}".rstrip("0")
    return f"{whole:,}" + (f".{decimals}" if decimals else "")
