"""How older files of the chain become files of today (docs/spec/upgrades.md).

`STEPS[n]` makes a file of version n of one of version n - 1. Each step is one transaction with the
new number, so a crash or a full disk at any statement leaves the old file or the new one. Steps
only add and rewrite; nothing that only this file knows is dropped.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from chain.codec import decode
from chain.errors import StorageError, invariant
from chain.hashes import STATE_KEY
from chain.store_guards import PRUNABLE, guards
from chain.store_tree import TREE_SCHEMA, TreeImport
from chain.types import Header

log = logging.getLogger("blyan.store")
_LOGGED_KEYS = 100_000

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
        _one(db, number, steps[number])


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
    for table in ("blocks", *PRUNABLE):
        for verb in ("UPDATE", "DELETE"):
            db.execute(f"DROP TRIGGER {table}_no_{verb}")
    script(db, guards())


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


STEPS: dict[int, Step] = {2: to_version_2, 3: to_version_3}
