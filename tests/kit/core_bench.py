"""One Simplex core by hand: its inputs, its effects, and the keys of everyone else."""

from __future__ import annotations

from typing import TypeVar

from chain.certificates import assemble
from chain.hashes import ZERO_HASH, Hash32
from chain.types import (
    Block,
    Certificate,
    Epoch,
    Header,
    Proposal,
    Stake,
    Validator,
    ValidatorSet,
    View,
    Vote,
    VoteKind,
)
from consensus.simplex import messages as m
from consensus.simplex.core import Simplex
from consensus.simplex.rules import Rule
from tests.sim.ledger import CHAIN_ID, KeySigner, Law, body_matches, name

E = TypeVar("E")
NULL = Hash32(ZERO_HASH)


class Bench:
    """One core among `size` keys with equal stake that the test holds; view v is led by v mod n."""

    def __init__(self, size: int = 4, own: int = 0, epoch_blocks: int = 1000) -> None:
        self.law = Law(7, size, epoch_blocks)
        self.own = own
        self.genesis = self.law.genesis()
        self.log: list[bytes] = []
        self.rules: list[Rule] = []
        self.core = self.fresh([])
        self.effects = self.keep(self.core.start())

    def context(self, epoch: int) -> m.EpochContext:
        members = tuple(
            Validator(s.public, s.public, s.public, name(i), Stake(1))
            for i, s in enumerate(self.law.signers)
        )
        return m.EpochContext(Epoch(epoch), ValidatorSet(members), lambda view: view % len(members))

    def fresh(self, log: list[bytes], tip: Header | None = None) -> Simplex:
        config = m.Config(CHAIN_ID, self.law.is_last, body_matches, 100, 800, 50, self.rules.append)
        signer = self.law.signers[self.own] if self.own >= 0 else None
        return Simplex(config, self.context(1), tip or self.genesis.header, None, signer, log)

    def keep(self, effects: list[m.Effect]) -> list[m.Effect]:
        for effect in effects:
            if isinstance(effect, m.Persist):
                self.log += effect.records
        return effects

    def signer(self, index: int) -> KeySigner:
        return self.law.signers[index]

    def block(self, parent: Header, view: int, txs: tuple[bytes, ...] = ()) -> Block:
        validators = self.context(1).validators
        proposer = validators.members[view % len(validators.members)].consensus_key
        made = self.law.block(parent, parent.hash(), View(view), proposer, txs, 0)
        header = made.header
        fields = {f: getattr(header, f) for f in header.__dataclass_fields__}
        fields |= {"validators_hash": validators.hash(), "epoch": Epoch(1)}
        return Block(Header(**fields), made.txs, made.evidence)

    def proposal(
        self, block: Block, view: int, proof: Certificate | None, *nulls: Certificate
    ) -> Proposal:
        leader = self.signer(view % self.law.size)
        seal = leader.sign_proposal(Epoch(1), View(view), block.hash())
        return Proposal(seal, block, proof, nulls)

    def vote(self, index: int, kind: VoteKind, view: int, block_hash: bytes = NULL) -> Vote:
        return self.signer(index).sign_vote(kind, Epoch(1), View(view), Hash32(block_hash))

    def certificate(self, kind: VoteKind, view: int, block_hash: bytes = NULL) -> Certificate:
        votes = [self.vote(i, kind, view, block_hash) for i in range(1, self.law.size)]
        return assemble(self.context(1).validators, votes)

    def hear(self, message: m.Message, sender: int = 1) -> list[m.Effect]:
        return self.keep(self.core.receive(name(sender), message))

    def validate(self, effects: list[m.Effect], ok: bool = True) -> list[m.Effect]:
        out: list[m.Effect] = []
        for effect in find(effects, m.Validate):
            out += self.keep(self.core.validated(effect.block_hash, ok))
        return out

    def fire(self, kind: m.TimerKind, view: int) -> list[m.Effect]:
        return self.keep(self.core.timer(m.Timer(kind, Epoch(1), View(view))))


def find(effects: list[m.Effect], kind: type[E]) -> list[E]:
    return [e for e in effects if isinstance(e, kind)]


def said(effects: list[m.Effect]) -> list[tuple[str, int]]:
    """Votes that were broadcast, as (kind, view)."""
    messages = [x for e in find(effects, m.Broadcast) for x in e.messages]
    return [(VoteKind(x.kind).name, x.view) for x in messages if isinstance(x, Vote)]
