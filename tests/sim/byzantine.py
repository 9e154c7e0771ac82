"""Validators that lie. Each runs the real core and bends what leaves it; together below W/3."""

from __future__ import annotations

from dataclasses import replace

from chain.hashes import ZERO_HASH, Hash32
from chain.types import (
    Block,
    Certificate,
    Height,
    Proposal,
    ProposalSeal,
    Signature,
    TimeMs,
    Vote,
    VoteKind,
)
from consensus.simplex import messages as m
from tests.sim.ledger import KeySigner
from tests.sim.node import SimNode


class Byzantine(SimNode):
    honest = is_honest_program = False

    def transmit(self, target: int, messages: tuple[m.Message, ...]) -> None:
        bent = self.bend(target, messages)
        self.world.counts[self.label()] += bent != messages
        if bent:
            self.world.send(self.index, target, bent)

    @classmethod
    def label(cls) -> str:
        """What is counted whenever it says something else than an honest node would."""
        return f"liar {cls.__name__.lower()}"

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        raise NotImplementedError

    def accuse(self, signer: bytes) -> None:
        """Its own core sees the contradictions it was made to sign."""

    @property
    def key(self) -> KeySigner:
        return self.law.signers[self.seat]

    def _header(self, block_hash: Hash32) -> m.Header | None:
        node = None if self.core is None else self.core._tree.get(block_hash)
        if node is not None:
            return node.header
        final = (b.header for b in reversed(self.disk.blocks))
        return next((h for h in final if h.hash() == block_hash), None)

    def signed(self, kind: VoteKind, like: Vote, block_hash: bytes) -> Vote:
        return self.key.sign_vote(kind, like.epoch, like.view, Hash32(block_hash))


class Silent(Byzantine):
    """Hears everything and says nothing."""

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        return ()


class Equivocator(Byzantine):
    """Proposes one block to some and another to others, and votes for whatever each was shown."""

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        if not self._is_told_another(target):
            return messages
        out: list[m.Message] = []
        for message in messages:
            if isinstance(message, Proposal) and message.seal.signer == self.key.public:
                twin = self._twin(message)
                out.append(twin)
                like = Vote(1, twin.seal.epoch, twin.seal.view, twin.seal.block_hash, *_no_one())
                out.append(self.signed(VoteKind.NOTARIZE, like, twin.seal.block_hash))
            elif not isinstance(message, Vote) or self.dice.random() < 0.5:
                out.append(message)
        return tuple(out)

    def _is_told_another(self, target: int) -> bool:
        return (target % 2 == 0) != (self.dice.random() < 0.35)  # now and then, the other story

    def _twin(self, proposal: Proposal) -> Proposal:
        header = proposal.block.header
        if header.view < proposal.seal.view:
            return proposal  # an epoch's last block has no twin
        parent = self._header(header.parent)
        if parent is None:
            return proposal
        txs = (*proposal.block.txs, b"twin")
        block = self.law.block(
            parent, header.parent, header.view, header.proposer, txs, header.time_ms
        )
        seal = self.key.sign_proposal(header.epoch, header.view, block.hash())
        self.world.counts["equivocations"] += 1
        return replace(proposal, seal=seal, block=block)


class Splitter(Byzantine):
    """Tells everyone something else: finalizes and nullifies one view, notarizes two blocks."""

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        out: list[m.Message] = []
        for message in messages:
            if not isinstance(message, Vote):
                out.append(message)
                continue
            choice = self.dice.randrange(5)
            if choice == 0:
                continue
            if choice == 1:
                out.append(self.signed(VoteKind.NULLIFY, message, ZERO_HASH))
            elif choice == 2 and message.kind != VoteKind.NULLIFY:
                out.append(self.signed(VoteKind.FINALIZE, message, message.block_hash))
            elif choice == 3:
                out.append(self.signed(VoteKind.NOTARIZE, message, self.dice.randbytes(32)))
            if choice != 4:
                out.append(message)
        return tuple(out)


