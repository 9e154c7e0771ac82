"""Older files of the chain become those of today, whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from chain import store_migrations, store_schema
from chain.errors import InvariantError, StorageError
from chain.store import ChainStore
from chain.store_migrations import Step, migrate, script
from chain.store_schema import SCHEMA_VERSION
from chain.types import Height
from tests.kit.old_homes import OldHome, about, kinds, unpack


class Crash(Exception):
    """The process is gone: nothing after this statement has happened."""


class Crashing(sqlite3.Connection):
    """Ends before its n-th statement, and does nothing more, not even a ROLLBACK."""

    left = -1

    def execute(self, *arguments: object) -> sqlite3.Cursor:
        if self.left == 0:
            raise Crash
        self.left -= 1
        return super().execute(*arguments)  # type: ignore[arg-type]

    def executemany(self, *arguments: object) -> sqlite3.Cursor:
        if self.left == 0:
            raise Crash
        self.left -= 1
        return super().executemany(*arguments)  # type: ignore[arg-type]


def add_colour(db: sqlite3.Connection) -> None:
    script(
        db,
        """
        CREATE TABLE colours (height INTEGER PRIMARY KEY REFERENCES blocks, colour TEXT NOT NULL);
        INSERT INTO colours SELECT height, 'blue; or green' FROM blocks;
        CREATE TRIGGER colours_stay BEFORE DELETE ON colours
        BEGIN SELECT RAISE(ABORT, 'they stay'); END;
        """,
    )


def drop_guard(db: sqlite3.Connection) -> None:
    db.execute("DROP TRIGGER colours_stay")
    db.executemany("UPDATE colours SET colour = ? WHERE height = ?", [("red", 1), ("grey", 2)])


FAKE: Mapping[int, Step] = {SCHEMA_VERSION + 1: add_colour, SCHEMA_VERSION + 2: drop_guard}


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()
        return [*db.iterdump(), str(version)]


def run(path: Path, steps: Mapping[int, Step], target: int, statements: int = -1) -> bool:
    """Migrate; False if it crashed before the given statement."""
    db = sqlite3.connect(path, isolation_level=None, factory=Crashing)
    db.execute("PRAGMA foreign_keys = ON")
    db.left = statements
    try:
        migrate(db, path, target, steps)
    except Crash:
        return False
    finally:
        db.left = -1
        db.close()
    return True


def old_file(tmp_path: Path, kind: str = "schema-1") -> OldHome:
    return unpack(kind, tmp_path)[0]


def every_version(path: Path, steps: Mapping[int, Step], first: int, target: int) -> list[str]:
    """What the file is like at each version from `first` on; it is left as it was."""
    data, found = path.read_bytes(), []
    for version in range(first, target + 1):
        assert run(path, steps, version)
        found.append("\n".join(dump(path)))
    path.write_bytes(data)
    return found


@pytest.mark.parametrize("kind", kinds())
def test_a_crash_at_any_statement_leaves_a_whole_version(kind: str, tmp_path: Path) -> None:
    """Of the first step that it needs: the next ones are crashed at with the homes after it."""
    path = old_file(tmp_path, kind).home.chain_db
    steps = {**store_migrations.STEPS, **FAKE}
    first, last = int(kind.rpartition("-")[2]), SCHEMA_VERSION + 2
    target = first + 1 if first + 1 < SCHEMA_VERSION else last
    whole = every_version(path, steps, first, last)
    data, seen, statements = path.read_bytes(), set[str](), 0
    while not run(path, steps, target, statements):
        found = "\n".join(dump(path))
        assert found in whole, f"half a step after {statements} statements"
        seen.add(found)
        assert run(path, steps, last)  # the next start goes on from there
        assert "\n".join(dump(path)) == whole[-1]
        path.write_bytes(data)
        statements += 1
    assert statements > 10
    assert seen == set(whole[: target - first + 1])


def test_a_step_that_leaves_its_transaction_is_a_bug(tmp_path: Path) -> None:
    path = old_file(tmp_path).home.chain_db

    def leaves(db: sqlite3.Connection) -> None:
        db.executescript("CREATE TABLE t (x)")

    with pytest.raises(InvariantError, match="script"):
        run(path, {**store_migrations.STEPS, SCHEMA_VERSION + 1: leaves}, SCHEMA_VERSION + 1)


def test_a_step_that_breaks_references_changes_nothing(tmp_path: Path) -> None:
    path = old_file(tmp_path).home.chain_db
    assert run(path, store_migrations.STEPS, SCHEMA_VERSION)
    before = dump(path)

    def breaks(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute("INSERT INTO certificates VALUES (12345, x'00')")

    with pytest.raises(StorageError, match="certificates"):
        run(path, {SCHEMA_VERSION + 1: breaks}, SCHEMA_VERSION + 1)
    assert dump(path) == before


@pytest.mark.parametrize("kind", kinds())
def test_a_migrated_file_has_the_tables_of_a_new_one(kind: str, tmp_path: Path) -> None:
    old = old_file(tmp_path, kind)
    with ChainStore(old.home.chain_db) as store:
        tip = store.tip()
        assert tip is not None
        assert tip.height == old.about["height"]
    with ChainStore(tmp_path / "new.db"):
        pass

    def tables(path: Path) -> dict[str, str]:
        with closing(sqlite3.connect(path)) as db:
            rows = db.execute("SELECT type || ' ' || name, sql FROM sqlite_master").fetchall()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            assert version == SCHEMA_VERSION
            return {name: " ".join((sql or "").split()) for name, sql in rows}

    assert tables(old.home.chain_db) == tables(tmp_path / "new.db")


LINE = "height, hash, header, body, time_ms, proposer, view, epoch, tx_count"


def test_bodies_are_moved_and_nothing_else_changes(tmp_path: Path) -> None:
    """To version 4, of a file of which some blocks were pruned."""
    path = old_file(tmp_path, "schema-3").home.chain_db
    assert int(about("schema-3")["homes"]["node-0"]["height"]) > store_migrations.MOVED_BLOCKS
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE pruned SET height = 9, number = 1")
        db.execute("UPDATE blocks SET body = x'' WHERE height < 9")
        before = db.execute(f"SELECT {LINE}, length(body) FROM blocks ORDER BY height").fetchall()
    with ChainStore(path) as store:
        assert (store.first_height(), store.first_body()) == (0, 9)
        assert store.block(Height(8)) is None
        sizes = [line.size_bytes for line in store.latest_blocks(1000)]
        assert sizes == [row[-1] for row in before[::-1]]
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        sql = "FROM blocks LEFT JOIN bodies USING (height) ORDER BY height"
        after = db.execute(f"SELECT {LINE}, size {sql}").fetchall()
        for statement in ("UPDATE blocks SET view = 1", "DELETE FROM bodies WHERE height = 9"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(statement)
    assert after == [(*row[:3], row[3] or None, *row[4:]) for row in before]


def test_a_version_that_never_was(tmp_path: Path) -> None:
    path = old_file(tmp_path).home.chain_db
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 0")
    with pytest.raises(StorageError, match="never was"):
        ChainStore(path)


def test_steps_lead_to_the_present_version() -> None:
    assert sorted(store_migrations.STEPS) == list(range(2, SCHEMA_VERSION + 1))
    assert f"user_version = {SCHEMA_VERSION}" in store_schema.new_file()
