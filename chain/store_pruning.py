"""Dropping what an old block has beside its header, a bounded amount at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from chain.codec import decode
from chain.errors import DecodeError, StorageError
from chain.store_rows import parties
from chain.transactions import Transaction
from chain.types import Block, Height, PubKey

# What the model's versions are read from as long as there is a chain (node/services/versions.py).
KEPT_EVENTS = ("model", "shard")


class Pruned(NamedTuple):
    """Below which height bodies are gone, and below which running number transactions."""

    height: Height
    number: int


def pruned(db: sqlite3.Connection) -> Pruned:
    """Raises StorageError for a damaged file that does not say."""
    row = db.execute("SELECT height, number FROM pruned").fetchone()
    if row is None or not all(type(value) is int for value in row):
        raise StorageError("the file does not say what was pruned: `blyan-node doctor --deep`")
    return Pruned(*row)


@contextmanager
def unreferenced(db: sqlite3.Connection) -> Iterator[None]:
    """Without looking for rows that refer to a deleted one: there is no index for that, and none
    is left, since they go together. Not within a transaction."""
    db.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        db.execute("PRAGMA foreign_keys = ON")


def prune(
    db: sqlite3.Connection, below: Height, most_txs: int, is_kept: Callable[[Height], bool]
) -> int:
    """Within a transaction: drop what stands below `below`, block by block, until `most_txs`
    transactions are gone (a block is never cut). `is_kept`: heights whose certificate stays. How
    many blocks."""
    (tip,) = db.execute("SELECT coalesce(max(height), 0) FROM blocks").fetchone()
    (first,) = db.execute("SELECT coalesce(min(height), 0) FROM blocks").fetchone()
    start, number = pruned(db)
    height, end, room = max(start, first), min(below, tip), most_txs
    began = height
    while height < end and room > 0:
        (count,) = db.execute("SELECT tx_count FROM blocks WHERE height = ?", (height,)).fetchone()
        db.execute("UPDATE pruned SET height = ?, number = ?", (height + 1, number + count))
        _drop(db, Height(height), number, is_kept(Height(height)))
        height, number, room = height + 1, number + count, room - count - 1
    return int(height - began)


def _drop(db: sqlite3.Connection, height: Height, number: int, keeps: bool) -> None:
    body, codes = _contents(db, height)
    rows = [
        (account, number + position)
        for position, raw in enumerate(body.txs)
        for account in _parties_of(raw, codes[position])
    ]
    db.executemany("DELETE FROM tx_parties WHERE account = ? AND number = ?", rows)
    db.execute("DELETE FROM txs WHERE height = ?", (height,))
    kept = ", ".join("?" for _ in KEPT_EVENTS)
    db.execute(
        f"DELETE FROM events WHERE height = ? AND kind NOT IN ({kept})", (height, *KEPT_EVENTS)
    )
    if not keeps:
        db.execute("DELETE FROM certificates WHERE height = ?", (height,))
    db.execute("DELETE FROM bodies WHERE height = ?", (height,))


def _contents(db: sqlite3.Connection, height: Height) -> tuple[Block, list[str]]:
    (body,) = db.execute("SELECT body FROM bodies WHERE height = ?", (height,)).fetchone()
    codes = db.execute("SELECT code FROM txs WHERE height = ? ORDER BY position", (height,))
    block: Block = decode(Block, body)
    return block, [code for (code,) in codes]


def _parties_of(raw: bytes, code: str) -> list[PubKey]:
    try:
        return parties(decode(Transaction, raw), code)
    except DecodeError:
        return []
