"""What can be verified of an untrusted node's answers: a transaction, an account, a tile, a
dataset, a delta. Each says what was checked, and what was not (docs/spec/light-client.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from chain import records as r
from chain.address import format_address
from chain.codec import decode
from chain.errors import BlyanError, InputError, VerifyError
from chain.hashes import TX, Hash32
from chain.light_proofs import TxProof, verify_tx_proof
from chain.transactions import Transaction, decode_transaction
from chain.types import Header, PubKey, TxId, tx_root
from learning.spec import ModelSpec
from node.light.follow import MAX_BACK, Follower
from node.light.source import LightSource, StateAnswer
from node.query.plain import INVALID, dataset_status, delta_status, kind_name, plain
from node.tile_check import parse_target
from tiles import merkle

T = TypeVar("T")
Json = dict[str, Any]

EXECUTED, REFUSED, UNKNOWN = "executed", "refused", "unknown"


@dataclass(slots=True)
class Fact:
    """What is so under a verified header. `value` is None if the chain has no such thing."""

    kind: str
    id: str
    header: Header
    value: Json | None
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    is_newest: bool = False  # the node was asked for its newest block, whichever that is


class Verifier:
    """Asks one node and believes nothing but what hangs on headers that a `Follower` verified."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.source: LightSource = follower.source

    async def account(self, account: PubKey, height: int | None) -> Fact:
        key = r.account_key(account)
        header, found, line = await self._read(r.Account, key, "account", height)
        value = _plain(found)
        return Fact(
            "account", format_address(account), header, value, [line], is_newest=height is None
        )

    async def dataset(self, dataset: Hash32, height: int | None) -> Fact:
        key = r.dataset_key(dataset)
        header, found, line = await self._read(r.DatasetRecord, key, "dataset", height)
        value = _plain(found)
        if value is not None and found is not None:
            value["status"] = dataset_status(found.status)
        return Fact("dataset", dataset.hex(), header, value, [line], is_newest=height is None)

    async def delta(self, delta: TxId, height: int | None) -> Fact:
        """The delta's record, and its `delta_commit` in the block that the record names."""
        header, found, line = await self._read(r.DeltaRecord, r.delta_key(delta), "delta", height)
        newest = height is None
        fact = Fact("delta", delta.hex(), header, _plain(found), [line], is_newest=newest)
        if found is None or fact.value is None:
            return fact
        fact.value["status"] = delta_status(found.status)
        if found.height > header.height:
            raise VerifyError(f"the record names block {found.height}, above its own")
        if header.height - found.height > MAX_BACK:
            fact.unchecked.append(
                f"its delta_commit in block {found.height}, which is more than {MAX_BACK} below"
            )
            return fact
        committed = await self.follower.header(found.height)
        self._included(delta, await self.source.tx_proof(delta), committed, fact)
        return fact

    async def tile(self, target: str, height: int | None, *, data: bool) -> Fact:
        """A tile's root under its shard's record; with `data` also the bytes that the node has."""
        specs = ModelSpec.from_json(dict(self.follower.anchor.genesis.model)).shards()
        spec, tiles = parse_target(target, specs)
        if len(tiles) != 1:
            raise InputError(f"{target!r} names a shard of {len(tiles)} tiles; expected SHARD:TILE")
        (tile,) = tiles
        header, shard, line = await self._read(
            r.ShardRecord, r.shard_key(spec.index), "shard", height
        )
        key = r.tiles_key(spec.index)
        _, listed, below = await self._read(r.TileRoots, key, "list of tile roots", header.height)
        if shard is None or listed is None:
            raise VerifyError(f"the state of block {header.height} has no shard {spec.index}")
        if (shard.name, shard.data_bytes) != (spec.name, spec.data_bytes):
            raise VerifyError(f"shard {spec.index} is not the one of the genesis model")
        if merkle.shard_root(listed.roots, shard.data_bytes) != shard.root:
            raise VerifyError(f"the tile roots of {spec.name} do not make its shard root")
        root = listed.roots[tile]
        value: Json = {
            "shard": spec.index,
            "name": spec.name,
            "tile": tile,
            "root": root.hex(),
            "bytes": spec.tile_bytes(tile),
            "shard_root": shard.root.hex(),
            "version": shard.version,
            "changed_at": shard.height,
        }
        name = f"{spec.name}:{tile}"
        made = f"{len(listed.roots)} tile root(s) make the shard root {shard.root.hex()}"
        newest = height is None
        fact = Fact("tile", name, header, value, [line, below, made], is_newest=newest)
        if not data:
            fact.unchecked.append("the tile's bytes: --data fetches and checks them")
            return fact
        content = await self.source.tile(spec.index, tile, shard.root)
        if len(content) != spec.tile_bytes(tile) or merkle.tile_root(content) != root:
            raise VerifyError(
                f"{self.source.url}: its {len(content)} bytes of tile {name} do not have the root "
                f"{root.hex()}"
            )
        fact.checked.append(f"{len(content)} bytes hash to the tile root {root.hex()}")
        return fact

    async def tx(self, tx_id: TxId) -> Fact:
        """A transaction's place in a final block, and whether it was carried out."""
        proof = await self.source.tx_proof(tx_id)
        header = await self.follower.header(proof.height)
        fact = Fact("tx", tx_id.hex(), header, {})
        tx = self._included(tx_id, proof, header, fact)
        outcome = await self._outcome(tx_id, tx, header, fact)
        content = {"kind": INVALID} if tx is None else _content(tx)
        fact.value = {"position": proof.index, "outcome": outcome, **content}
        return fact

    # --- inside ----------------------------------------------------------------------

    async def _read(
        self, cls: type[T], key: bytes, what: str, height: int | None
    ) -> tuple[Header, T | None, str]:
        answer = await self.source.state(key, height)
        header = await self.follower.header(answer.header.height)
        answer.check(header)
        found: T | None = None if answer.value is None else decode(cls, answer.value)
        said = "stands" if found is not None else "is absent: no such key stands"
        line = (
            f"the {what} {said} under the state root {header.state_root.hex()} of block "
            f"{header.height} ({len(answer.proof.siblings)} siblings)"
        )
        return header, found, line

    def _included(
        self, tx_id: TxId, proof: TxProof, header: Header, fact: Fact
    ) -> Transaction | None:
        """The transaction, or None if its bytes are none. VerifyError unless the block has it."""
        if TxId(TX.hash(proof.tx)) != tx_id:
            raise VerifyError(f"{self.source.url} shows another transaction than {tx_id.hex()}")
        if proof.height != header.height:
            raise VerifyError(
                f"{self.source.url} shows the transaction in block {proof.height}, not "
                f"{header.height}"
            )
        if not verify_tx_proof(header.tx_root, proof):
            raise VerifyError(
                f"{self.source.url}: its proof does not lead to the transactions of block "
                f"{header.height}"
            )
        fact.checked.append(
            f"transaction {tx_id.hex()} is number {proof.index + 1} of {proof.count} in block "
            f"{header.height} ({len(proof.siblings)} siblings up to its tx_root)"
        )
        return _decoded(proof.tx)

    async def _outcome(
        self, tx_id: TxId, tx: Transaction | None, header: Header, fact: Fact
    ) -> str:
        """Receipts are under no root. But a transaction that is carried out, and nothing else,
        moves its sender's nonce past its own; and one that is refused leaves it."""
        if tx is None or tx.chain_id != header.chain_id:
            fact.checked.append("refused: its bytes are no transaction of this chain")
            return REFUSED
        try:
            before, after, parent = await self._nonces(tx.sender, header)
        except InputError as error:
            fact.unchecked.append(f"whether it was carried out or refused: {error}")
            return UNKNOWN
        nonces = f"its sender's nonce was {before} after block {parent.height}, and {after} after "
        nonces += f"block {header.height} (two state proofs); its own is {tx.nonce}"
        if not before <= tx.nonce < after:
            fact.checked.append(f"refused: {nonces}")
            return REFUSED
        block = await self.source.block(header)
        if tx_root(block.txs) != header.tx_root:
            raise VerifyError(f"{self.source.url}: not the transactions of block {header.height}")
        rivals = {TxId(TX.hash(raw)) for raw in block.txs if _takes(raw, tx.sender, tx.nonce)}
        if rivals != {tx_id}:
            fact.checked.append(nonces)
            fact.unchecked.append(
                f"which of {len(rivals)} transactions of that sender and nonce in block "
                f"{header.height} was carried out: exactly one of them was"
            )
            return UNKNOWN
        fact.checked.append(
            f"carried out: {nonces}, and no other of the block's {len(block.txs)} has that sender "
            "and nonce"
        )
        return EXECUTED

    async def _nonces(self, sender: PubKey, header: Header) -> tuple[int, int, Header]:
        """Of an account before and after a block, with the header before."""
        key, height = r.account_key(sender), header.height
        after = await self.source.state(key, height)
        before = await self.source.state(key, height - 1)
        after.check(header)
        parent = before.header
        if parent.hash() != header.parent:
            raise VerifyError(f"{self.source.url}: block {height - 1} is not the parent shown")
        before.check(parent)
        return _nonce(before), _nonce(after), parent


def _nonce(answer: StateAnswer) -> int:
    if answer.value is None:
        return 0
    account: r.Account = decode(r.Account, answer.value)
    return account.nonce


def _decoded(raw: bytes) -> Transaction | None:
    try:
        return decode_transaction(raw)
    except BlyanError:
        return None


def _takes(raw: bytes, sender: PubKey, nonce: int) -> bool:
    tx = _decoded(raw)
    return tx is not None and (tx.sender, tx.nonce) == (sender, nonce)


def _content(tx: Transaction) -> Json:
    return {
        "kind": kind_name(type(tx.payload)),
        "sender": format_address(tx.sender),
        "nonce": tx.nonce,
        "fee": tx.fee,
        "payload": plain(tx.payload),
    }


def _plain(record: Any) -> Json | None:
    found: Json | None = None if record is None else plain(record)
    return found
