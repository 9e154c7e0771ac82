"""The whole-round guard: a round that makes the model significantly worse is rolled back."""

from __future__ import annotations

from typing import Any

import pytest

from chain import guard
from chain import guard_records as g
from chain import records as r
from chain.guard_records import GuardVerdict
from chain.hashes import ZERO_HASH, Hash32
from chain.records import DeltaStatus, RoundPhase
from chain.rounds import tile_ranks
from chain.state import REWARD_POOL
from chain.transactions import Attest, AttestKind, TileUpdate, Verdict
from tests.kit.machine import key
from tests.kit.round_run import RoundRun
from wallet.keys import Keys

LOSS = 2_000_000_000  # nano-nats per byte
LIMIT = LOSS // 100  # by genesis.json


def to_settle(**params: Any) -> RoundRun:
    """A round that has changed the model and is to be measured."""
    run = RoundRun(**params)
    run.to_reveal(ann=True, ben=True)
    run.screen({"ann": Verdict.YES, "ben": Verdict.YES})
    run.aggregate()
    run.until(RoundPhase.SETTLE)
    return run


def measure(run: RoundRun, validator: Keys, root: Hash32, loss: int) -> str:
    current = run.m.state.round(0)
    said = Attest(AttestKind.EVAL, 0, root, Verdict.YES, loss, current.holdout)
    return run.send_duty(validator, said)


def measure_all(run: RoundRun, *rises: int | None, base: int = LOSS) -> None:
    """Each validator's word on base and result, by how much the loss is higher; None: of the base
    alone."""
    current = run.m.state.round(0)
    for validator in run.m.validators:
        assert measure(run, validator, current.base_root, base) == "ok"
    for validator, rise in zip(run.m.validators, rises, strict=True):
        if rise is not None:
            assert measure(run, validator, current.result_root, base + rise) == "ok"


def verdict(run: RoundRun) -> GuardVerdict | None:
    record = guard.of_round(run.m.state, 0)
    return None if record is None else GuardVerdict(record.verdict)


def shards(run: RoundRun) -> list[tuple[Hash32, tuple[Hash32, ...], int]]:
    state = run.m.state
    found = []
    for i in range(state.model.shards):
        record = state.need(r.ShardRecord, r.shard_key(i))
        found.append(
            (record.root, state.need(r.TileRoots, r.tiles_key(i)).roots, int(record.version))
        )
    return found


def test_a_worse_round_is_rolled_back() -> None:
    run = to_settle()
    base, changed = run.m.state.round(0).base_root, shards(run)
    pool = run.m.state.account(REWARD_POOL).balance
    merit = run.m.state.account(key("ann").public).merit
    total = run.m.grains()
    measure_all(run, *[LIMIT + 1] * 4)
    run.until(RoundPhase.OPEN)
    state, done = run.m.state, run.m.state.round(0)
    assert verdict(run) == GuardVerdict.ROLLED_BACK
    assert done.result_root != base == done.base_root
    assert done.loss_after == done.loss_before + LIMIT + 1
    assert state.model.root == base
    assert state.model.version == 2  # a version of its own: nothing is undone
    for index, ((root, roots, version), (worse, _, old)) in enumerate(
        zip(shards(run), changed, strict=True)
    ):
        assert root != worse
        assert root == run.m.rules.shard_root(roots, len(run.m.shards[index]))
        assert version == old + 1 == 2
    assert run.m.rules.model_root([root for root, _, _ in shards(run)]) == base
    for name in ("ann", "ben"):
        assert state.delta(run.deltas[name]).status == DeltaStatus.ROLLED_BACK
    assert state.account(REWARD_POOL).balance == pool
    assert state.account(key("ann").public).merit == merit
    assert run.m.grains() == total
    assert not list(run.m.tree.items(g.REPLACED))
    # the next round begins where this one did, knows the loss, and the learners' chain goes on
    run.join("ann")
    run.until(RoundPhase.TRAIN)
    assert (run.round.number, run.round.base_root) == (1, base)
    assert run.round.loss_before == LOSS
    assert state.need(r.LearnerRecord, r.learner_key(key("ann").public)).residual


@pytest.mark.parametrize("rise", [-LIMIT, 0, LIMIT])
def test_up_to_the_limit_it_stands(rise: int) -> None:
    run = to_settle()
    measure_all(run, *[rise] * 4)
    run.until(RoundPhase.OPEN)
    assert verdict(run) == GuardVerdict.KEPT
    assert run.m.state.model.root == run.m.state.round(0).result_root
    assert run.m.state.delta(run.deltas["ann"]).status == DeltaStatus.MERGED
    assert not list(run.m.tree.items(g.REPLACED))


