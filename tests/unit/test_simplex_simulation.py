"""Whole networks from seeds. More: `python -m tests.sim`, `python -m tests.sim.mutants`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.sim import coverage, mutants, named
from tests.sim.byzantine import KINDS, Byzantine, Silent
from tests.sim.oracle import Violation
from tests.sim.scenario import Plan, simulate
from tests.sim.storm import Fury

RANDOM_SEEDS = 10


@pytest.mark.parametrize("seed", range(RANDOM_SEEDS))
def test_a_random_network_agrees_and_lives(seed: int) -> None:
    simulate(Plan(seed))


@pytest.mark.parametrize("scenario", named.SCENARIOS)
def test_a_named_scenario(scenario: str) -> None:
    assert named.SCENARIOS[scenario]()


def test_coverage_tells_what_was_never_reached() -> None:
    counts = Counter({name: 1 for names in coverage.SECTIONS.values() for name in names})
    assert coverage.report(counts)[1] == []
    del counts["R8 a missing block is asked for"], counts["torn tails"]
    assert coverage.report(counts)[1] == ["R8 a missing block is asked for", "torn tails"]
    said = {rule for rule in simulate(Plan(5)).counts if rule[:2] in ("R1", "R4", "R7", "RT")}
    assert said
    assert said <= set(coverage.SECTIONS["rules"])


def test_a_seed_replays_exactly() -> None:
    assert simulate(Plan(3)).trace == simulate(Plan(3)).trace != simulate(Plan(4)).trace


def test_three_of_four_go_on() -> None:
    verdict = simulate(Plan(11, size=4, liars=(Silent,), storm_ms=0, epoch_blocks=1000))
    assert min(verdict.heights) >= 10


@pytest.mark.parametrize("liar", KINDS, ids=lambda kind: kind.__name__.lower())
def test_each_kind_of_liar_alone(liar: type[Byzantine]) -> None:
    verdict = simulate(Plan(21, size=4, liars=(liar,), storm_ms=2000, fury=Fury(crashes=1)))
    assert verdict.counts[liar.label()] > 0


def test_an_epoch_a_block() -> None:
    verdict = simulate(Plan(31, size=4, liars=(), epoch_blocks=1, storm_ms=2000))
    assert verdict.counts["epochs begun"] >= 40


def test_many_crashes_of_everyone() -> None:
    verdict = simulate(Plan(41, size=4, liars=(), storm_ms=8000, fury=Fury(crashes=99)))
    assert verdict.counts["crashes"] >= 15
    assert verdict.counts["logs compared with what had left"] >= 15


@pytest.mark.parametrize("seed", range(61, 67))
def test_a_node_that_loses_its_log_contradicts_nothing(seed: int) -> None:
    plan = Plan(seed, size=4, liars=(), epoch_blocks=10, storm_ms=6000, frail=1, down=0)
    verdict = simulate(replace(plan, fury=Fury(lost_logs=8)))
    assert verdict.counts["lost logs"] >= 1


def test_a_disk_that_misdirects_writes_makes_nobody_sign_twice() -> None:
    counts: Counter[str] = Counter()
    for seed in range(71, 83):
        plan = Plan(seed, size=4, liars=(), epoch_blocks=5, storm_ms=6000, frail=1, down=0)
        counts += simulate(replace(plan, fury=Fury(rots=6))).counts
    assert counts["misdirected writes"] >= 12
    assert counts["refusals to start"] >= 2
    assert counts["logs opened with a loss"] >= 2


def test_a_quorum_alone_goes_on() -> None:
    verdict = simulate(Plan(91, size=7, liars=(), down=9, storm_ms=2000))
    assert verdict.counts["kept down"] >= 1


def test_agreement_holds_with_liars_of_exactly_a_third() -> None:
    assert simulate(Plan(92, thirds=True)).counts["liars with exactly a third"] == 1


def test_a_single_validator_and_a_follower() -> None:
    simulate(Plan(51, size=1, liars=(), followers=1, storm_ms=2000, fury=Fury(crashes=4)))


@pytest.mark.parametrize(
    "bug",
    ["finalize after nullify", "own votes are forgotten in a crash", "nothing is persisted"],
)
def test_the_oracle_sees_a_seeded_bug(bug: str) -> None:
    found = mutants.caught(bug, range(12))
    assert found is not None
    assert found[1].startswith(Violation.__name__)
