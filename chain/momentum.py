"""What momentum over rounds needs of the state: a shard's tile roots one version before
(docs/spec/aggregation.md, "Momentum").

A shard that its last round has not changed stands still, and so does one that was rolled back. So
what is needed is never older than the last round's base, which every node keeps whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain import limits
from chain import records as r
from chain.codec import U64, Seq, wire
from chain.hashes import Hash32
from chain.state import State


@wire(166)
@dataclass(frozen=True, slots=True)
class PastShard:
    """A shard as it was before the last round that changed it."""

    round: U64
    root: Hash32
    roots: Annotated[tuple[Hash32, ...], Seq(limits.MAX_TILES_PER_SHARD)]  # of its tiles


def past_key(shard: int) -> bytes:
    return b"past/" + shard.to_bytes(4, "big")


def remember(state: State, round_: int, shard: int) -> None:
    """Keep what a shard is, before a round changes it."""
    root = state.need(r.ShardRecord, r.shard_key(shard)).root
    roots = state.need(r.TileRoots, r.tiles_key(shard)).roots
    state.put(past_key(shard), PastShard(round_, root, roots))


def forget(state: State, shard: int) -> None:
    """A shard stands still again."""
    if state.raw(past_key(shard)) is not None:
        state.delete(past_key(shard))


def past(state: State, round_: int, shard: int) -> PastShard | None:
    """What a shard was before the round before `round_`, if that changed it."""
    found = state.get(PastShard, past_key(shard))
    return found if found is not None and found.round + 1 == round_ else None
