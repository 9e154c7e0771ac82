"""The transactions: what anyone may ask of the chain (docs/spec/transactions.md).

Every payload that the protocol will ever need has its form here from the first version;
a rule that is not in force yet answers with the receipt code `not_active`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Annotated

from chain import limits
from chain.codec import I64, U8, U16, U32, U64, Bytes, Seq, Text, decode, encode, wire
from chain.errors import DecodeError
from chain.hashes import ANNOUNCE, DELTA_COMMIT, POL_COMMIT, STAMP, TX, TX_SIGN, Hash32
from chain.types import (
    BlobId,
    ChainId,
    Epoch,
    EvidenceItem,
    Grains,
    Height,
    PubKey,
    ShardIndex,
    Signature,
    TileIndex,
    TxId,
    u64_be,
)

Roles = IntEnum("Roles", {"LEARNER": 1, "VALIDATOR": 2, "HOST": 4, "AUDITOR": 8})
_TWO_U64 = Struct(">QQ")
GRAM_BYTES = 16  # one entry of a Gram matrix: signed, big-endian


class AttestKind(IntEnum):
    UPDATE = 1  # subject: tile_update tx id; I recomputed it and hold its inputs
    REPLAY = 2  # subject: delta id; I replayed the drawn segment; evidence: state hash I got
    AVAILABLE = 3  # subject: blob id; I hold it
    EVAL = 4  # subject: model root; value: holdout loss in nano-nats per byte


class Verdict(IntEnum):
    NO = 0
    YES = 1
    UNAVAILABLE = 2
    COPY = 3  # of another delta of the round; a juror's alone


class Phase(IntEnum):
    COMMIT = 1
    REVEAL = 2


# --- money and membership ---------------------------------------------------------


@wire(32)
@dataclass(frozen=True, slots=True)
class Transfer:
    to: PubKey
    amount: Grains


@wire(33)
@dataclass(frozen=True, slots=True)
class Bond:
    amount: Grains


@wire(34)
@dataclass(frozen=True, slots=True)
class Unbond:
    amount: Grains


@wire(35)
@dataclass(frozen=True, slots=True)
class Unjail:
    pass


@wire(36)
@dataclass(frozen=True, slots=True)
class Announce:
    """The account authorises its node's keys; each signs `announce_digest` to show it is held."""

    roles: U32  # bit set of Roles
    capacity_tiles: U32
    node_key: PubKey
    consensus_key: PubKey
    vrf_key: PubKey
    node_id: Annotated[str, Text(limits.MAX_NAME)]
    addresses: Annotated[
        tuple[Annotated[str, Text(limits.MAX_ADDRESS)], ...], Seq(limits.MAX_ADDRESSES)
    ]
    node_signature: Signature
    consensus_signature: Signature


@wire(37)
@dataclass(frozen=True, slots=True)
class JoinRound:
    """A learner declares what it holds, before the round's seed is known."""

    round: U64
    held: Annotated[tuple[ShardIndex, ...], Seq(limits.MAX_SHARDS)]  # empty: every shard


# --- a learning round ---------------------------------------------------------------


@wire(40)
@dataclass(frozen=True, slots=True)
class DeltaCommit:
    """Binds a payload to its sender before anyone may open it. The blob is published, encrypted."""

    round: U64
    base_root: Hash32
    commitment: Hash32
    manifest_root: Hash32
    blob: BlobId
    blob_bytes: U64


@wire(41)
@dataclass(frozen=True, slots=True)
class DeltaReveal:
    """Opens a commit: the salt gives the key of the blob. `commit` is the delta's id."""

    commit: TxId
    salt: Hash32


@wire(42)
@dataclass(frozen=True, slots=True)
class LossSlice:
    """Loss of one evaluation slice, summed over its bytes, in nano-nats (1e-9 nat) per byte."""

    slice: U64
    base_loss: I64
    delta_loss: I64


@wire(43)
@dataclass(frozen=True, slots=True)
class PolVote:
    """A juror's verdict on one delta; first the commitment, then what it opens to.

    In phase COMMIT only `commitment` is set. In phase REVEAL `salt`, `verdict` and `slices` are.
    """

    round: U64
    delta: TxId
    phase: U8
    commitment: Hash32
    salt: Hash32
    verdict: U8
    slices: Annotated[tuple[LossSlice, ...], Seq(limits.MAX_SLICES)]


