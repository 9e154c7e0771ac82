"""Whether chain.db holds what it should, row by row (docs/spec/storage.md, "Doctor").

It only reads, over a connection of its own, so it may run beside a node. `replay` also executes
every block again, which alone can tell whether receipts, history and old certificates are right.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from chain import records as r
from chain import store_pruning, store_schema
from chain.certificates import verify_certificate
from chain.codec import decode
from chain.errors import BlyanError, DecodeError, StorageError
from chain.execute import Executed, check_and_execute, epoch_of, evidence_root
from chain.hashes import TX
from chain.receipts import Receipt
from chain.state import State
from chain.store import ChainStore
from chain.store_rows import tx_columns
from chain.tree import StateTree
from chain.types import Block, Certificate, Header, Height, TxId, ValidatorSet, VoteKind, tx_root
from node.genesis import GenesisChain
from node.rules import ProtocolRules

# SQLite 3.40 says so of any row of a table without rowid whose key columns do not come first.
_SAID_WRONGLY = "NULL value in state_gone.added"
MOST = 100  # problems told of one file
REPAIR = "`blyan-node doctor --repair` builds chain.db anew from the blocks that hold"
Progress = Callable[[int, int], None]  # blocks looked at, of how many


class Problem(NamedTuple):
    """What is wrong and where, and what was expected."""

    where: str
    what: str


def check_chain(
    path: Path,
    start: GenesisChain,
    *,
    replay: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[Problem]:
    """Everything that is wrong with the file, up to MOST things. Raises StorageError if it is not
    ours or newer."""
    problems: list[Problem] = []
    try:
        with closing(store_schema.connect(path)) as db:
            db.execute("PRAGMA query_only = ON")
            for problem in _Check(db, path, start, replay, progress).problems():
                problems.append(problem)
                if len(problems) == MOST:
                    problems.append(Problem(path.name, "and more"))
                    break
    except sqlite3.Error as error:
        problems.append(Problem(path.name, f"SQLite says: {error}"))
    return problems


class _Block(NamedTuple):
    """A row of `blocks` as it is, and what it decodes to; body is None if it was pruned."""

    height: int
    row: tuple[Any, ...]
    header: Header
    block: Block | None


class _Check:
    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        start: GenesisChain,
        replay: bool,
        progress: Progress,
    ) -> None:
        self._db, self._path, self._start, self._progress = db, path, start, progress
        self._genesis, self._rules = start.genesis, ProtocolRules()
        self._sets: dict[int, ValidatorSet] = {}
        self._replays = replay
        self._tree: StateTree | None = None  # after the block before, while everything replays
        self._parent: Header | None = None
        self._number = 1

    def problems(self) -> Iterator[Problem]:
        db, version = self._db, store_schema.version_of(self._db, self._path)
        if version < store_schema.SCHEMA_VERSION:
            raise StorageError(
                f"{self._path} has store version {version}: the next start brings it to "
                f"{store_schema.SCHEMA_VERSION}, then it can be checked"
            )
        for (said,) in db.execute("PRAGMA integrity_check"):
            if said not in ("ok", _SAID_WRONGLY):
                yield Problem("pages", said)
        for table, row, other, _ in db.execute("PRAGMA foreign_key_check"):
            yield Problem(f"{table} row {row}", f"what it names in {other} is not there")
        yield from self._state()
        yield from self._blocks()

    # --- the state ------------------------------------------------------------------------

    def _state(self) -> Iterator[Problem]:
        """All of the newest state; of the older ones that are kept the roots."""
        try:
            with ChainStore(self._path) as store:
                store.check_state()
                for _, raw in store.load_state().items(b"epch/"):
                    record: r.EpochRecord = decode(r.EpochRecord, raw)
                    self._sets[record.epoch] = record.validators
        except (StorageError, DecodeError) as error:
            yield Problem("state", str(error))
        rows = self._db.execute(
            "SELECT height, root, header FROM state_versions LEFT JOIN blocks USING (height)"
        )
        for height, root, raw in rows:
            try:
                expected = decode(Header, raw).state_root if raw else None
            except (DecodeError, TypeError):
                continue  # told of the block
            if root != expected:
                yield Problem(f"state after block {height}", "its root is not its header's")

    # --- blocks ---------------------------------------------------------------------------

    def _blocks(self) -> Iterator[Problem]:
        db = self._db
        first, last = db.execute("SELECT min(height), max(height) FROM blocks").fetchone()
        if first is None:
            return
        pruned = store_pruning.pruned(db)
        self._number = pruned.number if pruned.height > first else 1
        if self._replays and (first > 0 or pruned.height > 0):
            yield Problem("replay", f"blocks below {max(first, pruned.height)} are not here whole")
            self._replays = False
        for height in range(first, last + 1):
            try:
                yield from self._one(height, pruned, is_first=height == first)
            except sqlite3.Error as error:
                yield Problem(f"block {height}", f"SQLite says: {error}")
                self._lose_track()
            if height % 64 == 0 or height == last:
                self._progress(height - first + 1, last - first + 1)
        yield from self._strays(last)

    def _lose_track(self) -> None:
        self._parent = self._tree = None

    def _strays(self, last: int) -> Iterator[Problem]:
        for table in ("bodies", "txs", "events", "certificates"):
            (count,) = self._db.execute(
                f"SELECT count(*) FROM {table} WHERE height > ? OR height < 0", (last,)
            ).fetchone()
            if count:
                yield Problem(table, f"{count} rows of blocks that are not there")
        (count,) = self._db.execute("SELECT count(*) FROM tx_parties").fetchone()
        (known,) = self._db.execute(
            "SELECT count(*) FROM tx_parties JOIN txs USING (number)"
        ).fetchone()
        if count != known:
            yield Problem("tx_parties", f"{count - known} rows of transactions that are not there")

    def _one(
        self, height: int, pruned: store_pruning.Pruned, *, is_first: bool
    ) -> Iterator[Problem]:
        row = self._db.execute(
            "SELECT height, hash, header, body, time_ms, proposer, view, epoch, tx_count, size"
            " FROM blocks LEFT JOIN bodies USING (height) WHERE height = ?",
            (height,),
        ).fetchone()
        if row is None:
            yield Problem(f"block {height}", "it is missing")
            self._lose_track()
            return
        try:
            header: Header = decode(Header, row[2])
            block: Block | None = None if row[3] is None else decode(Block, row[3])
        except (DecodeError, TypeError) as error:
            yield Problem(f"block {height}", f"its bytes are no block: {error}")
            self._lose_track()
            return
        found = _Block(height, row, header, block)
        wrong = [Problem(f"block {height}", what) for what in self._wrong(found, pruned, is_first)]
        yield from wrong
        yield from self._certificate(found)
        done: Executed | None = None
        try:
            done = None if wrong else self._executed(found)
        except BlyanError as error:
            yield Problem(f"block {height}", f"executing it: {error}")
        if height > 0:
            self._tree = None if done is None else done.tree
        yield from self._txs(found, done)
        self._parent = header

    def _wrong(self, found: _Block, pruned: store_pruning.Pruned, is_first: bool) -> Iterator[str]:
        height, row, header, block = found
        if header.hash() != row[1]:
            yield "its header does not have the hash it is stored under"
        if header.height != height or header.chain_id != self._genesis.chain_id:
            yield "its header is of another height or chain"
        if row[4:8] != (header.time_ms, header.proposer, header.view, header.epoch):
            yield "time, proposer, view or epoch beside it are not its header's"
        if height == 0 and header.hash() != self._start.block.hash():
            yield "it is not the genesis of this home's genesis.json"
        if not is_first and self._parent is not None and header.parent != self._parent.hash():
            yield "it does not extend the block before"
        if block is None:
            if height >= pruned.height:
                yield "its body is missing, and it was not pruned"
            return
        if height < pruned.height:
            yield "it has a body, though it was pruned"
        if block.header != header:
            yield "its body has another header"
        if tx_root(block.txs) != header.tx_root:
            yield "its transactions are not those of its header"
        if evidence_root(block.evidence) != header.evidence_root:
            yield "its evidence is not that of its header"
        if len(block.txs) != row[8]:
            yield f"it says {row[8]} transactions and has {len(block.txs)}"
        if len(row[3]) != row[9]:
            yield f"it says {row[9]} bytes and has {len(row[3])}"

    def _certificate(self, found: _Block) -> Iterator[Problem]:
        height, header = found.height, found.header
        row = self._db.execute(
            "SELECT certificate FROM certificates WHERE height = ?", (height,)
        ).fetchone()
        if row is None:
            return
        try:
            certificate: Certificate = decode(Certificate, row[0])
            epoch = epoch_of(self._genesis, Height(height))
            named = (certificate.kind, certificate.block_hash, certificate.epoch)
            if named != (VoteKind.FINALIZE, header.hash(), epoch):
                yield Problem(f"certificate {height}", "it does not finalize its block")
            elif (members := self._sets.get(epoch)) is not None:
                verify_certificate(self._genesis.chain_id, members, certificate)
        except (BlyanError, TypeError) as error:
            yield Problem(f"certificate {height}", str(error))

    # --- what follows from a body -----------------------------------------------------------

    def _txs(self, found: _Block, done: Executed | None) -> Iterator[Problem]:
        height, block = found.height, found.block
        if block is None:
            return
        rows = self._db.execute(
            "SELECT number, position, id, sender, kind, nonce, code, reason FROM txs"
            " WHERE height = ? ORDER BY position",
            (height,),
        ).fetchall()
        for position, raw in enumerate(block.txs):
            where, number = f"transaction {position} of block {height}", self._number
            self._number += 1
            row = rows[position] if position < len(rows) else None
            if row is None or row[:2] != (number, position):
                yield Problem(where, "it is not in the table, or elsewhere in it")
                continue
            receipt = Receipt(TxId(TX.hash(raw)), row[6], row[7])
            *expected, parties = tx_columns(raw, receipt)
            if list(row[2:]) != expected:
                yield Problem(where, "its line does not say what its bytes say")
            if done is not None and done.receipts[position] != receipt:
                yield Problem(where, f"its receipt is {row[6]!r}, executing it gives another")
            for account in parties:
                if not self._db.execute(
                    "SELECT 1 FROM tx_parties WHERE account = ? AND number = ?", (account, number)
                ).fetchone():
                    yield Problem(where, f"the list of account {account.hex()[:16]}… lacks it")
        if len(rows) > len(block.txs):
            yield Problem(f"block {height}", f"{len(rows)} transactions in the table")
        if done is not None:
            yield from self._events(height, done)

    def _events(self, height: int, done: Executed) -> Iterator[Problem]:
        rows = self._db.execute(
            "SELECT position, kind, key, data FROM events WHERE height = ? ORDER BY position",
            (height,),
        ).fetchall()
        expected = [
            (i, e.kind, e.key, json.dumps(e.data, separators=(",", ":")))
            for i, e in enumerate(done.events)
        ]
        if rows != expected:
            yield Problem(f"history of block {height}", "it is not what executing the block gives")

    def _executed(self, found: _Block) -> Executed | None:
        """The block executed again on the state before it, if that is known. Raises BlyanError."""
        if not self._replays or found.block is None:
            return None
        if found.height == 0:
            self._tree = self._start.tree
            self._learn_sets(self._start.tree)
            return None
        if self._tree is None or self._parent is None:
            return None
        done = check_and_execute(self._tree, self._genesis, self._rules, self._parent, found.block)
        if found.height % self._genesis.params.epoch_blocks == 0:
            self._learn_sets(done.tree)
        return done

    def _learn_sets(self, tree: StateTree) -> None:
        """Sets that the newest state has forgotten."""
        for _, raw in State(tree).items(b"epch/"):
            record: r.EpochRecord = decode(r.EpochRecord, raw)
            self._sets.setdefault(record.epoch, record.validators)
