"""`blyan-node backup`: what a copy has, while a node writes, and how it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from chain.errors import ConfigError
from chain.store import ChainStore
from node.backup import back_up
from node.home import Home
from node.services.doubt import Doubt
from node.wal import BEGUN_NAME, LOG_NAME, WriteAheadLog
from tests.kit.old_homes import OldHome, unpack
from tests.kit.programs import call, parsed
from tests.unit.test_store import Chain, make_tx


@pytest.fixture
def old(tmp_path: Path) -> OldHome:
    made = unpack("schema-1", tmp_path)[0]
    ChainStore(made.home.chain_db).close()
    return made


def test_a_copy_has_keys_and_chain_and_no_log(old: OldHome, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    said = parsed(call("blyan-node", "backup", str(target), "--home", old.home.path, "--json"))
    copy = Home(target)
    assert said["height"] == old.about["height"]
    names = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    keys = {f"keystore/{p.name}" for p in old.home.keystore.iterdir()}
    wanted = {"config.toml", "genesis.json", "version", "chain.db", f"wal/{BEGUN_NAME}"}
    assert names == wanted | keys
    assert not [p for p in (target, *target.rglob("*")) if p.stat().st_mode & 0o077]
    with ChainStore(copy.chain_db) as store:
        tip = store.tip()
        assert tip is not None
        assert tip.hash.hex() == old.about["block"]
    log = WriteAheadLog(copy.wal, abstain=[b"nothing"], expected=True)
    assert log.loss == "is missing or empty"  # so the node will wait before it signs
    log.close()
    assert not (copy.wal / LOG_NAME).samefile(old.home.wal / LOG_NAME)


def test_a_mark_is_enough_for_a_chain_at_genesis(old: OldHome, tmp_path: Path) -> None:
    old.home.chain_db.unlink()
    back_up(old.home, tmp_path / "copy", lambda *_: None)
    log = WriteAheadLog(tmp_path / "copy" / "wal", abstain=[b"nothing"])
    assert log.loss
    log.close()
    assert Doubt(tmp_path / "copy" / "wal").since_ms is None  # the loss begins it


def test_blocks_may_come_meanwhile(tmp_path: Path, old: OldHome) -> None:
    path = old.home.chain_db
    path.unlink()
    with ChainStore(path) as store:
        chain = Chain(store)
        for i in range(200):
            chain.add(tuple(make_tx(100 * i + k) for k in range(20)))
        heights: list[int] = []

        def one_more(done: int, total: int) -> None:
            if len(heights) < 5:
                heights.append(done)
                chain.add()

        back_up(old.home, tmp_path / "copy", one_more)
        assert heights
    with ChainStore(tmp_path / "copy" / "chain.db") as copied:
        tip = copied.tip()
        assert tip is not None
        assert tip.height >= 199


def test_it_replaces_nothing(old: OldHome, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(ConfigError, match="there already"):
        back_up(old.home, tmp_path / "copy", lambda *_: None)
    with pytest.raises(ConfigError, match="holds no node"):
        back_up(Home(tmp_path / "nowhere"), tmp_path / "other", lambda *_: None)
