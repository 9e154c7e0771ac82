"""What the state holds: one struct for each kind of key (docs/spec/state.md).

Keys are a short ASCII prefix and fixed-width big-endian parts, so that a prefix scan is in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from chain import limits
from chain.codec import I64, U8, U16, U32, U64, Seq, Text, wire
from chain.compiled import maker
from chain.hashes import Hash32
from chain.transactions import PodlManifest
from chain.types import (
    BlobId,
    Epoch,
    Grains,
    Height,
    PubKey,
    ShardIndex,
    TileIndex,
    TimeMs,
    TxId,
    ValidatorSet,
    View,
)


class RoundPhase(IntEnum):
    """Phases of a learning round in order (docs/spec/rounds.md)."""

    OPEN = 0  # learners declare; nothing happens until the first does
    SEED = 1  # the training seed is drawn from the blocks that follow
    TRAIN = 2  # learners train and commit
    REVEAL = 3  # commits are opened
    JURY = 4  # the jury seed is drawn
    SCREEN_COMMIT = 5  # jurors commit to their losses; auditors replay
    SCREEN_REVEAL = 6  # jurors reveal
    AGGREGATE = 7  # primaries post updates, the committee attests
    SETTLE = 8  # provisional; the result is measured, and may be rolled back
    DONE = 9


class DatasetStatus(IntEnum):
    PENDING = 0  # waits for auditors
    APPROVED = 1  # waits for its split seed
    ACTIVE = 2  # in use
    REJECTED = 3


class DeltaStatus(IntEnum):
    COMMITTED = 0
    REVEALED = 1
    ACCEPTED = 2
    HARMFUL = 3  # the screen found that it raises the loss
    UNAVAILABLE = 4  # not revealed, or the payload could not be had or decoded
    MISMATCH = 5  # a replay gave another state, payload, residual or optimizer
    MERGED = 6  # part of a provisional or settled update
    UNHELPFUL = 7  # not proven, and not clearly useful either
    ROLLED_BACK = 8  # merged, but the whole round was taken back (docs/spec/rounds.md, "The guard")
    COPY = 9  # of another delta of the round


@wire(128)
@dataclass(frozen=True, slots=True)
class Account:
    balance: Grains
    bonded: Grains
    nonce: U64
    merit: U64  # deltas merged and duties done; decides quotas
    jailed: U8

    def with_balance(self, grains: int) -> Account:
        """The same but for its balance; `dataclasses.replace` takes ten times as long."""
        return new_account(grains, self.bonded, self.nonce, self.merit, self.jailed)


new_account = maker(Account)


@wire(129)
@dataclass(frozen=True, slots=True)
class NodeRecord:
    """The keys an account has announced. See `Announce`."""

    account: PubKey
    roles: U32
    capacity_tiles: U32
    node_key: PubKey
    consensus_key: PubKey
    vrf_key: PubKey
    node_id: Annotated[str, Text(limits.MAX_NAME)]
    addresses: Annotated[
        tuple[Annotated[str, Text(limits.MAX_ADDRESS)], ...], Seq(limits.MAX_ADDRESSES)
    ]


@wire(157)
@dataclass(frozen=True, slots=True)
class Unbonding:
    """Paid out when both `release` and `release_ms` have passed, and nothing can be shown any more
    of `epoch`, the last whose validator set may count it."""

    account: PubKey
    amount: Grains
    release: Height
    release_ms: TimeMs
    epoch: Epoch


@wire(131)
@dataclass(frozen=True, slots=True)
class Head:
    """Where the chain is. `recent_*` are of the last heights, oldest first, ending at `height`."""

    height: Height
    time_ms: TimeMs
    epoch: Epoch
    view: View
    round: U64  # the round in progress
    recent_vrf: Annotated[tuple[Hash32, ...], Seq(64)]  # EVENT_SEED.hash(vrf output) per height
    recent_parents: Annotated[tuple[Hash32, ...], Seq(256)]  # hash of the block at height-1, …


@wire(160)
@dataclass(frozen=True, slots=True)
class Standing:
    """What counts beside its stake when a member of a set is elected to keep tiles."""

    capacity_tiles: U32  # at most so many, while others have room
    reputation: U32  # in units of 2**-16, from 1/2 to 1
    latency_class: U8  # 0, the nearest, to 4


@wire(161)
@dataclass(frozen=True, slots=True)
class Cutoff:
    """The first tile, in the order of lots, that a full custodian refused."""

    member: U16  # its number in the set
    shard: ShardIndex
    tile: TileIndex


@wire(162)
@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Validator set and seed of one epoch; the set of e+2 is frozen at the first block of e. It is
    kept for as long as evidence of the epoch is accepted."""

    epoch: Epoch
    validators: ValidatorSet
    standings: Annotated[tuple[Standing, ...], Seq(limits.MAX_VALIDATORS)]  # frozen with the set
    seed: Hash32
    # Of those that are full, in the set's order; written at the end of the epoch before.
    cutoffs: Annotated[tuple[Cutoff, ...], Seq(limits.MAX_VALIDATORS)]
    ended_ms: TimeMs  # time of the epoch's last block, 0 until then


