"""What the state holds about stamps, quotas and slots (docs/spec/state.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain.codec import U8, U16, U32, U64, Seq, wire
from chain.hashes import Hash32
from chain.limits import MAX_DATASETS
from chain.types import Height, PubKey, TimeMs


@wire(170)
@dataclass(frozen=True, slots=True)
class StampLoad:
    """A class of stamps that is or was crowded: expected tries for one unit since the last
    retarget and before it, and the units that blocks have taken since (chain/stamps.py)."""

    difficulty: U64
    before: U64
    since: Height  # of the last retarget
    units: U64


@wire(171)
@dataclass(frozen=True, slots=True)
class Quota:
    """Stamped transactions of an account in the day that began at `height` and `time_ms`."""

    height: Height
    time_ms: TimeMs
    used: U32
    due: Height  # at which it is looked at whether the day is over


@wire(172)
@dataclass(frozen=True, slots=True)
class QuotaDue:
    """Whose day is looked at at a height."""

    account: PubKey


def stamp_class_key(kind: int) -> bytes:
    return b"stmp/" + bytes([kind])


def quota_key(account: PubKey) -> bytes:
    return b"quot/" + account


def quota_due_prefix(height: int) -> bytes:
    """Of the days that are looked at at a height."""
    return b"qdue/" + height.to_bytes(8, "big")


def quota_due_key(height: int, account: PubKey) -> bytes:
    return quota_due_prefix(height) + account


@wire(173)
@dataclass(frozen=True, slots=True)
class HostedBytes:
    """A dataset that waits for an audit: whose, its size, since when, and whether its submitter was
    a newcomer."""

    submitter: PubKey
    size_bytes: U64
    height: Height
    time_ms: TimeMs
    newcomer: U8
    due: Height  # at which it is looked at whether it has waited for too long


@wire(174)
@dataclass(frozen=True, slots=True)
class HostedOf:
    """Bytes of one account that wait for an audit."""

    size_bytes: U64


@wire(175)
@dataclass(frozen=True, slots=True)
class HostedDue:
    """Which dataset is looked at at a height."""

    dataset: Hash32


@wire(176)
@dataclass(frozen=True, slots=True)
class DatasetIndex:
    """What every block asks of all datasets, so that it need not read them."""

    held: U16
    pending_bytes: U64  # of those that wait for an audit
    newcomer_bytes: U64  # of them, of new accounts
    newcomers: U16
    approved: Annotated[tuple[Hash32, ...], Seq(MAX_DATASETS)]  # wait for their split seed
    active: Annotated[tuple[Hash32, ...], Seq(MAX_DATASETS)]  # ascending
    vacant: Annotated[tuple[Hash32, ...], Seq(MAX_DATASETS)]  # lose their slot, the first one first


DATASETS = b"dset"


def hosted_key(dataset: Hash32) -> bytes:
    return b"host/" + dataset


def hosted_of_key(account: PubKey) -> bytes:
    return b"hown/" + account


def hosted_due_prefix(height: int) -> bytes:
    """Of the datasets that are looked at at a height."""
    return b"hdue/" + height.to_bytes(8, "big")


def hosted_due_key(height: int, dataset: Hash32) -> bytes:
    return hosted_due_prefix(height) + dataset
