"""What a round pays, to whom, and what it costs to let one down (docs/spec/rounds.md)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.hashes import ZERO_HASH, Hash32
from chain.phases import NEWCOMER_PATIENCE
from chain.records import DeltaStatus, LearnerRecord, RoundPhase, learner_key
from chain.rewards import MISMATCH_MERIT
from chain.rounds import tile_ranks
from chain.transactions import (
    Attest,
    AttestKind,
    DeltaReveal,
    JoinRound,
    LossSlice,
    Phase,
    PolVote,
    TileUpdate,
    Verdict,
    pol_commitment,
)
from chain.types import ShardIndex
from tests.kit.machine import key
from tests.kit.round_run import SALT, RoundRun

REWARD = 90_000_000
STEP_MS = 1000  # of a block of the kit's
SPREAD = 3500  # what the kit's slices take from a gain, in the mean
NONE = SPREAD  # no gain at all: neither harmful nor of any use


def played(gains: dict[str, int], replay: Verdict = Verdict.YES) -> RoundRun:
    """A round in which everybody claims a proof; jurors measure these gains."""
    run = RoundRun(round_reward_grains=REWARD)
    run.to_reveal(**dict.fromkeys(gains, True))
    run.gains.update(gains)
    run.screen(dict.fromkeys(gains, Verdict.YES), replay)
    finish(run)
    return run


def finish(run: RoundRun) -> None:
    if run.round.phase != RoundPhase.OPEN:
        run.m.block()
    if run.round.phase == RoundPhase.AGGREGATE:
        run.aggregate()
    run.until(RoundPhase.OPEN)


def give_merit(run: RoundRun, merit: int, *names: str) -> None:
    state = run.m.state
    for name in names:
        state.put_account(key(name).public, merit=merit)
    run.m.tree = state.commit()


def rewards(run: RoundRun) -> dict[str, int]:
    return {name: run.m.state.delta(delta).reward for name, delta in run.deltas.items()}


def test_a_reward_follows_what_a_delta_gains() -> None:
    run = played({"ann": 2 * 10**7 + SPREAD, "ben": 10**7 + SPREAD})
    assert rewards(run) == {"ann": REWARD * 2 // 3, "ben": REWARD // 3}
    assert run.merit("ann") == run.merit("ben") == 1


def test_a_long_delta_is_paid_twice_the_usual_at_most() -> None:
    """A fifth of three times a delta gains nearly three times as much; merged, it is as long as the
    others."""
    gains = {"ann": 10**7 + SPREAD, "ben": 10**7 + SPREAD, "eve": 10**9 + SPREAD}
    assert rewards(played(gains)) == {"ann": REWARD // 4, "ben": REWARD // 4, "eve": REWARD // 2}


def test_what_lowers_no_loss_earns_nothing() -> None:
    """A payload of nothing is not harmful, so with an invented proof it may be merged."""
    run = RoundRun(round_reward_grains=REWARD)
    run.to_reveal(ann=True, ben=True, eve=True)
    run.until(RoundPhase.SCREEN_COMMIT)
    idle = next(n for n, d in run.deltas.items() if d != run.round.audited)
    run.gains[idle] = NONE
    run.screen(dict.fromkeys(run.deltas, Verdict.YES))
    finish(run)
    assert run.m.state.delta(run.deltas[idle]).status == DeltaStatus.MERGED
    paid = rewards(run)
    assert (paid.pop(idle), run.merit(idle)) == (0, 0)
    assert sorted(paid.values()) == [REWARD // 2] * 2


@pytest.mark.parametrize("gain", [NONE, SPREAD + 500])
def test_who_is_alone_and_serves_no_state_has_to_help(gain: int) -> None:
    """Its jurors asked only whether it harms; once nothing is proven, that is not enough."""
    run = played({"eve": gain}, Verdict.UNAVAILABLE)
    assert run.m.state.delta(run.deltas["eve"]).status == DeltaStatus.UNHELPFUL
    assert rewards(run) == {"eve": 0}


def test_a_copy_is_left_out() -> None:
    run = RoundRun(round_reward_grains=REWARD)
    run.to_reveal(ann=True, ben=True, eve=False)
    run.screen({"ann": Verdict.YES, "ben": Verdict.YES, "eve": Verdict.COPY})
    finish(run)
    assert run.m.state.delta(run.deltas["eve"]).status == DeltaStatus.COPY
    assert rewards(run) == {"ann": REWARD // 2, "ben": REWARD // 2, "eve": 0}


def test_who_calls_a_copy_shows_no_losses() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    run.until(RoundPhase.SCREEN_COMMIT)
    juror = next(v for v in run.m.validators if v.account.public in run.round.jurors)
    slices = tuple(LossSlice(i, 2, 1) for i in range(8))
    delta = run.deltas["ann"]
    opened = PolVote(0, delta, Phase.REVEAL, ZERO_HASH, SALT, Verdict.COPY, slices)
    commitment = pol_commitment(run.m.genesis.chain_id, juror.account.public, opened)
    sealed = PolVote(0, delta, Phase.COMMIT, commitment, ZERO_HASH, 0, ())
    assert run.send_duty(juror, sealed) == "ok"
    run.until(RoundPhase.SCREEN_REVEAL)
    assert run.send_duty(juror, opened) == "bad_verdict"


def test_a_false_training_costs_merit() -> None:
    run = RoundRun()
    give_merit(run, MISMATCH_MERIT + 3, "eve")
    run.to_reveal(eve=True)
    run.screen({"eve": Verdict.YES}, Verdict.NO)
    finish(run)
    assert run.m.state.delta(run.deltas["eve"]).status == DeltaStatus.MISMATCH
    assert run.merit("eve") == 3
    chained = run.m.state.get(LearnerRecord, learner_key(key("eve").public))
    assert chained is None  # the next one begins at zero


def test_who_declares_and_brings_nothing_loses_merit() -> None:
    run = RoundRun()
    run.dataset()
    give_merit(run, 2, "ann", "ben")
    run.join("ann", "ben", "eve")
    run.until(RoundPhase.TRAIN)
    assert run.commit("ben", run.manifest("ben")) == "ok"
    run.until(RoundPhase.JURY)  # ann has not committed, ben has not revealed
    assert [run.merit(n) for n in ("ann", "ben", "eve")] == [1, 1, 0]


def test_merit_does_not_follow_the_number_of_updates() -> None:
    run = RoundRun(shards=tuple(bytes([i]) * 1024 for i in range(12)))
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.AGGREGATE)
    greedy, *others = run.m.validators
    work = {v.account.public: 0 for v in run.m.validators}
    for validator in run.m.validators:
        ranked = (tile_ranks(run.m.state, run.m.rules, s, 0)[0] for s in range(12))
        mine = [s for s, first in enumerate(ranked) if first == validator.account.public]
        work[validator.account.public] = len(mine)
        groups = [[s] for s in mine] if validator is greedy else [mine] if mine else []
        for group in groups:
            changes = tuple(run.change(s) for s in group)
            update = TileUpdate(run.round.number, 0, run.round.base_root, changes)
            tx = run.m.tx(validator.node, update, account=validator.account.public)
            assert run.send_duty(validator, update) == "ok"
            subject = Hash32(tx.id())
            said = Attest(AttestKind.UPDATE, update.round, subject, Verdict.YES, 0, ZERO_HASH)
            for other in run.m.validators:
                if other is not validator:
                    assert run.send_duty(other, said) in ("ok", "wrong_phase")
    assert work[greedy.account.public] > 1  # else this shows nothing
    run.until(RoundPhase.OPEN)
    for validator in (greedy, *others):
        account = validator.account.public
        assert run.m.state.account(account).merit == (1 if work[account] else 0)
    for kind in (b"slot/", b"plcs/", b"decl/"):
        assert not list(run.m.tree.items(kind))


# --- who is waited for ---------------------------------------------------------------------


def training(run: RoundRun, *known: str) -> None:
    """Dataset, merit for these, and all three in a round whose training has begun."""
    run.dataset()
    give_merit(run, run.m.genesis.params.trusted_merit, *known)
    run.join("ann", "ben", "eve")
    run.until(RoundPhase.TRAIN)


def blocks_of_training(run: RoundRun) -> int:
    begun = run.round.phase_height
    run.until(RoundPhase.REVEAL)
    return run.m.state.head.height - begun


def test_a_newcomer_that_brings_nothing_holds_nobody_for_long() -> None:
    run = RoundRun(train={"blocks": 300, "ms": 1000})
    training(run, "ann", "ben")
    for _ in range(28):
        run.m.block()
    assert run.commit("ann", run.manifest("ann")) == "ok"
    assert run.commit("ben", run.manifest("ben")) == "ok"
    assert blocks_of_training(run) == 30 * NEWCOMER_PATIENCE


@pytest.mark.parametrize(
    "window", [{"blocks": 400, "ms": 1000}, {"blocks": 1, "ms": 400 * STEP_MS}]
)
def test_a_newcomer_has_a_quarter_of_the_window(window: dict[str, int]) -> None:
    """Who is trusted and has something at once does not end the phase for the others."""
    run = RoundRun(train=window)
    training(run, "ann", "ben")
    assert run.commit("ann", run.manifest("ann")) == "ok"
    assert run.commit("ben", run.manifest("ben")) == "ok"
    assert 98 <= blocks_of_training(run) <= 102


def test_a_newcomer_in_time_is_in_the_round() -> None:
    run = RoundRun(train={"blocks": 300, "ms": 1000})
    training(run, "ann", "ben")
    assert run.commit("ann", run.manifest("ann")) == "ok"
    assert run.commit("ben", run.manifest("ben")) == "ok"
    for _ in range(3):
        run.m.block()
    manifest = run.manifest("eve")
    assert run.commit("eve", manifest) == "ok"
    assert run.round.phase == RoundPhase.REVEAL  # nobody is missing
    assert run.send("eve", manifest) == "ok"
    assert run.send("eve", DeltaReveal(run.deltas["eve"], SALT)) == "ok"


@pytest.mark.parametrize("known", [(), ("ann", "ben", "eve"), ("eve",)])
def test_who_has_merit_is_waited_for_and_so_is_everybody_where_nobody_has(
    known: tuple[str, ...],
) -> None:
    run = RoundRun(train={"blocks": 50, "ms": 1000})
    training(run, *known)
    assert run.commit("ann", run.manifest("ann")) == "ok"
    assert run.commit("ben", run.manifest("ben")) == "ok"
    assert blocks_of_training(run) == 50


# --- parts that were declared ----------------------------------------------------------------


def test_a_part_is_declared_before_the_seed() -> None:
    run = RoundRun()
    run.dataset()
    part = (ShardIndex(1),)
    run.join("ann", held=part)
    run.join("ben")
    run.until(RoundPhase.TRAIN)
    for name, shards in (("ann", ()), ("ben", part)):
        other = replace(run.manifest(name), shards=shards)
        assert run.commit(name, other) == "ok"
        assert run.send(name, other) == "wrong_part"


def test_the_declared_part_is_taken() -> None:
    run = RoundRun()
    run.dataset()
    run.join("ann", held=(ShardIndex(1),))
    run.until(RoundPhase.TRAIN)
    manifest = replace(run.manifest("ann"), shards=(ShardIndex(1),))
    assert run.commit("ann", manifest) == "ok"
    assert run.send("ann", manifest) == "ok"


@pytest.mark.parametrize("held", [(2,), (1, 0), (0, 0)])
def test_a_declaration_names_shards_of_the_model(held: tuple[int, ...]) -> None:
    run = RoundRun()
    run.dataset()
    declared = JoinRound(run.round.number, tuple(ShardIndex(i) for i in held))
    assert run.send("ann", declared) == "bad_declaration"
    assert not run.round.joined