@wire(133)
@dataclass(frozen=True, slots=True)
class ShardRecord:
    """`root` binds the tile roots, which stand under their own key."""

    index: ShardIndex
    name: Annotated[str, Text(limits.MAX_NAME)]
    data_bytes: U64
    root: Hash32
    version: U64  # rounds that changed it
    height: Height  # of the last change
    first_subtile: U64  # subtiles of the shards before this one: a place is found by number

    @property
    def tiles(self) -> int:
        return -(-self.data_bytes // limits.TILE_BYTES)


@wire(134)
@dataclass(frozen=True, slots=True)
class TileRoots:
    roots: Annotated[tuple[Hash32, ...], Seq(limits.MAX_TILES_PER_SHARD)]


@wire(135)
@dataclass(frozen=True, slots=True)
class ModelRecord:
    root: Hash32
    version: U64
    height: Height
    shards: U32


@wire(136)
@dataclass(frozen=True, slots=True)
class AuditVote:
    auditor: PubKey
    verdict: U8
    state_hash: Hash32


@wire(137)
@dataclass(frozen=True, slots=True)
class RoundRecord:
    number: U64
    phase: U8
    opened: Height
    phase_height: Height  # at which the phase began
    deadline_height: Height
    deadline_ms: TimeMs
    base_root: Hash32
    base_version: U64
    seed: Hash32
    jury_seed: Hash32
    datasets: Annotated[tuple[Hash32, ...], Seq(limits.MAX_DATASETS)]
    holdout: Hash32  # identifies the holdout: hash over datasets and their split seeds
    joined: Annotated[tuple[PubKey, ...], Seq(limits.MAX_LEARNERS)]
    deltas: Annotated[tuple[TxId, ...], Seq(limits.MAX_DELTAS)]
    jurors: Annotated[tuple[PubKey, ...], Seq(limits.MAX_COMMITTEE)]
    audited: TxId | None  # the delta whose segment is replayed
    audit_segment: U32
    auditors: Annotated[tuple[PubKey, ...], Seq(limits.MAX_COMMITTEE)]
    audit_votes: Annotated[tuple[AuditVote, ...], Seq(limits.MAX_COMMITTEE)]
    accepted: Annotated[tuple[TxId, ...], Seq(limits.MAX_DELTAS)]
    rank: U8  # whose turn it is to aggregate
    tiles_open: U32  # tiles without a provisional update
    watchers: Annotated[tuple[PubKey, ...], Seq(limits.WATCHERS + 1)]  # none if all check
    result_root: Hash32  # model root after the round, zero until then
    loss_before: I64  # nano-nats per byte on the holdout; 0 unknown
    loss_after: I64


@wire(138)
@dataclass(frozen=True, slots=True)
class JurorVote:
    juror: PubKey
    commitment: Hash32
    verdict: U8
    revealed: U8
    gain: I64  # mean nano-nats per byte by which the delta lowers the loss
    lower: I64  # what it lowers it by at least (one-sided 99 %)


@wire(139)
@dataclass(frozen=True, slots=True)
class DeltaRecord:
    id: TxId
    round: U64
    sender: PubKey
    height: Height
    base_root: Hash32
    commitment: Hash32
    manifest_root: Hash32
    blob: BlobId
    blob_bytes: U64
    manifest: PodlManifest | None
    salt: Hash32  # zero until revealed
    status: U8
    votes: Annotated[tuple[JurorVote, ...], Seq(limits.MAX_COMMITTEE)]
    reward: Grains  # paid when the round settled


@wire(140)
@dataclass(frozen=True, slots=True)
class TileSlot:
    """One tile's update in one round."""

    update: TxId
    new_root: Hash32
    provisional: U8


@wire(141)
@dataclass(frozen=True, slots=True)
class UpdateRecord:
    id: TxId
    round: U64
    rank: U8
    primary: PubKey
    height: Height
    tiles: U32
    yes: Annotated[tuple[PubKey, ...], Seq(limits.MAX_VALIDATORS)]
    no: Annotated[tuple[PubKey, ...], Seq(limits.MAX_VALIDATORS)]
    provisional: U8


@wire(142)
@dataclass(frozen=True, slots=True)
class AuditorReport:
    auditor: PubKey
    verdict: U8
    score: U16
    report_root: Hash32


@wire(143)
@dataclass(frozen=True, slots=True)
class DatasetRecord:
    id: Hash32
    submitter: PubKey
    height: Height
    manifest: BlobId
    manifest_bytes: U64
    size_bytes: U64
    documents: U32
    license: Annotated[str, Text(limits.MAX_LICENSE)]
    title: Annotated[str, Text(limits.MAX_NAME)]
    status: U8
    decided: Height
    split_seed: Hash32
    reports: Annotated[tuple[AuditorReport, ...], Seq(limits.MAX_VALIDATORS)]


@wire(144)
@dataclass(frozen=True, slots=True)
class EvalVote:
    validator: PubKey
    value: I64


@wire(145)
@dataclass(frozen=True, slots=True)
class EvalRecord:
    """Holdout loss of one model root as validators measured it; the median counts with a quorum."""

    model_root: Hash32
    holdout: Hash32
    votes: Annotated[tuple[EvalVote, ...], Seq(limits.MAX_VALIDATORS)]
    loss: I64  # 0 until a quorum of stake has spoken


@wire(146)
@dataclass(frozen=True, slots=True)
class LearnerRecord:
    """What a learner's last manifest left behind; the next must start from it or from zero."""

    residual: Hash32
    optimizer: Hash32


@wire(147)
@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """Evidence that has been used: whom it slashed, by how much, and when."""

    account: PubKey
    lost: Grains
    height: Height


@wire(148)
@dataclass(frozen=True, slots=True)
class KeyOwner:
    """Which account has announced a consensus key: one key belongs to one account."""

    account: PubKey


@wire(155)
@dataclass(frozen=True, slots=True)
class UnbondingDue:
    """Whose unbonding is due at a height: neither those of an account nor those of a height are
    looked for among all."""

    account: PubKey


@wire(158)
@dataclass(frozen=True, slots=True)
class JailRecord:
    """An account that no set takes before `unjail`, which works when both times have passed."""

    account: PubKey
    reason: U8  # JailReason
    until: Height
    until_ms: TimeMs


@wire(159)
@dataclass(frozen=True, slots=True)
class Attendance:
    """Turns to lead that an account has missed: since its last block, and since it was jailed."""

    account: PubKey
    row: U64
    missed: U64


# --- keys ---------------------------------------------------------------------------

HEAD = b"head"
MODEL = b"model"
UNBONDING = b"unbd/"
ATTENDANCE = b"attd/"


def _be4(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _be8(value: int) -> bytes:
    return value.to_bytes(8, "big")


def account_key(account: PubKey) -> bytes:
    return b"acct/" + account


def node_key(account: PubKey) -> bytes:
    return b"node/" + account


def consensus_key(key: PubKey) -> bytes:
    return b"cons/" + key


def jail_key(account: PubKey) -> bytes:
    return b"jail/" + account


def attendance_key(account: PubKey) -> bytes:
    return ATTENDANCE + account


def unbondings_of(account: PubKey) -> bytes:
    """The prefix of what an account has on its way out."""
    return UNBONDING + account


def unbonding_key(release: int, account: PubKey) -> bytes:
    return unbondings_of(account) + _be8(release)


def due_prefix(release: int) -> bytes:
    """Of what is paid out at a height."""
    return b"udue/" + _be8(release)


def due_key(release: int, account: PubKey) -> bytes:
    return due_prefix(release) + account


def epoch_key(epoch: int) -> bytes:
    return b"epch/" + _be8(epoch)


def shard_key(shard: int) -> bytes:
    return b"shrd/" + _be4(shard)


def tiles_key(shard: int) -> bytes:
    return b"tile/" + _be4(shard)


def round_key(number: int) -> bytes:
    return b"rnd_/" + _be8(number)


def delta_key(commit: TxId) -> bytes:
    return b"delt/" + commit


def slot_key(number: int, shard: int, tile: int) -> bytes:
    return b"slot/" + _be8(number) + _be4(shard) + _be4(tile)


def update_key(update: TxId) -> bytes:
    return b"updt/" + update


def dataset_key(dataset: Hash32) -> bytes:
    return b"data/" + dataset


def eval_key(model_root: Hash32, holdout: Hash32) -> bytes:
    return b"eval/" + model_root + holdout


def learner_key(account: PubKey) -> bytes:
    return b"lrnr/" + account


def evidence_of(epoch: int) -> bytes:
    """The prefix of all who were slashed for an epoch."""
    return b"evid/" + _be8(epoch)


def evidence_key(offender: PubKey, epoch: int) -> bytes:
    """One offence of a consensus key counts once an epoch, however many pairs show it."""
    return evidence_of(epoch) + offender