@wire(44)
@dataclass(frozen=True, slots=True)
class PodlManifest:
    """What a delta was trained on, and how: everything a replay needs.

    `proven` is 0 for a delta trained elsewhere; then the roots that cannot be shown are zero.
    """

    round: U64
    learner: PubKey
    base_root: Hash32
    proven: U8
    datasets: Annotated[tuple[Hash32, ...], Seq(limits.MAX_DATASETS)]
    seed: Hash32  # PRF seed of data order
    profile: Annotated[str, Text(limits.MAX_NAME)]  # numeric profile
    steps: U32
    segment_steps: U32  # a state hash every so many steps
    batch_root: Hash32
    state_hashes: Annotated[tuple[Hash32, ...], Seq(limits.MAX_STATE_HASHES)]
    residual_before: Hash32
    residual_after: Hash32
    optimizer_before: Hash32
    optimizer_after: Hash32
    payload_root: Hash32
    density: U16  # kept entries per chunk of 4096, or the number of another coding
    shards: Annotated[tuple[ShardIndex, ...], Seq(limits.MAX_SHARDS)]  # empty: every shard


@wire(45)
@dataclass(frozen=True, slots=True)
class Challenge:
    """Opens a dispute over one segment of a delta."""

    delta: TxId
    segment: U32
    claimed: Hash32
    bond: Grains


@wire(46)
@dataclass(frozen=True, slots=True)
class ChallengeResponse:
    challenge: TxId
    step: U32
    state_hash: Hash32
    opening: BlobId


