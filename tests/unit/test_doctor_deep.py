"""Every kind of damage is found or harmless, and a repair gives the same chain again.

`python -m tests.unit.test_doctor_deep --flips 200 --seed N` flips more bits than a test run does.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from chain.errors import StorageError
from chain.store import ChainStore
from chain.types import Height, PubKey, TxId
from node import chain_check
from node.chain_check import Problem
from node.config import load_genesis
from node.doctor import examine
from node.doctor_deep import examine_deeply, repair
from node.findings import Finding
from node.genesis import GenesisChain, build_genesis
from node.home import Home
from node.wal import LOG_NAME
from tests.kit.old_homes import unpack
from tests.kit.programs import call, parsed

FLIPS = 25  # of each kind of run here
HELD = ("blocks", "bodies", "certificates", "txs", "tx_parties", "events", "pruned")


def nothing(*_: object) -> None:
    """Nobody looks."""


def prepare(directory: Path) -> Home:
    """A home of today, its chain in one file."""
    home = unpack("schema-1", directory)[0].home
    ChainStore(home.chain_db).close()
    with closing(sqlite3.connect(home.chain_db)) as db:
        db.execute("VACUUM")  # a migration leaves pages free, in which nothing can be damaged
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return home


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, GenesisChain]:
    home = prepare(tmp_path_factory.mktemp("whole"))
    return home, build_genesis(load_genesis(home))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return prepare(tmp_path)


def check(path: Path, start: GenesisChain, *, replay: bool = False) -> list[Problem]:
    return chain_check.check_chain(path, start, replay=replay)


def contents(path: Path) -> list[tuple[object, ...]]:
    """Every row there is, whatever the pages look like."""
    found: list[tuple[object, ...]] = []
    with closing(sqlite3.connect(path)) as db:
        for table in HELD:
            found += [(table, *row) for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]
        found += [("sql", *row) for row in db.execute("SELECT name, sql FROM sqlite_master")]
    with ChainStore(path) as store:
        found += [("state", *item) for item in store.load_state().items()]
    return found


def root(path: Path) -> bytes:
    with ChainStore(path) as store:
        return store.load_state().root


def test_a_healthy_home_has_nothing(home: Home) -> None:
    for replay in (False, True):
        looked: list[tuple[int, int]] = []
        findings = examine_deeply(home, lambda *at, to=looked: to.append(at), replay=replay)  # type: ignore[misc]
        assert [f.detail for f in findings if not f.ok] == []
        assert {f.check for f in findings} == {"chain", "log", "permissions"}
        assert looked[-1][0] == looked[-1][1] == 65


# --- one thing at a time ----------------------------------------------------------------------

_FREE = "DROP TRIGGER {0}_no_UPDATE; DROP TRIGGER {0}_no_DELETE;"
_ACCOUNT = "substr(key, 1, 5) = CAST('acct/' AS BLOB)"
DAMAGE = {
    "a header": ("blocks", "UPDATE blocks SET header = x'00' WHERE height = 9", "no block"),
    "a hash": ("blocks", "UPDATE blocks SET hash = zeroblob(32) WHERE height = 9", "hash"),
    "a time": ("blocks", "UPDATE blocks SET time_ms = 7 WHERE height = 9", "not its header's"),
    "a body": (
        "bodies",
        "UPDATE bodies SET body = (SELECT body FROM bodies WHERE height = 8) WHERE height = 9",
        "another header",
    ),
    "a count": ("blocks", "UPDATE blocks SET tx_count = 99 WHERE height = 9", "99 transactions"),
    "a size": ("blocks", "UPDATE blocks SET size = 99 WHERE height = 9", "99 bytes"),
    "a missing body": ("bodies", "DELETE FROM bodies WHERE height = 9", "not pruned"),
    "an empty body": ("bodies", "UPDATE bodies SET body = x'' WHERE height = 9", "no block"),
    "a stray body": ("bodies", "INSERT INTO bodies VALUES (999, x'00')", "that are not there"),
    "a missing block": ("blocks", "DELETE FROM blocks WHERE height = 9", "missing"),
    "a certificate": (
        "certificates",
        "UPDATE certificates SET certificate = (SELECT certificate FROM certificates"
        " WHERE height = 8) WHERE height = 9",
        "does not finalize",
    ),
    "a signature": (
        "certificates",
        "UPDATE certificates SET certificate ="
        " CAST(substr(certificate, 1, length(certificate) - 1) || x'00' AS BLOB)"
        " WHERE height = (SELECT max(height) FROM certificates)",
        "signature",
    ),
    "a line": (
        "txs",
        "UPDATE txs SET nonce = x'0102030405060708' WHERE number = 5",
        "line does not say",
    ),
    "a lost line": ("txs", "DELETE FROM txs WHERE number = 5", "not in the table"),
    "a lost party": ("tx_parties", "DELETE FROM tx_parties WHERE number = 5", "lacks it"),
    "a stray party": (
        "tx_parties",
        "INSERT INTO tx_parties VALUES (zeroblob(32), 9999)",
        "that are not there",
    ),
    "a page": (
        "state",
        "UPDATE state_pages SET data = zeroblob(length(data)) WHERE number ="
        " (SELECT page FROM state_versions ORDER BY height DESC LIMIT 1)",
        "damaged",
    ),
    "a lost key": ("state", f"DELETE FROM state_keys WHERE {_ACCOUNT}", "key"),
    "an old root": (
        "state",
        "UPDATE state_versions SET root = zeroblob(32) WHERE height ="
        " (SELECT min(height) FROM state_versions)",
        "root",
    ),
}
# Of these everything stands elsewhere as well.
BESIDE = (
    *("a hash", "a time", "a count", "a size", "a missing block", "a stray body"),
    *("a line", "a lost line", "a lost party", "a receipt"),
)
REPLAYED = {
    "a receipt": ("txs", "UPDATE txs SET code = 'no', reason = 'why' WHERE number = 5", "receipt"),
    "an event": (
        "events",
        "INSERT INTO events VALUES (9, 0, 'jail', x'00', '{}')",
        "what executing",
    ),
}


def damage(path: Path, table: str, sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        if table != "state":
            db.executescript(_FREE.format(table))
        before = db.total_changes
        db.execute(sql)
        assert db.total_changes > before, "the damage hits nothing"


@pytest.mark.parametrize("name", [*DAMAGE, *REPLAYED])
def test_damage_is_found_and_mended(home: Home, name: str) -> None:
    start = build_genesis(load_genesis(home))
    healthy = root(home.chain_db)
    before = contents(home.chain_db)
    table, sql, said = (DAMAGE | REPLAYED)[name]
    damage(home.chain_db, table, sql)
    problems = check(home.chain_db, start, replay=name in REPLAYED)
    assert any(said in p.what for p in problems), problems
    if name in REPLAYED:
        assert check(home.chain_db, start) == []  # it takes a replay
    done = repair(home, nothing, nothing)
    assert [f for f in done if not f.ok] == []
    assert check(home.chain_db, start, replay=True) == []
    (aside,) = home.path.glob("damaged-*")
    assert (aside / "chain.db").is_file()
    with ChainStore(home.chain_db) as store:
        tip = store.tip()
        assert tip is not None
    if table == "state" or name in BESIDE:
        after = [row for row in contents(home.chain_db) if row[0] != "sql"]
        assert after == [row for row in before if row[0] != "sql"]
        assert root(home.chain_db) == healthy
    elif name in ("a body", "a missing body", "an empty body"):
        assert tip.height == 8  # what follows comes from peers


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
    damage(home.chain_db, "certificates", "DELETE FROM certificates WHERE height > 60")
    damage(home.chain_db, *DAMAGE["a lost key"][:2])
    (done,) = (f for f in repair(home, nothing, nothing) if f.check == "chain")
    assert done.ok
    assert "up to block 60 of 64; no certificate for the last blocks" in done.detail


def test_a_file_that_is_no_database(home: Home) -> None:
    home.chain_db.write_bytes(b"nothing of it is left " * 1000)
    start = build_genesis(load_genesis(home))
    assert "not a database" in check(home.chain_db, start)[0].what
    (done,) = (f for f in repair(home, nothing, nothing) if f.check == "chain")
    assert done.ok
    assert "up to block 0" in done.detail
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


def test_a_pruned_store_is_checked_and_not_rebuilt(home: Home) -> None:
    start = build_genesis(load_genesis(home))
    with ChainStore(home.chain_db) as store:
        store.prune(Height(20), 10**6, lambda height: height % 12 == 0)
    assert check(home.chain_db, start) == []
    damage(home.chain_db, "txs", "UPDATE txs SET nonce = x'0102030405060708' WHERE height = 30")
    assert len(check(home.chain_db, start)) == 1
    (done,) = (f for f in repair(home, nothing, nothing) if f.check == "chain")
    assert not done.ok
    assert "move it away" in done.detail


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
    def marks(*options: str) -> list[Finding]:
        said = parsed(call("blyan-node", "doctor", *options, "--home", home.path, "--json"))
        return [Finding(**row) for row in said]

    assert "chain" not in {f.check for f in marks()}
    assert {"chain", "log", "permissions"} <= {f.check for f in marks("--deep")}
    damage(home.chain_db, *DAMAGE["a lost line"][:2])
    result = call("blyan-node", "doctor", "--deep", "--home", home.path)
    assert result.returncode == 1
    assert "doctor --repair" in result.stdout
    assert any("built anew up to block 64" in f.detail for f in marks("--repair"))
    assert all(f.ok for f in marks("--replay"))


# --- bits that flip ------------------------------------------------------------------------------


def read_everything(path: Path) -> None:
    """As a node's API might; StorageError is an answer, anything else is a bug."""
    with ChainStore(path) as store:
        tip = store.tip()
        rows = store.latest_txs(100)
        for height in range((tip.height if tip else 0) + 1):
            store.block(Height(height))
            store.header(Height(height))
            store.certificate(Height(height))
            store.txs_in(Height(height))
        for row in rows:
            store.tx(TxId(row.id))
            if row.sender is not None:
                store.txs_of(PubKey(row.sender), 100)
        store.latest_blocks(100)
        for kind in ("phase", "custody", "shard", "model"):
            store.history(kind)
        store.blocks(Height(0), Height(99), 100)


