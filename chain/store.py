"""The chain on disk: one SQLite file, append-only but for the current state (docs/spec/storage.md).

A final block, its receipts, history rows and state changes go in with one synced transaction, so
after a crash the file holds a block with all that belongs to it, or nothing of it. One thread
writes; any thread reads, each over a connection of its own, and never waits for the writer.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chain import limits, store_pruning, store_schema
from chain.codec import decode
from chain.errors import DecodeError, StorageError, invariant
from chain.hashes import Hash32
from chain.receipts import Receipt
from chain.store_import import StateImport
from chain.store_rows import (
    BlockRow,
    EventRow,
    StoredTx,
    Tip,
    TxRow,
    insert_block,
    insert_certificate,
    insert_events,
    insert_txs,
    tx_row,
    tx_rows,
)
from chain.store_tree import TreeFile, clear
from chain.tree import StateTree
from chain.types import Block, Certificate, CertifiedBlock, Header, Height, PubKey, TxId

if TYPE_CHECKING:
    from chain.state import Event

T = TypeVar("T")

MAX_PAGE_ROWS = 1000  # rows of one answer to the explorer
_LAST = 2**63 - 1  # beyond every height and position

_TX_COLUMNS = "number, id, t.height, position, time_ms, sender, kind, nonce, code, reason"


@dataclass(frozen=True, slots=True)
class FinalBlock:
    """A final block and what it did. `receipts` are one a transaction, in order; `state_changes`
    map keys to new values, None for a deleted key. `tree` is the state with them, where it was made
    from the state before by one `set_many`: then it is not made again."""

    block: Block
    block_hash: Hash32
    finalization: Certificate | None
    receipts: Sequence[Receipt]
    state_changes: Mapping[bytes, bytes | None]
    events: Sequence[Event] = ()
    tree: StateTree | None = None


class ChainStore:
    """The final chain in the file at `path`, made if absent. Close it, or use `with`.

    Opening verifies the tip's hash and the root page of its state, and every other page when it is
    loaded; StorageError says what is wrong with a file that does not hold together, or is of a
    newer version. The state after a height is kept while it is among the last `keep_versions`
    below the tip or not older than `keep_ms`; None keeps all.
    """

    def __init__(
        self,
        path: Path,
        keep_versions: int | None = None,
        keep_ms: int = 0,
        *,
        synced: bool = True,
    ) -> None:
        """`synced=False`: for a file that counts only once it is whole and synced by the caller."""
        self._path, self._synced = path, synced
        self._write_lock = threading.RLock()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._closed = False
        self._states = TreeFile(self._all, self._broken, keep_versions, keep_ms)
        self._state = self._states.empty()
        self._writer = self._connect()
        try:
            with self._reported():
                store_schema.prepare(self._writer, path)
                store_schema.ready_to_write(self._writer)
                self.pruned = store_pruning.pruned(self._writer)
            self._open_state()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ChainStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._write_lock:
            self._closed = True
            for connection in (*self._readers, self._writer):
                connection.close()
            self._readers.clear()

    # --- writing -------------------------------------------------------------------

    def commit(
        self,
        block: Block,
        block_hash: Hash32,
        finalization: Certificate | None,
        receipts: Sequence[Receipt],
        state_changes: Mapping[bytes, bytes | None],
        events: Sequence[Event] = (),
    ) -> None:
        """Appends one final block; see `commit_all`."""
        self.commit_all(
            (FinalBlock(block, block_hash, finalization, receipts, state_changes, events),)
        )

    def commit_all(self, items: Sequence[FinalBlock]) -> None:
        """Appends consecutive final blocks with all their effects, synced when it returns; a crash
        leaves all of them or none, so that the tip is never a block that only a later one's
        certificate finalizes. The first of an empty store may have any height (a snapshot's).
        """
        tip = self.tip()
        rows = []
        for item in items:
            header = item.block.header
            invariant(item.block_hash == header.hash(), "a block is stored under its own hash")
            invariant(len(item.receipts) == len(item.block.txs), "one receipt a transaction")
            if tip is not None:
                follows = f"block {header.height} after {tip.height}"
                invariant(header.height == tip.height + 1, follows)
                invariant(header.parent == tip.hash, "a block extends the tip")
            tip = Tip(header.height, item.block_hash)
            rows.append(tx_rows(item.block, item.receipts))
        trees = self._trees_of(items)
        try:
            with self._transaction() as db:
                for item, txs, tree in zip(items, rows, trees, strict=True):
                    header = item.block.header
                    insert_block(db, item.block, item.block_hash)
                    if item.finalization is not None:
                        insert_certificate(db, header.height, item.finalization)
                    insert_txs(db, txs)
                    insert_events(db, header.height, item.events)
                    self._states.write(db, tree, header.height, header.time_ms)
                    self._states.prune(db, header.height, header.time_ms)
        except BaseException:
            self._states.undo()
            raise
        self._states.settle()
        self._state = trees[-1] if trees else self._state

    def _trees_of(self, items: Sequence[FinalBlock]) -> list[StateTree]:
        """The state after each block, which is what its header says."""
        trees: list[StateTree] = []
        state = self._state
        for item in items:
            if item.tree is not None and item.tree.follows(state):
                state = item.tree
            else:
                state = state.set_many(item.state_changes)
            header = item.block.header
            invariant(state.root == header.state_root, "a block has the root of its state")
            trees.append(state)
        return trees

    @contextmanager
    def import_state(self) -> Iterator[StateImport]:
        """Put a state into this empty store, by its leaves: for `with`. Nothing stays of one that
        does not finish."""
        invariant(self.tip() is None, "a state is imported into an empty store")
        try:
            yield StateImport(self._transaction)
        finally:
            self._open_state()

    def add_certificate(self, height: Height, certificate: Certificate) -> None:
        """Keeps the finalization of a stored block that came later. A second one is ignored."""
        with self._transaction() as db:
            insert_certificate(db, height, certificate)

    def prune(self, below: Height, most_txs: int, is_kept: Callable[[Height], bool]) -> int:
        """Drop, for good, what blocks below `below` have beside their headers: bodies, receipts,
        history but for the model's, and the certificates of heights that are not kept. At most
        about `most_txs` transactions at once; how many blocks. The tip always stays whole."""
        if below <= self.pruned.height:
            return 0
        with self._unreferenced(), self._transaction() as db:
            dropped = store_pruning.prune(db, below, most_txs, is_kept)
        self.pruned = store_pruning.pruned(self._writer)
        return dropped

    # --- reading -------------------------------------------------------------------

    def tip(self) -> Tip | None:
        """The highest final block; None for an empty store."""
        row = self._one("SELECT height, hash FROM blocks ORDER BY height DESC LIMIT 1")
        return None if row is None else Tip(*row)

    def first_height(self) -> Height | None:
        """The lowest block held: 0, or where a snapshot began."""
        row = self._one("SELECT min(height) FROM blocks")
        return None if row is None else row[0]

    def first_body(self) -> Height | None:
        """The lowest block that is here with its transactions."""
        first = self.first_height()
        return None if first is None else Height(max(first, self.pruned.height))

    def block(self, height: Height) -> Block | None:
        """None if it is not here, or pruned: then its header is."""
        row = self._one("SELECT body FROM bodies WHERE height = ?", height)
        return None if row is None else self._decode(Block, row[0])

    def block_by_hash(self, block_hash: Hash32) -> Block | None:
        row = self._one(
            "SELECT body FROM blocks JOIN bodies USING (height) WHERE hash = ?", block_hash
        )
        return None if row is None else self._decode(Block, row[0])

    def height_of(self, block_hash: Hash32) -> Height | None:
        """The height of a final block, pruned or not."""
        row = self._one("SELECT height FROM blocks WHERE hash = ?", block_hash)
        return None if row is None else Height(row[0])

    def header(self, height: Height) -> Header | None:
        row = self._one("SELECT header FROM blocks WHERE height = ?", height)
        return None if row is None else self._decode(Header, row[0])

    def certificate(self, height: Height) -> Certificate | None:
        """The finalization of exactly this height, if one was seen."""
        row = self._one("SELECT certificate FROM certificates WHERE height = ?", height)
        return None if row is None else self._decode(Certificate, row[0])

    def blocks(
        self, first: Height, last: Height, limit: int, most_bytes: int = limits.MAX_MESSAGE_BYTES
    ) -> tuple[CertifiedBlock, ...]:
        """Blocks from `first` to `last`, ascending: at most `limit` of them and, beyond the
        first, at most `most_bytes` of encoding.
        """
        sql = (
            "SELECT body, certificate FROM blocks LEFT JOIN bodies USING (height)"
            " LEFT JOIN certificates USING (height)"
            " WHERE height BETWEEN ? AND ? ORDER BY height LIMIT ?"
        )
        found: list[CertifiedBlock] = []
        room = most_bytes
        for body, raw in self._rows(sql, first, last, _page(limit)):
            if body is None:
                break  # pruned: this asker needs another node
            room -= len(body) + len(raw or b"") + 16
            if found and room < 0:
                break
            certificate = None if raw is None else self._decode(Certificate, raw)
            found.append(CertifiedBlock(self._decode(Block, body), certificate))
        return tuple(found)

    def latest_blocks(self, limit: int, before: int = _LAST) -> tuple[BlockRow, ...]:
        """Lines of the newest blocks below height `before`, newest first."""
        rows = self._all(
            "SELECT height, hash, time_ms, proposer, view, epoch, tx_count, size"
            " FROM blocks WHERE height < ? ORDER BY height DESC LIMIT ?",
            before,
            _page(limit),
        )
        return tuple(BlockRow(*row) for row in rows)

    def tx(self, tx_id: TxId) -> StoredTx | None:
        """A transaction by id. A block may repeat one that fails; what was done counts first."""
        row = self._one(
            "SELECT height, position, code, reason FROM txs WHERE id = ?"
            " ORDER BY code <> 'ok', number LIMIT 1",
            tx_id,
        )
        if row is None:
            return None
        height, position, code, reason = row
        block = self.block(height)
        if block is None or not 0 <= position < len(block.txs):
            raise self._broken(f"block {height} does not have its transaction {position}")
        return StoredTx(block.txs[position], height, position, code, reason)

    def txs_in(self, height: Height) -> tuple[TxRow, ...]:
        """Lines of a block's transactions, in order."""
        sql = f"SELECT {_TX_COLUMNS} FROM txs t JOIN blocks USING (height) WHERE height = ?"
        return tuple(map(tx_row, self._all(sql + " ORDER BY position", height)))

    def txs_of(self, account: PubKey, limit: int, before: int = _LAST) -> tuple[TxRow, ...]:
        """Lines of what `account` sent or received, newest first, below number `before`."""
        rows = self._all(
            f"SELECT {_TX_COLUMNS} FROM tx_parties JOIN txs t USING (number)"
            " JOIN blocks USING (height) WHERE account = ? AND number < ?"
            " ORDER BY number DESC LIMIT ?",
            account,
            before,
            _page(limit),
        )
        return tuple(map(tx_row, rows))

    def latest_txs(self, limit: int, before: int = _LAST) -> tuple[TxRow, ...]:
        """Lines of the newest transactions below number `before`, newest first."""
        rows = self._all(
            f"SELECT {_TX_COLUMNS} FROM txs t JOIN blocks USING (height)"
            " WHERE number < ? ORDER BY number DESC LIMIT ?",
            before,
            _page(limit),
        )
        return tuple(map(tx_row, rows))

    def tx_total(self) -> int:
        """How many transactions stood in the stored blocks, pruned ones included."""
        row = self._one("SELECT max(number) FROM txs")
        return self.pruned.number - 1 if row is None or row[0] is None else int(row[0])

    def history(
        self,
        kind: str,
        key: bytes | None = None,
        *,
        limit: int = MAX_PAGE_ROWS,
        before: tuple[int, int] = (_LAST, 0),
    ) -> tuple[EventRow, ...]:
        """Events of a kind, and of one key if given, newest first, before (height, position)."""
        which = "kind = ?" if key is None else "kind = ? AND key = ?"
        rows = self._all(
            f"SELECT height, position, kind, key, data FROM events WHERE {which}"
            " AND (height, position) < (?, ?) ORDER BY height DESC, position DESC LIMIT ?",
            *((kind,) if key is None else (kind, key)),
            *before,
            _page(limit),
        )
        return tuple(EventRow(h, i, k, of, self._json(data)) for h, i, k, of, data in rows)

    def load_state(self) -> StateTree:
        """The state after the tip."""
        return self._state

    def tree_at(self, height: int) -> StateTree | None:
        """The state after a height, read as it is needed; None if it is not kept, or not yet there.
        It stays as long as the tree is held."""
        return self._states.open(height)

    def oldest_state(self) -> int:
        """The lowest height that `tree_at` has; -1 in an empty store."""
        return self._states.oldest()

    def check_state(self) -> int:
        """Read all of the state after the tip: every page and value is what its hash says, and the
        index of keys is theirs. How many keys; StorageError names what is damaged."""
        tip = self.tip()
        return 0 if tip is None else self._states.check(tip.height)

    # --- inside --------------------------------------------------------------------

    def _open_state(self) -> None:
        """The tip is the block it claims to be, and the state's root page gives its root."""
        tip = self.tip()
        if tip is None:
            self._drop_import()
        self._states.start()
        if tip is None:
            return
        block = self.block(tip.height)
        header = self.header(tip.height)
        if block is None or header != block.header or block.hash() != tip.hash:
            raise self._broken(f"block {tip.height} does not have the hash it is stored under")
        tree = self._states.open(tip.height)
        if tree is None or tree.root != block.header.state_root:
            raise self._broken(f"the state's root is not the one of block {tip.height}")
        self._states.check_top(tree)
        self._state = tree

    def _drop_import(self) -> None:
        """What an import that did not finish has left."""
        if self._one("SELECT 1 FROM state_pages LIMIT 1") is not None:
            with self._transaction() as db:
                clear(db)

    def _connect(self) -> sqlite3.Connection:
        with self._reported():
            db = store_schema.connect(self._path)
            if not self._synced:
                db.execute("PRAGMA synchronous = OFF")
            return db

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._broken(f"SQLite says: {error}") from None

    def _broken(self, why: str) -> StorageError:
        return StorageError(
            f"{self._path} is damaged ({why}). `blyan-node doctor` says what else is. Move it away "
            "and start again: the node fetches the chain from its peers; check the disk first"
        )

    @contextmanager
    def _unreferenced(self) -> Iterator[None]:
        with self._write_lock, store_pruning.unreferenced(self._writer):
            yield

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StorageError(f"{self._path} cannot be written: {error}") from error

    def _reader(self) -> sqlite3.Connection:
        """This thread's connection. WAL gives it a snapshot that the writer does not disturb."""
        invariant(not self._closed, "the chain store is read after it was closed")
        reader: sqlite3.Connection | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._connect()
            reader.execute("PRAGMA query_only = ON")
            self._local.reader = reader
            with self._write_lock:
                self._readers.append(reader)
        return reader

    def _rows(self, sql: str, *values: object) -> Iterator[Any]:
        try:
            with closing(self._reader().execute(sql, values)) as cursor:
                yield from cursor
        except OverflowError:
            return  # a number beyond SQLite's 63 bits: no row has it
        except sqlite3.DatabaseError as error:
            raise self._broken(f"SQLite says: {error}") from None

    def _all(self, sql: str, *values: object) -> list[Any]:
        return list(self._rows(sql, *values))

    def _one(self, sql: str, *values: object) -> Any | None:
        rows = self._all(sql, *values)
        return rows[0] if rows else None

    def _decode(self, cls: type[T], data: object) -> T:
        try:
            if not isinstance(data, bytes):  # a flipped bit can make a column of another type
                raise DecodeError(f"{cls.__name__}: {type(data).__name__} where bytes should be")
            value: T = decode(cls, data)
        except DecodeError as error:
            raise self._broken(str(error)) from None
        return value

    def _json(self, data: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(data)
        except (ValueError, TypeError) as error:
            raise self._broken(f"a line of history: {error}") from None
        return value


def _page(limit: int) -> int:
    return max(0, min(limit, MAX_PAGE_ROWS))