@wire(47)
@dataclass(frozen=True, slots=True)
class TileChange:
    """One tile's new version and the witness that lets each piece be proven wrong.

    `gram` is the total Gram matrix, row-major, lower triangle, `GRAM_BYTES` an entry;
    `gram_root` the Merkle-sum root over subtiles; `weights` in units of 2**-20.
    """

    shard: ShardIndex
    tile: TileIndex
    base_root: Hash32
    new_root: Hash32
    gram_root: Hash32
    gram: Annotated[bytes, Bytes(GRAM_BYTES * limits.MAX_DELTAS * (limits.MAX_DELTAS + 1) // 2)]
    weights: Annotated[tuple[I64, ...], Seq(limits.MAX_DELTAS)]


@wire(48)
@dataclass(frozen=True, slots=True)
class TileUpdate:
    """A primary's aggregation of the round's accepted deltas, in the state's order."""

    round: U64
    rank: U8
    base_root: Hash32  # model root
    changes: Annotated[tuple[TileChange, ...], Seq(limits.MAX_TILE_CHANGES)]


@wire(49)
@dataclass(frozen=True, slots=True)
class Attest:
    """A committee member's word. See AttestKind for subject, value and evidence."""

    kind: U8
    round: U64
    subject: Hash32
    verdict: U8
    value: I64
    evidence: Hash32


@wire(50)
@dataclass(frozen=True, slots=True)
class FraudProof:
    """kind 1: Gram leaf; 2: sum; 3: weights; 4: output subtile. `proof` as the tiles spec says."""

    update: TxId
    kind: U8
    shard: ShardIndex
    tile: TileIndex
    subtile: U32
    proof: Annotated[bytes, Bytes(limits.MAX_TX_BYTES - 1024)]


@wire(51)
@dataclass(frozen=True, slots=True)
class Custody:
    """A custodian's commitments to the subtiles of an event that it has to hold, in the order of
    their places (docs/spec/custody.md). `event` is the event's seed."""

    event: Hash32
    commitments: Annotated[tuple[Hash32, ...], Seq(limits.MAX_SUBTILES_PER_CHALLENGE)]


@wire(52)
@dataclass(frozen=True, slots=True)
class CustodyDispute:
    """Claims that a custodian's commitment at a place of the event is wrong."""

    event: Hash32
    custodian: PubKey
    position: U8
    bond: Grains  # goes to the custodian if the commitment is right


@wire(53)
@dataclass(frozen=True, slots=True)
class CustodyOpening:
    """A named subtile with its path to the tile's root (a SubtileProof's siblings): shows whether
    a custodian's commitment is right. The one kind that may exceed MAX_TX_BYTES."""

    event: Hash32
    custodian: PubKey
    position: U8
    siblings: Annotated[tuple[Hash32, ...], Seq(limits.MAX_SUBTILE_SIBLINGS)]
    subtile: Annotated[bytes, Bytes(limits.SUBTILE_BYTES)]


# --- datasets -----------------------------------------------------------------------


@wire(54)
@dataclass(frozen=True, slots=True)
class LatencyReport:
    """How far a validator finds the members of an epoch's set: a class each, in the set's order;
    its own does not count (docs/spec/election.md)."""

    epoch: Epoch
    classes: Annotated[bytes, Bytes(limits.MAX_VALIDATORS)]


@wire(56)
@dataclass(frozen=True, slots=True)
class DatasetSubmit:
    """`dataset` is the hash of its manifest; chunks are blobs (docs/spec/datasets.md)."""

    dataset: Hash32
    manifest: BlobId
    manifest_bytes: U64
    size_bytes: U64
    documents: U32
    license: Annotated[str, Text(limits.MAX_LICENSE)]
    title: Annotated[str, Text(limits.MAX_NAME)]


@wire(57)
@dataclass(frozen=True, slots=True)
class AuditReport:
    """A deterministic auditor's findings. Reports agree when `report_root` does."""

    dataset: Hash32
    verdict: U8
    score: U16  # bucketed, 0 to 100
    findings: Annotated[tuple[U16, ...], Seq(limits.MAX_FINDINGS)]
    report_root: Hash32


@wire(58)
@dataclass(frozen=True, slots=True)
class DatasetVote:
    dataset: Hash32
    verdict: U8


# --- governance and evidence ----------------------------------------------------------


@wire(60)
@dataclass(frozen=True, slots=True)
class Propose:
    """A parameter's value (an encoded integer) or, as `model`, a version of the model's documents
    (canonical JSON), in force from the block at `activate` if it passes."""

    parameter: Annotated[str, Text(limits.MAX_NAME)]
    value: Annotated[bytes, Bytes(limits.MAX_PROPOSAL_BYTES)]
    activate: Height


@wire(61)
@dataclass(frozen=True, slots=True)
class GovernanceVote:
    proposal: TxId
    verdict: U8


@wire(62)
@dataclass(frozen=True, slots=True)
class SubmitEvidence:
    evidence: EvidenceItem


Payload = (
    Transfer
    | Bond
    | Unbond
    | Unjail
    | Announce
    | JoinRound
    | DeltaCommit
    | DeltaReveal
    | PolVote
    | PodlManifest
    | Challenge
    | ChallengeResponse
    | TileUpdate
    | Attest
    | FraudProof
    | Custody
    | CustodyDispute
    | CustodyOpening
    | LatencyReport
    | DatasetSubmit
    | AuditReport
    | DatasetVote
    | Propose
    | GovernanceVote
    | SubmitEvidence
)


@wire(64)
@dataclass(frozen=True, slots=True)
class Stamp:
    """Proof of work in place of a fee, bound to the sender, the nonce and a recent block."""

    height: Height
    work: U64


@wire(65)
@dataclass(frozen=True, slots=True)
class Transaction:
    """`signer` is the sender's account key, or its announced node key for a validator's duties."""

    chain_id: ChainId
    sender: PubKey
    signer: PubKey
    nonce: U64
    fee: Grains
    stamp: Stamp | None
    payload: Payload
    signature: Signature

    def id(self) -> TxId:
        return TxId(TX.hash(encode(self)))

    def digest(self) -> Hash32:
        """What `signer` signs."""
        return tx_digest(self)


def decode_transaction(raw: bytes) -> Transaction:
    """The transaction in `raw`, or DecodeError; also if it is too large for its kind."""
    tx: Transaction = decode(Transaction, raw, most=limits.MAX_OPENING_TX_BYTES)
    if len(raw) > limits.MAX_TX_BYTES and not isinstance(tx.payload, CustodyOpening):
        raise DecodeError(f"{len(raw)} bytes where at most {limits.MAX_TX_BYTES} are allowed")
    return tx


def tx_digest(tx: Transaction) -> Hash32:
    """H over everything but the signature, each part encoded and so self-delimiting."""
    stamp = encode(tx.stamp) if tx.stamp else b"\x90"
    numbers = _TWO_U64.pack(tx.nonce, tx.fee)
    head = tx.chain_id + tx.sender + tx.signer + numbers + stamp  # one call less for each part
    return TX_SIGN.hash(head + encode(tx.payload))


def stamp_digest(
    chain_id: ChainId, sender: PubKey, nonce: int, block_hash: Hash32, payload: Payload, work: int
) -> Hash32:
    """A stamp's hash: it counts when its first `difficulty` bits are zero."""
    return STAMP.hash(chain_id, sender, u64_be(nonce), block_hash, encode(payload), u64_be(work))


def delta_commitment(
    chain_id: ChainId, round_: int, sender: PubKey, base_root: Hash32, payload: Hash32, salt: bytes
) -> Hash32:
    """Sender-bound commitment to a delta payload."""
    return DELTA_COMMIT.hash(chain_id, u64_be(round_), sender, base_root, payload, salt)


def pol_commitment(chain_id: ChainId, juror: PubKey, vote: PolVote) -> Hash32:
    """Sender-bound commitment to a juror's verdict and losses; `vote` is the reveal."""
    parts = [u64_be(s.slice) + _i64(s.base_loss) + _i64(s.delta_loss) for s in vote.slices]
    return POL_COMMIT.hash(
        chain_id, juror, u64_be(vote.round), vote.delta, vote.salt, bytes([vote.verdict]), *parts
    )


def announce_digest(chain_id: ChainId, account: PubKey, announce: Announce) -> Hash32:
    """What the announced keys sign: they agree to act for this account on this chain."""
    return ANNOUNCE.hash(
        chain_id, account, announce.node_key, announce.consensus_key, announce.vrf_key
    )


def _i64(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)
