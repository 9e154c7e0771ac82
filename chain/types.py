"""Blocks, votes and certificates; integers and keys that carry meaning (docs/spec/blocks.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, NewType

from chain import limits
from chain.codec import U8, Bytes, Seq, Text, UInt, encode, register, wire
from chain.hashes import BLOCK, PROPOSAL, TX_ROOT, VALIDATORS, VOTE, Hash32

Height = NewType("Height", int)  # position in the chain; genesis is 0
View = NewType("View", int)  # consensus attempt; each may notarize one block or be nullified
Epoch = NewType("Epoch", int)  # period with one validator set
Stake = NewType("Stake", int)  # grains at stake; the weight of a vote
Grains = NewType("Grains", int)  # 10**-8 BLY
TimeMs = NewType("TimeMs", int)  # Unix time in milliseconds
PubKey = NewType("PubKey", bytes)  # Ed25519 public key, 32 bytes; an account is its key
Signature = NewType("Signature", bytes)  # Ed25519, 64 bytes
ChainId = NewType("ChainId", bytes)  # hash of the canonical genesis, 32 bytes
TxId = NewType("TxId", bytes)
BlobId = NewType("BlobId", bytes)  # BLOB.hash of the bytes; how a blob is asked for
ShardIndex = NewType("ShardIndex", int)  # position of a shard in the model's shard list
TileIndex = NewType("TileIndex", int)  # position of a tile in its shard

for _integer in (Height, View, Epoch, Stake, Grains, TimeMs):
    register(_integer, UInt(64))
for _index in (ShardIndex, TileIndex):
    register(_index, UInt(32))
for _hash in (PubKey, ChainId, TxId, BlobId):
    register(_hash, Bytes(32, 32))
register(Signature, Bytes(64, 64))

GRAINS_PER_BLY = 100_000_000
HEADER_VERSION = 1  # of the rules by which blocks are made and checked
VrfOutput = Annotated[bytes, Bytes(64)]  # empty in genesis, else 64 bytes
VrfProof = Annotated[bytes, Bytes(80)]  # empty in genesis, else 80 bytes


class VoteKind(IntEnum):
    NOTARIZE = 1
    NULLIFY = 2
    FINALIZE = 3


@wire(1)
@dataclass(frozen=True, slots=True)
class Validator:
    """One member of an epoch's validator set. `node_id` is the libp2p peer id as text."""

    account: PubKey
    consensus_key: PubKey
    vrf_key: PubKey
    node_id: Annotated[str, Text(limits.MAX_NAME)]
    stake: Stake


@wire(2)
@dataclass(frozen=True, slots=True)
class ValidatorSet:
    """Ordered by consensus key; a validator's index is its position."""

    members: Annotated[tuple[Validator, ...], Seq(limits.MAX_VALIDATORS)]

    @property
    def total(self) -> Stake:
        return Stake(sum(v.stake for v in self.members))

    def index_of(self, consensus_key: PubKey) -> int | None:
        for i, v in enumerate(self.members):
            if v.consensus_key == consensus_key:
                return i
        return None

    def hash(self) -> Hash32:
        return VALIDATORS.hash(encode(self))


@wire(3)
@dataclass(frozen=True, slots=True)
class Header:
    """What a block commits to. `state_root` is the root *after* executing the block."""

    version: U8
    chain_id: ChainId
    epoch: Epoch
    view: View  # the view it was first proposed in
    height: Height
    parent: Hash32
    time_ms: TimeMs
    proposer: PubKey  # consensus key
    tx_root: Hash32
    state_root: Hash32
    validators_hash: Hash32
    next_validators_hash: Hash32
    vrf_output: VrfOutput
    vrf_proof: VrfProof
    evidence_root: Hash32

    def hash(self) -> Hash32:
        return BLOCK.hash(encode(self))


@wire(4)
@dataclass(frozen=True, slots=True)
class Vote:
    """One signed vote. `block_hash` is zero for nullify. `signer` is a consensus key."""

    kind: U8
    epoch: Epoch
    view: View
    block_hash: Hash32
    signer: PubKey
    signature: Signature


