"""Every kind of damage is found or harmless, and a repair gives the same chain again.

`python -m tests.unit.test_doctor_deep --flips 200 --seed N` flips more bits than a test run does.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chain.errors import StorageError
from chain.hashes import TX
from chain.receipts import Receipt
from chain.store import ChainStore
from chain.types import Height, TxId
from node import chain_check
from node.chain_check import Problem
from node.doctor import examine
from node.doctor_deep import examine_deeply, repair
from node.findings import Finding
from node.genesis import GenesisChain
from node.home import Home
from node.wal import LOG_NAME
from tests.kit.bit_flips import Flips, Made, append, make, rows, run
from tests.kit.old_homes import kinds, unpack
from tests.kit.programs import call, parsed

FLIPS, PRUNED_FLIPS = 16, 6
TIP = 16


def nothing(*_: object) -> None:
    """Nobody looks."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A home to copy, with a log, keys and a chain in one file."""

    home: Path
    made: Made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    home = unpack("schema-3", tmp_path_factory.mktemp("old"))[0].home
    made = make(tmp_path_factory.mktemp("made"))
    (home.path / "genesis.json").write_text(made.genesis_text)
    home.chain_db.write_bytes(made.data)
    assert made.height == TIP
    return Whole(home.path, made)


@pytest.fixture
def home(whole: Whole, tmp_path: Path) -> Home:
    shutil.copytree(whole.home, tmp_path / "home")
    return Home(tmp_path / "home")


@pytest.fixture
def start(whole: Whole) -> GenesisChain:
    return whole.made.start


def check(path: Path, start: GenesisChain, *, replay: bool = False) -> list[Problem]:
    return chain_check.check_chain(path, start, replay=replay)


def test_a_healthy_home_has_nothing(home: Home) -> None:
    for replay in (False, True):
        looked: list[tuple[int, int]] = []
        findings = examine_deeply(home, lambda *at, to=looked: to.append(at), replay=replay)
        assert [f.detail for f in findings if not f.ok] == []
        assert {f.check for f in findings} == {"chain", "log", "permissions"}
        assert looked[-1][0] == looked[-1][1] == TIP + 1


# --- one thing at a time ----------------------------------------------------------------------