@pytest.mark.parametrize(
    ("rises", "wanted", "waits"),
    [
        ((LIMIT + 1, LIMIT + 1, LIMIT + 1, None), GuardVerdict.ROLLED_BACK, False),
        ((LIMIT + 1, LIMIT + 1, 0, 0), GuardVerdict.KEPT, False),  # half is not more than half
        ((0, 0, LIMIT + 1, None), GuardVerdict.KEPT, False),  # whatever the fourth says
        ((LIMIT + 1, LIMIT + 1, None, None), GuardVerdict.UNKNOWN, True),
        ((LIMIT + 1, LIMIT + 1, 0, None), GuardVerdict.UNKNOWN, True),
        ((None, None, None, None), GuardVerdict.UNKNOWN, True),
    ],
)
def test_more_than_half_of_all_stake_decides(
    rises: tuple[int | None, ...], wanted: GuardVerdict, waits: bool
) -> None:
    run = to_settle(settle={"blocks": 3, "ms": 0})
    measure_all(run, *rises)
    height = run.m.state.round(0).deadline_height
    run.until(RoundPhase.OPEN)
    assert verdict(run) == wanted
    patience = run.m.height - height
    assert patience >= 29 if waits else patience < 10


def test_first_and_loudest_is_not_enough() -> None:
    """Two of seven liars speak first. With the fourth word a loss is known, the upper median, and
    it is theirs; the guard does not look at it."""
    run = to_settle(validators=7)
    current = run.m.state.round(0)
    liars, honest = run.m.validators[:2], run.m.validators[2:]
    for validator in honest:
        assert measure(run, validator, current.base_root, LOSS) == "ok"
    for liar in liars:
        assert measure(run, liar, current.base_root, 1) == "ok"
        assert measure(run, liar, current.result_root, 2**63 - 1) == "ok"
    for validator in honest[:2]:
        assert measure(run, validator, current.result_root, LOSS - 1) == "ok"
    assert run.round.loss_after == 2**63 - 1
    for validator in honest[2:4]:
        assert measure(run, validator, current.result_root, LOSS - 1) == "ok"
    run.until(RoundPhase.OPEN)
    record = guard.of_round(run.m.state, 0)
    assert record is not None
    assert (record.verdict, record.worse) == (GuardVerdict.KEPT, 2 * 10**12)


def test_who_has_not_measured_the_base_has_no_say_and_is_not_waited_for() -> None:
    run = to_settle(settle={"blocks": 3, "ms": 0})
    current = run.m.state.round(0)
    for validator in run.m.validators:
        assert measure(run, validator, current.result_root, 9 * LOSS) == "ok"
        if run.round.phase != RoundPhase.SETTLE:
            break
    assert guard.found(run.m.state, current, 0) == (0, 0, 0, 4 * 10**12)
    run.until(RoundPhase.OPEN)
    assert verdict(run) == GuardVerdict.UNKNOWN
    assert run.m.height - current.deadline_height < 3


def test_without_the_parameter_the_state_is_as_it_was() -> None:
    run = to_settle(guard_ppm=0)
    measure_all(run, *[LOSS] * 4)
    run.until(RoundPhase.OPEN)
    assert verdict(run) is None
    assert run.m.state.model.root == run.m.state.round(0).result_root
    assert not list(run.m.tree.items(b"grd_/"))
    assert not list(run.m.tree.items(g.REPLACED))


def test_a_round_that_changes_nothing_needs_no_verdict() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.OPEN)  # no update at all
    assert run.m.state.round(0).accepted
    assert verdict(run) is None


def test_tiles_that_kept_their_base_stay_as_they_are() -> None:
    """Of a round in which one shard found no update, the other is rolled back alone."""
    run = RoundRun()
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.AGGREGATE)
    first = tile_ranks(run.m.state, run.m.rules, 0, 0)[0]
    primary = next(v for v in run.m.validators if v.account.public == first)
    update = TileUpdate(0, 0, run.round.base_root, (run.change(0),))
    update_id = run.m.tx(primary.node, update, account=first).id()
    assert run.send_duty(primary, update) == "ok"
    for other in run.m.validators:
        if other is not primary:
            said = Attest(AttestKind.UPDATE, 0, Hash32(update_id), Verdict.YES, 0, ZERO_HASH)
            assert run.send_duty(other, said) in ("ok", "wrong_phase")
    run.until(RoundPhase.SETTLE)
    before = [version for _, _, version in shards(run)]
    assert before == [1, 0]
    measure_all(run, *[LIMIT + 1] * 4)
    run.until(RoundPhase.OPEN)
    assert run.m.state.model.root == run.m.state.round(0).base_root
    assert [version for _, _, version in shards(run)] == [2 * v for v in before]
