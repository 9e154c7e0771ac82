"""The tables of the chain's file, how it is opened, and its versions (docs/spec/storage.md).

What stands here is what a new file gets. A change of it raises `SCHEMA_VERSION` and adds the step
that turns an older file into the same (`chain/store_migrations.py`).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from chain import store_migrations
from chain.errors import StorageError, VersionError
from chain.store_guards import guards
from chain.store_tree import TREE_SCHEMA

SCHEMA_VERSION = 4
APPLICATION_ID = 0x626C7961  # "blya": tells other SQLite files from ours
BUSY_TIMEOUT_S = 5
WRITER_CACHE_KIB = 16 * 1024
JOURNAL_PAGES = 8000  # 32 MB
_SCHEMA = """
CREATE TABLE blocks (
  height INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, header BLOB NOT NULL,
  time_ms INTEGER NOT NULL, proposer BLOB NOT NULL, view INTEGER NOT NULL,
  epoch INTEGER NOT NULL, tx_count INTEGER NOT NULL, size INTEGER NOT NULL
);
CREATE TABLE bodies (height INTEGER PRIMARY KEY REFERENCES blocks, body BLOB NOT NULL);
CREATE TABLE certificates (
  height INTEGER PRIMARY KEY REFERENCES blocks, certificate BLOB NOT NULL
);
CREATE TABLE txs (
  number INTEGER PRIMARY KEY, height INTEGER NOT NULL REFERENCES blocks,
  position INTEGER NOT NULL, id BLOB NOT NULL, sender BLOB, kind INTEGER NOT NULL, nonce BLOB,
  code TEXT NOT NULL, reason TEXT NOT NULL, UNIQUE (height, position)
);
CREATE INDEX txs_by_id ON txs (id);
CREATE TABLE tx_parties (
  account BLOB NOT NULL, number INTEGER NOT NULL REFERENCES txs, PRIMARY KEY (account, number)
) WITHOUT ROWID;
CREATE TABLE events (
  height INTEGER NOT NULL REFERENCES blocks, position INTEGER NOT NULL, kind TEXT NOT NULL,
  key BLOB NOT NULL, data TEXT NOT NULL, PRIMARY KEY (height, position)
) WITHOUT ROWID;
CREATE INDEX events_by_kind ON events (kind, height, position);
CREATE INDEX events_by_key ON events (kind, key, height, position);
"""


def connect(path: Path) -> sqlite3.Connection:
    """A connection that syncs and guards. StorageError if there is no opening the file."""
    try:
        db = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be opened: {error}") from None
    try:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA recursive_triggers = ON")  # REPLACE meets the guards as well
        db.execute("PRAGMA secure_delete = OFF")  # nothing here is secret: pages that go are left
    except UnicodeDecodeError:  # SQLite quotes a schema that is damaged
        db.close()
        raise sqlite3.DatabaseError("malformed schema, with bytes that are no text") from None
    except BaseException:
        db.close()
        raise
    return db


def ready_to_write(db: sqlite3.Connection) -> None:
    """What a block of a thousand transactions changes fits into memory, and is brought from the
    journal into the file with what other blocks change of the same pages."""
    db.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
    db.execute(f"PRAGMA wal_autocheckpoint = {JOURNAL_PAGES}")


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file; bring an older one up to date; refuse what is not ours, or is
    newer. Raises StorageError, sqlite3.Error."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(new_file())
        return
    version = version_of(db, path)
    db.execute("PRAGMA journal_mode = WAL")
    if version < SCHEMA_VERSION:
        store_migrations.migrate(db, path, SCHEMA_VERSION)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what was rewritten is not kept twice


def read_version(path: Path) -> int:
    """The version of a file that is left as it is: opening a `ChainStore` brings it up to date."""
    try:
        with closing(connect(path)) as db:
            return version_of(db, path)
    except sqlite3.Error as error:
        raise StorageError(f"{path} is damaged (SQLite says: {error})") from None


def version_of(db: sqlite3.Connection, path: Path) -> int:
    """The schema version of a file of ours that this program can read, or migrate."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise StorageError(f"{path} is a database of another program; move it away")
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise VersionError(path, "store", version, SCHEMA_VERSION)
    return version


def new_file() -> str:
    """The script that makes all tables, as one transaction."""
    return (
        f"BEGIN IMMEDIATE; {_SCHEMA} {TREE_SCHEMA} {guards()}"
        f"PRAGMA application_id = {APPLICATION_ID};"
        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )
