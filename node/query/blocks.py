"""Blocks, transactions, accounts and proofs as the API shows them (docs/spec/api.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from chain import records as r
from chain.address import parse_address
from chain.codec import decode, encode
from chain.errors import BlyanError, DecodeError, InputError, TxError, VerifyError
from chain.hashes import TX, Hash32
from chain.receipts import OK
from chain.state import REWARD_POOL
from chain.store_rows import BlockRow, TxRow
from chain.transactions import Roles, Transaction
from chain.tree import StateTree
from chain.types import Block, Certificate, CertifiedBlock, Header, Height, PubKey, TxId
from node.query import prices, staking
from node.query.base import BadQuery, Json, NotFound, Pruned, Reader, natural, unhex
from node.query.custody import CustodyQueries
from node.query.plain import INVALID, KINDS, address, kind_name, plain
from node.tx_batch import SLICE_TXS

STAMP_AGE = 3  # heights below the tip of the block that a new stamp names
CERTIFICATE_SEARCH = 64  # descendants looked at for the certificate that makes a block final


class BlockQueries(Reader):
    # --- blocks ----------------------------------------------------------------------

    def blocks(self, before: int | None = None, limit: int | None = None) -> Json:
        """Newest first, below height `before`."""
        most = self.limit(limit)
        rows = self.node.store.latest_blocks(most, *(() if before is None else (before,)))
        more = len(rows) == most and rows[-1].height > 0
        accounts = self._proposers()
        return {
            "blocks": [_block_row(row, accounts) for row in rows],
            "next": rows[-1].height if more else None,
        }

    def block(self, which: str) -> Json:
        """One block by height or hash, with its transactions and what makes it final."""
        block = self._block(which)
        header = block.header
        block_hash = header.hash()
        certificate, final_by = self._finality(header.height)
        accounts = self._proposers()
        txs = [
            {**_tx_row(row), "reason": row.reason, "bytes": len(raw)}
            for row, raw in zip(self.node.store.txs_in(header.height), block.txs, strict=True)
        ]
        return {
            "height": header.height,
            "hash": block_hash.hex(),
            **{k: v for k, v in plain(header).items() if k != "height"},
            "proposer_account": accounts.get(header.proposer),
            "size_bytes": len(encode(block)),
            "tx_count": len(txs),
            "txs": txs,
            "evidence": [plain(item) for item in block.evidence],
            "certificate": certificate,
            "final_by": final_by,
        }

    def raw_block(self, which: str) -> bytes:
        """encode(CertifiedBlock): a block with its own certificate, if it has one."""
        block = self._block(which)
        certificate = self.node.store.certificate(block.header.height)
        return encode(CertifiedBlock(block, certificate))

    def _block(self, which: str) -> Block:
        tip = self.node.chain.tip.height
        if len(which) == 64:
            at = self.node.store.height_of(Hash32(unhex(which, "block hash")))
            if at is None:
                raise NotFound(f"no final block has the hash {which}; the height is {tip}")
            height: int = at
        else:
            height = natural(which, "block height or hash")
        found = self.node.store.block(Height(height))
        if found is None:
            first = self.node.store.first_height()
            if first and height < first:
                raise NotFound(
                    f"block {height} is not held here: this node started from a snapshot at {first}"
                )
            below = self.node.store.pruned.height
            if first is not None and first <= height < below:
                raise Pruned(f"block {height}", below)
            raise NotFound(f"there is no block {height}; this node has {first} to {tip}")
        return found

    def _finality(self, height: int) -> tuple[Json | None, int | None]:
        """The certificate of the block itself or of the nearest descendant that has one."""
        last = min(height + CERTIFICATE_SEARCH, self.node.chain.tip.height)
        for h in range(height, last + 1):
            certificate = self.node.store.certificate(Height(h))
            if certificate is not None:
                return self._certificate(certificate), h
        return None, None

    def _certificate(self, certificate: Certificate) -> Json:
        record = self.state.get(r.EpochRecord, r.epoch_key(certificate.epoch))
        members = record.validators.members if record is not None else ()
        signers = [members[i] for i in certificate.indices() if i < len(members)]
        return {
            "kind": "finalize",
            "epoch": certificate.epoch,
            "view": certificate.view,
            "block_hash": certificate.block_hash.hex(),
            "indices": certificate.indices(),
            "signers": [address(v.account) for v in signers],
            "weight": sum(v.stake for v in signers),
            "total": sum(v.stake for v in members),
        }

    def _proposers(self) -> dict[PubKey, str]:
        """Consensus key to address, from the validator sets that the state still holds."""
        found: dict[PubKey, str] = {}
        for _, raw in self.state.tree.items(b"epch/"):
            record: r.EpochRecord = decode(r.EpochRecord, raw)
            found.update({v.consensus_key: address(v.account) for v in record.validators.members})
        return found

    # --- transactions ----------------------------------------------------------------

    def txs(self, before: int | None = None, limit: int | None = None) -> Json:
        """Newest first, below the running number `before`."""
        most = self.limit(limit)
        rows = self.node.store.latest_txs(most, *(() if before is None else (before,)))
        return _tx_page(rows, most)

    def tx(self, tx_id_text: str) -> Json:
        """A transaction wherever it is: in a block, waiting, or refused."""
        tx_id = TxId(unhex(tx_id_text, "transaction id"))
        stored = self.node.store.tx(tx_id)
        if stored is not None and stored.code != OK and self.node.pool.get(tx_id) is not None:
            stored = None  # a leader put it in too early; it waits all the same
        if stored is not None:
            header = self.node.store.header(stored.height)
            return {
                "id": tx_id.hex(),
                "status": "final",
                "height": stored.height,
                "position": stored.position,
                "block_hash": header.hash().hex() if header else None,
                "time_ms": header.time_ms if header else None,
                "code": stored.code,
                "reason": stored.reason,
                **_tx_content(stored.raw),
            }
        nowhere: Json = dict.fromkeys(("height", "position", "block_hash", "time_ms"))
        status = self.node.pool.status(tx_id)
        raw = self.node.pool.get(tx_id)
        if status is not None and status.startswith("dropped"):
            code, _, reason = status.removeprefix("dropped:").partition(":")
            content = _tx_content(raw) if raw is not None else _NO_CONTENT
            return {"id": tx_id.hex(), "status": "dropped", **nowhere, "code": code.strip(),
                    "reason": reason.strip(), **content}  # fmt: skip
        if raw is not None:
            return {"id": tx_id.hex(), "status": "pending", **nowhere, "code": None,
                    "reason": None, **_tx_content(raw)}  # fmt: skip
        below = self.node.store.pruned.height
        among = f" from {below} on (older ones are pruned: ask an archive node)" if below else ""
        raise NotFound(
            f"this node knows no transaction {tx_id.hex()}: it is in no final block{among} and "
            "does not wait for one; check the id, or send it again"
        )

    async def submit(self, raw: bytes) -> Json:
        """Take a signed transaction into the pool. TxError, DecodeError or VerifyError if not;
        StorageError if it cannot be kept over a restart."""
        tx_id = self._take(raw)
        await self.node.pool.durable([tx_id])
        return {"id": tx_id.hex()}

    def _take(self, raw: bytes) -> TxId:
        try:
            return self.node.pool.submit(raw)
        except TxError:
            tx_id = TxId(TX.hash(raw))
            if self.node.store.tx(tx_id) is None:
                raise
            return tx_id  # a block has it already

    async def submit_batch(self, batch: Sequence[bytes]) -> Json:
        """Take each of several transactions, or say why not; in their order. Others get their
        turn meanwhile."""
        answers: list[Json] = []
        taken: list[TxId] = []
        for index, raw in enumerate(batch, 1):
            answer = {"id": TX.hash(raw).hex(), "code": "ok", "reason": ""}
            try:
                taken.append(self._take(raw))
            except (TxError, DecodeError, VerifyError) as error:
                answer |= {"code": error.code, "reason": str(error)}
            answers.append(answer)
            if index % SLICE_TXS == 0:
                await asyncio.sleep(0)
        await self.node.pool.durable(taken)
        return {"txs": answers}

    def mempool(self, limit: int | None = None) -> Json:
        most = self.limit(limit)
        txs: list[Json] = []
        for tx_id, raw in self.node.pool.pending():
            if len(txs) >= most:
                break
            content = _tx_content(raw)
            names = ("kind", "sender", "nonce", "fee", "bytes")
            txs.append({"id": tx_id.hex(), **{name: content[name] for name in names}})
        return {"size": self.node.pool.size, "bytes": self.node.pool.bytes, "txs": txs}

    # --- accounts --------------------------------------------------------------------

    def account(self, text: str, before: int | None = None, limit: int | None = None) -> Json:
        """An account by address or hex key. One that the chain has not seen is empty, not unknown:
        any key may receive."""
        try:
            key = parse_address(text)
        except InputError as error:
            raise BadQuery(str(error)) from None
        state = self.state
        account = state.account(key)
        params = state.params(self.node.genesis.params)
        node = state.get(r.NodeRecord, r.node_key(key))
        most = self.limit(limit)
        page = self.node.store.txs_of(key, most, *(() if before is None else (before,)))
        validator = state.validator(key)
        listed = _tx_page(page, most)
        return {
            "address": address(key),
            "key": key.hex(),
            "known": state.raw(r.account_key(key)) is not None,
            "is_pool": key == REWARD_POOL,
            "balance": account.balance,
            "bonded": account.bonded,
            "nonce": account.nonce,
            "next_nonce": self.node.pool.next_nonce(key),
            "merit": account.merit,
            "jailed": bool(account.jailed),
            "jail": staking.jail(state, key),
            "missed_turns": staking.missed_turns(state, key),
            "sets": staking.sets(state, key),
            "unbonding": [
                {"amount": u.amount, "release": u.release, "release_ms": u.release_ms}
                for u in self._unbonding(key)
            ],
            "price": prices.price(state, params, key),
            "quota": prices.quota(state, params, key),
            "stamp": _stamp_block(state.head),
            "validator": validator is not None,
            "node": _node_record(node) if node is not None else None,
            "custody": CustodyQueries(self.node).custodian(key),
            "txs": listed["txs"],
            "next": listed["next"],
        }

    def _unbonding(self, key: PubKey) -> list[r.Unbonding]:
        rows = self.state.tree.items(r.unbondings_of(key))
        return [decode(r.Unbonding, raw) for _, raw in rows]

    # --- proofs ----------------------------------------------------------------------

    def state_proof(self, key_text: str, height: int | None = None) -> Json:
        """A value of the state, or its absence, with its path to the header of the tip, or of an
        earlier height whose state is still here."""
        return self.prove(unhex(key_text, "state key", None), height)

    def prove(self, key: bytes, height: int | None = None) -> Json:
        tree, header = self._state_at(height)
        value, proof = tree.get(key), tree.prove(key)
        certificate = self.node.store.certificate(header.height)
        return {
            "key": key.hex(),
            "value": value.hex() if value is not None else None,
            "proof": encode(proof).hex(),
            "siblings": [s.hex() for s in proof.siblings],
            "other": plain(proof.other) if proof.other else None,
            "height": header.height,
            "block_hash": header.hash().hex(),
            "state_root": header.state_root.hex(),
            "header": encode(header).hex(),
            "certificate": encode(certificate).hex() if certificate else None,
        }

    def _state_at(self, height: int | None) -> tuple[StateTree, Header]:
        """The state after a block, by default the newest."""
        tip = self.node.chain.tip
        if height is None or height == tip.height:
            return self.state.tree, tip
        tree = self.node.chain.tree_at(height)
        header = self.node.store.header(Height(height)) if tree is not None else None
        if tree is None or header is None:
            raise NotFound(
                f"the state after block {height} is not here: of the recent blocks whose states "
                f"are kept the first is {self.node.store.oldest_state()}, the last {tip.height}"
            )
        return tree, header

    def header_time(self, height: int) -> int | None:
        header: Header | None = self.node.store.header(Height(height))
        return header.time_ms if header is not None else None


_NO_CONTENT: Json = dict.fromkeys(
    ("kind", "sender", "signer", "nonce", "fee", "stamp", "payload", "bytes")
)


def _tx_content(raw: bytes) -> Json:
    try:
        tx: Transaction = decode(Transaction, raw)
    except BlyanError:
        return {**_NO_CONTENT, "kind": INVALID, "bytes": len(raw)}
    return {
        "kind": kind_name(type(tx.payload)),
        "sender": address(tx.sender),
        "signer": tx.signer.hex(),
        "nonce": tx.nonce,
        "fee": tx.fee,
        "stamp": plain(tx.stamp) if tx.stamp else None,
        "payload": plain(tx.payload),
        "bytes": len(raw),
    }


def _tx_page(rows: tuple[TxRow, ...], most: int) -> Json:
    more = len(rows) == most and rows[-1].number > 1
    return {"txs": [_tx_row(row) for row in rows], "next": rows[-1].number if more else None}


def _tx_row(row: TxRow) -> Json:
    return {
        "number": row.number,
        "id": row.id.hex(),
        "height": row.height,
        "position": row.position,
        "time_ms": row.time_ms,
        "sender": address(row.sender) if row.sender is not None else None,
        "kind": KINDS.get(row.kind, INVALID),
        "nonce": row.nonce,
        "code": row.code,
    }


def _block_row(row: BlockRow, accounts: dict[PubKey, str]) -> Json:
    return {
        "height": row.height,
        "hash": row.hash.hex(),
        "time_ms": row.time_ms,
        "proposer": row.proposer.hex(),
        "proposer_account": accounts.get(row.proposer),
        "view": row.view,
        "epoch": row.epoch,
        "tx_count": row.tx_count,
        "size_bytes": row.size_bytes,
    }


def _node_record(node: r.NodeRecord) -> dict[str, Any]:
    found: dict[str, Any] = plain(node)
    del found["account"]
    found["roles"] = [role.name.lower() for role in Roles if node.roles & role]
    return found


def _stamp_block(head: r.Head) -> dict[str, Any] | None:
    """The block that a stamp made now should name: a few below the tip, since a node that is
    behind by one knows it too. None before the first block."""
    age = min(STAMP_AGE, len(head.recent_parents))
    if not age:
        return None
    return {"height": head.height - age, "hash": head.recent_parents[-age].hex()}
