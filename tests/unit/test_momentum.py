"""Momentum over rounds: what the chain keeps for it, and what custodians make of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chain import momentum, parameters
from chain import records as r
from chain.errors import TxError
from chain.governance_records import Setting
from chain.hashes import Hash32
from chain.records import RoundPhase
from chain.transactions import TileChange
from node.services.duty_aggregate import _Round
from node.services.new_versions import local_payloads
from node.services.round_payloads import RoundPayloads
from tests.kit.local_chain import LocalChain
from tests.reference.aggregate_ref import new_value
from tiles.delta import CutPayload, decode_delta
from tiles.merkle import tile_root

PPM = 300_000
SHARE = PPM * 2**20 // 10**6
SHOWN = 300  # elements that the reference makes as well
SHARD = 0


class Aggregating:
    """A custodian's recomputation on a chain whose round is in AGGREGATE."""

    def __init__(self, chain: LocalChain) -> None:
        self.made: dict[Hash32, bytes] = {}
        self.asked: list[Hash32] = []
        self.chain, self.state = chain, chain.state
        self.current = self.state.round()
        records = [self.state.delta(d) for d in self.current.accepted]
        self.payloads = [chain.blobs.held[d.blob] for d in records]
        context: Any = SimpleNamespace(
            node=SimpleNamespace(tiles=self),
            params=lambda: self.state.params(chain.genesis.params),
            files=SimpleNamespace(save_tile=lambda _, root, data: self.made.update({root: data})),
        )
        self.specs = chain.specs
        cut = [CutPayload(payload, self.specs) for payload in self.payloads]
        self._round = _Round(context, self.state, self.current, cut)

    async def tile(self, shard: int, root: Hash32, tile: int) -> bytes:
        self.asked.append(root)
        return await self.chain.tiles.tile(shard, root, tile)

    def change(self, shard: int) -> TileChange:
        return asyncio.run(self._round.change(shard, 0))

    def check(self, shard: int, change: TileChange, past: bytes | None) -> None:
        """Element by element, by the reference."""
        root = self.state.need(r.ShardRecord, r.shard_key(shard)).root
        base = np.frombuffer(self.chain.tiles.read(shard, root), "<f4")[:SHOWN]
        before = None if past is None else np.frombuffer(past, "<f4")
        deltas = [decode_delta(p, self.specs).tile_ints(shard, 0) for p in self.payloads]
        made = np.frombuffer(self.made[change.new_root], "<f4")
        for i, value in enumerate(base):
            xs = [int(d[i]) for d in deltas]
            old = None if before is None else float(before[i])
            assert made[i] == new_value(float(value), xs, list(change.weights), old, SHARE)


def test_a_tile_goes_on_from_what_it_was(tmp_path: Path) -> None:
    with LocalChain(tmp_path, momentum_ppm=PPM) as chain:
        genesis = chain.tiles.read(SHARD, chain.history.genesis(SHARD).root)
        assert momentum.past(chain.state, 0, SHARD) is None
        chain.learn()
        past = momentum.past(chain.state, 1, SHARD)
        assert past is not None
        assert past.roots == (tile_root(genesis),)
        chain.learn(stop_in=RoundPhase.AGGREGATE)
        second = Aggregating(chain)
        change = second.change(SHARD)
        second.check(SHARD, change, genesis)
        with pytest.raises(AssertionError):
            second.check(SHARD, change, None)
        assert second.asked[1] == past.root
        blobs = chain.blobs
        payloads = RoundPayloads(tmp_path / "payloads", chain.tiles.specs, blobs)
        assert local_payloads(chain.state, chain.genesis.params, payloads, blobs, 0) is None


def test_it_stands_still_after_a_rollback_and_after_a_pause(tmp_path: Path) -> None:
    with LocalChain(tmp_path, momentum_ppm=PPM) as chain:
        chain.learn()
        assert momentum.past(chain.state, 1, SHARD) is not None
        assert momentum.past(chain.state, 2, SHARD) is None  # round 1 would not have changed it
        chain.learn(worse=True)
        assert momentum.past(chain.state, 2, SHARD) is None
        assert not list(chain.state.items(b"past/"))
        chain.learn()
        assert chain.state.model.root == chain.state.round(2).result_root
        found = momentum.past(chain.state, 3, SHARD)
        assert found is not None
        assert found.root != chain.state.need(r.ShardRecord, r.shard_key(SHARD)).root


def test_without_it_nothing_is_kept_and_no_vote_brings_it(tmp_path: Path) -> None:
    with LocalChain(tmp_path) as chain:
        chain.learn()
        assert not list(chain.state.items(b"past/"))
        with pytest.raises(TxError, match="from the beginning or not at all"):
            parameters.check_setting(chain.genesis.params, Setting("momentum_ppm", 1))
