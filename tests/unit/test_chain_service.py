"""The chain at a node: what a crash may leave, and verdicts that no cache decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chain import store as chain_store
from chain.errors import InvariantError, OrphanError
from chain.hashes import VRF_INPUT, Hash32
from chain.store import ChainStore
from chain.types import Block, Height, u64_be
from consensus import vrf
from node.genesis import build_genesis
from node.rules import ProtocolRules
from node.services.chain import ChainService
from tests.kit.local_chain import LocalChain

BLOCKS = 6


@pytest.fixture
def source(tmp_path: Path) -> Iterator[LocalChain]:
    (tmp_path / "source").mkdir()
    with LocalChain(tmp_path / "source", epoch_blocks=4) as chain:
        chain.blocks(BLOCKS)
        yield chain


@pytest.fixture
def chain(tmp_path: Path, source: LocalChain) -> Iterator[ChainService]:
    with ChainStore(tmp_path / "chain.db") as store:
        yield ChainService(build_genesis(source.genesis), store, ProtocolRules())


def block(source: LocalChain, height: int) -> Block:
    found = source.store.block(Height(height))
    assert found is not None
    return found


def test_what_one_certificate_finalizes_is_stored_as_a_whole_or_not_at_all(
    source: LocalChain, chain: ChainService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it would be a tip without a finalization: an epoch's old certificates came back."""
    blocks = [block(source, height) for height in (1, 2, 3)]
    certificate = source.certify(blocks[2])
    real, done = chain_store.insert_events, []

    def dies(db: object, height: object, events: object) -> None:
        done.append(height)
        if len(done) == 2:
            raise KeyboardInterrupt
        real(db, height, events)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(chain_store, "insert_events", dies)
        with pytest.raises(KeyboardInterrupt):
            chain.commit(blocks, certificate)
    tip = chain.store.tip()
    assert tip is not None
    assert tip.height == chain.tip.height == 0
    heard = []
    chain.finalized(lambda b, done: heard.append((b.header.height, chain.tip.height)))
    chain.commit(blocks, certificate)
    assert heard == [(1, 1), (2, 2), (3, 3)]
    assert [chain.store.certificate(Height(h)) for h in (1, 2, 3)] == [None, None, certificate]
    assert chain.state().tree.root == blocks[2].header.state_root


def test_a_verdict_does_not_depend_on_what_was_pushed_out(
    source: LocalChain, chain: ChainService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.services.chain.MAX_OVERLAYS", 1)
    parent = chain.tip
    for height in range(1, BLOCKS + 1):
        chain.execute(parent, block(source, height))
        parent = block(source, height).header
    assert chain.executed(block(source, 2).hash()) is None
    rival = block(source, 4)
    done = chain.execute(block(source, 3).header, rival)  # its parent's state is gone
    assert done.tree.root == rival.header.state_root
    assert chain.tree_after(block(source, 5).hash()) is not None  # a leader builds on it


def test_an_unknown_parent_is_no_verdict(source: LocalChain, chain: ChainService) -> None:
    with pytest.raises(OrphanError):
        chain.execute(block(source, 3).header, block(source, 4))


def test_the_vrf_is_of_the_block_s_own_epoch_and_view(source: LocalChain) -> None:
    """docs/spec/vrf.md; the first block of an epoch shows whose epoch it is."""
    header, parent = block(source, 5).header, block(source, 4).header
    assert (header.epoch, parent.epoch) == (1, 0)
    members = source.state.epoch(1).validators.members
    key = next(v.vrf_key for v in members if v.consensus_key == header.proposer)
    alpha = VRF_INPUT.hash(parent.vrf_output, u64_be(1), u64_be(header.view))
    assert vrf.verify(key, alpha, header.vrf_proof) == header.vrf_output


def test_a_store_of_another_order_is_refused(source: LocalChain, chain: ChainService) -> None:
    first = block(source, 1)
    other = replace(first, header=replace(first.header, parent=Hash32(bytes(32))))
    with pytest.raises(InvariantError, match="extends the one before"):
        chain.commit((other,), None)
    assert chain.tip.height == 0
