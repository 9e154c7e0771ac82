"""A program of today goes on from what earlier ones have left."""

from __future__ import annotations

from pathlib import Path

import pytest

from chain.store import ChainStore
from chain.store_schema import SCHEMA_VERSION
from node.config import load_genesis
from node.home import Home
from node.wal import WriteAheadLog
from tests.kit.old_homes import about, kinds, unpack


def test_every_earlier_version_has_its_homes() -> None:
    assert {f"schema-{version}" for version in range(1, SCHEMA_VERSION)} <= set(kinds())
    assert kinds()


@pytest.mark.parametrize("kind", kinds())
def test_everything_of_an_old_home_opens(kind: str, tmp_path: Path) -> None:
    made = about(kind)
    for old in unpack(kind, tmp_path):
        assert load_genesis(old.home).chain_id.hex() == made["chain_id"]
        assert old.keys().consensus.public
        log = WriteAheadLog(old.home.wal)
        assert log.records()
        assert not log.loss
        log.close()
        with ChainStore(old.home.chain_db) as store:  # checks the state against the tip's root
            tip = store.tip()
            assert tip is not None
            assert (tip.height, tip.hash.hex()) == (old.about["height"], old.about["block"])
            assert store.tx_total() == old.about["txs"]
        assert Home(old.home.path).initialized
