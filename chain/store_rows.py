"""Rows of the chain's file: their types, and how blocks become rows (docs/spec/storage.md)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from chain.codec import decode, encode, tag_of
from chain.errors import DecodeError, invariant
from chain.hashes import TX, Hash32
from chain.receipts import OK, Receipt
from chain.signed import signed
from chain.transactions import Transaction, Transfer
from chain.types import Block, Certificate, Height, PubKey, TimeMs, TxId

if TYPE_CHECKING:
    from chain.state import Event


class Tip(NamedTuple):
    height: Height
    hash: Hash32


class StoredTx(NamedTuple):
    """A transaction as it stands in a block, with its receipt."""

    raw: bytes
    height: Height
    position: int
    code: str
    reason: str


class TxRow(NamedTuple):
    """One line of a list of transactions. `number` counts from 1 over the chain.

    `sender` and `nonce` are None and `kind` (the payload's wire tag) is 0 where the bytes in
    the block are no transaction.
    """

    number: int
    id: TxId
    height: Height
    position: int
    time_ms: TimeMs
    sender: PubKey | None
    kind: int
    nonce: int | None
    code: str
    reason: str


class BlockRow(NamedTuple):
    """One line of a list of blocks."""

    height: Height
    hash: Hash32
    time_ms: TimeMs
    proposer: PubKey
    view: int
    epoch: int
    tx_count: int
    size_bytes: int


class EventRow(NamedTuple):
    """One line of history: what happened to `key` at `height`."""

    height: Height
    position: int
    kind: str
    key: bytes
    data: dict[str, Any]


def insert_block(db: sqlite3.Connection, block: Block, block_hash: Hash32) -> None:
    header, body = block.header, encode(block)
    db.execute(
        "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            header.height,
            block_hash,
            encode(header),
            header.time_ms,
            header.proposer,
            header.view,
            header.epoch,
            len(block.txs),
            len(body),
        ),
    )
    db.execute("INSERT INTO bodies VALUES (?, ?)", (header.height, body))


def insert_certificate(db: sqlite3.Connection, height: Height, certificate: Certificate) -> None:
    db.execute(
        "INSERT INTO certificates VALUES (?, ?) ON CONFLICT DO NOTHING",
        (height, encode(certificate)),
    )


def insert_txs(db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    (last,) = db.execute(
        "SELECT coalesce((SELECT max(number) FROM txs), (SELECT number - 1 FROM pruned), 0)"
    ).fetchone()
    numbered = list(enumerate(rows, last + 1))
    db.executemany(
        "INSERT INTO txs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((number, *columns) for number, (*columns, _) in numbered),
    )
    db.executemany(
        "INSERT INTO tx_parties VALUES (?, ?)",
        ((account, number) for number, (*_, parties) in numbered for account in parties),
    )


def tx_columns(raw: bytes, receipt: Receipt) -> tuple[Any, ...]:
    """id, sender, kind, nonce, code, reason, and the accounts whose lists show it."""
    tx_id = TxId(TX.hash(raw))
    invariant(receipt.tx_id == tx_id, "a receipt stands beside its own transaction")
    try:
        tx: Transaction = signed.get(tx_id) or decode(Transaction, raw)
    except DecodeError:
        return (tx_id, None, 0, None, receipt.code, receipt.reason, ())
    return (
        tx_id,
        tx.sender,
        tag_of(type(tx.payload)),
        tx.nonce.to_bytes(8, "big"),  # SQLite's integers are signed
        receipt.code,
        receipt.reason,
        parties(tx, receipt.code),
    )


def parties(tx: Transaction, code: str) -> list[PubKey]:
    """The accounts whose lists show a transaction with this receipt."""
    found = {tx.sender}
    if code == OK and isinstance(tx.payload, Transfer):
        found.add(tx.payload.to)  # nobody's list grows by transfers that failed
    return sorted(found)


def tx_row(row: tuple[Any, ...]) -> TxRow:
    found = TxRow(*row)
    nonce = row[TxRow._fields.index("nonce")]
    return found if nonce is None else found._replace(nonce=int.from_bytes(nonce, "big"))


def insert_events(db: sqlite3.Connection, height: Height, events: Sequence[Event]) -> None:
    db.executemany(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
        [
            (height, i, event.kind, event.key, json.dumps(event.data, separators=(",", ":")))
            for i, event in enumerate(events)
        ],
    )


def tx_rows(block: Block, receipts: Sequence[Receipt]) -> list[tuple[Any, ...]]:
    """What `insert_txs` takes of a block."""
    return [
        (block.header.height, i, *tx_columns(raw, receipt))
        for i, (raw, receipt) in enumerate(zip(block.txs, receipts, strict=True))
    ]