_ACCOUNT = "substr(key, 1, 5) = CAST('acct/' AS BLOB)"
_OTHER = "(SELECT certificate FROM certificates WHERE height = 8)"
_CUT = "CAST(substr(certificate, 1, length(certificate) - 1) || x'00' AS BLOB)"
_STALE = "x'0100000000000000'"
_SCHEMA = "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = "
DAMAGE = {
    "a header": ("UPDATE blocks SET header = x'00' WHERE height = 9", "no block"),
    "a hash": ("UPDATE blocks SET hash = zeroblob(32) WHERE height = 9", "hash"),
    "a time": ("UPDATE blocks SET time_ms = 7 WHERE height = 9", "not its header's"),
    "a body": (
        "UPDATE bodies SET body = (SELECT body FROM bodies WHERE height = 8) WHERE height = 9",
        "another header",
    ),
    "a count": ("UPDATE blocks SET tx_count = 99 WHERE height = 9", "99 transactions"),
    "a size": ("UPDATE blocks SET size = 99 WHERE height = 9", "99 bytes"),
    "a missing body": ("DELETE FROM bodies WHERE height = 9", "not pruned"),
    "an empty body": ("UPDATE bodies SET body = x'' WHERE height = 9", "no block"),
    "a stray body": ("INSERT INTO bodies VALUES (999, x'00')", "blocks is not there"),
    "a missing block": ("DELETE FROM blocks WHERE height = 9", "missing"),
    "a certificate": (
        f"UPDATE certificates SET certificate = {_OTHER} WHERE height = 9",
        "does not finalize",
    ),
    "a signature": (
        f"UPDATE certificates SET certificate = {_CUT} WHERE height = {TIP}",
        "signature",
    ),
    "a line": ("UPDATE txs SET nonce = x'0102030405060708' WHERE number = 5", "line does not say"),
    "a lost line": ("DELETE FROM txs WHERE number = 5", "not in the table"),
    "a lost party": ("DELETE FROM tx_parties WHERE number = 5", "lacks it"),
    "a stray party": ("INSERT INTO tx_parties VALUES (zeroblob(32), 9999)", "txs is not there"),
    "a wrong party": ("INSERT INTO tx_parties VALUES (zeroblob(32), 5)", "are in 18 lists"),
    "a stray event": ("INSERT INTO events VALUES (99, 0, 'jail', x'00', '{}')", "is not there"),
    "a mark of pruning": ("UPDATE pruned SET number = 9", "those below have 0"),
    "a bound of pruning": ("UPDATE pruned SET height = 1", "was pruned"),
    "no mark of pruning": ("DELETE FROM pruned", "row is missing"),
    "a type": ("UPDATE txs SET reason = x'00' WHERE number = 5", "another type"),
    "an event's data": ("UPDATE events SET data = '{' WHERE height = 10", "no JSON"),
    "a guard": (_SCHEMA + "replace(sql, 'append', 'upend') WHERE type = 'trigger'", "as this"),
    "a table": (_SCHEMA + "replace(sql, 'KEY', 'KEX') WHERE name = 'events'", "SQLite says"),
    "an older version": ("PRAGMA user_version = 2", "store version 2"),
    "a version that never was": ("PRAGMA user_version = -3", "store version -3"),
    "another program": ("PRAGMA application_id = 7", "another program"),
}
STATE = {
    "a page": (
        "UPDATE state_pages SET data = zeroblob(length(data)) WHERE number ="
        " (SELECT page FROM state_versions ORDER BY height DESC LIMIT 1)",
        "checksum",
    ),
    "a lost page": ("DELETE FROM state_pages WHERE number = 40", "missing"),
    "a page of nobody": ("INSERT INTO state_pages VALUES (9999, x'00')", "and the states have"),
    "a lost key": (f"DELETE FROM state_keys WHERE {_ACCOUNT}", "key"),
    "a key that came sooner": ("UPDATE state_keys SET added = 8 WHERE added = 10", "added"),
    "a key that came later": (
        "UPDATE state_keys SET added = 10 WHERE key = (SELECT min(key) FROM state_keys)",
        "added with it",
    ),
    "a key that went sooner": ("UPDATE state_gone SET removed = 14 WHERE removed = 12", "removed"),
    "a key that was not": ("INSERT INTO state_gone VALUES (x'00', 3, 7)", "not there"),
    "a key of nobody": ("INSERT INTO state_keys VALUES (x'ff', 99)", "not there"),
    "an old root": ("UPDATE state_versions SET root = zeroblob(32) WHERE height = 7", "root"),
    "an old time": ("UPDATE state_versions SET time_ms = 7 WHERE height = 7", "time"),
    "an old page": ("UPDATE state_versions SET page = page - 1 WHERE height = 7", "state"),
    "an old count": ("UPDATE state_versions SET keys = 7 WHERE height = 7", "keys, not 7"),
    "a lost version": ("DELETE FROM state_versions WHERE height = 10", "consecutive"),
    "a lost tip": (f"DELETE FROM state_versions WHERE height = {TIP}", "consecutive"),
    "a page that would go": (f"UPDATE state_stale SET pages = {_STALE} WHERE height = 9", "others"),
    "a page that would stay": ("UPDATE state_stale SET pages = x'' WHERE height = 9", "others"),
    "a lost note": ("DELETE FROM state_stale WHERE height = 9", "others"),
    "a note of nobody": (f"INSERT INTO state_stale VALUES (99, {_STALE})", "are not there"),
}
REPLAYED = {
    "a receipt": ("UPDATE txs SET code = 'no', reason = 'why' WHERE number = 7", "receipt"),
    "an event": ("INSERT INTO events VALUES (9, 0, 'jail', x'00', '{}')", "what executing"),
    "an event of genesis": ("INSERT INTO events VALUES (0, 0, 'a', x'00', '{}')", "executing"),
}
CUT = {
    "a body": 8,
    "a missing body": 8,
    "an empty body": 8,
    "a signature": TIP - 1,
}