class Stale(Byzantine):
    """Says again what was true once: old certificates, proposals and votes."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._memory: list[m.Message] = []

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        self._memory += messages
        self._memory = self._memory[-400:]
        old = tuple(self.dice.choice(self._memory) for _ in range(2))
        return old if self.dice.random() < 0.3 else (*messages, *old)


class Withholder(Byzantine):
    """Shows its proposals to a few, votes, and gives no block to those who ask."""

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        shown = target in (self.index + 1, self.index + 2)
        return tuple(
            x
            for x in messages
            if not isinstance(x, m.BlockReply) and (shown or not isinstance(x, Proposal))
        )


class Late(Byzantine):
    """Says everything up to two seconds too late."""

    def transmit(self, target: int, messages: tuple[m.Message, ...]) -> None:
        self.world.counts[self.label()] += 1
        delay_ms = self.dice.randint(0, 2000)
        self.world.after(delay_ms, lambda: self.world.send(self.index, target, messages))


class Forger(Byzantine):
    """Sends broken signatures, blocks that do not execute, bodies that are not their header's."""

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        return tuple(self._forged(x) if self.dice.random() < 0.5 else x for x in messages)

    def _forged(self, message: m.Message) -> m.Message:
        match message:
            case Vote():
                return replace(message, signature=Signature(self.dice.randbytes(64)))
            case Certificate():
                return replace(message, view=m.View(message.view + 1))
            case Proposal() if message.block.header.view == message.seal.view:
                return self._forged_block(message)
        return message

    def _forged_block(self, proposal: Proposal) -> Proposal:
        block, header = proposal.block, proposal.block.header
        if self.dice.random() < 0.5:
            return replace(proposal, block=Block(header, (*block.txs, b"smuggled"), ()))
        wrong = {"height": Height(header.height + 1)}, {"version": 2}, {"time_ms": TimeMs(0)}
        root = {"state_root": Hash32(self.dice.randbytes(32))}
        header = replace(header, **self.dice.choice((root, *wrong)))
        seal = self.key.sign_proposal(header.epoch, header.view, header.hash())
        return replace(proposal, seal=seal, block=replace(block, header=header))


