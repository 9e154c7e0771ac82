"""Transactions and evidence of every kind, with contents that are nearly right: what the fields say
is drawn from what stands in the state, from the edges of their types, and from nothing at all."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any, get_args

import msgpack

from chain import records as r
from chain.certificates import assemble
from chain.codec import encode
from chain.hashes import ZERO_HASH, Hash32
from chain.params import Params
from chain.plain import pack
from chain.transactions import LatencyReport, Payload, Transaction
from chain.tree import StateTree
from chain.types import (
    Certificate,
    Epoch,
    EvidenceItem,
    Grains,
    ValidatorSet,
    View,
    Vote,
    VoteKind,
)
from consensus.evidence import conflicting_certificates, double_proposal, double_vote
from tests.kit.machine import Machine
from tests.reference.codec_ref import Reference
from wallet.keys import KeyPair, Keys
from wallet.signing import sign_proposal, sign_vote

REF = Reference()
PAYLOADS: tuple[type, ...] = get_args(Payload)
EDGES = (0, 1, 2, 3, 7, 8, 255, 256, 10**6, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
GAIN = 10**9
TEXTS = ("", "x", "CC0-1.0", "a title", *(name for name in Params.__dataclass_fields__))


class Wild:
    """Draws from the state of a machine; `look` once a block."""

    def __init__(self, machine: Machine, dice: Random) -> None:
        self.m, self.dice = machine, dice
        self._hashes: list[bytes] = [ZERO_HASH]
        self._tree: StateTree | None = None
        self.numbers: list[int] = list(EDGES)

    def look(self) -> None:
        """Take up what the state holds: byte strings of 32, and numbers."""
        if self._tree is self.m.tree:
            return
        self._tree, state = self.m.tree, self.m.state
        found = {ZERO_HASH, self.m.genesis.chain_id, self.m.parent}
        numbers = {*EDGES, state.head.height, state.head.epoch, state.head.round}
        for key, raw in self.m.tree.items(b""):
            if key[:5] not in (b"epch/", b"head") and self.dice.random() < 0.5:
                collect(found, numbers, msgpack.unpackb(raw))
            if len(key) >= 37:
                found.add(key[5:37])
        self._hashes = sorted(found)
        self.numbers = sorted(numbers)

    def payload(self) -> Any:
        """Of any kind that there is, each as often."""
        kind: type = self.dice.choice(PAYLOADS)
        if kind is LatencyReport and self.dice.random() < 0.7:
            epoch = self.m.state.head.epoch
            count = len(self.members(epoch).members)
            return LatencyReport(epoch, bytes(self.dice.randrange(5) for _ in range(count)))
        return REF.build(("struct", kind), self.plain(("struct", kind)))

    def plain(self, kind: tuple[Any, ...], room: int = 3) -> Any:
        dice = self.dice
        match kind:
            case ("uint", bits):
                number = dice.choice(self.numbers)
                return number if number < 1 << bits else dice.choice((0, 1, 2, (1 << bits) - 1))
            case ("int", bits):
                number = dice.choice((0, 1, -1, GAIN, -GAIN, dice.choice(self.numbers)))
                return min(number, (1 << bits - 1) - 1)
            case ("bytes", 32, 32):
                return dice.choice(self._hashes) if dice.random() < 0.9 else dice.randbytes(32)
            case ("bytes", least, most):
                if dice.random() < 0.2:
                    return pack(dice.choice(self.numbers))[:most].ljust(least, b"\0")
                return dice.randbytes(dice.randint(least, min(most, least + 40)))
            case ("text", most):
                return dice.choice([t for t in TEXTS if len(t) <= most])
            case ("seq", item, most):
                count = min(most, dice.choice((0, 1, 1, 2, 3))) if room > 0 else 0
                return [self.plain(item, room - 1) for _ in range(count)]
            case ("option", item):
                return [self.plain(item, room - 1)] if dice.random() < 0.5 else []
            case ("union", classes):
                return self.plain(("struct", dice.choice(classes)), room - 1)
        tag, fields = REF.tags[kind[1]], REF.fields(kind[1])
        return [tag, *(self.plain(field, room - 1) for _, field in fields)]

    # --- evidence ----------------------------------------------------------------------------

    def evidence(self) -> EvidenceItem:
        """A pair that convicts, unless the dice spoil it."""
        dice = self.dice
        epoch = Epoch(max(0, self.m.state.head.epoch + dice.randrange(-4, 2)))
        view, keys = View(dice.randrange(1, 4)), dice.choice(self.m.validators)
        one, two = Hash32(b"1" * 32), Hash32(dice.choice((b"1", b"2", b"2", b"2")) * 32)
        kind = dice.choice((VoteKind.NOTARIZE, VoteKind.FINALIZE))
        match dice.randrange(4):
            case 0:
                seals = [
                    sign_proposal(
                        keys.consensus,
                        chain_id=self.m.genesis.chain_id,
                        epoch=epoch,
                        view=view,
                        block_hash=block,
                    )
                    for block in (one, two)
                ]
                return double_proposal(*seals)
            case 1:
                members = self.members(epoch)
                made = [self.certificate(members, kind, epoch, view, b) for b in (one, two)]
                return conflicting_certificates(*made)
            case 2:
                second = self.vote(keys.consensus, VoteKind.NULLIFY, epoch, view, ZERO_HASH)
            case _:
                second = self.vote(keys.consensus, kind, epoch, view, two)
        item = double_vote(self.vote(keys.consensus, kind, epoch, view, one), second)
        if dice.random() < 0.2:
            return replace(item, first=replace(item.first, signature=item.second.signature))
        return item

    def vote(self, key: KeyPair, kind: VoteKind, epoch: Epoch, view: View, block: Hash32) -> Vote:
        chain_id = self.m.genesis.chain_id
        return sign_vote(
            key, chain_id=chain_id, kind=kind, epoch=epoch, view=view, block_hash=block
        )

    def members(self, epoch: Epoch) -> ValidatorSet:
        state = self.m.state
        record = state.get(r.EpochRecord, r.epoch_key(epoch))
        return (record or state.epoch(state.head.epoch)).validators

    def certificate(
        self, members: ValidatorSet, kind: VoteKind, epoch: Epoch, view: View, block: Hash32
    ) -> Certificate:
        """By those of a set whose keys are here, now and then by one less."""
        by_key = {v.consensus.public: v.consensus for v in self.m.validators}
        holders = [by_key[v.consensus_key] for v in members.members if v.consensus_key in by_key]
        if not holders:
            return Certificate(kind, epoch, view, block, b"", ())
        signing = holders[: max(1, len(holders) - self.dice.randrange(2))]
        return assemble(members, [self.vote(k, kind, epoch, view, block) for k in signing])

    # --- transactions ------------------------------------------------------------------------

    def transaction(self, payload: Any, owner: KeyPair | Keys) -> bytes:
        """Signed and paid for as it should be, or nearly."""
        dice = self.dice
        account = owner.account if isinstance(owner, Keys) else owner
        duty = isinstance(owner, Keys) and dice.random() < 0.6
        state = self.m.state
        nonce = state.account(account.public).nonce
        if dice.random() < 0.1:
            nonce = dice.choice((nonce + 1, max(0, nonce - 1), 2**64 - 1, 0))
        if duty:
            tx = self.m.tx(owner.node, payload, nonce=nonce, account=account.public)  # type: ignore[union-attr]
        else:
            fee = dice.choice((1000, 1000, 8000, 8000, 8000, dice.choice(self.numbers)))
            tx = self.m.tx(account, payload, nonce=nonce, fee=fee, stamp=dice.random() < 0.05)
        return self.spoiled(tx) if dice.random() < 0.1 else encode(tx)

    def spoiled(self, tx: Transaction) -> bytes:
        dice, other = self.dice, dice_key(self.dice, self.m)
        match dice.randrange(6):
            case 0:
                return encode(replace(tx, signature=replace_byte(dice, tx.signature)))
            case 1:
                return encode(replace(tx, sender=other.public))
            case 2:
                return encode(replace(tx, signer=other.public))
            case 3:
                return encode(replace(tx, fee=Grains(dice.choice(self.numbers))))
            case 4:
                return replace_byte(dice, encode(tx))
            case _:
                return encode(tx)[: dice.randrange(200)]


def dice_key(dice: Random, machine: Machine) -> KeyPair:
    keys: Keys = dice.choice(machine.validators)
    return dice.choice((keys.account, keys.node, keys.consensus))


def replace_byte(dice: Random, data: bytes) -> Any:
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def collect(found: set[bytes], numbers: set[int], plain: Any) -> None:
    """The byte strings of 32 and the numbers in a record, as MessagePack gives it."""
    if isinstance(plain, list):
        for item in plain[1:]:
            collect(found, numbers, item)
    elif isinstance(plain, int):
        numbers.add(abs(plain))
    elif isinstance(plain, bytes) and len(plain) == 32:
        found.add(plain)
