"""A node that keeps only the headers of old blocks: what it drops, and what it says when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chain.codec import decode, encode
from chain.errors import ConfigError
from chain.store_rows import BlockRow
from chain.transactions import Transfer
from chain.types import Grains, Height
from node.api.app import create_app
from node.config import Config
from node.home import Home
from node.services.pruning import Pruner, check_history
from node.services.sync import SyncReply, SyncRequest, SyncService
from tests.kit.local_chain import LocalChain
from tests.unit.test_consensus_service import NoPeers

EPOCH, UNBONDING, EVIDENCE = 8, 200, 8


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalChain]:
    params = {"epoch_blocks": EPOCH, "unbonding_blocks": UNBONDING, "evidence_blocks": EVIDENCE}
    with LocalChain(tmp_path, **params) as chain:
        yield chain


def grow(local: LocalChain, height: int) -> None:
    while local.chain.tip.height < height:
        local.send(Transfer(local.learners[1].public, Grains(1)), local.learners[0])
        local.block()


def client(local: LocalChain) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(local))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def test_it_keeps_what_the_network_may_ask_for(local: LocalChain) -> None:
    pruner = Pruner(local.chain, Config(history="pruned", history_blocks=10))
    grow(local, UNBONDING)
    assert pruner.dropped == 0
    first = local.store.latest_blocks(1, before=2)[0]
    old = local.store.txs_in(Height(5))[0].id.hex()
    grow(local, UNBONDING + 20)
    assert pruner.dropped == local.store.pruned.height == 20
    assert pruner.metrics() == {"pruned_below": 20, "blocks_pruned": 20}
    kept = [h for h in range(1, 20) if local.store.certificate(Height(h)) is not None]
    assert kept == [8, 16]  # of the epochs' last blocks
    asyncio.run(_answers(local, first, old))


async def _answers(local: LocalChain, first: BlockRow, old: str) -> None:
    async with client(local) as http:
        for which in ("5", first.hash.hex(), "19"):
            for path in (f"blocks/{which}", f"blocks/{which}/raw"):
                answer = await http.get(f"/api/v1/{path}")
                assert answer.status_code == 410, path
                assert answer.json()["error"]["code"] == "pruned"
                assert "ask an archive node" in answer.json()["error"]["message"]
        page = await http.get("/blocks/5", headers={"Accept": "text/html"})
        assert page.status_code == 410
        assert "archive node" in page.text
        assert (await http.get("/api/v1/blocks/20")).status_code == 200
        assert (await http.get("/api/v1/blocks/9999")).status_code == 404
        answer = await http.get(f"/api/v1/txs/{old}")
        assert answer.status_code == 404
        assert "older ones are pruned" in answer.json()["error"]["message"]
        assert (await http.get("/api/v1/status")).json()["pruned_below"] == 20
        answer = await http.get(f"/api/v1/search?q={first.hash.hex()}")
        assert answer.status_code == 200
        assert f"/blocks/{first.height}" in answer.text


def test_it_tells_those_who_sync_what_it_has(local: LocalChain) -> None:
    Pruner(local.chain, Config(history="pruned", history_blocks=10))
    grow(local, UNBONDING + 20)
    net = NoPeers()
    net.serve = lambda *args, **limits: None  # type: ignore[attr-defined]
    sync = SyncService(local.chain, net)  # type: ignore[arg-type]

    def ask(first: int) -> SyncReply:
        raw = asyncio.run(sync._serve("peer", encode(SyncRequest(Height(first), 9))))
        return decode(SyncReply, raw, most=len(raw))

    assert ask(5) == SyncReply(local.chain.tip.height, ())
    assert [b.block.header.height for b in ask(20).blocks] == list(range(20, 29))


def test_from_archive_to_pruned_and_not_back(local: LocalChain, tmp_path: Path) -> None:
    archive, pruned = Config(), Config(history="pruned", history_blocks=10)
    home = Home(tmp_path)
    grow(local, UNBONDING + 20)
    check_history(home, archive, local.store)
    check_history(home, pruned, local.store)
    pruner = Pruner(local.chain, pruned)
    grow(local, UNBONDING + 21)
    assert pruner.dropped == 21
    check_history(home, pruned, local.store)
    with pytest.raises(ConfigError, match="start again") as caught:
        check_history(home, archive, local.store)
    assert str(home.chain_db) in str(caught.value)


def test_an_archive_drops_nothing(local: LocalChain) -> None:
    pruner = Pruner(local.chain, Config(history="archive", history_blocks=1))
    grow(local, UNBONDING + 20)
    assert pruner.dropped == 0
    assert local.store.first_body() == 0


def test_a_round_that_is_kept_can_be_rebuilt(tmp_path: Path) -> None:
    params = {"epoch_blocks": EPOCH, "unbonding_blocks": UNBONDING, "evidence_blocks": EVIDENCE}
    with LocalChain(tmp_path, **params) as local:
        pruner = Pruner(local.chain, Config(history="pruned", history_blocks=1, retention_rounds=1))
        local.learn()
        opened = local.state.round(0).opened
        grow(local, UNBONDING + opened + 20)
        assert local.state.head.round == 1
        assert pruner.horizon() == opened
        (version, _) = list(local.history.newest_first(0))[0:2]
        assert list(local.history.changes(version))
