"""Custody against its reference: commitments, and which subtiles a seed names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chain import custody
from chain import records as r
from chain.hashes import Hash32
from chain.types import PubKey, ShardIndex
from tests.kit.machine import Machine
from tests.reference import custody_ref as reference

VECTORS = json.loads(reference.VECTORS.read_text())


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert reference.vectors() == VECTORS


@pytest.mark.parametrize(("account", "seed", "position", "subtile", "made"), VECTORS["commitments"])
def test_commitments(account: str, seed: str, position: int, subtile: str, made: str) -> None:
    who, event = PubKey(bytes.fromhex(account)), Hash32(bytes.fromhex(seed))
    found = custody.commitment(who, event, position, memoryview(bytes.fromhex(subtile)))
    assert found.hex() == made


@pytest.mark.parametrize("case", VECTORS["draws"], ids=lambda case: str(len(case["places"])))
def test_places(case: dict[str, object]) -> None:
    sizes, state, first = case["shard_bytes"], Machine().state, 0
    assert isinstance(sizes, list)
    for i, size in enumerate(sizes):
        record = state.need(r.ShardRecord, r.shard_key(0))
        made = replace(record, index=ShardIndex(i), data_bytes=size, first_subtile=first)
        state.put(r.shard_key(i), made)
        first += custody.subtile_count(size)
    state.put(r.MODEL, replace(state.model, shards=len(sizes)))
    named = custody._named(state, Hash32(bytes.fromhex(str(case["seed"]))))
    assert [[s.index, *divmod(n, 16)] for s, n in named] == case["places"]
