"""The model: shards, tiles, who keeps them and how they hang under one root."""

from __future__ import annotations

from chain import model_versions
from chain import records as r
from chain.errors import UnreachableError, VerifyError
from chain.hashes import MODEL, SHARD, Context, Hash32
from chain.limits import MERKLE_ARITY
from chain.rounds import tile_ranks
from chain.types import PubKey, Validator, u64_be
from node.election_check import drawn
from node.query.base import Json, NotFound, Reader, natural, unhex
from node.query.blocks import BlockQueries
from node.query.custody import CustodyQueries
from node.query.governance import GovernanceQueries
from node.query.plain import address, plain
from node.round_specs import RoundSpecs
from node.rules import ProtocolRules
from node.services.retention import retained_from
from tiles import merkle
from tiles.layout import ShardSpec, subtile_count

MAX_VERSIONS = 100  # newest versions of a shard or tile that are listed


class ModelQueries(Reader):
    def model(self, height: int | None = None) -> Json:
        """The whole model as of a height (by default the tip): every shard and tile root."""
        tip = self.node.chain.tip.height
        at = tip if height is None else height
        if not 0 <= at <= tip:
            raise NotFound(f"height {at} is not final; the height is {tip}")
        versions = [self._version_at(spec, at) for spec in self.node.tiles.specs]
        version, changed, root = 0, 0, merkle.model_root([v.root for v in versions])
        for event in self.node.store.history("model", limit=1, before=(at + 1, 0)):
            version, changed = event.data["version"], event.height
        documents = GovernanceQueries(self.node).version_at(at)
        found = model_versions.documents(self.state, self.node.genesis, documents)
        return {
            "root": root.hex(),
            "version": version,
            "height": at,
            "changed": changed,
            "retained_from": retained_from(self.node.tiles.store, self.node.history),
            "model_version": documents,
            "spec": RoundSpecs.of(found).model.to_json(),
            "data_bytes": sum(spec.data_bytes for spec in self.node.tiles.specs),
            "shards": [
                {
                    "index": spec.index,
                    "name": spec.name,
                    "root": held.root.hex(),
                    "version": held.version,
                    "data_bytes": spec.data_bytes,
                    "tile_roots": [t.hex() for t in held.tile_roots],
                }
                for spec, held in zip(self.node.tiles.specs, versions, strict=True)
            ],
        }

    # --- shards ----------------------------------------------------------------------

    def shards(self) -> Json:
        state = self.state
        return {
            "model": _model(state.model),
            "holdings": self.holdings(),
            "shards": [self._shard_row(spec) for spec in self.node.tiles.specs],
        }

    def holdings(self) -> Json:
        """What this node keeps of the newest model, what it lacks, and what else it knows."""
        info = dict(self.node.placement.info())
        gone = [address(PubKey(bytes.fromhex(a))) for a in info["gone_custodians"]]
        return {**info, "gone_custodians": gone}

    def shard(self, which: str) -> Json:
        """One shard by index or name: tensors, tiles with their custodians, versions."""
        spec = self._spec(which)
        state = self.state
        record = state.need(r.ShardRecord, r.shard_key(spec.index))
        roots = state.need(r.TileRoots, r.tiles_key(spec.index)).roots
        proof = self._shard_proof(spec.index)
        offsets = spec.offsets()
        return {
            **self._shard_row(spec),
            "model_root": state.model.root.hex(),
            "path": {
                "index": spec.index,
                "count": proof.shard_count,
                "siblings": [s.hex() for s in proof.siblings],
                "levels": levels(MODEL, record.root, spec.index, proof.shard_count, proof.siblings),
            },
            "tensors": [
                {
                    "name": t.name,
                    "dtype": t.dtype,
                    "shape": list(t.shape),
                    "start": offsets[t.name][0],
                    "end": offsets[t.name][1],
                }
                for t in spec.tensors
            ],
            "tile_list": [
                {
                    "tile": i,
                    "root": root.hex(),
                    "bytes": spec.tile_bytes(i),
                    "primary": self._ranks(spec.index, i, 1)[0]["account"],
                    "held": self.node.tiles.store.has_tile(spec.index, record.root, i),
                    "holders": self.node.placement.tile_info(spec.index, record.root, i)["holders"],
                }
                for i, root in enumerate(roots)
            ],
            "versions": self._versions(spec.index),
        }

    def _shard_row(self, spec: ShardSpec) -> Json:
        record = self.state.need(r.ShardRecord, r.shard_key(spec.index))
        return {
            "index": spec.index,
            "name": spec.name,
            "coding": spec.coding,
            "data_bytes": spec.data_bytes,
            "tiles": spec.tile_count,
            "root": record.root.hex(),
            "version": record.version,
            "height": record.height,
            "held": record.root in self.node.tiles.store.versions(spec.index),
        }

    # --- tiles -----------------------------------------------------------------------

    def tile(self, shard: str, tile: str) -> Json:
        """One tile: its path to the model root and to the tip's header, custodians, history."""
        spec, index = self._spec(shard), natural(tile, "tile index")
        state = self.state
        roots = state.need(r.TileRoots, r.tiles_key(spec.index)).roots
        if index >= len(roots):
            raise NotFound(f"shard {spec.name} has the tiles 0 to {len(roots) - 1}, not {index}")
        record = state.need(r.ShardRecord, r.shard_key(spec.index))
        below = merkle.prove_tile(roots, spec.data_bytes, index)
        above = self._shard_proof(spec.index)
        ranks = self._ranks(spec.index, index)
        head = state.head
        return {
            "shard": spec.index,
            "name": spec.name,
            "tile": index,
            "root": roots[index].hex(),
            "bytes": spec.tile_bytes(index),
            "subtiles": subtile_count(spec.tile_bytes(index)),
            "shard_root": record.root.hex(),
            "shard_bytes": spec.data_bytes,
            "shard_tiles": len(roots),
            "version": record.version,
            "model_root": state.model.root.hex(),
            "model_version": state.model.version,
            "shard_count": above.shard_count,
            "held": self.node.tiles.store.has_tile(spec.index, record.root, index),
            "holders": self._holders(spec.index, record.root, index),
            "epoch": head.epoch,
            "primary": ranks[0]["account"],
            "ranks": ranks,
            "custody": CustodyQueries(self.node).custody_of(spec.index, index),
            "path": {
                "tile": {
                    "index": index,
                    "count": len(roots),
                    "siblings": [s.hex() for s in below.siblings],
                    "levels": levels(SHARD, roots[index], index, len(roots), below.siblings),
                },
                "shard": {
                    "index": spec.index,
                    "count": above.shard_count,
                    "siblings": [s.hex() for s in above.siblings],
                    "levels": levels(
                        MODEL, record.root, spec.index, above.shard_count, above.siblings
                    ),
                },
            },
            "state": BlockQueries(self.node).prove(r.MODEL),
            "versions": self._tile_versions(spec.index, index),
        }

    async def tile_data(self, shard: str, tile: str, root: str | None = None) -> bytes:
        """A tile's bytes, of the version with this shard root (by default the newest); fetched
        from peers if need be, and verified either way."""
        spec, index = self._spec(shard), natural(tile, "tile index")
        if index >= spec.tile_count:
            raise NotFound(f"shard {spec.name} has the tiles 0 to {spec.tile_count - 1}")
        record = self.state.need(r.ShardRecord, r.shard_key(spec.index))
        wanted = Hash32(unhex(root, "shard root")) if root else record.root
        try:
            return await self.node.tiles.tile(spec.index, wanted, index)
        except VerifyError as error:  # no such version was ever on this chain
            raise NotFound(str(error)) from None
        except UnreachableError as error:
            if wanted == record.root:
                raise
            raise UnreachableError(f"{error}; {self._retained()}") from None

    def _retained(self) -> str:
        """From which height on old models can be had, for whoever asked for an older one."""
        height = retained_from(self.node.tiles.store, self.node.history)
        if height is None:
            return "this node keeps only a part of the model"
        return f"this node has every model from height {height} on"

    def election(self, shard: str, tile: str) -> Json:
        """Who keeps a tile in this epoch, and all that anyone needs to compute it again: the
        epoch's record under a header, and on the way from it to the ranks what is drawn."""
        spec, index = self._spec(shard), natural(tile, "tile index")
        if index >= spec.tile_count:
            raise NotFound(f"shard {spec.name} has the tiles 0 to {spec.tile_count - 1}")
        epoch = self.state.epoch(self.state.head.epoch)
        return {
            "shard": spec.index,
            "name": spec.name,
            "tile": index,
            "epoch": epoch.epoch,
            "seed": epoch.seed.hex(),
            "ranks": self._ranks(spec.index, index),
            **drawn(epoch, spec.index, index),
            "state": BlockQueries(self.node).prove(r.epoch_key(epoch.epoch)),
        }

    # --- inside ----------------------------------------------------------------------

    def _spec(self, which: str) -> ShardSpec:
        specs = self.node.tiles.specs
        if which.isdigit():
            index = natural(which, "shard index")
            if index < len(specs):
                return specs[index]
        else:
            for spec in specs:
                if spec.name == which:
                    return spec
        raise NotFound(
            f"the model has no shard {which[:80]!r}; its shards are 0 to {len(specs) - 1}, "
            f"for example {specs[-1].name!r}"
        )

    def _shard_proof(self, index: int) -> merkle.ShardProof:
        state = self.state
        roots = [state.need(r.ShardRecord, r.shard_key(s)).root for s in range(state.model.shards)]
        return merkle.prove_shard(roots, index)

    def _holders(self, shard: int, root: Hash32, tile: int) -> Json:
        """Who is known to hold a tile now, by peer id and, where the epoch knows it, account."""
        info = dict(self.node.placement.tile_info(shard, root, tile))
        members = self.state.epoch(self.state.head.epoch).validators.members
        names = {v.node_id: address(v.account) for v in members}
        peers = [{"peer_id": p, "account": names.get(p)} for p in info["peers"]]
        return {**info, "peers": peers}

    def _ranks(self, shard: int, tile: int, most: int | None = None) -> list[Json]:
        epoch = self.state.epoch(self.state.head.epoch)
        members: dict[bytes, Validator] = {v.account: v for v in epoch.validators.members}
        ranked = tile_ranks(self.state, ProtocolRules(), shard, tile, most)
        return [
            {
                "rank": i,
                "account": address(a),
                "node_id": members[a].node_id,
                "stake": members[a].stake,
            }
            for i, a in enumerate(ranked)
        ]

    def _version_at(self, spec: ShardSpec, height: int) -> _Version:
        key = r.shard_key(spec.index)
        for event in self.node.store.history("shard", key, limit=1, before=(height + 1, 0)):
            roots = tuple(Hash32(bytes.fromhex(t)) for t in event.data["tiles"])
            root = Hash32(bytes.fromhex(event.data["root"]))
            return _Version(root, event.data["version"], roots)
        return self._first_version(spec.index)

    def _first_version(self, index: int) -> _Version:
        tree = self.node.genesis_tree
        state = type(self.state)(tree)
        record = state.need(r.ShardRecord, r.shard_key(index))
        roots = state.need(r.TileRoots, r.tiles_key(index)).roots
        return _Version(record.root, record.version, roots)

    def _versions(self, index: int) -> list[Json]:
        """Versions of a shard, newest first; the first is genesis's."""
        listed: list[Json] = [
            {
                "version": event.data["version"],
                "height": event.height,
                "round": event.data["round"],
                "root": event.data["root"],
            }
            for event in self.node.store.history("shard", r.shard_key(index), limit=MAX_VERSIONS)
        ]
        if len(listed) < MAX_VERSIONS:
            first = self._first_version(index)
            listed.append({"version": 0, "height": 0, "round": None, "root": first.root.hex()})
        return listed

    def _tile_versions(self, shard: int, tile: int) -> list[Json]:
        """Each version that changed the tile, newest first, and the round that did it."""
        events = self.node.store.history("shard", r.shard_key(shard), limit=MAX_VERSIONS)
        returns = {e.data["version"] for e in events if "returns_to" in e.data}  # made of no delta
        rows: list[tuple[int, int, int | None, str, str]] = [
            (e.data["version"], e.height, e.data["round"], e.data["root"], e.data["tiles"][tile])
            for e in events
        ]
        if len(rows) < MAX_VERSIONS:
            first = self._first_version(shard)
            rows.append((0, 0, None, first.root.hex(), first.tile_roots[tile].hex()))
        below: list[str | None] = [*(row[4] for row in rows[1:]), None]
        return [
            {
                "version": version,
                "height": height,
                "round": number,
                "shard_root": shard_root,
                "root": root,
                "deltas": [] if version in returns else self._merged_in(number),
            }
            for (version, height, number, shard_root, root), old in zip(rows, below, strict=True)
            if root != old
        ]

    def _merged_in(self, number: int | None) -> list[str]:
        """The deltas of which a round made its update; none for genesis."""
        if number is None:
            return []
        return [d.hex() for d in self.state.round(number).accepted]


