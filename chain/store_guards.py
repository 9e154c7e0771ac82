"""Triggers that keep the chain's file append-only, less what may be pruned (docs/spec/storage.md).

`pruned` has one row: what stands below that height, and below that running number of a
transaction, may be dropped: bodies, receipts, parties, events and certificates, never a header.
It only grows, so that nothing above can be dropped by moving it down and up again. No row of any
other table is ever changed.
"""

from __future__ import annotations

PRUNABLE = ("bodies", "certificates", "txs", "tx_parties", "events")
BOUND = """
CREATE TABLE pruned (
  one INTEGER PRIMARY KEY CHECK (one = 1), height INTEGER NOT NULL, number INTEGER NOT NULL
);
INSERT INTO pruned VALUES (1, 0, 1);
CREATE TRIGGER pruned_stays BEFORE DELETE ON pruned
BEGIN SELECT RAISE(ABORT, 'what was pruned is append-only'); END;
CREATE TRIGGER pruned_grows BEFORE UPDATE ON pruned
WHEN NEW.one <> 1 OR NEW.height < OLD.height OR NEW.number < OLD.number
  OR NEW.height > (SELECT coalesce(max(height), 0) FROM blocks)
BEGIN SELECT RAISE(ABORT, 'what was pruned is append-only'); END;
"""
BLOCKS = """
CREATE TRIGGER blocks_in_order BEFORE INSERT ON blocks
WHEN EXISTS (SELECT 1 FROM blocks) AND NEW.height <> (SELECT max(height) + 1 FROM blocks)
BEGIN SELECT RAISE(ABORT, 'blocks are appended one height at a time'); END;
CREATE TRIGGER blocks_no_UPDATE BEFORE UPDATE ON blocks
BEGIN SELECT RAISE(ABORT, 'blocks are append-only'); END;
CREATE TRIGGER blocks_no_DELETE BEFORE DELETE ON blocks
BEGIN SELECT RAISE(ABORT, 'blocks are append-only'); END;
"""
_GUARD = """
CREATE TRIGGER {table}_no_UPDATE BEFORE UPDATE ON {table}
BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END;
CREATE TRIGGER {table}_no_DELETE BEFORE DELETE ON {table}
WHEN OLD.{column} >= coalesce((SELECT {bound} FROM pruned), 0)
BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END;
"""


def guards() -> str:
    """The script that makes the bound and all triggers."""
    return BOUND + BLOCKS + "".join(map(guard, PRUNABLE))


def guard(table: str) -> str:
    """The triggers of a table of which rows below the bound may go."""
    column = "number" if table == "tx_parties" else "height"
    return _GUARD.format(table=table, column=column, bound=column)
