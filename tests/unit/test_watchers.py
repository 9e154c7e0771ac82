"""Who has to find an update right before it counts (docs/spec/rounds.md, "Watchers")."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from chain import rounds
from chain.hashes import ZERO_HASH, Hash32
from chain.limits import WATCHERS
from chain.records import RoundPhase, UpdateRecord, epoch_key, update_key
from chain.rounds import tile_ranks
from chain.transactions import Attest, AttestKind, Verdict
from chain.types import PubKey, Stake, TxId, ValidatorSet
from node.services.duty_plan import CheckUpdate, plan
from tests.kit.round_run import RoundRun
from wallet.keys import Keys

MANY = 25  # validators: more than are watchers


@pytest.fixture(scope="module")
def ready() -> RoundRun:
    """A round of a large set, with the first update posted and watchers drawn."""
    run = RoundRun(validators=MANY, aggregate={"blocks": 60, "ms": 60_000})
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.AGGREGATE)
    assert run.round.watchers == ()
    assert rounds.lacks_watchers(run.m.state, run.round)
    began = run.m.height
    made = run.update(primary(run))
    assert made is not None
    assert run.send_duty(primary(run), made[0]) == "ok"
    assert run.m.done is not None
    assert run.m.done.waits  # leaders do not let the draw wait
    while not run.round.watchers:
        assert not any(map(checks(run, made[1]).__contains__, everyone(run)))
        run.m.block()
    assert run.m.height == began + run.m.genesis.params.seed_blocks
    assert not run.m.done.waits
    return run


@pytest.fixture
def run(ready: RoundRun) -> RoundRun:
    fresh = copy.copy(ready)
    fresh.m = copy.copy(ready.m)
    return fresh


def primary(run: RoundRun) -> Keys:
    first = tile_ranks(run.m.state, run.m.rules, 0, 0, 1)[0]
    return next(v for v in run.m.validators if v.account.public == first)


def everyone(run: RoundRun) -> list[PubKey]:
    return [v.account.public for v in run.m.validators]


def posted(run: RoundRun) -> UpdateRecord:
    made = run.round
    slot = rounds.slots(run.m.state, made.number)[0][2]
    return run.m.state.need(UpdateRecord, update_key(slot.update))


def watchers(run: RoundRun) -> list[Keys]:
    drawn = rounds.watchers(run.round, posted(run).primary)
    return [v for v in run.m.validators if v.account.public in drawn]


def checks(run: RoundRun, update: TxId) -> set[PubKey]:
    """Who owes the chain a look at an update."""
    found = set()
    for account in everyone(run):
        owed = plan(run.m.state, run.m.genesis.params, run.m.rules, account, lambda *_: True)
        if CheckUpdate(run.round.number, update) in owed:
            found.add(account)
    return found


def say(run: RoundRun, who: Keys, verdict: Verdict = Verdict.YES) -> None:
    subject = Hash32(posted(run).id)
    said = Attest(AttestKind.UPDATE, run.round.number, subject, verdict, 0, ZERO_HASH)
    assert run.send_duty(who, said) == "ok"


def test_nineteen_are_drawn_and_never_the_primary(run: RoundRun) -> None:
    drawn = rounds.watchers(run.round, posted(run).primary)
    assert len(set(drawn)) == WATCHERS
    for account in everyone(run):
        found = rounds.watchers(run.round, account)
        assert len(found) == WATCHERS
        assert account not in found
    assert checks(run, posted(run).id) == set(drawn)


def test_more_than_half_of_the_others_suffice_as_ever(run: RoundRun) -> None:
    """Thirteen of 24 equal stakes, be they watchers or not."""
    drawn = watchers(run)
    others = [v for v in run.m.validators if v not in drawn and v is not primary(run)]
    for who in (*others, *drawn[:7]):
        say(run, who)
    assert not posted(run).provisional
    assert checks(run, posted(run).id) == {w.account.public for w in drawn[7:]}
    say(run, drawn[7])
    assert posted(run).provisional
    assert not checks(run, posted(run).id)


def test_all_watchers_suffice_though_they_are_a_small_part_of_the_stake(run: RoundRun) -> None:
    state, epoch = run.m.state, run.m.state.epoch(run.m.state.head.epoch)
    drawn = {w.account.public for w in watchers(run)}
    members = tuple(
        replace(v, stake=v.stake if v.account in drawn else Stake(100 * v.stake))
        for v in epoch.validators.members
    )
    state.put(epoch_key(epoch.epoch), replace(epoch, validators=ValidatorSet(members)))
    run.m.tree = state.commit()
    for who in watchers(run)[:-1]:
        say(run, who)
        assert not posted(run).provisional
    say(run, watchers(run)[-1])
    assert posted(run).provisional


@pytest.mark.parametrize("verdict", [Verdict.NO, Verdict.UNAVAILABLE])
def test_one_who_is_not_convinced_calls_everyone(run: RoundRun, verdict: Verdict) -> None:
    first, *others = watchers(run)
    say(run, first, verdict)
    record = posted(run)
    asked = set(everyone(run)) - {first.account.public, record.primary}
    assert checks(run, record.id) == asked
    for who in others[:12]:
        say(run, who)
        assert not posted(run).provisional
    say(run, others[12])  # 13 of 24 equal stakes
    assert posted(run).provisional


def test_watchers_who_sleep_cost_half_of_the_window(run: RoundRun) -> None:
    for who in watchers(run)[:5]:
        say(run, who)
    current, half = run.round, run.m.genesis.params.aggregate.blocks // 2
    while run.m.height < current.deadline_height - half:
        assert len(checks(run, posted(run).id)) == WATCHERS - 5
        run.m.block()
    assert len(checks(run, posted(run).id)) == MANY - 1 - 5


def test_in_a_small_set_everyone_checks_and_nothing_is_drawn() -> None:
    run = RoundRun()
    run.to_reveal(ann=True)
    run.screen({"ann": Verdict.YES})
    run.until(RoundPhase.AGGREGATE)
    made = run.update(primary(run))
    assert made is not None
    assert run.send_duty(primary(run), made[0]) == "ok"
    assert not rounds.lacks_watchers(run.m.state, run.round)
    assert checks(run, made[1]) == set(everyone(run)) - {primary(run).account.public}
    for _ in range(run.m.genesis.params.seed_blocks + 1):
        run.m.block()
    assert run.round.watchers == ()
