"""New versions of shards and of the model, as the rounds write them (docs/spec/rounds.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chain import records as r
from chain.hashes import Hash32
from chain.state import State


def write_shard(
    state: State, round_: int, index: int, root: Hash32, roots: Sequence[Hash32], **told: Any
) -> None:
    """A shard's next version. `told`: what its event says beside that."""
    key = r.shard_key(index)
    old = state.need(r.ShardRecord, key)
    version = old.version + 1
    state.put(r.tiles_key(index), r.TileRoots(tuple(roots)))
    state.put(key, replace(old, root=root, version=version, height=state.head.height))
    state.emit(
        "shard",
        key,
        round=round_,
        root=root.hex(),
        version=version,
        tiles=[t.hex() for t in roots],
        **told,
    )


def write_model(state: State, round_: int, root: Hash32) -> None:
    """The model's next version, of shards that are written already."""
    model = state.model
    model = r.ModelRecord(root, model.version + 1, state.head.height, model.shards)
    state.put(r.MODEL, model)
    state.emit("model", root, round=round_, version=model.version)
