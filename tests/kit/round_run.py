"""Plays a learning round in the state machine, step by step, each of which a test may spoil."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from chain import records as r
from chain.codec import encode
from chain.hashes import BLOB, DATASET, ZERO_HASH, Hash32
from chain.records import DatasetStatus, RoundPhase
from chain.rounds import manifest_root, tile_ranks
from chain.transactions import (
    Attest,
    AttestKind,
    AuditReport,
    DatasetSubmit,
    DeltaCommit,
    DeltaReveal,
    JoinRound,
    LossSlice,
    Payload,
    Phase,
    PodlManifest,
    PolVote,
    TileChange,
    TileUpdate,
    Verdict,
    delta_commitment,
    pol_commitment,
)
from chain.types import BlobId, ShardIndex, TileIndex, TxId
from tests.kit.machine import Machine, key
from tiles import merkle
from tiles.aggregate import aggregate_tile
from wallet.keys import Keys

DATASET_ID = DATASET.hash(b"a dataset")
SALT = Hash32(b"s" * 32)
LEARNERS = ("ann", "ben", "eve")


class RoundRun:
    """Plays a round: each step is one call, so that a test can go wrong at any of them."""

    def __init__(self, **params: Any) -> None:
        self.m = Machine(funded=LEARNERS, **params)
        self.deltas: dict[str, TxId] = {}
        self.gains: dict[str, int] = {}  # nano-nats, other than the usual of a verdict

    @property
    def round(self) -> r.RoundRecord:
        return self.m.state.round()

    def send(self, name: str, payload: Payload) -> str:
        (receipt,) = self.m.block(encode(self.m.tx(key(name), payload)))
        return receipt.code

    def send_duty(self, validator: Keys, payload: Payload) -> str:
        (receipt,) = self.m.block(self.m.duty(validator, payload))
        return receipt.code

    def until(self, phase: RoundPhase, most: int = 400) -> None:
        for _ in range(most):
            if self.round.phase == phase:
                return
            self.m.block()
        raise AssertionError(f"still in {RoundPhase(self.round.phase).name} after {most} blocks")

    def dataset(self) -> None:
        submit = DatasetSubmit(
            DATASET_ID, BlobId(BLOB.hash(b"m")), 10, 1000, 3, "CC0-1.0", "a dataset"
        )
        assert self.send("ann", submit) == "ok"
        report = AuditReport(DATASET_ID, Verdict.YES, 90, (), Hash32(b"r" * 32))
        for validator in self.m.validators[: 2 * len(self.m.validators) // 3 + 1]:
            assert self.send_duty(validator, report) == "ok"
        while self.m.state.dataset(DATASET_ID).status != DatasetStatus.ACTIVE:
            self.m.block()

    def join(self, *names: str, held: tuple[ShardIndex, ...] = ()) -> None:
        for name in names:
            assert self.send(name, JoinRound(self.round.number, held)) == "ok"

    def merit(self, name: str) -> int:
        return self.m.state.account(key(name).public).merit

    def manifest(self, name: str, *, proven: bool = True) -> PodlManifest:
        current = self.round
        hashes = tuple(Hash32(bytes([i + 1]) * 32) for i in range(5)) if proven else ()
        return PodlManifest(
            current.number,
            key(name).public,
            current.base_root,
            int(proven),
            current.datasets if proven else (),
            current.seed if proven else ZERO_HASH,
            "test",
            40 if proven else 0,
            10 if proven else 0,
            ZERO_HASH,
            hashes,
            ZERO_HASH,
            Hash32(name.encode().ljust(32, b"r")) if proven else ZERO_HASH,
            ZERO_HASH,
            Hash32(name.encode().ljust(32, b"o")) if proven else ZERO_HASH,
            Hash32(name.encode().ljust(32, b"p")),
            64,
            (),
        )

    def commit(self, name: str, manifest: PodlManifest) -> str:
        current = self.round
        commitment = delta_commitment(
            self.m.genesis.chain_id,
            current.number,
            key(name).public,
            manifest.base_root,
            manifest.payload_root,
            SALT,
        )
        payload = DeltaCommit(
            current.number,
            manifest.base_root,
            commitment,
            manifest_root(manifest),
            BlobId(BLOB.hash(name.encode())),
            100,
        )
        tx = self.m.tx(key(name), payload)
        self.deltas[name] = tx.id()
        (receipt,) = self.m.block(encode(tx))
        return receipt.code

    def vote(self, validator: Keys, name: str, verdict: Verdict, phase: Phase) -> str:
        gain = {Verdict.YES: 10**7, Verdict.NO: -(10**7)}.get(verdict, 0)
        gain = self.gains.get(name, gain)
        slices = tuple(LossSlice(i, 10**9, 10**9 - gain + i * 1000) for i in range(8))
        shown = () if verdict in (Verdict.UNAVAILABLE, Verdict.COPY) else slices
        opened = PolVote(
            self.round.number, self.deltas[name], Phase.REVEAL, ZERO_HASH, SALT, verdict, shown
        )
        account = validator.account.public
        commitment = pol_commitment(self.m.genesis.chain_id, account, opened)
        if phase == Phase.COMMIT:
            opened = replace(
                opened,
                phase=Phase.COMMIT,
                commitment=commitment,
                salt=ZERO_HASH,
                slices=(),
                verdict=0,
            )
        return self.send_duty(validator, opened)

    def screen(self, verdicts: dict[str, Verdict], replay: Verdict = Verdict.YES) -> None:
        for phase, state in (
            (Phase.COMMIT, RoundPhase.SCREEN_COMMIT),
            (Phase.REVEAL, RoundPhase.SCREEN_REVEAL),
        ):
            self.until(state)
            for validator in self.m.validators:
                if validator.account.public not in self.round.jurors:
                    continue
                for name, verdict in verdicts.items():
                    assert self.vote(validator, name, verdict, phase) == "ok"
            if phase == Phase.COMMIT:
                self.audit(replay)

    def audit(self, verdict: Verdict) -> None:
        current = self.round
        if current.audited is None:
            return
        record = self.m.state.delta(current.audited)
        assert record.manifest is not None
        right = record.manifest.state_hashes[current.audit_segment + 1]
        got = right if verdict == Verdict.YES else Hash32(b"x" * 32)
        for validator in self.m.validators:
            if validator.account.public in current.auditors:
                said = Attest(
                    AttestKind.REPLAY, current.number, Hash32(current.audited), verdict, 0, got
                )
                assert self.send_duty(validator, said) == "ok"

    def update(self, validator: Keys, rank: int = 0) -> tuple[TileUpdate, TxId] | None:
        """This validator's honest update of the tiles it has this rank for, not sent."""
        changes = []
        for shard in range(2):
            ranks = tile_ranks(self.m.state, self.m.rules, shard, 0)
            if ranks[rank] == validator.account.public:
                changes.append(self.change(shard))
        if not changes:
            return None
        update = TileUpdate(self.round.number, rank, self.round.base_root, tuple(changes))
        tx = self.m.tx(validator.node, update, account=validator.account.public)
        return update, tx.id()

    def change(self, shard: int) -> TileChange:
        base = self.m.shards[shard]
        deltas = [
            np.full(len(base) // 4, 100 + i, dtype=np.int64)
            for i, _ in enumerate(self.round.accepted)
        ]
        done = aggregate_tile(base, deltas)
        return TileChange(
            ShardIndex(shard),
            TileIndex(0),
            merkle.tile_root(base),
            done.new_root,
            done.gram_root,
            done.gram_total_bytes,
            done.weights,
        )

    def aggregate(self) -> None:
        self.until(RoundPhase.AGGREGATE)
        for primary in self.m.validators:
            made = self.update(primary)
            if made is None:
                continue
            update, update_id = made
            assert self.send_duty(primary, update) == "ok"
            for other in self.m.validators:
                if other is not primary:
                    said = Attest(
                        AttestKind.UPDATE,
                        update.round,
                        Hash32(update_id),
                        Verdict.YES,
                        0,
                        ZERO_HASH,
                    )
                    code = self.send_duty(other, said)
                    assert code in ("ok", "wrong_phase")

    def to_reveal(self, **names: bool) -> None:
        """Dataset, join, commit, manifest, reveal; names say whether a delta is proven."""
        self.dataset()
        self.join(*(n for n, proven in names.items() if proven))
        self.until(RoundPhase.TRAIN)
        manifests = {n: self.manifest(n, proven=proven) for n, proven in names.items()}
        for name in sorted(names, key=lambda n: names[n]):  # unproven first: joined close the phase
            assert self.commit(name, manifests[name]) == "ok"
        self.until(RoundPhase.REVEAL)
        for name, manifest in manifests.items():
            assert self.send(name, manifest) == "ok"
            assert self.send(name, DeltaReveal(self.deltas[name], SALT)) == "ok"
