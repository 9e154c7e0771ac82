"""Whole networks from seeds. More: `python -m tests.sim`, `python -m tests.sim.mutants`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from chain import attendance
from tests.sim import coverage, mutants, named
from tests.sim.__main__ import main
from tests.sim.byzantine import KINDS, Byzantine, Silent
from tests.sim.oracle import Violation
from tests.sim.scenario import Plan, simulate
from tests.sim.storm import Fury

ROOT = Path(__file__).parents[2]
RANDOM_SEEDS = 100  # half a second each; thousands by `python -m tests.sim --seeds N`


def test_random_networks_agree_and_live() -> None:
    command = [sys.executable, "-m", "tests.sim", "--seeds", str(RANDOM_SEEDS)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{RANDOM_SEEDS} seeds, 0 failed" in ran.stderr


def test_a_failure_prints_the_line_that_replays_it(capsys: pytest.CaptureFixture[str]) -> None:
    with mutants.planted("finalize after nullify"):
        assert main(["--seeds", "4", "--jobs", "1"]) == 1
    line = capsys.readouterr().out.splitlines()[0]
    replay = re.fullmatch(r"FAILED python -m tests.sim (--seed \d+)  # node .*", line)
    assert replay is not None
    assert main(replay[1].split()) == 0  # without the bug


@pytest.mark.parametrize("scenario", named.SCENARIOS)
def test_a_named_scenario(scenario: str) -> None:
    assert named.SCENARIOS[scenario]()


@pytest.mark.parametrize(("limit", "wrong"), [("JAIL_SHARE", 2), ("MIN_SET", 3)])
def test_the_jailing_scenario_sees_a_limit_that_does_not_hold(
    limit: str, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance, limit, wrong)
    with pytest.raises(Violation, match=r"in one epoch|only 3 stay"):
        named.SCENARIOS["jailing-down-to-four"]()


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
    assert verdict.counts["epochs begun"] >= 20


def test_many_crashes_of_everyone() -> None:
    counts: Counter[str] = Counter()
    for seed in range(41, 46):
        plan = Plan(seed, size=4, liars=(), storm_ms=8000, fury=Fury(crashes=99))
        counts += simulate(plan).counts
    assert counts["crashes"] >= 25
    assert counts["logs compared with what had left"] >= 25


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
    plan = Plan(51, size=1, liars=(), followers=1, storm_ms=2000, fury=Fury(crashes=4))
    assert min(simulate(plan).heights) >= 10  # after the storm, on both


@pytest.mark.parametrize(
    "bug",
    [
        "quorum of two thirds and no more",
        "the log is not synced",
        "finalize after nullify",
        "notarize twice",
    ],
)
def test_the_oracle_sees_a_seeded_bug(bug: str) -> None:
    found = mutants.caught(bug, range(40))
    assert found is not None
    assert found[1].startswith(Violation.__name__)
