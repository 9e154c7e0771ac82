"""What the state holds of governance (docs/spec/governance.md); the rest: chain/records.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from chain import limits
from chain.codec import U8, U64, Bytes, Seq, Text, wire
from chain.types import Epoch, Grains, Height, PubKey, Stake, TimeMs, TxId

FIRST_VERSION = "1.0.0"  # of the model's documents: genesis itself


class ProposalStatus(IntEnum):
    OPEN = 0  # is voted on
    PASSED = 1  # waits for its height
    ACTIVE = 2  # in force; this one and those below have left the state
    REJECTED = 3
    DROPPED = 4  # passed, but does not go together with what is in force by now


@wire(180)
@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter's value; of a window one of the two, `name.blocks` or `name.ms`."""

    name: Annotated[str, Text(limits.MAX_NAME)]
    value: U64


@wire(181)
@dataclass(frozen=True, slots=True)
class Settings:
    """Parameters in force that were voted on, by name; all others are genesis'."""

    settings: Annotated[tuple[Setting, ...], Seq(limits.MAX_SETTINGS)]


@wire(182)
@dataclass(frozen=True, slots=True)
class ProposalRecord:
    """A proposal as long as it is voted on or waits."""

    id: TxId
    proposer: PubKey
    parameter: Annotated[str, Text(limits.MAX_NAME)]
    value: Annotated[bytes, Bytes(limits.MAX_PROPOSAL_BYTES)]
    activate: Height
    height: Height  # of the proposal
    epoch: Epoch  # whose validators vote
    deadline_height: Height
    deadline_ms: TimeMs
    deposit: Grains
    member: U8  # 1 if it has the slot that a validator has; its proposer may have others
    status: U8
    total: Stake  # of all who vote
    yes: Stake  # counted when the vote is over, 0 until then
    no: Stake


@wire(183)
@dataclass(frozen=True, slots=True)
class Ballot:
    """An elector's vote, the last one it cast."""

    verdict: U8
    height: Height


@wire(184)
@dataclass(frozen=True, slots=True)
class Elector:
    account: PubKey
    stake: Stake


@wire(185)
@dataclass(frozen=True, slots=True)
class Electorate:
    """Who votes on the proposals of an epoch: its set, which the epoch's own record may be gone
    before the vote is over."""

    electors: Annotated[tuple[Elector, ...], Seq(limits.MAX_VALIDATORS)]


@wire(186)
@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Which documents rounds that anchor now are of."""

    version: Annotated[str, Text(limits.MAX_NAME)]
    height: Height  # of the first block under it


@wire(187)
@dataclass(frozen=True, slots=True)
class ModelDocuments:
    """Canonical JSON of `model`, `training` and `version`; those of genesis are not here."""

    document: Annotated[bytes, Bytes(limits.MAX_PROPOSAL_BYTES)]


@wire(188)
@dataclass(frozen=True, slots=True)
class RoundVersion:
    """The version of the documents that a round is of; without this record, genesis'."""

    version: Annotated[str, Text(limits.MAX_NAME)]


# --- keys ---------------------------------------------------------------------------

SETTINGS = b"prms"
VERSION = b"mver"
PROPOSALS = b"prop/"


def proposal_key(proposal: TxId) -> bytes:
    return PROPOSALS + proposal


def ballots_of(proposal: TxId) -> bytes:
    """The prefix of what was voted on a proposal."""
    return b"ball/" + proposal


def ballot_key(proposal: TxId, elector: PubKey) -> bytes:
    return ballots_of(proposal) + elector


def electorate_key(epoch: int) -> bytes:
    return b"elct/" + epoch.to_bytes(8, "big")


def documents_key(version: str) -> bytes:
    return b"mdoc/" + version.encode()


def round_version_key(number: int) -> bytes:
    return b"mrnd/" + number.to_bytes(8, "big")
