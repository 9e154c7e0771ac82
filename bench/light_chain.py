"""What a light client's way over a long chain costs: headers and sets made here, verified there.

A chain of headers alone, without blocks or states, in epochs of 100. `LightChain.leave` says how
many members each epoch replaces: none, and one step leads anywhere; all, and every epoch needs its
own certificate, which is the worst there is. Certificates are made when they are asked for, outside
of the time that is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from bench.measure import Row, at_most, seconds
from chain.certificates import assemble
from chain.codec import encode
from chain.crypto import verify
from chain.errors import invariant
from chain.hashes import EVIDENCE, VALIDATORS, ZERO_HASH, Hash32
from chain.light import LightBlock, Terms, Trusted, Walk
from chain.types import (
    ChainId,
    Epoch,
    Header,
    Height,
    Stake,
    TimeMs,
    Validator,
    ValidatorSet,
    View,
    VoteKind,
    tx_root,
)
from tests.kit.local_chain import key
from wallet.keys import KeyPair
from wallet.signing import sign_vote

TARGET_S = 10.0
CHAIN = ChainId(VALIDATORS.hash(b"light bench"))
START_MS, STEP_MS = 1_790_000_000_000, 1000


@dataclass(frozen=True, slots=True)
class Amount:
    """How long a chain, and how many validators."""

    blocks: int = 100_000
    epoch_blocks: int = 100
    validators: int = 100


SMALL = Amount(600, 100, 20)


@dataclass
class LightChain:
    """Headers of `amount.blocks` heights, of whose set `leave` members go with every epoch."""

    amount: Amount
    leave: int
    headers: list[Header] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members = lru_cache(maxsize=8)(self._members)  # sets and keys of a few epochs at once
        self.keys = lru_cache(maxsize=8)(self._keys)
        empty, parent = tx_root(()), Hash32(ZERO_HASH)
        hashes: dict[int, Hash32] = {}
        for height in range(self.amount.blocks + 1):
            epoch = self.epoch(height)
            for number in (epoch, epoch + 1):
                if number not in hashes:
                    hashes[number] = self.members(number).hash()
            header = Header(
                *(1, CHAIN, Epoch(epoch), View(height), Height(height), parent),
                *(TimeMs(START_MS + height * STEP_MS), self.keys(epoch)[0].public),
                *(empty, Hash32(ZERO_HASH), hashes[epoch], hashes[epoch + 1]),
                *(b"", b"", EVIDENCE.hash()),
            )
            self.headers.append(header)
            parent = header.hash()

    def epoch(self, height: int) -> int:
        return max(height - 1, 0) // self.amount.epoch_blocks

    def _keys(self, epoch: int) -> list[KeyPair]:
        first = self.leave * epoch
        pairs = (key(f"light {i}") for i in range(first, first + self.amount.validators))
        return sorted(pairs, key=lambda pair: pair.public)

    def _members(self, epoch: int) -> ValidatorSet:
        pairs = self.keys(epoch)
        return ValidatorSet(
            tuple(Validator(p.public, p.public, p.public, "n", Stake(10**11)) for p in pairs)
        )

    def block(self, height: int) -> LightBlock:
        """A light block, signed by just more than two thirds."""
        header = self.headers[height]
        quorum = 2 * self.amount.validators // 3 + 1
        votes = [
            sign_vote(
                pair,
                chain_id=CHAIN,
                kind=VoteKind.FINALIZE,
                epoch=header.epoch,
                view=header.view,
                block_hash=header.hash(),
            )
            for pair in self.keys(header.epoch)[:quorum]
        ]
        members = self.members(header.epoch)
        return LightBlock((header,), assemble(members, votes), members)


@dataclass(slots=True)
class Followed:
    """A whole walk: seconds of verification, and what was shown for it."""

    verify_s: float = 0.0
    steps: int = 0
    blocks: int = 0
    signatures: int = 0
    size_bytes: int = 0


def follow(chain: LightChain) -> Followed:
    """From genesis to the last block; only verification is timed, not the making of blocks."""
    last = chain.headers[-1]
    terms = Terms(CHAIN, trust_ms=last.time_ms - START_MS + 1, drift_ms=2000)
    found = Followed()
    walk = Walk(terms, Trusted(chain.headers[0], chain.members(0)), last.height)
    while walk.wanted is not None:
        block = chain.block(walk.wanted)
        found.blocks += 1
        found.signatures += len(block.finalization.signatures)
        found.size_bytes += len(encode(block))
        found.verify_s += seconds(lambda block=block: walk.give(block, last.time_ms))  # type: ignore[misc]
    found.steps = walk.steps
    invariant(walk.trusted.header == last, "the walk ends at the last block")
    return found


def rows(amount: Amount) -> Iterator[Row]:
    """The worst chain, an ordinary one (one in twenty members goes with each epoch), and one whose
    set stays; the floor of the worst is its signatures alone, verified by PyNaCl."""
    worst = LightChain(amount, leave=amount.validators)
    walked = follow(worst)
    one = worst.block(amount.blocks)
    signature, digest = one.finalization.signatures[0], one.header.hash()
    public = one.validators.members[one.finalization.indices()[0]].consensus_key
    some = 2000
    bare = seconds(lambda: [verify(public, digest, signature) for _ in range(some)]) / some
    floor = bare * walked.signatures
    yield at_most("light_worst", walked.verify_s, "s", TARGET_S, floor)
    yield at_most("light_worst_blocks", float(walked.blocks), "blocks", None)
    yield at_most("light_worst_shown", walked.size_bytes / 2**20, "MiB", None)
    for name, leave in (("light_usual", -(-amount.validators // 20)), ("light_stable", 0)):
        walked = follow(LightChain(amount, leave))
        yield at_most(name, walked.verify_s, "s", TARGET_S)
        yield at_most(f"{name}_blocks", float(walked.blocks), "blocks", None)
