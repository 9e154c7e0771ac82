"""What enters and leaves the Simplex core: messages, effects, timers (docs/spec/consensus.md).

The core is sans-I/O. A driver feeds it inputs and performs, **in order**, the effects that each
input returns. `Persist` comes first in a list: it is appended to the write-ahead log and synced
before any later effect of the list is performed, so nothing signed leaves unless it is on disk.

A peer is named by its node id (the libp2p peer id as text), as in `Validator.node_id`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Protocol

from chain import limits
from chain.codec import Seq, wire
from chain.hashes import Hash32
from chain.types import (
    Block,
    Certificate,
    ChainId,
    Epoch,
    EvidenceItem,
    Header,
    Height,
    Proposal,
    ProposalSeal,
    PubKey,
    ValidatorSet,
    View,
    Vote,
)
from consensus.simplex.rules import Rule, unobserved

# --- messages between nodes -------------------------------------------------------


@wire(12)
@dataclass(frozen=True, slots=True)
class BlockRequest:
    """Asks a peer for one block by hash. Whoever holds it answers `BlockReply`."""

    block_hash: Hash32


@wire(13)
@dataclass(frozen=True, slots=True)
class BlockReply:
    block: Block


@wire(14)
@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """Asks for the notarizations and nullifications of views `first` to `last`, both included."""

    epoch: Epoch
    first: View
    last: View


Message = Proposal | Vote | Certificate | BlockRequest | BlockReply | CertificateRequest


@wire(15)
@dataclass(frozen=True, slots=True)
class Envelope:
    """What one input made a node say, in one packet: a vote often leaves with a certificate.
    Evidence is for the drivers, which pass it on; the core has no part in that."""

    messages: Annotated[tuple[Message | EvidenceItem, ...], Seq(limits.MAX_NULLIFICATIONS * 2)]


# --- the write-ahead log ----------------------------------------------------------


@wire(16)
@dataclass(frozen=True, slots=True)
class SignFloor:
    """This key signs nothing at or below (epoch, view) again: what it signed there is pruned."""

    epoch: Epoch
    view: View


Record = Block | Vote | ProposalSeal | Certificate | SignFloor

# --- timers -----------------------------------------------------------------------


class TimerKind(IntEnum):
    PROPOSAL = 1  # R1, 2Δ: the leader's proposal is overdue
    ADVANCE = 2  # R1, 3Δ: the view's certificate is overdue
    RETRANSMIT = 3  # every Δ: what is not final is sent again


@dataclass(frozen=True, slots=True)
class Timer:
    """Names a timer. A timer of a view that was left may still fire: the core ignores it."""

    kind: TimerKind
    epoch: Epoch
    view: View


# --- effects ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Append these records to the write-ahead log and sync, before the effects that follow."""

    records: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Broadcast:
    """To every validator, and by gossip as well for those whom this node cannot reach directly.

    Encode as one `Envelope`.
    """

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """To one peer, as one `Envelope`; it may be lost."""

    peer: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Serve:
    """`peer` asked for a block that the core does not hold: answer it from the store, if there."""

    peer: str
    block_hash: Hash32


@dataclass(frozen=True, slots=True)
class StartTimer:
    """`at_most`: only if the timer runs and would ring later."""

    timer: Timer
    delay_ms: int
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Optional to perform: a late firing is ignored."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Build:
    """This node leads `view`: build a block on `parent` and execute it, then call `built`.

    At once when transactions wait, otherwise within `empty_interval_ms`. `empty` means that 16
    unfinalized blocks carry transactions already: the block must carry none. A later `Build`, or a
    view that has moved on, makes an earlier one void; calling `built` for it is harmless.
    """

    epoch: Epoch
    view: View
    parent: Header
    parent_hash: Hash32
    empty: bool


@dataclass(frozen=True, slots=True)
class Validate:
    """Execute `block` on the state after `parent` and call `validated`. Parents come first."""

    block: Block
    block_hash: Hash32
    parent: Header


@dataclass(frozen=True, slots=True)
class Deliver:
    """These blocks, in height order, are newly final; all were executed. `certificate` finalizes
    the last. Commit them before what follows; if the last ends the epoch, call `begin_epoch`.
    """

    blocks: tuple[Block, ...]
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Sync:
    """`peer` is further ahead than block-by-block fetching mends: sync from it, then `advance_to`.

    `epoch` is where it was seen; `height` is a known final height, 0 when only the epoch is known.
    """

    peer: str
    epoch: Epoch
    height: Height


@dataclass(frozen=True, slots=True)
class Evidence:
    """A pair of signed messages that no honest validator signs; for the evidence pool."""

    item: EvidenceItem


@dataclass(frozen=True, slots=True)
class Refuse:
    """`peer` sent something that cannot be right; the driver charges it."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A leader's block that this node does not vote for. For the log; nobody is charged."""

    view: View
    block_hash: Hash32
    reason: str


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop the node: certificates contradict its own execution or each other. For a person."""

    report: str


Effect = (
    Persist
    | Broadcast
    | Send
    | Serve
    | StartTimer
    | CancelTimer
    | Build
    | Validate
    | Deliver
    | Sync
    | Evidence
    | Refuse
    | Rejected
    | Halt
)

# --- what the core is given -------------------------------------------------------


class Signer(Protocol):
    """Signs votes and proposals, and nothing else. Deterministic: Ed25519."""

    @property
    def public(self) -> PubKey: ...

    def sign_vote(self, kind: int, epoch: Epoch, view: View, block_hash: Hash32) -> Vote: ...

    def sign_proposal(self, epoch: Epoch, view: View, block_hash: Hash32) -> ProposalSeal: ...


@dataclass(frozen=True, slots=True)
class Config:
    """What holds for the whole life of a node.

    `is_last(height)`: whether the block at this height is its epoch's last.
    `body_matches(block)`: whether transactions and evidence are those the header commits to.
    `delta_floor_ms`/`delta_cap_ms` bound Δ; the cap is the stated liveness assumption.
    `empty_interval_ms`: how long a leader without work waits; the timers of R1 allow for it.
    `on_rule`: told of each branch of a rule that is taken; it must not change anything.
    """

    chain_id: ChainId
    is_last: Callable[[Height], bool]
    body_matches: Callable[[Block], bool]
    delta_floor_ms: int = 250
    delta_cap_ms: int = 10_000
    empty_interval_ms: int = 1000
    on_rule: Callable[[Rule], None] = unobserved


@dataclass(frozen=True, slots=True)
class Timing:
    """What of `Config` may be another from one epoch to the next."""

    delta_floor_ms: int
    delta_cap_ms: int
    empty_interval_ms: int


@dataclass(frozen=True, slots=True)
class EpochContext:
    """What holds for one epoch. Views start at 1 in each; view 0 is the last block of the epoch
    before (or genesis). `leader_of(view)` is an index into `validators`. Without `timing` that of
    the epoch before holds."""

    epoch: Epoch
    validators: ValidatorSet
    leader_of: Callable[[View], int]
    timing: Timing | None = None


__all__ = [
    "BlockReply",
    "BlockRequest",
    "Broadcast",
    "Build",
    "CancelTimer",
    "CertificateRequest",
    "Config",
    "Deliver",
    "Effect",
    "Envelope",
    "EpochContext",
    "Evidence",
    "Halt",
    "Message",
    "Persist",
    "Record",
    "Refuse",
    "Rejected",
    "Send",
    "Serve",
    "SignFloor",
    "Signer",
    "StartTimer",
    "Sync",
    "Timer",
    "TimerKind",
    "Timing",
    "Validate",
]
