"""A learning round in the state machine: every phase, every refusal that matters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain import hosting, phases, rounds
from chain.codec import encode
from chain.hashes import BLOB, DATASET, ZERO_HASH, Hash32
from chain.records import DeltaStatus, RoundPhase
from chain.rounds import tile_ranks
from chain.state import REWARD_POOL
from chain.transactions import (
    Attest,
    AttestKind,
    AuditReport,
    DatasetSubmit,
    DeltaReveal,
    JoinRound,
    Phase,
    TileUpdate,
    Transfer,
    Verdict,
)
from chain.types import BlobId, Grains, PubKey, ShardIndex
from tests.kit.machine import key
from tests.kit.round_run import DATASET_ID, LEARNERS, SALT, RoundRun
from wallet.keys import KeyPair, Keys


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
    total = run.round.tiles_open
    for subject, open_after in ((old, total), (new, total - 1)):
        said = Attest(AttestKind.UPDATE, 0, Hash32(subject), Verdict.YES, 0, ZERO_HASH)
        for validator in run.m.validators:
            assert run.send_duty(validator, said) in ("ok", "own_work")
        assert run.round.tiles_open == open_after
    run.until(RoundPhase.OPEN)
    assert run.m.state.account(first.account.public).merit == 0
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
    monkeypatch.setattr(hosting, "MAX_DATASETS", 8)
    run = RoundRun(trusted_merit=0, audit_patience={"blocks": 20, "ms": 30_000})

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
    assert submit(300) == "no_slot"  # its height has passed, not its time
    while run.m.height <= 34:
        run.m.block()
    assert submit(300) == "ok"
    assert len(list(run.m.tree.items(b"data/"))) == 8


def test_strangers_leave_slots_for_those_who_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "UNDECLARED_DELTAS", 1)
    monkeypatch.setattr(rounds, "MAX_DELTAS", 3)
    monkeypatch.setattr(phases, "MAX_DELTAS", 3)
    run = RoundRun()
    run.dataset()
    run.join("ann", "ben")
    run.until(RoundPhase.TRAIN)
    made = {n: run.manifest(n, proven=n in ("ann", "ben")) for n in (*LEARNERS, "zoe")}
    assert run.commit("eve", made["eve"]) == "ok"
    run.m.ok(encode(run.m.tx(key("eve"), Transfer(key("zoe").public, Grains(10**6)))))
    assert run.commit("zoe", made["zoe"]) == "no_slot"
    assert run.commit("ann", made["ann"]) == "ok"
    assert run.round.phase == RoundPhase.TRAIN
    assert run.commit("ben", made["ben"]) == "ok"
    assert run.round.phase == RoundPhase.REVEAL


def test_a_round_without_room_for_more_deltas_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MAX_DELTAS", 1)
    monkeypatch.setattr(phases, "MAX_DELTAS", 1)
    run = RoundRun()
    run.dataset()
    run.join("ann", "ben")
    run.until(RoundPhase.TRAIN)
    assert run.commit("ann", run.manifest("ann")) == "ok"
    assert run.round.phase == RoundPhase.REVEAL


def test_leaders_hear_when_a_deadline_is_what_a_phase_waits_for() -> None:
    """For the time that it has, but not for the heights: after a chain stood still they are all the
    time that is left."""
    run = RoundRun(join={"blocks": 4, "ms": 10**6})
    assert phases.ends_at(run.m.state) is None  # nobody has joined
    run.dataset()
    run.join("ann")
    deadline = run.round.deadline_height, run.round.deadline_ms
    while run.m.state.head.height + 1 < deadline[0]:
        assert phases.ends_at(run.m.state) is None
        run.m.block()
    assert phases.ends_at(run.m.state) == deadline[1]
    run = RoundRun()
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.aggregate()
    run.until(RoundPhase.SETTLE)
    assert run.round.loss_after == 0
    while run.m.state.head.height < run.round.deadline_height:
        run.m.block()
    assert run.round.phase == RoundPhase.SETTLE
    assert phases.ends_at(run.m.state) is None  # the loss is waited for