class Counterfeiter(Byzantine):
    """Shows proofs that nobody signed with its own proposals: certificates of another epoch or of
    the wrong kind, without signatures, of old views, of the block itself or of an invalid one; and
    with them it extends the block before its parent, which would be a fork."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._invalid: Hash32 | None = None  # a block that honest nodes have executed in vain
        self._drawn: dict[Hash32, Proposal] = {}

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        return tuple(self._false(x) if isinstance(x, Proposal) else x for x in messages)

    def _build(self, build: m.Build) -> None:
        """In haste: a fork needs voters who have not yet seen the parent become final."""
        block = self.law.block(
            build.parent, build.parent_hash, build.view, self.key.public, (), self.now_ms
        )
        self._later(0, lambda core: self.perform(core.built(build.view, build.parent_hash, block)))

    def _false(self, proposal: Proposal) -> Proposal:
        """The same lie to everyone, or it would be an equivocation as well."""
        key = proposal.seal.block_hash
        if key not in self._drawn:
            fork, halt = (self._beside,) * 3, (self._itself, self._futile, self._on_futile)
            trick = self.dice.choice((*fork, *halt, self._of_the_past))
            self.world.counts[f"counterfeits {trick.__name__.strip('_')}"] += 1
            again = proposal.block.header.view < proposal.seal.view
            self._drawn[key] = proposal if again else trick(proposal)
        return self._drawn[key]

    def _beside(self, proposal: Proposal) -> Proposal:
        """A sibling of its parent, whose parent a made-up proof notarizes in the view before."""
        parent = self._header(proposal.block.header.parent)
        before = None if parent is None else self._header(parent.parent)
        if parent is None or before is None or before.epoch != parent.epoch:
            return proposal
        block = self._on(before, parent.parent, proposal)
        return self._sealed(proposal, block, self._made_up(proposal, parent.parent))

    def _itself(self, proposal: Proposal) -> Proposal:
        """A block at a height that is final, shown as its own parent."""
        old = self.disk.blocks[max(0, self.height - 1)].header
        block = self._on(old, old.hash(), proposal)
        return self._sealed(proposal, block, self._made_up(proposal, block.hash()))

    def _of_the_past(self, proposal: Proposal) -> Proposal:
        """A proof that names a final block, in a view below the last final one."""
        old = self.dice.choice(self.disk.blocks).header
        proof = self._made_up(proposal, old.hash(), view=1)
        return replace(proposal, parent_notarization=proof)

    def _futile(self, proposal: Proposal) -> Proposal:
        """An invalid block with an honest proof, to be named as a parent later."""
        header = replace(proposal.block.header, state_root=Hash32(self.dice.randbytes(32)))
        self._invalid = header.hash()
        return self._sealed(proposal, replace(proposal.block, header=header), None)

    def _on_futile(self, proposal: Proposal) -> Proposal:
        """A proof that names an invalid block: the one before, or a child of it."""
        invalid = self._invalid or Hash32(self.dice.randbytes(32))
        return replace(proposal, parent_notarization=self._made_up(proposal, invalid))

    def _made_up(self, proposal: Proposal, named: Hash32, view: int | None = None) -> Certificate:
        """A certificate of the view before, without one valid signature."""
        seal = proposal.seal
        epoch = self.dice.choice((seal.epoch, m.Epoch(seal.epoch + 1), m.Epoch(99)))
        kind = self.dice.choice((1, 1, 2, 3, 9))
        signers, signatures = self.dice.choice(((b"", ()), (b"\x01", (Signature(bytes(64)),))))
        at = m.View(seal.view - 1 if view is None else view)
        return Certificate(kind, epoch, at, named, signers, signatures)

    def _on(self, parent: m.Header, parent_hash: Hash32, proposal: Proposal) -> Block:
        header = proposal.block.header
        block = self.law.block(
            parent, parent_hash, header.view, header.proposer, (b"beside",), header.time_ms
        )
        same = {"epoch": header.epoch, "validators_hash": header.validators_hash}
        return replace(block, header=replace(block.header, **same))

    def _sealed(self, proposal: Proposal, block: Block, proof: Certificate | None) -> Proposal:
        seal = self.key.sign_proposal(proposal.seal.epoch, proposal.seal.view, block.hash())
        shown = proposal.parent_notarization if proof is None else proof
        return replace(proposal, seal=seal, block=block, parent_notarization=shown)


class Turncoat(Byzantine):
    """Finalizes and nullifies the same view: a finalize to some, a nullify to the others."""

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        out: list[m.Message] = []
        for message in messages:
            out.append(message)
            if not isinstance(message, Vote):
                continue
            if message.kind == VoteKind.NOTARIZE:
                kind = VoteKind.FINALIZE if (target + message.view) % 2 else VoteKind.NULLIFY
                named = message.block_hash if kind == VoteKind.FINALIZE else ZERO_HASH
                out.append(self.signed(kind, message, named))
            elif message.kind == VoteKind.FINALIZE and target % 2:
                out[-1] = self.signed(VoteKind.NULLIFY, message, ZERO_HASH)
        return tuple(out)


class Twin(Byzantine):
    """An honest program that runs twice with one key, each copy with a log of its own (Twins,
    arXiv 2004.10617): what the copies sign contradicts, though neither contradicts itself."""

    is_honest_program = True

    def bend(self, target: int, messages: tuple[m.Message, ...]) -> tuple[m.Message, ...]:
        for message in messages:
            signed = message.seal if isinstance(message, Proposal) else message
            if isinstance(signed, ProposalSeal | Vote) and signed.signer == self.key.public:
                kind = signed.kind if isinstance(signed, Vote) else 0
                thing = (self.seat, kind, signed.epoch, signed.view)
                first = self.world.said_twice.setdefault(thing, signed.block_hash)
                self.world.counts[self.label()] += first != signed.block_hash
        return messages


KINDS: tuple[type[Byzantine], ...] = (
    Silent,
    Equivocator,
    Splitter,
    Stale,
    Withholder,
    Late,
    Forger,
    Counterfeiter,
    Turncoat,
    Twin,
)


def _no_one() -> tuple[m.PubKey, Signature]:
    return m.PubKey(bytes(32)), Signature(bytes(64))
