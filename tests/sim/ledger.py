"""The smallest execution that consensus can agree on: a state root that chains transactions.

Keys, validator sets and leaders of a simulated network, all from its seed.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from nacl.signing import SigningKey

from chain.hashes import BLOCK, EVIDENCE, ZERO_HASH, Hash32
from chain.types import (
    Block,
    ChainId,
    Epoch,
    Header,
    Height,
    ProposalSeal,
    PubKey,
    Signature,
    Stake,
    TimeMs,
    Validator,
    ValidatorSet,
    View,
    Vote,
    proposal_digest,
    tx_root,
    vote_digest,
)
from consensus.simplex.messages import EpochContext

CHAIN_ID = ChainId(b"simulated chain of no one at all")


class KeySigner:
    """Signs what it is asked to; the oracle sees what leaves."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public = PubKey(bytes(self._key.verify_key))

    def sign_vote(self, kind: int, epoch: Epoch, view: View, block_hash: Hash32) -> Vote:
        digest = vote_digest(CHAIN_ID, kind, epoch, view, block_hash)
        signature = Signature(self._key.sign(digest).signature)
        return Vote(kind, epoch, view, block_hash, self.public, signature)

    def sign_proposal(self, epoch: Epoch, view: View, block_hash: Hash32) -> ProposalSeal:
        digest = proposal_digest(CHAIN_ID, epoch, view, block_hash)
        signature = Signature(self._key.sign(digest).signature)
        return ProposalSeal(epoch, view, block_hash, self.public, signature)


@dataclass
class Law:
    """What every node of one network knows: members, stakes of each epoch, leaders, execution."""

    seed: int
    size: int
    epoch_blocks: int
    equal: bool = False  # everyone has the same stake, always
    leaders: tuple[int, ...] = ()  # of an epoch's first views; those of later ones are drawn

    def __post_init__(self) -> None:
        self.signers = [
            KeySigner(f"{self.seed} {i}".encode().ljust(32)[:32]) for i in range(self.size)
        ]
        self.signers.sort(key=lambda s: s.public)
        self.context = functools.cache(self._context)
        self.stakes = functools.cache(self._stakes)

    def is_last(self, height: Height) -> bool:
        return height % self.epoch_blocks == 0

    def epoch_of(self, height: int) -> Epoch:
        """Heights e·n+1 to (e+1)·n belong to epoch e, and genesis to epoch 0."""
        return Epoch(max(0, height - 1) // self.epoch_blocks)

    def _stakes(self, epoch: int) -> list[int]:
        dice = random.Random(f"stakes {self.seed} {epoch}")
        if self.equal or dice.random() < 0.3:
            return [10] * self.size
        if self.size < 6:  # so that any one of four stays below a third
            return [dice.randrange(80, 105) for _ in range(self.size)]
        if self.size > 7 and dice.random() < 0.3:  # a few who own nearly everything
            return [dice.randrange(1, 40) ** 2 for _ in range(self.size)]
        return [dice.randrange(30, 120) for _ in range(self.size)]

    def _context(self, epoch: Epoch) -> EpochContext:
        members = tuple(
            Validator(signer.public, signer.public, signer.public, name(i), Stake(stake))
            for i, (signer, stake) in enumerate(zip(self.signers, self.stakes(epoch), strict=True))
        )
        salt = f"leaders {self.seed} {epoch}"

        @functools.cache
        def leader_of(view: View) -> int:
            if view <= len(self.leaders):
                return self.leaders[view - 1]
            return random.Random(f"{salt} {view}").randrange(self.size)

        return EpochContext(epoch, ValidatorSet(members), leader_of)

    def genesis(self) -> Block:
        zero = Hash32(ZERO_HASH)
        nobody = PubKey(bytes(32))
        header = Header(
            1, CHAIN_ID, Epoch(0), View(0), Height(0), zero, TimeMs(0), nobody,
            tx_root(()), zero, zero, zero, b"", b"", zero,
        )  # fmt: skip
        return Block(header, (), ())

    def block(
        self, parent: Header, parent_hash: Hash32, view: View, proposer: PubKey,
        txs: tuple[bytes, ...], time_ms: int,
    ) -> Block:  # fmt: skip
        epoch = self.epoch_of(parent.height + 1)
        validators = self.context(epoch).validators
        header = Header(
            1, CHAIN_ID, epoch, view, Height(parent.height + 1), parent_hash,
            TimeMs(max(parent.time_ms + 1, time_ms)), proposer, tx_root(txs),
            self.execute(parent.state_root, txs), validators.hash(), validators.hash(),
            b"", b"", EVIDENCE.hash(),
        )  # fmt: skip
        return Block(header, txs, ())

    def execute(self, state_root: Hash32, txs: tuple[bytes, ...]) -> Hash32:
        return BLOCK.hash(state_root, *txs)

    def root_after(self, state_root: Hash32, block: Block) -> Hash32:
        """The state root that `block` gives on its parent's."""
        return self.execute(state_root, block.txs)

    def transactions(self, dice: random.Random) -> tuple[bytes, ...]:
        """What a block that carries work carries."""
        return tuple(dice.randbytes(4) for _ in range(dice.randint(1, 3)))

    def committed(self, block: Block) -> None:
        """A block has become final somewhere for the first time."""


def body_matches(block: Block) -> bool:
    return tx_root(block.txs) == block.header.tx_root and block.evidence == ()


def name(index: int) -> str:
    return f"node-{index}"
