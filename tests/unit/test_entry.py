"""What a chain that begins with a snapshot knows of the time before: the newest versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from chain import records as r
from chain.entry import UNKNOWN, check_body
from chain.errors import VerifyError
from chain.transactions import Transfer
from chain.types import Block, Grains, Height
from node.services.tiles import chain_roots
from node.services.versions import VersionHistory
from tests.kit.local_chain import LocalChain
from tests.kit.sync_nodes import SyncNode, SyncPort, serve_chain

INTERVAL = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """A chain whose model has changed, up to a snapshot's height, whose block has a transaction."""
    path = tmp_path_factory.mktemp("source")
    with LocalChain(path, epoch_blocks=4, snapshot_epochs=INTERVAL // 4) as made:
        made.learn()
        made.until(lambda state: state.head.height % INTERVAL == INTERVAL - 1)
        made.send(Transfer(made.learners[1].public, Grains(5)), made.learners[0])
        made.block()
        yield made


@pytest.fixture
def entered(tmp_path: Path, source: LocalChain) -> Iterator[SyncNode]:
    others: dict[str, SyncPort] = {}
    serve_chain(source, "server", others)
    node = SyncNode(tmp_path / "node", source, SyncPort("node", others))
    assert asyncio.run(node.entry.enter()), node.entry.problem
    node.reopen()
    assert node.chain.tip_hash == source.chain.tip_hash
    yield node
    node.close()


def test_the_newest_versions_are_known(source: LocalChain, entered: SyncNode) -> None:
    genesis = [source.history.genesis(i).tile_roots for i in range(len(source.specs))]
    history = VersionHistory(entered.store, source.specs, genesis)
    roots_of = chain_roots(entered.store, source.specs, genesis)
    changed = 0
    for index in range(len(source.specs)):
        record = entered.chain.state().need(r.ShardRecord, r.shard_key(index))
        known, theirs = next(history.newest_first(index)), next(source.history.newest_first(index))
        assert (known.root, known.number, known.round) == (record.root, theirs.number, theirs.round)
        assert known.tile_roots == theirs.tile_roots
        assert tuple(roots_of(index, record.root)) == theirs.tile_roots
        changed += record.version
        # Nothing that this node could rebuild it from is claimed to be here.
        assert record.version == 0 or list(history.changes(known)) == []
    assert changed > 0
    (model,) = entered.store.history("model")
    (theirs_model,) = source.store.history("model")
    assert (model.key, model.data) == (theirs_model.key, theirs_model.data)


def test_results_of_the_first_block_are_not_known(source: LocalChain, entered: SyncNode) -> None:
    height = source.chain.tip.height
    (row,) = entered.store.txs_in(height)
    (theirs,) = source.store.txs_in(height)
    assert (row.id, row.sender, row.nonce) == (theirs.id, theirs.sender, theirs.nonce)
    assert (row.code, theirs.code) == (UNKNOWN, "ok")
    found = entered.store.tx(row.id)
    assert found is not None
    assert "before the snapshot" in found.reason


def test_the_body_is_the_headers(source: LocalChain) -> None:
    block = source.store.block(Height(source.chain.tip.height))
    assert block is not None
    check_body(block.header, block)
    with pytest.raises(VerifyError, match="body"):
        check_body(block.header, Block(block.header, (), ()))
    before = source.store.block(Height(block.header.height - 1))
    assert before is not None
    with pytest.raises(VerifyError, match="not the block"):
        check_body(block.header, before)
