"""Whether chain.db holds what it should, row by row (docs/spec/storage.md, "Doctor").

It only reads, over a connection of its own, so it may run beside a node. `replay` also executes
every block again, which alone can tell whether receipts, history and old certificates are right.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from chain import records as r
from chain import store_schema
from chain.certificates import verify_certificate
from chain.codec import decode
from chain.errors import BlyanError, DecodeError
from chain.execute import Executed, check_and_execute, epoch_of, evidence_root
from chain.hashes import TX
from chain.receipts import Receipt
from chain.state import Event, State
from chain.store_pruning import KEPT_EVENTS, Pruned
from chain.store_rows import tx_columns
from chain.tree import StateTree
from chain.types import Block, Certificate, Header, Height, TxId, ValidatorSet, VoteKind, tx_root
from node.file_check import FileCheck, check_header
from node.genesis import GenesisChain
from node.rules import ProtocolRules
from node.state_check import StateCheck

MOST = 100  # problems told of one file
_LOST = -1  # nobody counts any more
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
    if (wrong := check_header(path)) is not None:
        problems.append(Problem(path.name, wrong))
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
        self._state = StateCheck(db)
        self._sets: dict[int, ValidatorSet] = self._state.sets
        self._replays = replay
        self._tree: StateTree | None = None  # after the block before, while everything replays
        self._parent: Header | None = None
        self._pruned = Pruned(Height(0), 1)  # as it was when the check began
        self._number = 1
        self._parties = 0  # rows that the transactions so far have

    def problems(self) -> Iterator[Problem]:
        db, file = self._db, FileCheck(self._db, self._path)
        db.execute("BEGIN")  # one moment of a file that a node may be writing
        for problem in file.problems():
            yield Problem(*problem)
        first, last = db.execute("SELECT min(height), max(height) FROM blocks").fetchone()
        if first is None or not file.is_readable:
            return
        yield from self._bounds(first, last)
        for problem in self._state.problems(last):
            yield Problem(*problem)
        (parties,) = db.execute("SELECT count(*) FROM tx_parties").fetchone()
        db.execute("COMMIT")
        yield from self._blocks(first, last)
        if self._parties not in (parties, _LOST) and _pruned(db) == self._pruned:
            what = f"{parties} rows, and the transactions are in {self._parties} lists"
            yield Problem("tx_parties", what)

    def _bounds(self, first: int, last: int) -> Iterator[Problem]:
        """What was pruned is what is gone."""
        db, pruned = self._db, _pruned(self._db)
        if pruned is None:
            yield Problem("pruned", "its row is missing")
            return
        (count,) = db.execute(
            "SELECT coalesce(sum(tx_count), 0) FROM blocks WHERE height < ?", (pruned.height,)
        ).fetchone()
        is_within = pruned.height == 0 or first < pruned.height <= last
        if pruned.number != count + 1 or not is_within:
            what = f"height {pruned.height}, transaction {pruned.number}: blocks {first} to {last}"
            yield Problem("pruned", f"{what} are here, and those below have {count} transactions")
        self._pruned, self._number = pruned, pruned.number
        kept = ", ".join(f"'{kind}'" for kind in KEPT_EVENTS)
        for table, which in (
            ("txs", "height < :height OR number < :number"),
            ("tx_parties", "number < :number"),
            ("events", f"height < :height AND kind NOT IN ({kept})"),
        ):
            sql = f"SELECT count(*) FROM {table} WHERE {which}"
            (count,) = db.execute(sql, pruned._asdict()).fetchone()
            if count:
                yield Problem(table, f"{count} rows of blocks that were pruned")
        spoilt = "NOT json_valid(data) OR data GLOB '*[^ -~]*'"  # it is written in ASCII
        (count,) = db.execute(f"SELECT count(*) FROM events WHERE {spoilt}").fetchone()
        if count:
            yield Problem("events", f"{count} rows whose data is no JSON")

    # --- blocks ---------------------------------------------------------------------------

    def _blocks(self, first: int, last: int) -> Iterator[Problem]:
        db = self._db
        if self._replays and (first > 0 or self._pruned.height > 0):
            whole = max(first, self._pruned.height)
            yield Problem("replay", f"blocks below {whole} are not here whole")
            self._replays = False
        for height in range(first, last + 1):
            try:
                db.execute("BEGIN")
                yield from self._one(height, is_first=height == first)
            except sqlite3.Error as error:
                yield Problem(f"block {height}", f"SQLite says: {error}")
                self._lose_track()
            if db.in_transaction:
                db.execute("COMMIT")
            if height % 64 == 0 or height == last:
                self._progress(height - first + 1, last - first + 1)

    def _lose_track(self) -> None:
        self._parent = self._tree = None
        self._parties = _LOST

    def _one(self, height: int, *, is_first: bool) -> Iterator[Problem]:
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
        wrong = [Problem(f"block {height}", what) for what in self._wrong(found, is_first)]
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
        if height == 0 and self._replays:
            yield from self._events(height, ())
        self._parent = header

    def _wrong(self, found: _Block, is_first: bool) -> Iterator[str]:
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
            now = _pruned(self._db)  # a node may have gone on pruning
            if now is None or height >= now.height:
                yield "its body is missing, and it was not pruned"
            return
        if height < self._pruned.height:
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
            elif self._tree is not None:
                yield Problem(f"certificate {height}", f"nobody knows who signs in epoch {epoch}")
        except (BlyanError, TypeError) as error:
            yield Problem(f"certificate {height}", str(error))

    # --- what follows from a body -----------------------------------------------------------

    def _txs(self, found: _Block, done: Executed | None) -> Iterator[Problem]:
        height, block = found.height, found.block
        if block is None:
            if height >= self._pruned.height:
                self._number += found.row[8]
                self._parties = _LOST
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
                self._parties = _LOST
                continue
            receipt = Receipt(TxId(TX.hash(raw)), row[6], row[7])
            *expected, parties = tx_columns(raw, receipt)
            if list(row[2:]) != expected:
                yield Problem(where, "its line does not say what its bytes say")
            if done is not None and done.receipts[position] != receipt:
                yield Problem(where, f"its receipt is {row[6]!r}, executing it gives another")
            if self._parties != _LOST:
                self._parties += len(parties)
            for account in parties:
                if not self._db.execute(
                    "SELECT 1 FROM tx_parties WHERE account = ? AND number = ?", (account, number)
                ).fetchone():
                    yield Problem(where, f"the list of account {account.hex()[:16]}… lacks it")
        if len(rows) > len(block.txs):
            yield Problem(f"block {height}", f"{len(rows)} transactions in the table")
        if done is not None:
            yield from self._events(height, done.events)

    def _events(self, height: int, events: Sequence[Event]) -> Iterator[Problem]:
        rows = self._db.execute(
            "SELECT position, kind, key, data FROM events WHERE height = ? ORDER BY position",
            (height,),
        ).fetchall()
        expected = [
            (i, e.kind, e.key, json.dumps(e.data, separators=(",", ":")))
            for i, e in enumerate(events)
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


def _pruned(db: sqlite3.Connection) -> Pruned | None:
    """The row of what was pruned, which a damaged file may lack."""
    row = db.execute("SELECT height, number FROM pruned").fetchone()
    return None if row is None else Pruned(*row)
