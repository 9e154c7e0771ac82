"""A learning round in the state machine: every phase, every refusal that matters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chain import datasets
from chain import records as r
from chain.codec import encode
from chain.hashes import BLOB, DATASET, ZERO_HASH, Hash32
from chain.records import DatasetStatus, DeltaStatus, RoundPhase
from chain.rounds import manifest_root, tile_ranks
from chain.state import REWARD_POOL
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
from chain.types import BlobId, PubKey, ShardIndex, TileIndex, TxId
from tests.kit.machine import Machine, key
from tiles import merkle
from tiles.aggregate import aggregate_tile
from wallet.keys import KeyPair, Keys

DATASET_ID = DATASET.hash(b"a dataset")
SALT = Hash32(b"s" * 32)
LEARNERS = ("ann", "ben", "eve")


class RoundRun:
    """Plays a round: each step is one call, so that a test can go wrong at any of them."""

    def __init__(self, **params: int) -> None:
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
        for validator in self.m.validators[:3]:
            assert self.send_duty(validator, report) == "ok"
        while self.m.state.dataset(DATASET_ID).status != DatasetStatus.ACTIVE:
            self.m.block()

    def join(self, *names: str) -> None:
        for name in names:
            assert self.send(name, JoinRound(self.round.number, ())) == "ok"

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
        shown = () if verdict == Verdict.UNAVAILABLE else slices
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


def test_a_whole_round_merges_what_helps_and_refuses_what_harms() -> None:
    run = RoundRun()
    run.to_reveal(ann=True, ben=True, eve=False)
    total = run.m.grains()
    pool = run.m.state.account(REWARD_POOL).balance
    run.screen({"ann": Verdict.YES, "ben": Verdict.YES, "eve": Verdict.NO})
    run.aggregate()
    run.until(RoundPhase.OPEN)
    done = run.m.state.round(0)
    assert done.phase == RoundPhase.DONE
    assert done.accepted == (run.deltas["ann"], run.deltas["ben"])
    assert run.m.state.delta(run.deltas["eve"]).status == DeltaStatus.HARMFUL
    assert run.m.state.delta(run.deltas["ann"]).status == DeltaStatus.MERGED
    assert done.result_root == run.m.state.model.root != done.base_root
    assert run.m.state.model.version == 1
    assert run.round.number == 1
    assert run.round.base_root == done.result_root
    assert run.m.state.account(REWARD_POOL).balance < pool
    assert run.m.grains() == total
    assert not list(run.m.tree.items(b"slot/"))


@pytest.mark.parametrize(
    ("gain", "status"),
    [
        (10**7 // 4 - 3000, DeltaStatus.UNHELPFUL),
        (10**7 // 4 + 4000, DeltaStatus.MERGED),
    ],
)
def test_without_proof_a_delta_must_gain_a_quarter_of_the_usual(
    gain: int, status: DeltaStatus
) -> None:
    run = RoundRun()
    run.to_reveal(ann=True, eve=False)
    run.gains["eve"] = gain
    run.screen({"ann": Verdict.YES, "eve": Verdict.YES})
    run.aggregate()
    run.until(RoundPhase.OPEN)
    assert run.m.state.delta(run.deltas["ann"]).status == DeltaStatus.MERGED
    assert run.m.state.delta(run.deltas["eve"]).status == status


def test_a_failed_replay_keeps_a_delta_out_whatever_the_jury_says() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    run.until(RoundPhase.SCREEN_COMMIT)
    run.audit(Verdict.NO)
    for validator in run.m.validators:
        assert run.vote(validator, "ann", Verdict.YES, Phase.COMMIT) == "ok"
    run.until(RoundPhase.SCREEN_REVEAL)
    for validator in run.m.validators:
        assert run.vote(validator, "ann", Verdict.YES, Phase.REVEAL) == "ok"
    run.until(RoundPhase.OPEN)
    assert run.m.state.delta(run.deltas["ann"]).status == DeltaStatus.MISMATCH
    assert run.m.state.model.version == 0


def test_what_is_not_revealed_is_unavailable() -> None:
    run = RoundRun()
    run.dataset()
    run.join("ann", "ben")
    run.until(RoundPhase.TRAIN)
    manifests = {name: run.manifest(name) for name in ("ann", "ben")}
    for name, manifest in manifests.items():
        assert run.commit(name, manifest) == "ok"
    run.until(RoundPhase.REVEAL)
    assert run.send("ann", DeltaReveal(run.deltas["ann"], SALT)) == "no_manifest"
    assert run.send("ann", manifests["ann"]) == "ok"
    assert run.send("ann", DeltaReveal(run.deltas["ann"], Hash32(bytes(32)))) == "bad_opening"
    assert run.send("ben", DeltaReveal(run.deltas["ann"], SALT)) == "not_yours"
    assert run.send("ann", DeltaReveal(run.deltas["ann"], SALT)) == "ok"
    run.until(RoundPhase.SCREEN_COMMIT)
    assert run.m.state.delta(run.deltas["ben"]).status == DeltaStatus.UNAVAILABLE


def test_a_stale_base_and_a_wrong_round_are_told() -> None:
    run = RoundRun()
    assert run.send("ann", JoinRound(0, ())) == "no_dataset"
    run.dataset()
    run.join("ann")
    assert run.send("ann", JoinRound(0, ())) == "duplicate"
    assert run.send("ben", JoinRound(7, ())) == "wrong_round"
    run.until(RoundPhase.TRAIN)
    stale = replace(run.manifest("ben", proven=False), base_root=Hash32(b"o" * 32))
    assert run.commit("ben", stale) == "stale_base"
    late = replace(run.manifest("ben"), seed=run.round.seed)
    assert run.commit("ben", late) == "ok"
    assert run.send("ben", late) == "not_joined"


def test_manifests_are_chained() -> None:
    run = RoundRun()
    run.dataset()
    run.join("ann")
    run.until(RoundPhase.TRAIN)
    broken = replace(run.manifest("ann"), residual_before=Hash32(b"q" * 32))
    assert run.commit("ann", broken) == "ok"
    assert run.send("ann", broken) == "broken_chain"


@pytest.mark.parametrize("spoil", ["weights", "gram", "base", "sender"])
def test_an_update_that_cannot_be_right_is_refused(spoil: str) -> None:
    run = RoundRun()
    run.to_reveal(ann=True, ben=True)
    run.screen({"ann": Verdict.YES, "ben": Verdict.YES})
    run.until(RoundPhase.AGGREGATE)
    primary, other = primaries(run)
    made = run.update(primary)
    assert made is not None
    change = made[0].changes[0]
    spoiled = {
        "weights": replace(change, weights=(1, 2)),
        "gram": replace(change, gram=change.gram[:-16]),
        "base": replace(change, base_root=Hash32(b"b" * 32)),
        "sender": change,
    }[spoil]
    sender = other if spoil == "sender" else primary
    update = replace(made[0], changes=(spoiled,))
    wanted = {"base": "stale_base", "sender": "not_primary"}.get(spoil, "bad_witness")
    assert run.send_duty(sender, update) == wanted


def primaries(run: RoundRun) -> tuple[Keys, Keys]:
    """The primary of shard 0 and a validator that is primary of nothing there."""
    ranks = tile_ranks(run.m.state, run.m.rules, 0, 0)
    by_account = {v.account.public: v for v in run.m.validators}
    return by_account[ranks[0]], by_account[ranks[1]]


def test_a_silent_primary_is_followed_by_the_next_rank() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.AGGREGATE)
    _, second = primaries(run)
    made = run.update(second, rank=1)
    assert made is not None
    assert run.send_duty(second, made[0]) == "not_your_turn"
    for _ in range(200):
        if run.round.rank == 1:
            break
        run.m.block()
    made = run.update(second, rank=1)
    assert made is not None
    assert run.send_duty(second, made[0]) == "ok"
    run.until(RoundPhase.OPEN)
    assert run.m.state.round(0).phase == RoundPhase.DONE


def test_an_unattested_update_never_takes_effect() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.AGGREGATE)
    primary, _ = primaries(run)
    made = run.update(primary)
    assert made is not None
    assert run.send_duty(primary, made[0]) == "ok"
    own = Attest(AttestKind.UPDATE, 0, Hash32(made[1]), Verdict.YES, 0, ZERO_HASH)
    assert run.send_duty(primary, own) == "own_work"
    run.until(RoundPhase.OPEN)
    assert run.m.state.model.version == 0
    assert run.m.state.delta(run.deltas["ann"]).status == DeltaStatus.ACCEPTED


def test_strangers_have_no_duties() -> None:
    run = RoundRun()
    run.dataset()
    stranger: KeyPair = key("ann")
    said = AuditReport(DATASET_ID, Verdict.YES, 90, (), ZERO_HASH)
    assert run.send("ann", said) == "not_a_validator"
    validator = run.m.validators[0]
    forged = run.m.tx(stranger, said, account=PubKey(validator.account.public))
    (receipt,) = run.m.block(encode(forged))
    assert receipt.code == "bad_signer"


# --- what hostile or slow participants might try ---------------------------------------------


@pytest.mark.parametrize("replay", [Verdict.YES, Verdict.UNAVAILABLE])
def test_an_audited_delta_that_nobody_could_replay_has_proven_nothing(replay: Verdict) -> None:
    """A noise maker who claims a proof and serves no state would share every reward."""
    run = RoundRun()
    run.to_reveal(ann=True, ben=True, eve=True)
    run.until(RoundPhase.SCREEN_COMMIT)
    audited = next(n for n, d in run.deltas.items() if d == run.round.audited)
    run.gains[audited] = 10**5  # a hundredth of what the others gain
    run.screen(dict.fromkeys(run.deltas, Verdict.YES), replay)
    run.aggregate()
    run.until(RoundPhase.OPEN)
    usual, idle = DeltaStatus.MERGED, DeltaStatus.UNHELPFUL
    for name, delta in run.deltas.items():
        wanted = idle if name == audited and replay != Verdict.YES else usual
        assert run.m.state.delta(delta).status == wanted


def test_a_useful_delta_that_nobody_could_replay_still_counts() -> None:
    run = RoundRun()
    run.to_reveal(ann=True, ben=True)
    run.screen({"ann": Verdict.YES, "ben": Verdict.YES}, Verdict.UNAVAILABLE)
    run.aggregate()
    run.until(RoundPhase.OPEN)
    for delta in run.deltas.values():
        assert run.m.state.delta(delta).status == DeltaStatus.MERGED


def test_a_manifest_is_no_place_to_store_things_or_to_hide() -> None:
    run = RoundRun()
    run.dataset()
    run.join("ann")
    run.until(RoundPhase.TRAIN)
    right = run.manifest("ann")
    for name, spoiled in (
        ("ben", replace(run.manifest("ben", proven=False), shards=(ShardIndex(2),))),
        ("ann", replace(right, shards=(ShardIndex(0),) * 3)),
    ):
        assert run.commit(name, spoiled) == "ok"
        assert run.send(name, spoiled) == "bad_manifest"
    other = RoundRun()
    other.dataset()
    other.join("ann")
    other.until(RoundPhase.TRAIN)
    hidden = replace(other.manifest("ann"), state_hashes=(Hash32(ZERO_HASH),) * 5)
    assert other.commit("ann", hidden) == "ok"
    assert other.send("ann", hidden) == "bad_manifest"


def test_a_tile_stands_once_in_an_update() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.AGGREGATE)
    primary, _ = primaries(run)
    made = run.update(primary)
    assert made is not None
    change = made[0].changes[0]
    twice = replace(made[0], changes=(change, replace(change, new_root=Hash32(b"n" * 32))))
    assert run.send_duty(primary, twice) == "duplicate"


def test_late_approval_of_a_replaced_update_changes_nothing() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.AGGREGATE)
    first, second = primaries(run)
    update = TileUpdate(0, 0, run.round.base_root, (run.change(0),))
    old = run.m.tx(first.node, update, account=first.account.public).id()
    assert run.send_duty(first, update) == "ok"
    while run.round.rank == 0:
        run.m.block()
    update = TileUpdate(0, 1, run.round.base_root, (run.change(0),))
    new = run.m.tx(second.node, update, account=second.account.public).id()
    assert run.send_duty(second, update) == "ok"
    total, merit = run.round.tiles_open, run.m.state.account(first.account.public).merit
    for subject, open_after in ((old, total), (new, total - 1)):
        said = Attest(AttestKind.UPDATE, 0, Hash32(subject), Verdict.YES, 0, ZERO_HASH)
        for validator in run.m.validators:
            assert run.send_duty(validator, said) in ("ok", "own_work")
        assert run.round.tiles_open == open_after
    assert run.m.state.account(first.account.public).merit == merit
    assert run.m.state.account(second.account.public).merit == 1


def measure(run: RoundRun, number: int, root: Hash32, value: int) -> None:
    holdout = run.m.state.round(number).holdout
    said = Attest(AttestKind.EVAL, number, root, Verdict.YES, value, holdout)
    for validator in run.m.validators:
        assert run.send_duty(validator, said) == "ok"


def test_a_round_that_changed_nothing_waits_for_no_loss() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    measure(run, 0, run.round.base_root, 7 * 10**8)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.SETTLE)
    assert run.round.loss_before == run.round.loss_after == 7 * 10**8
    run.until(RoundPhase.OPEN, most=run.m.genesis.params.settle.blocks + 1)


def test_a_loss_that_comes_late_is_noted_in_both_rounds() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.aggregate()
    run.until(RoundPhase.OPEN)
    run.join("ann")
    run.until(RoundPhase.TRAIN)
    measure(run, 0, run.m.state.model.root, 6 * 10**8)
    assert run.m.state.round(0).loss_after == run.round.loss_before == 6 * 10**8


def test_nothing_is_measured_before_there_is_a_holdout_and_a_result() -> None:
    run = RoundRun()
    said = Attest(AttestKind.EVAL, 0, run.round.base_root, Verdict.YES, 5, ZERO_HASH)
    assert run.send_duty(run.m.validators[0], said) == "unknown_holdout"
    run.dataset()
    run.join("ann")
    run.until(RoundPhase.TRAIN)
    nothing = replace(said, subject=ZERO_HASH, evidence=run.round.holdout)
    assert run.send_duty(run.m.validators[0], nothing) == "unknown_model"


def test_names_of_nothing_do_not_keep_datasets_out_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets, "MAX_DATASETS", 8)
    monkeypatch.setattr(datasets, "AUDIT_PATIENCE_BLOCKS", 20)
    run = RoundRun()

    def submit(i: int) -> str:
        name = DATASET.hash(bytes([i % 256, i // 256]))
        blob = BlobId(BLOB.hash(b"m"))
        return run.send("ann", DatasetSubmit(name, blob, 10, 1000, 3, "CC0-1.0", str(i)))

    for i in range(8):
        assert submit(i) == "ok"
    assert submit(300) == "no_slot"
    report = AuditReport(DATASET.hash(bytes([5, 0])), Verdict.NO, 0, (64,), Hash32(b"r" * 32))
    for validator in run.m.validators[:3]:
        assert run.send_duty(validator, report) == "ok"
    assert submit(5) == "ok"  # who names another's dataset falsely does not block it
    assert submit(300) == "no_slot"
    while run.m.height <= 21:
        run.m.block()
    assert submit(300) == "ok"
    assert len(list(run.m.tree.items(b"data/"))) == 8