def damage(path: Path, sql: str) -> None:
    """Past the guards, which are there again afterwards."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        guards = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        if "PRAGMA" in sql:
            db.executescript(sql)
            return
        for name, _ in guards:
            db.execute(f"DROP TRIGGER {name}")
        before = db.total_changes
        db.execute(sql)
        assert db.total_changes > before, "the damage hits nothing"
        for _, text in guards:
            db.execute(text)


def contents(path: Path) -> list[tuple[Any, ...]]:
    """What does not depend on how many versions of the state are kept."""
    with ChainStore(path) as store:
        root = store.load_state().root
    return [("root", root), *(row for row in rows(path) if not str(row[0]).startswith("state_"))]


@pytest.mark.parametrize("name", [*DAMAGE, "a page", *REPLAYED])
def test_damage_is_found_and_mended(home: Home, start: GenesisChain, name: str) -> None:
    before = contents(home.chain_db)
    sql, said = (DAMAGE | STATE | REPLAYED)[name]
    damage(home.chain_db, sql)
    problems = check(home.chain_db, start, replay=name in REPLAYED)
    assert any(said in p.what for p in problems), problems
    if name in REPLAYED:
        assert check(home.chain_db, start) == []  # it takes a replay
    done = repair(home, nothing, nothing)
    assert [f for f in done if not f.ok] == []
    (aside,) = home.path.glob("damaged-*")
    assert (aside / "chain.db").is_file()
    assert check(home.chain_db, start, replay=True) == []
    with ChainStore(home.chain_db) as store:
        tip = store.tip()
    assert tip is not None
    assert tip.height == CUT.get(name, TIP)  # what follows comes from peers
    lost = {"a certificate", "another program", *CUT}
    if name not in lost:
        assert contents(home.chain_db) == before


@pytest.mark.parametrize("name", STATE)
def test_damage_to_the_state_is_found(home: Home, start: GenesisChain, name: str) -> None:
    """A repair does not look at it."""
    sql, said = STATE[name]
    damage(home.chain_db, sql)
    problems = check(home.chain_db, start)
    assert any(said in p.what for p in problems), problems


def test_a_null_of_which_sqlite_says_nothing_true(home: Home, start: GenesisChain) -> None:
    """Its own check says of every row of `state_gone` that it has one."""
    with closing(sqlite3.connect(home.chain_db, isolation_level=None)) as db:
        (said,) = set(db.execute("PRAGMA integrity_check"))
        assert said in (("ok",), ("NULL value in state_gone.added",))
    assert check(home.chain_db, start) == []
    of = " WHERE name = 'state_gone'"
    shut, open_ = "'added INTEGER NOT NULL'", "'added INTEGER'"
    damage(home.chain_db, f"{_SCHEMA} replace(sql, {shut}, {open_}){of}")
    with closing(sqlite3.connect(home.chain_db)) as db, db:
        db.execute("UPDATE state_gone SET added = NULL WHERE removed = 12")
    damage(home.chain_db, f"{_SCHEMA} replace(sql, {open_}, {shut}){of}")
    (problem,) = check(home.chain_db, start)
    assert problem.what == "1 rows hold something of another type than their column"


@pytest.mark.parametrize("kind", kinds())
def test_files_of_earlier_versions_are_brought_up_to_date_whole(kind: str, tmp_path: Path) -> None:
    """Their tables read as if they were made today."""
    home = unpack(kind, tmp_path)[0].home
    ChainStore(home.chain_db).close()
    assert [f.detail for f in examine_deeply(home, nothing) if not f.ok] == []


def test_a_file_of_an_earlier_version_is_mended(tmp_path: Path) -> None:
    old = unpack("schema-3", tmp_path)[0]
    with closing(sqlite3.connect(old.home.chain_db, isolation_level=None)) as db:
        db.execute("UPDATE state_pages SET data = x''")
    with pytest.raises(StorageError):
        ChainStore(old.home.chain_db)
    (done,) = (f for f in repair(old.home, nothing, nothing) if f.check == "chain")
    assert done.ok
    with ChainStore(old.home.chain_db) as store:
        tip = store.tip()
        assert tip is not None
        assert (tip.height, tip.hash.hex()) == (old.about["height"], old.about["block"])


def test_what_is_missing_at_the_end_is_cut_off(home: Home) -> None:
    damage(home.chain_db, "DELETE FROM certificates WHERE height > 12")
    damage(home.chain_db, STATE["a lost key"][0])
    (done,) = (f for f in repair(home, nothing, nothing) if f.check == "chain")
    assert done.ok
    assert f"up to block 12 of {TIP}; no certificate for the last blocks" in done.detail


def test_a_file_that_is_no_database(home: Home, start: GenesisChain) -> None:
    home.chain_db.write_bytes(b"nothing of it is left " * 1000)
    assert "not a database" in check(home.chain_db, start)[0].what
    (done,) = (f for f in repair(home, nothing, nothing) if f.check == "chain")
    assert done.ok
    assert "up to block 0; its table of blocks cannot be read" in done.detail
    assert check(home.chain_db, start) == []


def test_a_file_that_cannot_be_written(home: Home, start: GenesisChain) -> None:
    """As SQLite takes one of a format to come."""
    data = bytearray(home.chain_db.read_bytes())
    data[18] = 3
    home.chain_db.write_bytes(data)
    (problem,) = check(home.chain_db, start)
    assert "nothing can be written" in problem.what
    assert all(f.ok for f in repair(home, nothing, nothing))
    assert check(home.chain_db, start) == []


def test_a_damaged_log_is_moved_aside(home: Home) -> None:
    log = home.wal / LOG_NAME
    data = bytearray(log.read_bytes())
    data[20] ^= 1
    log.write_bytes(data)
    log.chmod(0o600)
    (found,) = (f for f in examine_deeply(home, nothing) if f.check == "log")
    assert not found.ok
    assert "damaged at byte 12" in found.detail
    (done,) = (f for f in repair(home, nothing, nothing) if f.check == "log")
    assert "signs nothing" in done.detail
    (aside,) = home.path.glob("damaged-*")
    assert (aside / LOG_NAME).read_bytes() == data
    assert not log.exists()


def test_open_keys_are_closed(home: Home) -> None:
    (key,) = home.keystore.glob("*.json")
    key.chmod(0o644)
    (found,) = (f for f in examine_deeply(home, nothing) if f.check == "permissions")
    assert not found.ok
    assert str(key) in found.detail
    assert repair(home, nothing, nothing)[0].check == "permissions"
    assert key.stat().st_mode & 0o777 == 0o600
    assert not list(home.path.glob("damaged-*"))


def test_a_pruned_store_is_checked_and_not_rebuilt(home: Home, start: GenesisChain) -> None:
    with ChainStore(home.chain_db) as store:
        store.prune(Height(10), 10**6, lambda height: height % 4 == 0)
    assert check(home.chain_db, start) == []
    for sql, said in (
        ("INSERT INTO tx_parties VALUES (zeroblob(32), 5)", "were pruned"),
        ("INSERT INTO events VALUES (9, 0, 'jail', x'00', '{}')", "were pruned"),
        ("UPDATE blocks SET tx_count = 9 WHERE height = 8", "those below have 18"),
        ("UPDATE txs SET nonce = x'0102030405060708' WHERE height = 12", "line does not say"),
    ):
        damage(home.chain_db, sql)
        assert any(said in p.what for p in check(home.chain_db, start)), said
    (done,) = (f for f in repair(home, nothing, nothing) if f.check == "chain")
    assert not done.ok
    assert "move it away" in done.detail


def test_a_store_that_began_with_a_snapshot(home: Home, whole: Whole, tmp_path: Path) -> None:
    made, path = whole.made, tmp_path / "begun.db"
    with ChainStore(home.chain_db) as old, ChainStore(path, 2) as store:
        block = old.block(made.height)
        assert block is not None
        with store.import_state() as state:
            state.add(old.load_state().subtree(0, 0).leaves())
            receipts = [Receipt(TxId(TX.hash(raw)), "unknown", "") for raw in block.txs]
            state.finish(block, block.hash(), old.certificate(made.height), receipts)
        assert check(path, made.start) == []
        append(store, made.start, made.more)
    assert check(path, made.start) == []
    (problem,) = check(path, made.start, replay=True)
    assert f"below {made.height} are not here whole" in problem.what


def test_a_node_may_go_on_meanwhile(home: Home, whole: Whole) -> None:
    """A check that began before sees what was there then."""
    made = whole.made

    def goes_on(done: int, total: int) -> None:
        if done > 1:
            return
        with ChainStore(home.chain_db, 2) as store:
            append(store, made.start, made.more)
            store.prune(Height(TIP), 10**6, lambda height: False)

    found = chain_check.check_chain(home.chain_db, made.start, progress=goes_on)
    assert found == []


def test_a_newer_file_is_left_alone(home: Home) -> None:
    with closing(sqlite3.connect(home.chain_db)) as db:
        db.execute("PRAGMA user_version = 1000")
    before = home.chain_db.read_bytes()
    (done,) = (f for f in repair(home, nothing, nothing) if f.check == "chain")
    assert not done.ok
    assert home.chain_db.read_bytes() == before


def test_looking_brings_nothing_up_to_date(tmp_path: Path) -> None:
    home = unpack("schema-1", tmp_path)[0].home
    said = {f.check: f for f in examine(home)}
    assert said["store"].detail.startswith("of version 1; the next start")
    assert [f.ok for f in examine_deeply(home, nothing) if f.check == "chain"] == [False]
    with closing(sqlite3.connect(home.chain_db)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def test_the_program(home: Home) -> None:
    assert "chain" not in {f.check for f in examine(home)}
    damage(home.chain_db, DAMAGE["a lost line"][0])
    result = call("blyan-node", "doctor", "--deep", "--home", home.path)
    assert result.returncode == 1
    assert "doctor --repair" in result.stdout
    said = parsed(call("blyan-node", "doctor", "--repair", "--home", home.path, "--json"))
    found = [Finding(**row) for row in said]
    assert {"chain", "log", "permissions"} <= {f.check for f in found}
    assert any(f"built anew up to block {TIP}" in f.detail for f in found)


# --- bits that flip ------------------------------------------------------------------------------


@pytest.mark.parametrize("pruned", [False, True])
def test_flipped_bits_are_found_or_harmless(pruned: bool, whole: Whole, tmp_path: Path) -> None:
    made = make(tmp_path / "made", pruned=True) if pruned else whole.made
    flips = Flips(made, tmp_path, pruned=pruned)
    seed = 1  # others: this module as a program
    came_out = run(flips, seed, PRUNED_FLIPS if pruned else FLIPS)
    assert came_out.total() > came_out["harmless"], f"seed {seed}: {came_out}"


def main(show: Callable[[object], None] = print) -> int:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--bit", type=int, help="this one alone")
    parser.add_argument("--pruned", action="store_true", help="a chain whose old blocks are gone")
    options = parser.parse_args()
    show(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as at:
        made = make(Path(at) / "made", pruned=options.pruned)
        flips = Flips(made, Path(at), pruned=options.pruned)
        if options.bit is not None:
            show(f"{flips.owner(options.bit)}: {flips.flip(options.bit)}")
        else:
            show(dict(run(flips, options.seed, options.flips)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