class _Version:
    """One shard version: its root and tile roots."""

    __slots__ = ("root", "tile_roots", "version")

    def __init__(self, root: Hash32, version: int, tile_roots: tuple[Hash32, ...]) -> None:
        self.root, self.version, self.tile_roots = root, version, tile_roots


def _model(model: r.ModelRecord) -> Json:
    found: Json = plain(model)
    return found


def levels(
    context: Context, leaf: Hash32, index: int, count: int, siblings: tuple[Hash32, ...]
) -> list[Json]:
    """A Merkle path level by level, as one would draw it: all children of each node, which of
    them is ours, and the node's hash (docs/spec/tiles.md)."""
    found: list[Json] = []
    node, taken, level = leaf, 0, 0
    while count > 1:
        slot = index % MERKLE_ARITY
        width = min(MERKLE_ARITY, count - (index - slot)) - 1
        group = siblings[taken : taken + width]
        children = (*group[:slot], node, *group[slot:])
        taken, level, index = taken + width, level + 1, index // MERKLE_ARITY
        count = -(-count // MERKLE_ARITY)
        node = context.hash(bytes([level]), u64_be(index), *children)
        found.append(
            {
                "level": level,
                "position": index,
                "slot": slot,
                "children": [c.hex() for c in children],
                "node": node.hex(),
            }
        )
    return found
