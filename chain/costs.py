"""What each kind of transaction costs a node, as the chain counts it (docs/spec/transactions.md).

The numbers are microseconds at the reference machine (one core of a server of 2023, CPython 3.11),
rounded up from what `python -m bench.costs` measures at the worst state that the limits allow: from
the bytes to the receipt, decoding, signatures, rules and the transaction's part of the new root. A
block has a budget of them, so whoever proposes cannot make others work for longer; and fees and
stamps grow with them, so what is dear to check is dear to send.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, get_args

from chain import transactions as t
from chain.errors import TxError
from chain.limits import MAX_BLOCK_BYTES

KIB = 1024
STAMP_SHARE = 4  # stamped transactions fill at most 1/4 of a block, of its bytes and of its time
UNIT_US = 500  # the price of one transaction pays for so much time,
UNIT_BYTES = KIB  # and for so many bytes: each about 1/2,000 of a block
NO_ROOM = frozenset({"block_full", "stamp_share_full"})  # true of one block, not of the next


class StampClass(IntEnum):
    """Stamps of one class share a difficulty: who floods one does not make the others dear."""

    MONEY = 0
    MEMBERSHIP = 1
    DELTAS = 2
    DATASETS = 3
    GOVERNANCE = 4
    OTHER = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one kind: `us` whatever it says, and `us_per_kib` of its encoding."""

    us: int
    us_per_kib: int
    kind: StampClass


_MONEY, _MEMBERS, _DELTAS = StampClass.MONEY, StampClass.MEMBERSHIP, StampClass.DELTAS
_DATA, _GOVERN, _OTHER = StampClass.DATASETS, StampClass.GOVERNANCE, StampClass.OTHER

# Every kind has its signature, two to five state values, and their part of the root.
COSTS: dict[type, Cost] = {
    t.Transfer: Cost(230, 20, _MONEY),  # two accounts and the proposer's
    t.Bond: Cost(230, 20, _MONEY),
    t.Unbond: Cost(300, 20, _MONEY),  # a due key as well
    t.Unjail: Cost(330, 20, _MEMBERS),  # three keys
    t.Announce: Cost(950, 40, _MEMBERS),  # three signatures, and a point of prime order
    t.JoinRound: Cost(480, 100, _DELTAS),  # a round's record of 256 learners is written anew
    t.DeltaCommit: Cost(480, 20, _DELTAS),  # its sender is looked for among 64 deltas
    t.DeltaReveal: Cost(700, 20, _DELTAS),  # a record with its manifest is written anew
    t.PodlManifest: Cost(480, 40, _DELTAS),
    t.Challenge: Cost(240, 20, _DELTAS),  # not in force
    t.ChallengeResponse: Cost(240, 20, _DELTAS),  # not in force
    t.PolVote: Cost(600, 700, _OTHER),  # a record with 64 votes; the verdict follows from losses
    t.TileUpdate: Cost(600, 1000, _OTHER),  # weights are computed from each Gram matrix
    t.Attest: Cost(800, 20, _OTHER),  # an update's record with all who attested
    t.FraudProof: Cost(240, 20, _OTHER),  # not in force
    t.Custody: Cost(480, 40, _OTHER),
    t.CustodyDispute: Cost(480, 20, _OTHER),
    t.CustodyOpening: Cost(480, 8, _OTHER),  # the subtile is hashed twice
    t.LatencyReport: Cost(300, 200, _OTHER),  # a byte for each validator
    t.DatasetSubmit: Cost(700, 20, _DATA),  # seven keys
    t.AuditReport: Cost(850, 40, _DATA),  # a record with all reports is written anew
    t.DatasetVote: Cost(240, 20, _DATA),  # not in force
    t.Propose: Cost(750, 160, _GOVERN),  # a document of nested lists is read and written again
    t.GovernanceVote: Cost(480, 20, _GOVERN),
    t.SubmitEvidence: Cost(700, 3500, _OTHER),  # 15 signatures in a KiB of certificates
}
UNREADABLE = Cost(60, 80, _OTHER)  # bytes that are no transaction: the decoder stops somewhere


@dataclass(frozen=True, slots=True)
class Spend:
    """What one transaction takes of a block. `units`: what it costs in ordinary transactions, in
    time or in bytes, whichever is more."""

    us: int
    bytes: int
    kind: StampClass
    stamped: bool
    units: int


def spend(payload: t.Payload, size: int, *, stamped: bool = False) -> Spend:
    """Of a transaction of `size` bytes with this payload."""
    kind: Any = type(payload)
    return _spend(kind, size, stamped)


def unreadable(size: int) -> Spend:
    """Of `size` bytes that are no transaction."""
    return _spend(None, size, False)


@lru_cache(4096)  # most transactions are of a few kinds and sizes
def _spend(kind: type | None, size: int, stamped: bool) -> Spend:
    cost = UNREADABLE if kind is None else COSTS[kind]
    us = cost.us + cost.us_per_kib * size // KIB
    units = max(-(-us // UNIT_US), -(-size // UNIT_BYTES))
    return Spend(us, size, cost.kind, stamped, units)


class Room:
    """What is left of a block. Every transaction in it counts, the refused ones too: they cost
    whoever executes the block as much."""

    def __init__(self, cost_us: int) -> None:
        self.us, self.bytes = cost_us, MAX_BLOCK_BYTES
        self.stamped_us, self.stamped_bytes = cost_us // STAMP_SHARE, MAX_BLOCK_BYTES // STAMP_SHARE

    def check(self, asked: Spend) -> None:
        """TxError with one of the `NO_ROOM` codes if it does not fit."""
        if asked.us > self.us or asked.bytes > self.bytes:
            raise TxError("block_full", f"the block has {self.us} us and {self.bytes} bytes left")
        if asked.stamped and (asked.us > self.stamped_us or asked.bytes > self.stamped_bytes):
            raise TxError(
                "stamp_share_full",
                f"stamped transactions fill at most 1/{STAMP_SHARE} of a block; a fee goes first",
            )

    def take(self, asked: Spend) -> None:
        self.us -= asked.us
        self.bytes -= asked.bytes
        if asked.stamped:
            self.stamped_us -= asked.us
            self.stamped_bytes -= asked.bytes


def undeclared() -> set[type]:
    """Kinds of transactions without a cost: none, or the module is wrong."""
    return set(get_args(t.Payload)) - COSTS.keys()