def flip(source: Path, start: GenesisChain, place: Path, dice: random.Random) -> str:
    """Flip one bit of a copy; how it came out. AssertionError if it was not noticed."""
    data = bytearray(source.read_bytes())
    bit = dice.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path = place / "chain.db"
    for old in place.iterdir():
        old.unlink()
    path.write_bytes(data)
    try:
        problems = check(path, start)
    except StorageError:
        problems = [Problem("file", "it is not ours")]
    try:
        read_everything(path)
    except StorageError:
        assert problems, f"bit {bit}: reading says that it is damaged, the doctor does not"
    if problems:
        return "found"
    try:
        same = contents(path) == contents(source)
    except sqlite3.Error as error:
        raise AssertionError(f"bit {bit} has made a table unreadable") from error
    if same:
        return "harmless"
    assert check(path, start, replay=True), f"bit {bit} has changed something unnoticed"
    return "found by replay"


def flips(source: Path, start: GenesisChain, place: Path, seed: int, count: int) -> dict[str, int]:
    dice, came_out = random.Random(seed), dict[str, int]()
    for number in range(count):
        try:
            how = flip(source, start, place, dice)
        except BaseException:
            print(f"flip {number} of seed {seed}")
            raise
        came_out[how] = came_out.get(how, 0) + 1
    return came_out


def test_flipped_bits_are_found_or_harmless(
    whole: tuple[Home, GenesisChain], tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    came_out = flips(whole[0].chain_db, whole[1], tmp_path, seed, FLIPS)
    assert came_out.get("found", 0) > FLIPS // 3, f"seed {seed}: {came_out}"


def main(show: Callable[[object], None] = print) -> int:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    show(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as at, tempfile.TemporaryDirectory() as copies:
        home = prepare(Path(at))
        start = build_genesis(load_genesis(home))
        show(flips(home.chain_db, start, Path(copies), options.seed, options.flips))
    return 0


if __name__ == "__main__":
    sys.exit(main())
