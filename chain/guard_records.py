"""What the state holds of the whole-round guard (docs/spec/rounds.md, "The guard")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from chain import limits
from chain.codec import U8, U32, U64, Seq, wire
from chain.hashes import Hash32
from chain.types import ShardIndex


class GuardVerdict(IntEnum):
    """What became of a round that changed the model."""

    OPEN = 0  # validators measure
    KEPT = 1  # half of the stake or more found it not significantly worse
    ROLLED_BACK = 2  # more than half found it significantly worse
    UNKNOWN = 3  # too few said either in time: the round stands


@wire(164)
@dataclass(frozen=True, slots=True)
class GuardRecord:
    """One for each round that changed the model. The stakes are those of the verdict, 0 before."""

    round: U64
    verdict: U8
    limit_ppm: U32  # of the base's loss, by which the result's may be higher
    worse: U64  # stake of validators that found it higher by more than that
    fine: U64  # stake of those that did not
    stake: U64  # of all validators


@wire(165)
@dataclass(frozen=True, slots=True)
class ReplacedShard:
    """A shard as it was before the round in progress, until that has its verdict."""

    index: ShardIndex
    version: U64
    root: Hash32
    roots: Annotated[tuple[Hash32, ...], Seq(limits.MAX_TILES_PER_SHARD)]  # of its tiles


REPLACED = b"undo/"


def guard_key(number: int) -> bytes:
    return b"grd_/" + number.to_bytes(8, "big")


def replaced_key(shard: int) -> bytes:
    return REPLACED + shard.to_bytes(4, "big")
