"""Blocks of whatever anyone may sign, in every phase, while validators come, leave and are slashed:
execution never raises, grains stay, and rounds go on."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from chain import custody
from chain import records as r
from chain.address import peer_id_of
from chain.codec import decode, encode
from chain.custody_records import CustodyEvent, CustodyPhase
from chain.hashes import BLOB, ZERO_HASH, Hash32
from chain.records import RoundPhase
from chain.rounds import manifest_root, slots, tile_ranks
from chain.state import CUSTODY_BONDS
from chain.store_rows import tx_columns
from chain.transactions import (
    Attest,
    AttestKind,
    AuditReport,
    Bond,
    Custody,
    CustodyDispute,
    CustodyOpening,
    DatasetSubmit,
    DeltaCommit,
    DeltaReveal,
    JoinRound,
    LossSlice,
    Payload,
    Phase,
    PodlManifest,
    PolVote,
    SubmitEvidence,
    TileUpdate,
    Transaction,
    Transfer,
    Unbond,
    Unjail,
    delta_commitment,
    pol_commitment,
)
from chain.types import BlobId, Epoch, Grains, TxId, View, VoteKind
from consensus.evidence import double_vote
from tests.kit.machine import STAKE, Machine, key, keys
from tests.kit.round_run import SALT, RoundRun
from wallet.keys import Keys
from wallet.signing import sign_announce, sign_vote

NAMES = ("ann", "ben", "eve", "zoe")
WINDOW = {"blocks": 8, "ms": 3000}
EXTREMES = (0, 1, 2, 7, 2**31, 2**32 - 1)
LARGE = (0, 1, 10**6, STAKE // 3, STAKE, 2**63, 2**64 - 1)
LOSSES = (-(2**63), -1, 0, 1, 10**9, 2**63 - 1)


class Chaos(RoundRun):
    """Everyone does something right or something absurd, by the dice."""

    machine: type[Machine] = Machine

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        windows: dict[str, Any] = dict.fromkeys(
            ("join", "train", "reveal", "screen", "aggregate", "settle"), WINDOW
        )
        self.m = self.machine(
            funded=NAMES,
            epoch_blocks=8,
            unbonding_blocks=40,
            min_bond_grains=10**6,
            seed_blocks=2,
            custody_interval_blocks=8,
            custody_commit={"blocks": 3, "ms": 0},
            custody_open={"blocks": 5, "ms": 0},
            custody_bond_grains=10**6,
            **windows,
        )
        state = self.m.state
        for validator in self.m.validators:
            state.put_account(validator.account.public, balance=10**9)
        self.m.tree = state.commit()
        self.deltas, self.gains = {}, {}
        self.kept: dict[str, PodlManifest] = {}
        self.openings: dict[tuple[bytes, bytes], PolVote] = {}
        self.seen: set[int] = set()
        self.codes: set[tuple[str, str]] = set()  # kind of custody transaction and what came of it

    def pick(self, *options: Any) -> Any:
        return self.dice.choice(options)

    def play(self, blocks: int) -> None:
        total = self.m.grains()
        for _ in range(blocks):
            raws = [self.someones() for _ in range(self.dice.randrange(1, 9))]
            if self.dice.random() < 0.1:
                raws.append(self.dice.randbytes(self.dice.randrange(80)))
            for raw, receipt in zip(raws, self.m.block(*raws), strict=True):
                tx_columns(raw, receipt)
                self.note(raw, receipt.code)
            assert self.m.grains() == total
            bonds = sum(claim.bond for claim in custody.claims(self.m.state))
            assert self.m.state.account(CUSTODY_BONDS).balance == bonds
            self.seen.add(self.round.phase)
            open_ = sum(
                not slot.provisional for _, _, slot in slots(self.m.state, self.round.number)
            )
            assert open_ <= self.round.tiles_open or self.round.phase != RoundPhase.AGGREGATE

    def note(self, raw: bytes, code: str) -> None:
        if code != "bad_encoding":
            payload = decode(Transaction, raw).payload
            if isinstance(payload, Custody | CustodyDispute | CustodyOpening):
                self.codes.add((type(payload).__name__, code))

    def someones(self) -> bytes:
        phase, name, validator = self.round.phase, self.pick(*NAMES), self.pick(*self.m.validators)
        account = validator.account.public
        event = custody.current(self.m.state)
        if event is not None and event.members and self.dice.random() < 0.5:
            return self.custody_(event, name, validator)
        if self.dice.random() < 0.2:  # anything, at any time
            if self.dice.random() < 0.2:
                return encode(self.m.tx(validator.account, self.stake(validator)))
            if self.dice.random() < 0.5:
                fee = self.pick(1000, 1000, *LARGE)
                return encode(self.m.tx(key(name), self.absurd(name), fee=fee))
            duty = self.pick(self.vote_, self.attest_, self.update_, self.report)(validator)
        elif phase == RoundPhase.OPEN and self.dice.random() < 0.5:
            return encode(self.m.tx(key(name), JoinRound(self.round.number, ())))
        elif phase in (RoundPhase.TRAIN, RoundPhase.REVEAL):
            return encode(self.m.tx(key(name), self.learning(name)))
        elif phase == RoundPhase.OPEN:
            duty = self.report(validator)
        elif phase == RoundPhase.AGGREGATE:
            duty = self.pick(self.update_, self.attest_)(validator)
        else:
            duty = self.pick(self.vote_, self.vote_, self.attest_)(validator)
        return encode(self.m.tx(validator.node, duty, account=account))

    def learning(self, name: str) -> Payload:
        if self.round.phase == RoundPhase.TRAIN:
            if self.kept.get(name) is None or self.kept[name].round != self.round.number:
                return self.commit_(name, self.round.number)
            return self.kept[name]
        kept = self.kept.get(name) or self.fake(name)
        return self.pick(  # type: ignore[no-any-return]
            kept, DeltaReveal(self.deltas.get(name, TxId(ZERO_HASH)), SALT)
        )

    # --- strangers -------------------------------------------------------------------------

    def absurd(self, name: str) -> Payload:
        number = self.pick(self.round.number, self.round.number, *EXTREMES)
        return self.pick(  # type: ignore[no-any-return]
            lambda: JoinRound(number, ()),
            lambda: self.commit_(name, number),
            lambda: self.fake(name),
            lambda: DeltaReveal(self.deltas.get(name, TxId(ZERO_HASH)), SALT),
            lambda: Transfer(self.pick(*map(key, NAMES)).public, Grains(self.pick(*LARGE))),
            lambda: self.stake(keys(name)),
            lambda: self.dataset_(),
            lambda: self.evidence(),
        )()

    def fake(self, name: str) -> PodlManifest:
        proven = key(name).public in self.round.joined
        made = self.manifest(name, proven=proven)
        odd: dict[str, Any] = self.pick({"steps": 0}, {"segment_steps": 7}, {"proven": 255})
        return made if self.dice.random() < 0.8 else replace(made, **odd)

    def commit_(self, name: str, number: int) -> Payload:
        made = self.kept[name] = self.fake(name)
        opened = delta_commitment(
            self.m.genesis.chain_id,
            number,
            key(name).public,
            made.base_root,
            made.payload_root,
            SALT,
        )
        payload = DeltaCommit(
            number, made.base_root, opened, manifest_root(made), BlobId(BLOB.hash(b"b")), 2**26
        )
        self.deltas[name] = self.m.tx(key(name), payload).id()
        return payload

    def stake(self, owner: Keys) -> Payload:
        amount = Grains(self.pick(*LARGE))
        announced = sign_announce(
            owner,
            chain_id=self.m.genesis.chain_id,
            roles=2**32 - 1,
            capacity_tiles=0,
            node_id=self.pick("x", peer_id_of(owner.node.public)),
            addresses=(),
        )
        return self.pick(Bond(amount), Unbond(amount), Unjail(), announced)  # type: ignore[no-any-return]

    def dataset_(self) -> Payload:
        name = Hash32(bytes([self.dice.randrange(3)]) * 32)
        return DatasetSubmit(name, BlobId(ZERO_HASH), 2**64 - 1, 1000, 2**32 - 1, "CC0-1.0", "x")

    def evidence(self) -> Payload:
        guilty = self.pick(*self.m.validators[1:]).consensus
        epoch = Epoch(max(0, self.m.state.head.epoch - self.dice.randrange(6)))
        first, second = (
            sign_vote(
                guilty,
                chain_id=self.m.genesis.chain_id,
                kind=VoteKind.NOTARIZE,
                epoch=epoch,
                view=View(3),
                block_hash=Hash32(bytes([i]) * 32),
            )
            for i in (1, self.pick(1, 2, 2))
        )
        return SubmitEvidence(double_vote(first, second))

    # --- custody ---------------------------------------------------------------------------

    def custody_(self, event: CustodyEvent, name: str, validator: Keys) -> bytes:
        """Commitments, half of them wrong; disputes and openings of whatever was named."""
        account = validator.account.public
        suspect = self.pick(*event.members).account
        position = self.pick(*(*range(len(event.places)),) * 8, 200)
        seed = self.pick(*(event.seed,) * 9, ZERO_HASH)
        if event.phase == CustodyPhase.COMMIT:
            made = tuple(
                custody.commitment(account, event.seed, at, self.subtile(event, at))
                if self.dice.random() < 0.5
                else ZERO_HASH
                for at in custody.positions(event, custody.member_of(event, account) or 0)
            )
            return encode(self.m.tx(validator.node, Custody(seed, made), account=account))
        if self.dice.random() < 0.6:
            bond = Grains(self.pick(*(10**6,) * 9, *LARGE))
            doubt = CustodyDispute(seed, suspect, position, bond)
            owner = self.pick(validator.account, validator.account, key(name))
            return encode(self.m.tx(owner, doubt))
        data = self.subtile(event, position) if position < len(event.places) else b""
        shown = CustodyOpening(seed, suspect, position, (), self.pick(data, data, data, b"?"))
        if self.dice.random() < 0.3:
            return encode(self.m.tx(key(name), shown))
        return encode(self.m.tx(validator.node, shown, account=account))

    def subtile(self, event: CustodyEvent, position: int) -> bytes:
        """Of the genesis model: once a round has changed it, nobody here can show it."""
        return self.m.shards[event.places[position].shard]

    # --- validators ------------------------------------------------------------------------

    def report(self, _: Keys) -> Payload:
        name = Hash32(bytes([self.dice.randrange(3)]) * 32)
        return AuditReport(name, self.pick(1, 1, 1, 0, 9), 2**16 - 1, (), Hash32(b"r" * 32))

    def vote_(self, validator: Keys) -> Payload:
        delta = self.pick(TxId(ZERO_HASH), *(self.round.deltas * 4))
        number, account = self.round.number, validator.account.public
        usual = self.dice.random() < 0.8
        slices = tuple(
            LossSlice(i, 10**9, 10**9 - 10**7 + 1000 * i)
            if usual
            else LossSlice(i, self.pick(*LOSSES), self.pick(*LOSSES))
            for i in range(4 if usual else self.pick(0, 2, 4))
        )
        shown = self.openings.get((account, delta))
        if shown is None or self.round.phase != RoundPhase.SCREEN_REVEAL:
            verdict = 2
            if len(slices) > 1:
                verdict, *_ = self.m.rules.pol_verdict(slices, self.pick(True, False))
            shown = PolVote(number, delta, Phase.REVEAL, ZERO_HASH, SALT, verdict, slices)
        if self.round.phase == RoundPhase.SCREEN_REVEAL:
            return shown
        self.openings.setdefault((account, delta), shown)
        commitment = pol_commitment(self.m.genesis.chain_id, account, self.openings[account, delta])
        return PolVote(number, delta, Phase.COMMIT, commitment, ZERO_HASH, 0, ())

    def attest_(self, _: Keys) -> Payload:
        now = self.round
        updates = [slot.update for _, _, slot in slots(self.m.state, now.number)]
        subject = self.pick(
            ZERO_HASH, now.base_root, now.result_root, now.audited or ZERO_HASH, *(updates * 4)
        )
        kind = AttestKind.UPDATE if subject in updates else self.pick(*AttestKind, 9)
        evidence = self.pick(ZERO_HASH, now.holdout, now.holdout, Hash32(bytes([2]) * 32))
        number = self.pick(now.number, now.number, max(0, now.number - 1), 2**64 - 1)
        value = self.pick(*LOSSES)
        return Attest(kind, number, Hash32(subject), self.pick(1, 1, 1, 0, 2, 3), value, evidence)

    def update_(self, validator: Keys) -> Payload:
        rank = self.pick(self.round.rank, self.round.rank, 0, 1, 255)
        changes = []
        for shard in range(2):
            ranks = tile_ranks(self.m.state, self.m.rules, shard, 0)
            if rank < len(ranks) and ranks[rank] == validator.account.public:
                roots = self.m.state.need(r.TileRoots, r.tiles_key(shard)).roots
                changes.append(replace(self.change(shard), base_root=roots[0]))
        return TileUpdate(self.round.number, rank, self.round.base_root, tuple(changes))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_that_is_signed_stops_the_chain(seed: int) -> None:
    chaos = Chaos(seed)
    chaos.dataset()
    chaos.play(200)
    wanted = {RoundPhase.SCREEN_REVEAL, RoundPhase.AGGREGATE}
    for _ in range(8):  # how far the dice get a round depends on who is drawn
        if chaos.seen >= wanted:
            break
        chaos.play(100)
    assert chaos.round.number > 0
    assert chaos.seen >= wanted
    assert chaos.codes >= {(kind, "ok") for kind in ("Custody", "CustodyDispute", "CustodyOpening")}
