"""What the state holds of custody (docs/spec/custody.md); the rest stands in chain/records.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from chain import limits
from chain.codec import U8, U32, U64, Seq, wire
from chain.hashes import Hash32
from chain.types import Epoch, Grains, Height, PubKey, ShardIndex, TileIndex, TimeMs


class CustodyPhase(IntEnum):
    """Phases of a custody event in order (docs/spec/custody.md)."""

    SEED = 0  # the anchor is fixed; the seed is drawn from the blocks that follow
    COMMIT = 1  # custodians commit to what the seed has named
    DISPUTE = 2  # what they committed to may be disputed and opened


class CustodyStatus(IntEnum):
    ASKED = 0
    COMMITTED = 1
    MISSED = 2
    CONVICTED = 3


@wire(149)
@dataclass(frozen=True, slots=True)
class CustodyPlace:
    """A subtile that an event has named, at the anchor. `custodians` index the event's members,
    in order of rank."""

    shard: ShardIndex
    tile: TileIndex
    subtile: U8
    tile_bytes: U32
    shard_root: Hash32
    tile_root: Hash32
    custodians: Annotated[tuple[U8, ...], Seq(limits.MAX_REPLICAS)]


@wire(150)
@dataclass(frozen=True, slots=True)
class CustodyMember:
    """A custodian of at least one place of an event."""

    account: PubKey
    status: U8


@wire(151)
@dataclass(frozen=True, slots=True)
class CustodyEvent:
    """The custody event in progress (docs/spec/custody.md). Its seed, once drawn, is its name."""

    anchor: Height  # at which model and custodians were fixed
    epoch: Epoch  # whose custodians are asked
    model_root: Hash32
    phase: U8
    seed: Hash32
    phase_height: Height  # at which the phase began
    deadline_height: Height
    deadline_ms: TimeMs
    places: Annotated[tuple[CustodyPlace, ...], Seq(limits.MAX_SUBTILES_PER_CHALLENGE)]
    members: Annotated[
        tuple[CustodyMember, ...], Seq(limits.MAX_SUBTILES_PER_CHALLENGE * limits.MAX_REPLICAS)
    ]


@wire(152)
@dataclass(frozen=True, slots=True)
class CustodyAnswer:
    """What a member has committed to, in the order of its places."""

    account: PubKey
    height: Height
    commitments: Annotated[tuple[Hash32, ...], Seq(limits.MAX_SUBTILES_PER_CHALLENGE)]


@wire(153)
@dataclass(frozen=True, slots=True)
class CustodyClaim:
    """A dispute that waits for an opening; its bond lies in the account of bonds."""

    custodian: PubKey
    position: U8
    disputer: PubKey
    bond: Grains
    opened: Height
    deadline_height: Height
    deadline_ms: TimeMs


@wire(154)
@dataclass(frozen=True, slots=True)
class CustodianRecord:
    """How often an account was asked to show what it keeps, and how it did."""

    account: PubKey
    asked: U64
    missed: U64  # was silent
    convicted: U64  # committed to what it did not hold
    last_missed: Height  # height at which the last miss was noted, 0 if there is none


# --- keys ---------------------------------------------------------------------------

CUSTODY = b"cust"  # the event in progress
CUSTODY_ANSWERS = b"cans/"
CUSTODY_CLAIMS = b"cclm/"


def custody_answer_key(account: PubKey) -> bytes:
    return CUSTODY_ANSWERS + account


def custody_claim_key(custodian: PubKey, position: int) -> bytes:
    return CUSTODY_CLAIMS + custodian + bytes([position])


def custodian_key(account: PubKey) -> bytes:
    return b"ckpr/" + account
