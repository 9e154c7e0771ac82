"""An older program refuses what a newer one has written, and says what it needs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from node import home, pool_journal, wal
from node.home import Home
from node.version import formats
from tests.kit.old_homes import OldHome, unpack
from tests.kit.programs import call, parsed

FAR = 1000


def newer_store(at: Home) -> None:
    with closing(sqlite3.connect(at.chain_db)) as db:
        db.execute(f"PRAGMA user_version = {FAR}")


def newer_log(at: Home) -> None:
    file = at.wal / wal.LOG_NAME
    file.write_bytes(b"BLYAN-WAL-%d\n" % FAR + file.read_bytes()[12:])


def newer_journal(at: Home) -> None:
    (at.path / pool_journal.NAME).write_bytes(b"BLYAN-POOL-%d\nwhatever" % FAR)


def newer_keystore(at: Home) -> None:
    (file,) = at.keystore.glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": FAR}))


def newer_home(at: Home) -> None:
    at.version_file.write_text(f"{FAR}\n")


NEWER: dict[str, Callable[[Home], None]] = {
    "store": newer_store,
    "log": newer_log,
    "journal": newer_journal,
    "keystore": newer_keystore,
    "home": newer_home,
}


@pytest.fixture
def old(tmp_path: Path) -> OldHome:
    return unpack("schema-1", tmp_path)[0]


@pytest.mark.parametrize("name", sorted(NEWER))
def test_a_newer_format_is_refused_with_exit_code_65(name: str, old: OldHome) -> None:
    NEWER[name](old.home)
    result = call("blyan-node", "start", "--home", old.home.path)
    assert result.returncode == 65, result.stderr
    known = formats()[name]
    assert f"has {name} version {FAR}, and this blyan knows up to {known}" in result.stderr
    assert f"`blyan-node version` says {name} {FAR} or more" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["store", "log", "journal", "home"])
def test_what_is_newer_is_left_as_it_is(name: str, old: OldHome) -> None:
    NEWER[name](old.home)
    file = {
        "store": old.home.chain_db,
        "log": old.home.wal / wal.LOG_NAME,
        "journal": old.home.path / pool_journal.NAME,
        "home": old.home.version_file,
    }[name]
    before = file.read_bytes()
    assert call("blyan-node", "start", "--home", old.home.path).returncode == 65
    assert file.read_bytes() == before


def test_the_program_says_what_it_knows(old: OldHome) -> None:
    said = parsed(call("blyan-node", "version", "--json"))
    assert {name: said[name] for name in formats()} == formats()
    assert set(NEWER) | {"protocol"} == set(formats())


def test_a_home_without_a_version_is_of_the_first(old: OldHome) -> None:
    assert not old.home.version_file.exists() or old.home.check_version() == 1
    old.home.version_file.unlink(missing_ok=True)
    assert old.home.check_version() == 1
    old.home.create()
    assert old.home.version_file.read_text() == f"{home.VERSION}\n"


@pytest.mark.parametrize("text", ["", "two", "-1", "0", "1.5"])
def test_a_version_that_is_no_number(text: str, old: OldHome) -> None:
    old.home.version_file.write_text(text)
    result = call("blyan-node", "start", "--home", old.home.path)
    assert result.returncode == 65
    assert "holds no version" in result.stderr