@wire(5)
@dataclass(frozen=True, slots=True)
class Certificate:
    """Votes of more than two thirds of an epoch's stake for one thing in one view.

    `signers` is a bitmap over the validator set, least significant bit of byte 0 first;
    `signatures` follow in index order.
    """

    kind: U8
    epoch: Epoch
    view: View
    block_hash: Hash32
    signers: Annotated[bytes, Bytes(limits.MAX_VALIDATORS // 8)]
    signatures: Annotated[tuple[Signature, ...], Seq(limits.MAX_VALIDATORS)]

    def indices(self) -> list[int]:
        return [i for i in range(len(self.signers) * 8) if self.signers[i // 8] >> (i % 8) & 1]


@wire(6)
@dataclass(frozen=True, slots=True)
class ProposalSeal:
    """A leader's signature under 'in (epoch, view) I propose this block'. Two are evidence."""

    epoch: Epoch
    view: View
    block_hash: Hash32
    signer: PubKey
    signature: Signature


@wire(7)
@dataclass(frozen=True, slots=True)
class DoubleVote:
    """Two votes of one signer that no honest validator signs together."""

    first: Vote
    second: Vote


@wire(8)
@dataclass(frozen=True, slots=True)
class DoubleProposal:
    first: ProposalSeal
    second: ProposalSeal


@wire(17)
@dataclass(frozen=True, slots=True)
class ConflictingCertificates:
    """A light-client attack: two certificates of one view that no honest third signs together. Who
    stands in both is guilty; each certificate's bitmap names its signers in the epoch's set."""

    first: Certificate
    second: Certificate


EvidenceItem = DoubleVote | DoubleProposal | ConflictingCertificates


def accused(validators: ValidatorSet, item: EvidenceItem) -> tuple[PubKey, ...]:
    """Whom an item of evidence names, unverified, in the set's order: nobody of a foreign form."""
    if not isinstance(item, ConflictingCertificates):
        return (item.first.signer,)
    members = validators.members
    both = sorted(set(item.first.indices()) & set(item.second.indices()))
    return tuple(members[i].consensus_key for i in both if i < len(members))


@wire(9)
@dataclass(frozen=True, slots=True)
class Block:
    """A header and what it commits to; `txs` are encoded `Transaction`s."""

    header: Header
    txs: Annotated[
        tuple[Annotated[bytes, Bytes(limits.MAX_OPENING_TX_BYTES)], ...], Seq(limits.MAX_BLOCK_TXS)
    ]
    evidence: Annotated[tuple[EvidenceItem, ...], Seq(limits.MAX_EVIDENCE)]

    def hash(self) -> Hash32:
        return self.header.hash()


@wire(10)
@dataclass(frozen=True, slots=True)
class Proposal:
    """A leader's block, the parent's notarization, and nullifications of every view between.

    `parent_notarization` is absent only when the parent is final by itself: genesis, or the last
    block of the epoch before.
    """

    seal: ProposalSeal
    block: Block
    parent_notarization: Certificate | None
    nullifications: Annotated[tuple[Certificate, ...], Seq(limits.MAX_NULLIFICATIONS)]


@wire(11)
@dataclass(frozen=True, slots=True)
class CertifiedBlock:
    """A block as stored and synced. It is final by its own certificate or by a descendant's."""

    block: Block
    finalization: Certificate | None


def vote_digest(chain_id: ChainId, kind: int, epoch: Epoch, view: View, block: Hash32) -> Hash32:
    """What a vote signs. Integers are 8 bytes big-endian."""
    return VOTE.hash(chain_id, bytes([kind]), _be(epoch), _be(view), block)


def proposal_digest(chain_id: ChainId, epoch: Epoch, view: View, block: Hash32) -> Hash32:
    return PROPOSAL.hash(chain_id, _be(epoch), _be(view), block)


def tx_root(txs: tuple[bytes, ...]) -> Hash32:
    """Binary Merkle root over the transactions' bytes, position-bound (docs/spec/blocks.md).

    Leaf: H(0x00, index, bytes); node: H(0x01, left, right); an odd node rises unchanged;
    the root binds the count: H(0x02, count, top).
    """
    level = [TX_ROOT.hash(b"\x00", _be(i), tx) for i, tx in enumerate(txs)]
    while len(level) > 1:
        pairs = [TX_ROOT.hash(b"\x01", *level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) - len(level) % 2 :]
    return TX_ROOT.hash(b"\x02", _be(len(txs)), *level)


def _be(value: int) -> bytes:
    return value.to_bytes(8, "big")


def u64_be(value: int) -> bytes:
    """An unsigned integer as 8 bytes big-endian, the fixed-width form inside hashes."""
    return _be(value)
