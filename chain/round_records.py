"""What the state holds of a round only while it lasts (docs/spec/state.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain import limits
from chain.codec import U64, Seq, wire
from chain.types import PubKey, ShardIndex, TxId, u64_be


@wire(167)
@dataclass(frozen=True, slots=True)
class Declaration:
    """The part of the model that a learner has declared, before the round's seed was known. There
    is none of who trains all of it."""

    held: Annotated[tuple[ShardIndex, ...], Seq(limits.MAX_SHARDS)]


@wire(168)
@dataclass(frozen=True, slots=True)
class UpdatePlaces:
    """The tiles of an update that is not provisional yet, each shard * 2**32 + tile."""

    places: Annotated[tuple[U64, ...], Seq(limits.MAX_TILE_CHANGES)]


def declarations_of(number: int) -> bytes:
    """The prefix of a round's declarations."""
    return b"decl/" + u64_be(number)


def declaration_key(number: int, account: PubKey) -> bytes:
    return declarations_of(number) + account


def places_of(number: int) -> bytes:
    """The prefix of the places of a round's updates."""
    return b"plcs/" + u64_be(number)


def places_key(number: int, update: TxId) -> bytes:
    return places_of(number) + update
