"""How older files of the chain become files of today (docs/spec/upgrades.md).

`STEPS[n]` makes a file of version n of one of version n - 1. Each step is one transaction with the
new number, so a crash or a full disk at any statement leaves the old file or the new one. Steps
only add and rewrite; nothing that only this file knows is dropped.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from chain.codec import decode
from chain.errors import StorageError, invariant
from chain.hashes import STATE_KEY
from chain.store_guards import BLOCKS, BOUND, guard
from chain.store_tree import TREE_SCHEMA, TreeImport
from chain.types import Header

log = logging.getLogger("blyan.store")
_LOGGED_KEYS = 100_000
MOVED_BLOCKS = 64  # at once: the space that these leave is what the next ones take
_LOGGED_BLOCKS = 1600 * MOVED_BLOCKS

# What files of earlier versions had: never changed, whatever those of today have.
_PRUNABLE_2 = ("certificates", "txs", "tx_parties", "events")
_BLOCKS_2 = """
CREATE TRIGGER blocks_no_DELETE BEFORE DELETE ON blocks
BEGIN SELECT RAISE(ABORT, 'blocks are append-only'); END;
CREATE TRIGGER blocks_no_UPDATE BEFORE UPDATE ON blocks
WHEN OLD.height >= coalesce((SELECT height FROM pruned), 0) OR length(NEW.body) > 0
  OR NEW.height <> OLD.height OR NEW.hash <> OLD.hash OR NEW.header <> OLD.header
  OR NEW.time_ms <> OLD.time_ms OR NEW.proposer <> OLD.proposer OR NEW.view <> OLD.view
  OR NEW.epoch <> OLD.epoch OR NEW.tx_count <> OLD.tx_count
BEGIN SELECT RAISE(ABORT, 'blocks are append-only'); END;
"""
_BLOCKS_4 = """
CREATE TABLE blocks (
  height INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, header BLOB NOT NULL,
  time_ms INTEGER NOT NULL, proposer BLOB NOT NULL, view INTEGER NOT NULL,
  epoch INTEGER NOT NULL, tx_count INTEGER NOT NULL, size INTEGER NOT NULL
);
CREATE TABLE bodies (height INTEGER PRIMARY KEY REFERENCES blocks, body BLOB NOT NULL);
"""

Step = Callable[[sqlite3.Connection], None]


def migrate(
    db: sqlite3.Connection, path: Path, target: int, steps: Mapping[int, Step] | None = None
) -> None:
    """Bring an open file, not in a transaction, to version `target`, step by step."""
    steps = STEPS if steps is None else steps
    (version,) = db.execute("PRAGMA user_version").fetchone()
    for number in range(version + 1, target + 1):
        if number not in steps:
            raise StorageError(f"{path} has store version {version}, which never was")
        log.warning(
            "%s: from store version %d to %d; a blyan of before will not open it again (a copy "
            "of before, made with `blyan-node backup`, it will)",
            *(path.name, number - 1, number),
        )
        with _no_references(db):
            _one(db, number, steps[number])


@contextmanager
def _no_references(db: sqlite3.Connection) -> Iterator[None]:
    """A table may be put in the place of another: what refers to it by name then refers to the new
    one, and all references are looked at in the end. Not within a transaction."""
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("PRAGMA legacy_alter_table = ON")
    try:
        yield
    finally:
        db.execute("PRAGMA legacy_alter_table = OFF")
        db.execute("PRAGMA foreign_keys = ON")


def _one(db: sqlite3.Connection, number: int, step: Step) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        step(db)
        invariant(db.in_transaction, "a step stays within its transaction: use `script`")
        wrong = db.execute("PRAGMA foreign_key_check").fetchone()
        if wrong is not None:
            raise StorageError(f"the step to version {number} leaves rows of {wrong[0]} alone")
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def script(db: sqlite3.Connection, text: str) -> None:
    """Run several statements within the open transaction. (`executescript` would commit it.)"""
    statement = ""
    for part in text.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip("; \n"):
                db.execute(statement)
            statement = ""
    invariant(not statement.strip("; \n"), "a script is whole statements")


def to_version_2(db: sqlite3.Connection) -> None:
    """Old blocks may be pruned: the triggers that kept everything make room for a bound."""
    for table in ("blocks", *_PRUNABLE_2):
        for verb in ("UPDATE", "DELETE"):
            db.execute(f"DROP TRIGGER {table}_no_{verb}")
    script(db, BOUND + _BLOCKS_2 + "".join(map(guard, _PRUNABLE_2)))


def to_version_3(db: sqlite3.Connection) -> None:
    """The state's rows become the pages of its tree: one version, after the tip."""
    script(db, TREE_SCHEMA)
    tip = db.execute(
        "SELECT height, time_ms, header FROM blocks ORDER BY height DESC LIMIT 1"
    ).fetchone()
    if tip is not None:
        height, time_ms, raw = tip
        header: Header = decode(Header, raw)
        (total,) = db.execute("SELECT count(*) FROM state").fetchone()
        load = TreeImport(lambda: nullcontext(db))
        db.create_function("path_of", 1, STATE_KEY.hash, deterministic=True)
        rows = db.execute("SELECT key, value FROM state ORDER BY path_of(key)")
        while some := rows.fetchmany(_LOGGED_KEYS):
            load.add(some)
            log.info("the state's pages: %d of %d keys", load.count, total)
        top = load.build()
        if top.hash != header.state_root:
            raise StorageError(f"the state's root is not the one of block {height}")
        load.finish(db, top, height, time_ms)
    db.execute("DROP TABLE state")


def to_version_4(db: sqlite3.Connection) -> None:
    """Bodies get a table of their own, so that a block's line is read without them. They are moved
    a few at a time, into the space of those before: the file does not grow by all of them."""
    for trigger in ("in_order", "no_UPDATE", "no_DELETE"):
        db.execute(f"DROP TRIGGER blocks_{trigger}")
    db.execute("ALTER TABLE blocks RENAME TO blocks_3")
    script(db, _BLOCKS_4)
    first, last = db.execute("SELECT min(height), max(height) FROM blocks_3").fetchone()
    for height in range(first or 0, (last or 0) + 1, MOVED_BLOCKS):
        some = f"FROM blocks_3 WHERE height BETWEEN {height} AND {height + MOVED_BLOCKS - 1}"
        db.execute(
            "INSERT INTO blocks SELECT height, hash, header, time_ms, proposer, view, epoch,"
            f" tx_count, length(body) {some}"
        )
        db.execute(f"INSERT INTO bodies SELECT height, body {some} AND length(body) > 0")
        db.execute(f"DELETE {some}")
        if (height - (first or 0)) % _LOGGED_BLOCKS == 0:
            log.info("bodies: block %d of %d", height, last or 0)
    db.execute("DROP TABLE blocks_3")
    script(db, BLOCKS + guard("bodies"))


STEPS: dict[int, Step] = {2: to_version_2, 3: to_version_3, 4: to_version_4}
