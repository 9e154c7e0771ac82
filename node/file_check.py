"""Whether chain.db is a file as this program makes it, whatever its rows say (docs/spec/storage.md,
"Doctor"): its version, its tables and triggers, and the types of what stands in their columns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from chain import store_schema
from chain.errors import StorageError

_HEADER = b"SQLite format 3\0"
_VERSIONS = (b"\1\1", b"\2\2")  # of the file's format, to write and to read: a journal, or a WAL
# SQLite 3.40 says so of any row of a table without rowid whose key columns do not come first. That
# none is NULL shows in the types.
_SAID_WRONGLY = "NULL value in state_gone.added"
_NULL = ", 'null'"
_TYPES = {"INTEGER": "integer", "BLOB": "blob", "TEXT": "text"}


def check_header(path: Path) -> str | None:
    """What is wrong at the file's beginning that SQLite does not mind. Before a connection is open:
    closing the file would take the locks of this process."""
    with path.open("rb") as file:
        start = file.read(20)
    if start.startswith(_HEADER) and start[18:20] not in _VERSIONS:
        return f"it is of SQLite's file format {start[18]}, {start[19]}: nothing can be written"
    return None


class FileCheck:
    """Reads over one connection, in a transaction of the caller."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = db, path
        self._expected = _schema_of_today()
        self.is_readable = True  # so far: tables of today, no value of another type than its column

    def problems(self) -> Iterator[tuple[str, str]]:
        """Where and what. Raises StorageError if the file is another program's or a newer one."""
        found = _schema(self._db)
        yield from self._version(is_ours=found == self._expected)
        for (said,) in self._db.execute("PRAGMA integrity_check"):
            if said not in ("ok", _SAID_WRONGLY):
                yield "pages", said
        for kind, name in sorted({(str(row[0]), str(row[1])) for row in found ^ self._expected}):
            self.is_readable &= kind != "table"
            yield f"{kind} {name}", "it is not as this program makes it"
        for table, row, other, _ in self._db.execute("PRAGMA foreign_key_check"):
            yield f"{table} row {row}", f"what it names in {other} is not there"
        for table in sorted(str(row[1]) for row in found & self._expected if row[0] == "table"):
            yield from self._types(table)

    def _version(self, *, is_ours: bool) -> Iterator[tuple[str, str]]:
        """A file whose tables are all of today is ours, unless it says that it is newer."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if not is_ours or version > store_schema.SCHEMA_VERSION:
            version = store_schema.version_of(self._db, self._path)
            if version < store_schema.SCHEMA_VERSION:
                raise StorageError(
                    f"{self._path} has store version {version}: the next start brings it to "
                    f"{store_schema.SCHEMA_VERSION}, then it can be checked"
                )
        if application != store_schema.APPLICATION_ID:
            yield self._path.name, f"it says that it is another program's, {application:#x}"
        if version != store_schema.SCHEMA_VERSION:
            what = f"it says that it has store version {version}, and has the tables of"
            yield self._path.name, f"{what} {store_schema.SCHEMA_VERSION}"

    def _types(self, table: str) -> Iterator[tuple[str, str]]:
        """SQLite lets any column hold anything."""
        columns = self._db.execute("SELECT * FROM pragma_table_info(?)", (table,)).fetchall()
        right = " AND ".join(
            f"typeof({name}) IN ('{_TYPES[declared]}'{'' if is_never_null or key else _NULL})"
            for _, name, declared, is_never_null, _, key in columns
        )
        (count,) = self._db.execute(f"SELECT count(*) FROM {table} WHERE NOT ({right})").fetchone()
        if count:
            self.is_readable = False
            yield table, f"{count} rows hold something of another type than their column"


def _schema(db: sqlite3.Connection) -> set[tuple[object, ...]]:
    """All tables, indexes and triggers, but for what SQLite keeps for itself when it is told to."""
    return {
        row
        for row in db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
        if not str(row[1]).startswith("sqlite_stat")
    }


def _schema_of_today() -> set[tuple[object, ...]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(store_schema.new_file())
        return _schema(db)
